"""Rows that tell what happened refuse UPDATE and DELETE."""

from django.db import migrations

from deletion_service.audit.events import append_only, frozen_columns


class Migration(migrations.Migration):
    dependencies = [("certificates", "0001_initial")]
    operations = [
        append_only(
            "certificates_verdictpolicy",
            "certificates_evidence",
            "certificates_evidencedecision",
            "certificates_certificateevent",
            "certificates_logentry",
            "certificates_logcheckpoint",
        ),
        frozen_columns(
            "certificates_certificate",
            "target_id",
            "evidence_id",
            "decision_id",
            "verdict",
            "statement_sha256",
            "evidence_approver_id",
            "drafted_at",
        ),
    ]
