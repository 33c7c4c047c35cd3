"""Rows that tell what happened refuse UPDATE and DELETE."""

from django.db import migrations

from deletion_service.audit.events import append_only


class Migration(migrations.Migration):
    dependencies = [("targets", "0001_initial")]
    operations = [append_only("targets_targetevent")]
