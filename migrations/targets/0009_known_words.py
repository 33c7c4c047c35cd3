"""Kinds, statuses, actions and probes are words of the known lists."""

from django.db import migrations, models

from deletion_service.audit.events import frozen_columns, lifted


RUNS = frozen_columns(
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
)


class Migration(migrations.Migration):

    dependencies = [
        ('requests', '0007_known_words'),
        ('targets', '0008_subject_marks'),
    ]

    operations = [
        lifted(RUNS),
        migrations.AddConstraint(
            model_name='contaminatedversion',
            constraint=models.CheckConstraint(condition=models.Q(('action__in', ['deleted', 'retained'])), name='retirement_action_is_known'),
        ),
        migrations.AddConstraint(
            model_name='contaminatedversion',
            constraint=models.CheckConstraint(condition=models.Q(('probe__in', ['gone', 'still_readable', 'unknown'])), name='retirement_probe_is_known'),
        ),
        migrations.AddConstraint(
            model_name='erasurebatch',
            constraint=models.CheckConstraint(condition=models.Q(('status__in', ['open', 'closed'])), name='batch_status_is_known'),
        ),
        migrations.AddConstraint(
            model_name='job',
            constraint=models.CheckConstraint(condition=models.Q(('kind__in', ['locate', 'unlearn', 'verify', 'sweep', 'promote', 'retire', 'dispose', 'certify', 'notify'])), name='job_kind_is_known'),
        ),
        migrations.AddConstraint(
            model_name='modelversion',
            constraint=models.CheckConstraint(condition=models.Q(('kind__in', ['base', 'finetune', 'unlearned'])), name='version_kind_is_known'),
        ),
        migrations.AddConstraint(
            model_name='sourceerasure',
            constraint=models.CheckConstraint(condition=models.Q(('action__in', ['pending', 'deleted', 'tombstoned'])), name='source_action_is_known'),
        ),
        migrations.AddConstraint(
            model_name='sourceerasure',
            constraint=models.CheckConstraint(condition=models.Q(('probe__in', ['gone', 'still_present', 'unknown'])), name='source_probe_is_known'),
        ),
        migrations.AddConstraint(
            model_name='unlearningrun',
            constraint=models.CheckConstraint(condition=models.Q(('status__in', ['planned', 'unlearned', 'verified'])), name='run_status_is_known'),
        ),
        migrations.AddConstraint(
            model_name='erasuretarget',
            constraint=models.CheckConstraint(condition=models.Q(('match_reason__in', ['document_seen', 'known_customer', 'court_order', 'controller_instruction', ''])), name='target_match_reason_is_known'),
        ),
        RUNS,
    ]
