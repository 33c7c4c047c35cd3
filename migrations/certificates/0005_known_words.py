"""Statuses and verdicts are words of the known lists; what a promotion decided stays as decided."""

from django.db import migrations, models

from deletion_service.audit.events import frozen_columns, lifted


CERTIFICATES = frozen_columns(
    "certificates_certificate",
    "target_id",
    "evidence_id",
    "decision_id",
    "verdict",
    "statement_sha256",
    "evidence_approver_id",
    "drafted_at",
)
PROMOTIONS = frozen_columns(
    "certificates_promotion",
    "model_id",
    "epoch",
    "target_id",
    "evidence_id",
    "decision_id",
    "from_version_id",
    "to_version_id",
    "decided_at",
)


class Migration(migrations.Migration):

    dependencies = [
        ('access', '0001_initial'),
        ('certificates', '0004_sweep'),
        ('targets', '0008_subject_marks'),
    ]

    operations = [
        lifted(CERTIFICATES),
        migrations.AddConstraint(
            model_name='certificate',
            constraint=models.CheckConstraint(condition=models.Q(('status__in', ['drafted', 'discarded', 'issued', 'published', 'revoked'])), name='certificate_status_is_known'),
        ),
        migrations.AddConstraint(
            model_name='certificate',
            constraint=models.CheckConstraint(condition=models.Q(('verdict__in', ['PASS', 'FAIL', 'INCONCLUSIVE', 'NOT_RUN'])), name='certificate_verdict_is_known'),
        ),
        migrations.AddConstraint(
            model_name='promotion',
            constraint=models.CheckConstraint(condition=models.Q(('status__in', ['decided', 'confirmed', 'conflict'])), name='promotion_status_is_known'),
        ),
        CERTIFICATES,
        PROMOTIONS,
    ]
