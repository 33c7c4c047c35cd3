"""What was shown, and what do we sign? Digests, verdicts and signatures; nothing personal, ever."""

from __future__ import annotations

from typing import Final

from django.db import models
from django.db.models import F, Q

from deletion_service.access.models import StaffMember
from deletion_service.ids import ID_LENGTH, certificate_id, evidence_id, promotion_id, sweep_id
from deletion_service.requests.models import ErasureRequest
from deletion_service.targets.models import ErasureTarget, ModelVersion, TrainedModel, UnlearningRun
from deletion_service.targets.statuses import Verdict

_ID = ID_LENGTH + 4


class VerdictPolicy(models.Model):
    """A policy document as it was when first used. Append-only: a policy never changes under its name and version."""

    name = models.CharField(max_length=64)
    version = models.PositiveIntegerField()
    purpose = models.CharField(max_length=16)
    sha256 = models.CharField(max_length=64, unique=True)
    document = models.JSONField()
    recorded_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=("name", "version"), name="policy_version_is_unique"),
        ]

    def __str__(self) -> str:
        return f"{self.name} version {self.version}"


class Evidence(models.Model):
    """A sealed verification of one target in one run: canonical bytes, their digest, the verdict. Append-only."""

    id = models.CharField(primary_key=True, max_length=_ID, default=evidence_id)
    target = models.ForeignKey(ErasureTarget, on_delete=models.PROTECT, related_name="evidence")
    run = models.ForeignKey(UnlearningRun, on_delete=models.PROTECT, related_name="evidence")
    policy = models.ForeignKey(VerdictPolicy, on_delete=models.PROTECT, related_name="evidence")
    attempt = models.PositiveIntegerField()
    verdict = models.CharField(max_length=16, choices=Verdict)
    document = models.BinaryField()
    sha256 = models.CharField(max_length=64, unique=True)
    sealed_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ("target", "attempt")
        constraints = [
            models.UniqueConstraint(fields=("target", "run"), name="evidence_once_per_target_and_run"),
            models.CheckConstraint(
                condition=Q(verdict__in=["PASS", "FAIL", "INCONCLUSIVE"]), name="evidence_verdict_is_known"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.id}: {self.verdict}"


class Sweep(models.Model):
    """Every earlier deletion of a model tested again on one version: sealed report, verdict. Append-only.

    `target` is the one whose candidate was tested; a version that came from outside has none. What was not run says
    why: nobody was deleted before, or the job failed for good.
    """

    class Result(models.TextChoices):
        PASS = "PASS", "PASS"  # noqa: S105 - a verdict, not a password
        FAIL = "FAIL", "FAIL"
        INCONCLUSIVE = "INCONCLUSIVE", "INCONCLUSIVE"
        NOT_RUN = "NOT_RUN", "not run"

    class Reason(models.TextChoices):
        NO_EARLIER_DELETIONS = "no_earlier_deletions", "no earlier deletions"
        ERROR = "error", "the job failed"

    id = models.CharField(primary_key=True, max_length=_ID, default=sweep_id)
    version = models.ForeignKey(ModelVersion, on_delete=models.PROTECT, related_name="sweeps")
    target = models.ForeignKey(ErasureTarget, null=True, blank=True, on_delete=models.PROTECT, related_name="sweeps")
    attempt = models.PositiveIntegerField()
    earlier = models.PositiveIntegerField()
    result = models.CharField(max_length=16, choices=Result)
    reason = models.CharField(max_length=32, choices=Reason, blank=True, default="")
    document = models.BinaryField(null=True, blank=True)
    sha256 = models.CharField(max_length=64, blank=True, default="")
    sealed_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ("version", "attempt")
        constraints = [
            models.UniqueConstraint(fields=("version", "attempt"), name="sweep_attempt_is_unique_per_version"),
            models.CheckConstraint(
                condition=(
                    Q(result__in=["PASS", "FAIL", "INCONCLUSIVE"], reason="", document__isnull=False, earlier__gte=1)
                    & ~Q(sha256="")
                )
                | (Q(result="NOT_RUN", document=None, sha256="") & ~Q(reason="")),
                name="sweep_has_sealed_evidence_or_a_reason_for_none",
            ),
            models.CheckConstraint(
                condition=~Q(reason="no_earlier_deletions") | Q(earlier=0), name="sweep_of_nobody_counts_nobody"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.id}: {self.result}"


class EvidenceDecision(models.Model):
    """What a person decided on the evidence of one attempt. Append-only."""

    class Choice(models.TextChoices):
        RELEASE = "release", "release: every target passed"
        RELEASE_PARTIAL = "release_partial", "release the targets that passed"
        DECLINE = "decline", "release nothing"

    class Reason(models.TextChoices):
        ALL_GATES_PASSED = "all_gates_passed", "all gates of the policy passed"
        PASSED_TARGETS_ONLY = "passed_targets_only", "the targets that passed should not wait for the others"
        EVIDENCE_FAILED = "evidence_failed", "the evidence shows a leak or damage"
        EVIDENCE_INCONCLUSIVE = "evidence_inconclusive", "the evidence does not suffice"
        RETRAIN_PLANNED = "retrain_planned", "retraining without the data is planned"

    request = models.ForeignKey(ErasureRequest, on_delete=models.PROTECT, related_name="evidence_decisions")
    attempt = models.PositiveIntegerField()
    round = models.PositiveIntegerField(default=1)
    choice = models.CharField(max_length=16, choices=Choice)
    reason = models.CharField(max_length=32, choices=Reason)
    decided_by = models.ForeignKey(StaffMember, on_delete=models.PROTECT, related_name="+")
    role = models.CharField(max_length=16)
    at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ("request", "attempt", "round")
        constraints = [
            models.UniqueConstraint(fields=("request", "attempt", "round"), name="evidence_decided_once_per_round"),
        ]

    def __str__(self) -> str:
        return f"{self.request_id} attempt {self.attempt}: {self.choice}"


class Promotion(models.Model):
    """A passing version becomes the one served. Decided here with a unique epoch, projected to the registry."""

    class Status(models.TextChoices):
        DECIDED = "decided", "decided"
        CONFIRMED = "confirmed", "confirmed by read-back"
        CONFLICT = "conflict", "conflict"

    id = models.CharField(primary_key=True, max_length=_ID, default=promotion_id)
    model = models.ForeignKey(TrainedModel, on_delete=models.PROTECT, related_name="promotions")
    epoch = models.PositiveIntegerField()
    target = models.ForeignKey(ErasureTarget, on_delete=models.PROTECT, related_name="promotions")
    evidence = models.ForeignKey(Evidence, on_delete=models.PROTECT, related_name="promotions")
    decision = models.ForeignKey(EvidenceDecision, on_delete=models.PROTECT, related_name="promotions")
    from_version = models.ForeignKey(ModelVersion, on_delete=models.PROTECT, related_name="+")
    to_version = models.ForeignKey(ModelVersion, on_delete=models.PROTECT, related_name="+")
    status = models.CharField(max_length=16, choices=Status, default=Status.DECIDED)
    decided_at = models.DateTimeField(auto_now_add=True)
    confirmed_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ("model", "epoch")
        constraints = [
            models.UniqueConstraint(fields=("model", "epoch"), name="promotion_epoch_is_unique_per_model"),
            models.UniqueConstraint(fields=("target", "decision"), name="promotion_once_per_decision"),
            models.UniqueConstraint(
                fields=("model",), condition=Q(status="decided"), name="one_pending_promotion_per_model"
            ),
            models.CheckConstraint(
                condition=Q(status__in=["decided", "confirmed", "conflict"]), name="promotion_status_is_known"
            ),
            models.CheckConstraint(condition=~Q(from_version=F("to_version")), name="promotion_changes_the_version"),
        ]

    def __str__(self) -> str:
        return f"{self.model} epoch {self.epoch}: {self.status}"


class Certificate(models.Model):
    """A signed statement about one target. Only PASS is a certificate; everything else is an attempt report.

    `evidence_approver` is copied from the decision when the statement is drafted and cannot change; the database
    refuses the same person as `issued_by`.
    """

    class Status(models.TextChoices):
        DRAFTED = "drafted", "drafted"
        DISCARDED = "discarded", "discarded"
        ISSUED = "issued", "issued"
        PUBLISHED = "published", "published"
        REVOKED = "revoked", "revoked"

    id = models.CharField(primary_key=True, max_length=_ID, default=certificate_id)
    target = models.ForeignKey(ErasureTarget, on_delete=models.PROTECT, related_name="certificates")
    evidence = models.ForeignKey(Evidence, on_delete=models.PROTECT, related_name="certificates")
    decision = models.ForeignKey(EvidenceDecision, on_delete=models.PROTECT, related_name="certificates")
    verdict = models.CharField(max_length=16, choices=Verdict)
    status = models.CharField(max_length=16, choices=Status, default=Status.DRAFTED)
    envelope = models.BinaryField()
    statement_sha256 = models.CharField(max_length=64, unique=True)
    evidence_approver = models.ForeignKey(StaffMember, on_delete=models.PROTECT, related_name="+")
    issued_by = models.ForeignKey(StaffMember, null=True, blank=True, on_delete=models.PROTECT, related_name="+")
    drafted_at = models.DateTimeField(auto_now_add=True)
    issued_at = models.DateTimeField(null=True, blank=True)
    published_at = models.DateTimeField(null=True, blank=True)
    log_proof = models.JSONField(null=True, blank=True)

    class Meta:
        ordering = ("drafted_at", "id")
        constraints = [
            models.UniqueConstraint(
                fields=("target", "decision"),
                condition=~Q(status="discarded"),
                name="certificate_once_per_decision",
            ),
            models.CheckConstraint(
                condition=Q(status__in=["drafted", "discarded", "issued", "published", "revoked"]),
                name="certificate_status_is_known",
            ),
            models.CheckConstraint(condition=Q(verdict__in=Verdict.values), name="certificate_verdict_is_known"),
            models.CheckConstraint(
                condition=Q(issued_by=None) | ~Q(issued_by=F("evidence_approver")),
                name="certificate_issued_by_a_second_person",
            ),
            models.CheckConstraint(
                condition=Q(status__in=["drafted", "discarded"], issued_by=None)
                | (~Q(status__in=["drafted", "discarded"]) & Q(issued_by__isnull=False)),
                name="certificate_issued_if_and_only_if_a_person_did",
            ),
            models.CheckConstraint(
                condition=~Q(status="published") | Q(log_proof__isnull=False), name="certificate_published_with_proof"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.id}: {self.verdict}, {self.status}"

    @property
    def title(self) -> str:
        """What the document may be called."""
        return "Erasure certificate" if self.verdict == Verdict.PASS else "Erasure attempt report"


# What was put out, and can be looked up for ever.
ISSUED_STATUSES: Final = (Certificate.Status.ISSUED, Certificate.Status.PUBLISHED, Certificate.Status.REVOKED)


class CertificateEvent(models.Model):
    """One move of a certificate; one that revokes has a reason. Append-only."""

    class Reason(models.TextChoices):
        WEIGHTS_RESTORED = "weights_restored", "older weights can be read again"
        DATA_TRAINED_AGAIN = "data_trained_again", "the model was trained again on the person's data"
        EVIDENCE_UNSOUND = "evidence_unsound", "the evidence does not hold"
        KEY_COMPROMISED = "key_compromised", "a signing key may be known to others"
        ISSUED_IN_ERROR = "issued_in_error", "it was issued in error"

    certificate = models.ForeignKey(Certificate, on_delete=models.PROTECT, related_name="events")
    old_status = models.CharField(max_length=16, blank=True, default="")
    new_status = models.CharField(max_length=16)
    reason = models.CharField(max_length=32, choices=Reason, blank=True, default="")
    actor = models.CharField(max_length=64)
    at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ("id",)
        constraints = [
            models.CheckConstraint(
                condition=(Q(new_status="revoked") & ~Q(reason="")) | (~Q(new_status="revoked") & Q(reason="")),
                name="certificate_event_reason_if_and_only_if_revoked",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.certificate_id}: {self.old_status or 'new'} to {self.new_status}"


class LogEntry(models.Model):
    """One leaf of the transparency log: a digest, never content. Append-only; indices have no gap."""

    class Kind(models.TextChoices):
        CERTIFICATE = "certificate", "certificate"
        REVOCATION = "revocation", "revocation"

    index = models.PositiveIntegerField(primary_key=True)
    kind = models.CharField(max_length=16, choices=Kind)
    certificate = models.ForeignKey(Certificate, on_delete=models.PROTECT, related_name="log_entries")
    leaf_sha256 = models.CharField(max_length=64)
    at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ("index",)
        constraints = [
            models.UniqueConstraint(fields=("certificate", "kind"), name="log_entry_once_per_certificate_and_kind"),
        ]

    def __str__(self) -> str:
        return f"leaf {self.index}"


class LogCheckpoint(models.Model):
    """A signed root of the log. Append-only."""

    size = models.PositiveIntegerField(unique=True)
    root_sha256 = models.CharField(max_length=64)
    note = models.TextField()
    at = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return f"checkpoint at {self.size}"


class SignedRevocations(models.Model):
    """A signed list of every certificate revoked so far, as it was handed out. Append-only."""

    document = models.BinaryField()
    at = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return f"revocations as of {self.at}"
