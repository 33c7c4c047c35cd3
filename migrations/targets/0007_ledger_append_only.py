"""What stands for a deletion, and that it was one, refuses UPDATE and DELETE."""

from django.db import migrations

from deletion_service.audit.events import append_only


class Migration(migrations.Migration):
    dependencies = [("targets", "0006_ledger")]
    operations = [append_only("targets_sentinel", "targets_ledgerentry")]
