"""What a run was planned with stays as planned: method, seeds, policy. A seed cannot be exchanged for a kinder one."""

from django.db import migrations

from deletion_service.audit.events import frozen_columns


class Migration(migrations.Migration):
    dependencies = [("targets", "0002_append_only")]
    operations = [
        frozen_columns(
            "targets_unlearningrun",
            "batch_id",
            "attempt",
            "method",
            "method_settings",
            "seed",
            "seed_fixed",
            "verification_seed_sha256",
            "policy_name",
            "policy_sha256",
        ),
    ]
