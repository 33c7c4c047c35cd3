"""What must be forgotten, in which model; and the work that is owed. Ids, digests and counts, no training text."""

from __future__ import annotations

from typing import Final

from django.db import models
from django.db.models import F, Q

from deletion_service.access.models import StaffMember
from deletion_service.audit.events import pair_is_listed
from deletion_service.ids import ID_LENGTH, batch_id, job_id, model_id, run_id, target_id, version_id
from deletion_service.requests.codes import MatchReason
from deletion_service.requests.models import ErasureRequest
from deletion_service.targets.statuses import (
    OF_AN_ATTEMPT,
    TARGET_MOVES,
    JobKind,
    JobState,
    TargetStatus,
    Verdict,
    VersionStatus,
)

_ID = ID_LENGTH + 4
LONGEST_VAULT_DAYS: Final = 90
"""How long a person's own probes may be kept to test later versions (verification section 12)."""


class TrainedModel(models.Model):
    """A lineage of model versions: where it is registered and which sources its training texts came from.

    `registry` and `sources` are connector settings: `{"kind": ..., ...}`; `alias` is the one that serving resolves.
    """

    id = models.CharField(primary_key=True, max_length=_ID, default=model_id)
    name = models.CharField(max_length=64, unique=True)
    registry = models.JSONField()
    sources = models.JSONField(default=list)
    alias = models.CharField(max_length=64, default="champion")
    created_at = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return self.name


class ModelVersion(models.Model):
    """One set of weights, by digest. `base` is the model that never saw the customers' data."""

    class Kind(models.TextChoices):
        BASE = "base", "base"
        FINETUNE = "finetune", "fine-tuned"
        UNLEARNED = "unlearned", "unlearned"

    Status = VersionStatus

    id = models.CharField(primary_key=True, max_length=_ID, default=version_id)
    model = models.ForeignKey(TrainedModel, on_delete=models.PROTECT, related_name="versions")
    number = models.PositiveIntegerField()
    kind = models.CharField(max_length=16, choices=Kind)
    status = models.CharField(max_length=16, choices=VersionStatus, default=VersionStatus.REGISTERED)
    parent = models.ForeignKey("self", null=True, blank=True, on_delete=models.PROTECT, related_name="children")
    base = models.ForeignKey("self", null=True, blank=True, on_delete=models.PROTECT, related_name="+")
    root_sha256 = models.CharField(max_length=64)
    manifest_sha256 = models.CharField(max_length=64)
    manifest = models.JSONField(default=list)
    registered_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ("model", "number")
        constraints = [
            models.UniqueConstraint(fields=("model", "number"), name="version_number_is_unique_per_model"),
            models.UniqueConstraint(fields=("model", "manifest_sha256"), name="version_digest_is_unique_per_model"),
            models.UniqueConstraint(
                fields=("model",), condition=Q(status="serving"), name="one_serving_version_per_model"
            ),
            models.CheckConstraint(condition=Q(status__in=VersionStatus.values), name="version_status_is_known"),
            models.CheckConstraint(
                condition=Q(kind__in=["base", "finetune", "unlearned"]), name="version_kind_is_known"
            ),
            models.CheckConstraint(condition=Q(kind="base") | Q(base__isnull=False), name="version_has_a_base"),
        ]

    def __str__(self) -> str:
        return f"{self.model} version {self.number}"


class TrainingManifest(models.Model):
    """Which data set a version learned from, by digest, and the store of adapters it was folded from, if it was."""

    version = models.OneToOneField(ModelVersion, on_delete=models.PROTECT, related_name="training_manifest")
    dataset_name = models.CharField(max_length=64)
    dataset_sha256 = models.CharField(max_length=64)
    record_count = models.PositiveIntegerField()
    trained_on = models.DateField()
    exact_store = models.CharField(max_length=64, blank=True, default="")

    def __str__(self) -> str:
        return f"{self.version}: {self.record_count} records of {self.dataset_name}"


class TrainingManifestEntry(models.Model):
    """One record a version learned from, by the SHA-256 of its record id."""

    manifest = models.ForeignKey(TrainingManifest, on_delete=models.CASCADE, related_name="entries")
    record_sha256 = models.CharField(max_length=64, db_index=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=("manifest", "record_sha256"), name="manifest_entry_is_unique"),
        ]

    def __str__(self) -> str:
        return self.record_sha256[:12]


class ErasureBatch(models.Model):
    """Targets of one model, unlearned together from one version. One open batch a model: deletions are sequential."""

    class Status(models.TextChoices):
        OPEN = "open", "open"
        CLOSED = "closed", "closed"

    id = models.CharField(primary_key=True, max_length=_ID, default=batch_id)
    model = models.ForeignKey(TrainedModel, on_delete=models.PROTECT, related_name="batches")
    before = models.ForeignKey(ModelVersion, on_delete=models.PROTECT, related_name="+")
    status = models.CharField(max_length=8, choices=Status, default=Status.OPEN)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=("model",), condition=Q(status="open"), name="one_open_batch_per_model"),
            models.CheckConstraint(condition=Q(status__in=["open", "closed"]), name="batch_status_is_known"),
        ]

    def __str__(self) -> str:
        return self.id


class ErasureTarget(models.Model):
    """One request x one trained model. Status and verdict are per target; the request's are derived."""

    Status = TargetStatus

    id = models.CharField(primary_key=True, max_length=_ID, default=target_id)
    request = models.ForeignKey(ErasureRequest, on_delete=models.PROTECT, related_name="targets")
    model = models.ForeignKey(TrainedModel, on_delete=models.PROTECT, related_name="targets")
    batch = models.ForeignKey(ErasureBatch, null=True, blank=True, on_delete=models.PROTECT, related_name="targets")
    status = models.CharField(max_length=16, choices=TargetStatus, default=TargetStatus.LOCATED)
    verdict = models.CharField(max_length=16, choices=Verdict, default=Verdict.NOT_RUN)
    record_count = models.PositiveIntegerField()
    unproven_count = models.PositiveIntegerField(default=0)
    match_reason = models.CharField(max_length=32, choices=MatchReason, blank=True, default="")
    match_reviewer = models.ForeignKey(StaffMember, null=True, blank=True, on_delete=models.PROTECT, related_name="+")
    layers = models.JSONField(default=dict)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ("request", "id")
        constraints = [
            models.UniqueConstraint(fields=("request", "model"), name="target_is_unique_per_request_and_model"),
            models.CheckConstraint(condition=Q(status__in=TargetStatus.values), name="target_status_is_known"),
            models.CheckConstraint(condition=Q(verdict__in=Verdict.values), name="target_verdict_is_known"),
            models.CheckConstraint(
                condition=Q(match_reason__in=[*MatchReason.values, ""]), name="target_match_reason_is_known"
            ),
            models.CheckConstraint(
                condition=~Q(status__in=["releasing", "released"]) | Q(verdict="PASS"),
                name="only_a_passing_target_is_released",
            ),
            models.CheckConstraint(
                condition=Q(match_reason="", match_reviewer=None)
                | (~Q(match_reason="") & Q(match_reviewer__isnull=False)),
                name="target_match_accepted_if_and_only_if_a_person_did",
            ),
        ]

    def __str__(self) -> str:
        return self.id


class TargetEvent(models.Model):
    """One move of a target. Append-only; the pair must be in the move table."""

    target = models.ForeignKey(ErasureTarget, on_delete=models.PROTECT, related_name="events")
    old_status = models.CharField(max_length=16, blank=True, default="")
    new_status = models.CharField(max_length=16)
    actor = models.CharField(max_length=64)
    reason = models.CharField(max_length=40)
    at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ("id",)
        constraints = [
            models.CheckConstraint(
                condition=pair_is_listed(TARGET_MOVES, TargetStatus.LOCATED), name="target_event_pair_is_a_move"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.target_id}: {self.old_status or 'new'} to {self.new_status}"


class ContaminatedVersion(models.Model):
    """A version that learned from the data subject, and what became of its weights."""

    class Action(models.TextChoices):
        DELETE = "deleted", "delete now"
        RETAIN = "retained", "retain until a date"

    class Probe(models.TextChoices):
        GONE = "gone", "gone"
        STILL_READABLE = "still_readable", "still readable"
        UNKNOWN = "unknown", "unknown"

    target = models.ForeignKey(ErasureTarget, on_delete=models.PROTECT, related_name="contaminated")
    version = models.ForeignKey(ModelVersion, on_delete=models.PROTECT, related_name="contaminations")
    action = models.CharField(max_length=16, choices=Action, default=Action.DELETE)
    retain_until = models.DateField(null=True, blank=True)
    probe = models.CharField(max_length=16, choices=Probe, default=Probe.UNKNOWN)
    probed_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=("target", "version"), name="contaminated_version_once_per_target"),
            models.CheckConstraint(condition=Q(action__in=["deleted", "retained"]), name="retirement_action_is_known"),
            models.CheckConstraint(
                condition=Q(probe__in=["gone", "still_readable", "unknown"]), name="retirement_probe_is_known"
            ),
            models.CheckConstraint(
                condition=~Q(action="retained") | Q(retain_until__isnull=False), name="retention_has_a_date"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.version}: {self.action}, {self.probe}"


class SourceErasure(models.Model):
    """What became of the data subject's rows in one training source."""

    class Action(models.TextChoices):
        PENDING = "pending", "pending"
        DELETED = "deleted", "deleted"
        TOMBSTONED = "tombstoned", "tombstoned"

    class Probe(models.TextChoices):
        GONE = "gone", "gone"
        STILL_PRESENT = "still_present", "still present"
        UNKNOWN = "unknown", "unknown"

    target = models.ForeignKey(ErasureTarget, on_delete=models.PROTECT, related_name="sources")
    name = models.CharField(max_length=64)
    record_count = models.PositiveIntegerField()
    action = models.CharField(max_length=16, choices=Action, default=Action.PENDING)
    probe = models.CharField(max_length=16, choices=Probe, default=Probe.UNKNOWN)
    probed_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=("target", "name"), name="source_once_per_target"),
            models.CheckConstraint(
                condition=Q(action__in=["pending", "deleted", "tombstoned"]), name="source_action_is_known"
            ),
            models.CheckConstraint(
                condition=Q(probe__in=["gone", "still_present", "unknown"]), name="source_probe_is_known"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.target_id} {self.name}: {self.action}, {self.probe}"


class UnlearningRun(models.Model):
    """One attempt on a batch: method, seed, policy and inputs are fixed here before anything is computed."""

    class Status(models.TextChoices):
        PLANNED = "planned", "planned"
        UNLEARNED = "unlearned", "unlearned"
        VERIFIED = "verified", "verified"

    id = models.CharField(primary_key=True, max_length=_ID, default=run_id)
    batch = models.ForeignKey(ErasureBatch, on_delete=models.PROTECT, related_name="runs")
    attempt = models.PositiveIntegerField()
    method = models.CharField(max_length=64)
    method_settings = models.JSONField(default=dict)
    seed = models.CharField(max_length=32)
    seed_fixed = models.BooleanField(default=False)
    verification_seed_sha256 = models.CharField(max_length=64)
    policy_name = models.CharField(max_length=64)
    policy_sha256 = models.CharField(max_length=64)
    snapshots = models.JSONField(default=dict)
    status = models.CharField(max_length=16, choices=Status, default=Status.PLANNED)
    candidate = models.ForeignKey(ModelVersion, null=True, blank=True, on_delete=models.PROTECT, related_name="+")
    report = models.JSONField(null=True, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ("batch", "attempt")
        constraints = [
            models.UniqueConstraint(fields=("batch", "attempt"), name="run_attempt_is_unique_per_batch"),
            models.CheckConstraint(
                condition=Q(status__in=["planned", "unlearned", "verified"]), name="run_status_is_known"
            ),
            models.CheckConstraint(
                condition=Q(status="planned") | Q(candidate__isnull=False), name="run_has_a_candidate_once_unlearned"
            ),
        ]

    def __str__(self) -> str:
        return self.id


class Sentinel(models.Model):
    """What stands for one deletion when later versions are tested. Append-only.

    A spike-in is a synthetic person deleted along with the data subject; its records may be kept for ever. A vault
    holds the person's own probes, sealed under their own key (class V) until a date. `scores` are what each primary
    attack saw before the deletion, by attack: the subject's and those of never-trained twins.
    """

    class Kind(models.TextChoices):
        SPIKE_IN = "spike_in", "spike-in"
        VAULT = "vault", "probe vault"

    target = models.ForeignKey(ErasureTarget, on_delete=models.PROTECT, related_name="sentinels")
    kind = models.CharField(max_length=8, choices=Kind)
    mark = models.CharField(max_length=64, blank=True, default="")
    probes = models.BinaryField(null=True, blank=True)
    probes_sha256 = models.CharField(max_length=64)
    scores = models.JSONField(default=dict)
    basis = models.CharField(max_length=200, blank=True, default="")
    vault_days = models.PositiveSmallIntegerField(null=True, blank=True)
    expires_on = models.DateField(null=True, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ("id",)
        constraints = [
            models.UniqueConstraint(fields=("target", "kind"), name="sentinel_once_per_target_and_kind"),
            models.CheckConstraint(
                condition=(
                    Q(kind="spike_in", probes__isnull=False, basis="", vault_days=None, expires_on=None) & ~Q(mark="")
                )
                | (
                    Q(kind="vault", probes=None, mark="", expires_on__isnull=False)
                    & Q(vault_days__isnull=False, vault_days__gte=1, vault_days__lte=LONGEST_VAULT_DAYS)
                    & ~Q(basis="")
                ),
                name="sentinel_is_a_spike_in_or_a_vault_with_basis_and_end",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.target_id} {self.kind}"


class LedgerEntry(models.Model):
    """One deletion that later versions of a model must not bring back, numbered from 1. Append-only.

    What stands for it are the sentinels of its target; one without any can never be tested again.
    """

    target = models.OneToOneField(ErasureTarget, on_delete=models.PROTECT, related_name="ledger_entry")
    model = models.ForeignKey(TrainedModel, on_delete=models.PROTECT, related_name="ledger")
    number = models.PositiveIntegerField()
    entered_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ("model", "number")
        constraints = [
            models.UniqueConstraint(fields=("model", "number"), name="ledger_number_is_unique_per_model"),
            models.CheckConstraint(condition=Q(number__gte=1), name="ledger_is_numbered_from_one"),
        ]

    def __str__(self) -> str:
        return f"deletion {self.number} of {self.model}"


class SubjectMark(models.Model):
    """A keyed digest of an identifier that led to a target. It is kept past the payload only where a deletion was tried
    and not released: the person's rows are gone by then, and nothing else could tell that a model learned from them.
    """

    target = models.ForeignKey(ErasureTarget, on_delete=models.PROTECT, related_name="marks")
    digest = models.CharField(max_length=64, db_index=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=("target", "digest"), name="mark_once_per_target")]

    def __str__(self) -> str:
        return f"a mark of {self.target_id}"


class Job(models.Model):
    """One leased piece of work; it may fail without its request failing. The token fences every effect.

    It is about a request or, for a version that came from outside, about that version.
    """

    Kind = JobKind
    State = JobState

    id = models.CharField(primary_key=True, max_length=_ID, default=job_id)
    kind = models.CharField(max_length=16, choices=JobKind)
    queue = models.CharField(max_length=16)
    request = models.ForeignKey(ErasureRequest, null=True, blank=True, on_delete=models.PROTECT, related_name="jobs")
    version = models.ForeignKey(ModelVersion, null=True, blank=True, on_delete=models.PROTECT, related_name="jobs")
    target = models.ForeignKey(ErasureTarget, null=True, blank=True, on_delete=models.PROTECT, related_name="jobs")
    run = models.ForeignKey(UnlearningRun, null=True, blank=True, on_delete=models.PROTECT, related_name="jobs")
    round = models.PositiveIntegerField(default=1)
    state = models.CharField(max_length=16, choices=JobState, default=JobState.READY)
    token = models.PositiveIntegerField(default=0)
    owner = models.CharField(max_length=64, blank=True, default="")
    lease_until = models.DateTimeField(null=True, blank=True)
    available_at = models.DateTimeField()
    deadline_at = models.DateTimeField()
    attempts = models.PositiveIntegerField(default=0)
    max_attempts = models.PositiveIntegerField()
    step = models.CharField(max_length=32, blank=True, default="")
    checkpoint = models.CharField(max_length=255, blank=True, default="")
    checkpoint_sha256 = models.CharField(max_length=64, blank=True, default="")
    progress_phase = models.CharField(max_length=32, blank=True, default="")
    progress_done = models.PositiveIntegerField(default=0)
    progress_total = models.PositiveIntegerField(default=0)
    cancel_requested = models.BooleanField(default=False)
    last_error = models.CharField(max_length=64, blank=True, default="")
    last_error_detail = models.CharField(max_length=400, blank=True, default="")
    created_at = models.DateTimeField(auto_now_add=True)
    started_at = models.DateTimeField(null=True, blank=True)
    finished_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ("created_at", "id")
        indexes = [
            models.Index(fields=("queue", "state", "lease_until"), name="job_expired_leases"),
            models.Index(fields=("queue", "state", "created_at"), name="job_oldest_ready"),
        ]
        constraints = [
            models.CheckConstraint(condition=Q(state__in=JobState.values), name="job_state_is_known"),
            models.CheckConstraint(condition=Q(kind__in=JobKind.values), name="job_kind_is_known"),
            models.CheckConstraint(
                condition=Q(state="leased", lease_until__isnull=False) | (~Q(state="leased") & Q(lease_until=None)),
                name="job_lease_if_and_only_if_leased",
            ),
            models.CheckConstraint(condition=Q(attempts__lte=F("max_attempts")), name="job_attempts_within_limit"),
            models.CheckConstraint(
                condition=Q(checkpoint="", checkpoint_sha256="") | (~Q(checkpoint="") & ~Q(checkpoint_sha256="")),
                name="job_checkpoint_has_a_digest",
            ),
            models.CheckConstraint(
                condition=Q(request__isnull=False, version=None)
                | Q(request=None, target=None, run=None, version__isnull=False, kind="sweep"),
                name="job_is_about_a_request_or_a_version_from_outside",
            ),
            models.UniqueConstraint(
                fields=("version", "kind", "round"),
                condition=Q(version__isnull=False),
                name="job_once_per_version_and_round",
            ),
            models.UniqueConstraint(
                fields=("request", "kind", "round"), condition=Q(target=None), name="job_once_per_request_and_round"
            ),
            models.UniqueConstraint(
                fields=("target", "kind", "round"),
                condition=Q(target__isnull=False),
                name="job_once_per_target_and_round",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.id} {self.kind} {self.state}"

    @property
    def is_current(self) -> bool:
        """False for work of an attempt that another one followed."""
        return self.request is None or self.kind not in OF_AN_ATTEMPT or self.round == self.request.attempt

    @property
    def case(self) -> ErasureRequest:
        """The request that the job is about; only a sweep of a version from outside has none."""
        if self.request is None:
            raise ValueError(f"job {self.pk} is about a version, not about a request")
        return self.request


class Device(models.Model):
    """An accelerator of a capability, leased to one job at a time, across all workers on all hosts."""

    name = models.CharField(max_length=64, unique=True)
    capability = models.CharField(max_length=16)
    job = models.OneToOneField(Job, null=True, blank=True, on_delete=models.PROTECT, related_name="device")
    token = models.PositiveIntegerField(default=0)
    lease_until = models.DateTimeField(null=True, blank=True)

    def __str__(self) -> str:
        return self.name
