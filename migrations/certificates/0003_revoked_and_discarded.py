"""Drafts can be discarded and certificates revoked; the triggers are lifted while SQLite makes the tables anew."""

from django.db import migrations, models

from deletion_service.audit.events import append_only, frozen_columns, lifted

EVENTS = append_only("certificates_certificateevent")
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


class Migration(migrations.Migration):
    dependencies = [
        ("access", "0001_initial"),
        ("certificates", "0002_append_only"),
        ("targets", "0004_job_error_detail"),
    ]

    operations = [
        lifted(EVENTS),
        lifted(CERTIFICATES),
        migrations.CreateModel(
            name="SignedRevocations",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("document", models.BinaryField()),
                ("at", models.DateTimeField(auto_now_add=True)),
            ],
        ),
        migrations.RemoveConstraint(
            model_name="certificate",
            name="certificate_once_per_decision",
        ),
        migrations.RemoveConstraint(
            model_name="certificate",
            name="certificate_issued_if_and_only_if_a_person_did",
        ),
        migrations.AddField(
            model_name="certificateevent",
            name="reason",
            field=models.CharField(
                blank=True,
                choices=[
                    ("weights_restored", "older weights can be read again"),
                    ("data_trained_again", "the model was trained again on the person's data"),
                    ("evidence_unsound", "the evidence does not hold"),
                    ("key_compromised", "a signing key may be known to others"),
                    ("issued_in_error", "it was issued in error"),
                ],
                default="",
                max_length=32,
            ),
        ),
        migrations.AlterField(
            model_name="certificate",
            name="status",
            field=models.CharField(
                choices=[
                    ("drafted", "drafted"),
                    ("discarded", "discarded"),
                    ("issued", "issued"),
                    ("published", "published"),
                    ("revoked", "revoked"),
                ],
                default="drafted",
                max_length=16,
            ),
        ),
        migrations.AddConstraint(
            model_name="certificate",
            constraint=models.UniqueConstraint(
                condition=models.Q(("status", "discarded"), _negated=True),
                fields=("target", "decision"),
                name="certificate_once_per_decision",
            ),
        ),
        migrations.AddConstraint(
            model_name="certificate",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("issued_by", None), ("status__in", ["drafted", "discarded"])),
                    models.Q(
                        models.Q(("status__in", ["drafted", "discarded"]), _negated=True), ("issued_by__isnull", False)
                    ),
                    _connector="OR",
                ),
                name="certificate_issued_if_and_only_if_a_person_did",
            ),
        ),
        migrations.AddConstraint(
            model_name="certificateevent",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("new_status", "revoked"), models.Q(("reason", ""), _negated=True)),
                    models.Q(models.Q(("new_status", "revoked"), _negated=True), ("reason", "")),
                    _connector="OR",
                ),
                name="certificate_event_reason_if_and_only_if_revoked",
            ),
        ),
        EVENTS,
        CERTIFICATES,
        append_only("certificates_signedrevocations"),
    ]
