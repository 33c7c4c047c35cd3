"""The forms of JSON bodies. Output is read off model rows; no rule lives here.

Nothing shown here is sealed data: identifiers and statements go in and never come out.
"""

from __future__ import annotations

from datetime import date
from typing import Any

from django.conf import settings
from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from deletion_service.api.fields import Code, Day, Flag, StrictSerializer, Text, Whole
from deletion_service.certificates.forms import count_bucket
from deletion_service.certificates.models import ISSUED_STATUSES, Certificate, EvidenceDecision
from deletion_service.requests.codes import Capacity, Outcome, OutcomePlan, Refusal, Regime
from deletion_service.requests.intake import (
    IDENTIFIER_TYPES,
    MAX_IDENTIFIER_LENGTH,
    MAX_IDENTIFIERS,
    MAX_MODEL_NAMES,
    MAX_STATEMENT_LENGTH,
)
from deletion_service.requests.models import Clock, ErasureRequest
from deletion_service.requests.statuses import RequestStatus
from deletion_service.targets.catalogue import MAX_MANIFEST_ENTRIES
from deletion_service.targets.models import (
    ContaminatedVersion,
    ErasureTarget,
    Job,
    ModelVersion,
    SourceErasure,
    TrainedModel,
)
from deletion_service.targets.statuses import JobKind, JobState, TargetStatus, Verdict, VersionStatus

_ID = 40
_DIGEST = 64

# --- in -----------------------------------------------------------------------------------------------------------


class IdentifierIn(StrictSerializer):
    """Something that names the person; what you send here you vouch for."""

    type = Code(choices=IDENTIFIER_TYPES)
    value = Text(max_length=MAX_IDENTIFIER_LENGTH)


class RequestIn(StrictSerializer):
    """An instruction to erase, in processor capacity: you have decided, and you talk to the person."""

    identifiers = serializers.ListField(child=IdentifierIn(), min_length=1, max_length=MAX_IDENTIFIERS)
    statement = Text(max_length=MAX_STATEMENT_LENGTH, required=False, default="", allow_blank=True)
    models = serializers.ListField(child=Text(max_length=64), max_length=MAX_MODEL_NAMES, required=False, default=list)
    regime = Code(choices=Regime.choices, required=False, default=lambda: settings.DEFAULT_REGIME)
    upstream_id = Text(max_length=64, required=False, default="", allow_blank=True)
    due_on = Day(required=False, allow_null=True, default=None)


class EvidenceDecisionIn(StrictSerializer):
    """What you decide on the evidence. `retrain_on` is needed when you decline because retraining is planned."""

    choice = Code(choices=EvidenceDecision.Choice.choices)
    reason = Code(choices=EvidenceDecision.Reason.choices)
    retrain_on = Day(required=False, allow_null=True, default=None)


class ConnectorIn(StrictSerializer):
    """Settings of a connector: its kind, and a name below the root that the operator configured."""

    kind = Text(max_length=32)
    name = Text(max_length=64)


class SourceIn(ConnectorIn):
    """A training source, and whether its rows are deleted or replaced by a tombstone."""

    erase_by = Code(choices=("delete", "tombstone"), required=False, default="delete")


class ModelIn(StrictSerializer):
    """A lineage of versions, where it is registered, and where its training texts live."""

    name = Text(max_length=64)
    registry = ConnectorIn()
    sources = serializers.ListField(child=SourceIn(), max_length=20, required=False, default=list)
    alias = Text(max_length=64, required=False, default="champion")


class VersionIn(StrictSerializer):
    """A version that the registry holds already. `serving` states that the alias points to it now."""

    number = Whole(min_value=1, max_value=2**31 - 1)
    kind = Code(choices=ModelVersion.Kind.choices)
    parent = Whole(min_value=1, max_value=2**31 - 1, required=False, allow_null=True, default=None)  # type: ignore[assignment]  # a declared field, not the attribute of a bound one
    base = Whole(min_value=1, max_value=2**31 - 1, required=False, allow_null=True, default=None)
    serving = Flag(required=False, default=False)


class TrainingManifestIn(StrictSerializer):
    """Which records a version learned from: SHA-256 of each record id in UTF-8."""

    dataset_name = Text(max_length=64)
    dataset_sha256 = Text(min_length=_DIGEST, max_length=_DIGEST)
    trained_on = Day()
    record_sha256 = serializers.ListField(
        child=Text(min_length=_DIGEST, max_length=_DIGEST), min_length=1, max_length=MAX_MANIFEST_ENTRIES
    )
    exact_store = Text(max_length=64, required=False, allow_blank=True, default="")


class VerifyIn(StrictSerializer):
    """Files to check, each in base64. They are looked at and forgotten."""

    certificate = Text()
    log_proof = Text(required=False, allow_null=True, default=None)
    evidence = Text(required=False, allow_null=True, default=None)
    expect = Code(choices=("PASS", "FAIL", "INCONCLUSIVE"), required=False, allow_null=True, default=None)


# --- out ----------------------------------------------------------------------------------------------------------


class FieldErrorOut(serializers.Serializer[Any]):
    """One fault: a JSON pointer into the body, a stable code, a sentence."""

    pointer = serializers.CharField()
    code = serializers.CharField()
    detail = serializers.CharField()


class ProblemOut(serializers.Serializer[Any]):
    """RFC 9457 problem document."""

    type = serializers.URLField()
    title = serializers.CharField()
    status = serializers.IntegerField()
    detail = serializers.CharField()
    instance = serializers.CharField()
    code = serializers.CharField()
    errors = FieldErrorOut(many=True)  # type: ignore[assignment]  # a declared field, not the list of faults


class ClockOut(serializers.Serializer[Any]):
    """A legal deadline."""

    kind = serializers.CharField()
    regime = serializers.CharField()
    due_on = serializers.DateField()
    state = Code(choices=Clock.State.choices)
    extended = serializers.SerializerMethodField()

    def get_extended(self, clock: Clock) -> bool:
        """Whether the date was extended once."""
        return clock.extended_at is not None


class TargetBriefOut(serializers.Serializer[Any]):
    """A target in one line."""

    id = serializers.CharField()
    model = serializers.CharField(source="model.name")
    status = Code(choices=TargetStatus.choices)
    verdict = Code(choices=Verdict.choices)


class RequestOut(serializers.Serializer[Any]):
    """An erasure request: dates, codes and ids; nothing of what was said."""

    id = serializers.CharField()
    capacity = Code(choices=Capacity.choices)
    regime = Code(choices=Regime.choices)
    status = Code(choices=RequestStatus.choices)
    outcome = Code(choices=Outcome.choices, allow_null=True)
    outcome_plan = Code(choices=OutcomePlan.choices)
    planned_on = serializers.DateField(allow_null=True)
    refusal = serializers.SerializerMethodField()
    upstream_id = serializers.CharField()
    models = serializers.ListField(child=serializers.CharField(), source="model_names")
    attempt = serializers.IntegerField()
    received_at = serializers.DateTimeField()
    closed_at = serializers.DateTimeField(allow_null=True)
    due_on = serializers.SerializerMethodField()
    clocks = ClockOut(many=True)
    targets = TargetBriefOut(many=True)

    def get_refusal(self, request: ErasureRequest) -> str | None:
        """The refusal code, once the request is refused."""
        return Refusal(request.refusal).value if request.status == RequestStatus.REFUSED else None

    def get_due_on(self, request: ErasureRequest) -> date | None:
        """The day by which the answer is due."""
        return next((clock.due_on for clock in request.clocks.all() if clock.kind == "respond"), None)


class OpenedOut(RequestOut):
    """A new request. Keep `subject_nonce` for the person: it alone opens the commitment in a certificate."""

    subject_nonce = serializers.SerializerMethodField()

    def get_subject_nonce(self, request: ErasureRequest) -> str:
        """64 hexadecimal digits; not shown again."""
        return str(self.context["subject_nonce"])


class ContaminatedOut(serializers.Serializer[Any]):
    """A version that learned from the person, and what became of its weights."""

    version = serializers.IntegerField(source="version.number")
    sha256 = serializers.CharField(source="version.root_sha256")
    action = Code(choices=ContaminatedVersion.Action.choices)
    retain_until = serializers.DateField(allow_null=True)
    probe = Code(choices=ContaminatedVersion.Probe.choices)
    probed_at = serializers.DateTimeField(allow_null=True)


class SourceOut(serializers.Serializer[Any]):
    """What became of the person's rows in one training source."""

    name = serializers.CharField()
    action = Code(choices=SourceErasure.Action.choices)
    probe = Code(choices=SourceErasure.Probe.choices)
    probed_at = serializers.DateTimeField(allow_null=True)


class EvidenceBriefOut(serializers.Serializer[Any]):
    """Sealed evidence in one line."""

    id = serializers.CharField()
    attempt = serializers.IntegerField()
    verdict = Code(choices=Verdict.choices)
    sha256 = serializers.CharField()
    sealed_at = serializers.DateTimeField()


class CertificateBriefOut(serializers.Serializer[Any]):
    """A certificate or attempt report in one line."""

    id = serializers.CharField()
    title = serializers.CharField()
    verdict = Code(choices=Verdict.choices)
    status = Code(choices=Certificate.Status.choices)
    issued_at = serializers.DateTimeField(allow_null=True)


class TargetOut(TargetBriefOut):
    """One request x one trained model. How many records is told in buckets."""

    request = serializers.CharField(source="request_id")
    record_count = serializers.SerializerMethodField()
    layers = serializers.DictField(child=serializers.CharField())
    contaminated = ContaminatedOut(many=True)
    sources = SourceOut(many=True)
    evidence = EvidenceBriefOut(many=True)
    certificates = serializers.SerializerMethodField()

    def get_record_count(self, target: ErasureTarget) -> str:
        """A bucket such as `1-10`: exact counts can single a person out."""
        return count_bucket(target.record_count)

    @extend_schema_field(CertificateBriefOut(many=True))
    def get_certificates(self, target: ErasureTarget) -> list[dict[str, Any]]:
        """Drafts are shown to staff only."""
        rows = target.certificates.all()
        shown = [row for row in rows if self.context["staff"] or row.status in ISSUED_STATUSES]
        return [dict(row) for row in CertificateBriefOut(shown, many=True).data]


class ProgressOut(serializers.Serializer[Any]):
    """How far a job has come in its current phase."""

    phase = serializers.CharField(source="progress_phase")
    done = serializers.IntegerField(source="progress_done")
    total = serializers.IntegerField(source="progress_total")


class JobOut(serializers.Serializer[Any]):
    """One piece of work. A job may fail without its request failing."""

    id = serializers.CharField()
    request = serializers.CharField(source="request_id")
    target = serializers.CharField(source="target_id", allow_null=True)
    kind = Code(choices=JobKind.choices)
    state = Code(choices=JobState.choices)
    round = serializers.IntegerField()
    attempts = serializers.IntegerField()
    max_attempts = serializers.IntegerField()
    progress = ProgressOut(source="*")
    cancel_requested = serializers.BooleanField()
    last_error = serializers.SerializerMethodField()
    created_at = serializers.DateTimeField()
    started_at = serializers.DateTimeField(allow_null=True)
    finished_at = serializers.DateTimeField(allow_null=True)

    def get_last_error(self, job: Job) -> str | None:
        """The code of the newest failure."""
        return job.last_error or None


class GateRowOut(serializers.Serializer[Any]):
    """One line of the gate table; numbers are decimal strings."""

    id = serializers.CharField()
    gate = serializers.CharField()
    kind = serializers.CharField()
    result = serializers.ChoiceField(choices=("PASS", "FAIL", "INCONCLUSIVE", "ERROR"))
    reference = serializers.CharField(allow_null=True)
    before = serializers.CharField(allow_null=True)
    after = serializers.CharField(allow_null=True)
    reference_value = serializers.CharField(allow_null=True)
    measure = serializers.CharField(allow_null=True)
    value = serializers.CharField(allow_null=True)
    interval = serializers.ListField(child=serializers.CharField(allow_null=True), allow_null=True)
    ci95 = serializers.ListField(child=serializers.CharField(allow_null=True), allow_null=True)
    n = serializers.CharField(allow_null=True)
    controls = serializers.CharField(allow_null=True)


class FindingOut(serializers.Serializer[Any]):
    """One reason why the verdict is what it is, and what to do next."""

    result = serializers.CharField()
    code = serializers.CharField()
    gate = serializers.CharField()
    attack = serializers.CharField()
    artefact = serializers.CharField()
    remedy = serializers.CharField()


class PolicyOut(serializers.Serializer[Any]):
    """The verdict policy, fixed before the run."""

    name = serializers.CharField()
    version = serializers.IntegerField()
    purpose = serializers.CharField()
    sha256 = serializers.CharField()


class EvidenceOut(EvidenceBriefOut):
    """Sealed evidence, opened and judged again. The bytes themselves are at `document`."""

    target = serializers.CharField(source="target_id")
    policy = PolicyOut()
    gates = serializers.SerializerMethodField()
    findings = serializers.SerializerMethodField()
    flags = serializers.SerializerMethodField()
    not_tested = serializers.SerializerMethodField()
    document = serializers.SerializerMethodField()

    @extend_schema_field(GateRowOut(many=True))
    def get_gates(self, evidence: Any) -> list[dict[str, Any]]:
        """The gate table."""
        return [dict(row) for row in GateRowOut(self.context["gates"], many=True).data]

    @extend_schema_field(FindingOut(many=True))
    def get_findings(self, evidence: Any) -> list[dict[str, Any]]:
        """Worst first."""
        return [dict(row) for row in FindingOut(self.context["verdict"].findings, many=True).data]

    def get_flags(self, evidence: Any) -> list[str]:
        """True statements that do not change the verdict."""
        return list(self.context["verdict"].flags)

    def get_not_tested(self, evidence: Any) -> list[str]:
        """What the policy says was left out."""
        return list(self.context["document"].policy.not_tested)

    def get_document(self, evidence: Any) -> str:
        """Where the sealed bytes are."""
        return f"/v1/evidence/{evidence.pk}/document"


class ConnectorOut(serializers.Serializer[Any]):
    """A connector by kind and name."""

    kind = serializers.CharField()
    name = serializers.CharField()


class ModelOut(serializers.Serializer[Any]):
    """A trained model."""

    id = serializers.CharField()
    name = serializers.CharField()
    alias = serializers.CharField()
    registry = ConnectorOut()
    sources = ConnectorOut(many=True)
    serving = serializers.SerializerMethodField()
    created_at = serializers.DateTimeField()

    def get_serving(self, model: TrainedModel) -> int | None:
        """The version that serves."""
        versions = model.versions.all()
        return next((v.number for v in versions if v.status == VersionStatus.SERVING), None)


class TrainingManifestOut(serializers.Serializer[Any]):
    """Which data a version learned from, by digest."""

    dataset_name = serializers.CharField()
    dataset_sha256 = serializers.CharField()
    record_count = serializers.IntegerField()
    trained_on = serializers.DateField()
    exact_store = serializers.CharField()


class VersionOut(serializers.Serializer[Any]):
    """A model version, by digest."""

    id = serializers.CharField()
    model = serializers.CharField(source="model.name")
    number = serializers.IntegerField()
    kind = Code(choices=ModelVersion.Kind.choices)
    status = Code(choices=VersionStatus.choices)
    parent = serializers.SerializerMethodField()  # type: ignore[assignment]  # a declared field, as above
    base = serializers.SerializerMethodField()
    sha256 = serializers.CharField(source="root_sha256")
    manifest_sha256 = serializers.CharField()
    training_manifest = serializers.SerializerMethodField()
    registered_at = serializers.DateTimeField()

    def get_parent(self, version: ModelVersion) -> int | None:
        """Number of the version it was made from."""
        return version.parent.number if version.parent else None

    def get_base(self, version: ModelVersion) -> int | None:
        """Number of the version that never saw the data."""
        return version.base.number if version.base else None

    @extend_schema_field(TrainingManifestOut(allow_null=True))
    def get_training_manifest(self, version: ModelVersion) -> dict[str, Any] | None:
        """What it learned from, where that was stated."""
        manifest = getattr(version, "training_manifest", None)
        return None if manifest is None else dict(TrainingManifestOut(manifest).data)


class CheckOut(serializers.Serializer[Any]):
    """One named check."""

    name = serializers.CharField()
    outcome = serializers.ChoiceField(choices=("ok", "failed", "not checked"))
    sentence = serializers.CharField()


class VerificationOut(serializers.Serializer[Any]):
    """What a check of a certificate found, and always what it does not show."""

    ok = serializers.BooleanField()
    title = serializers.CharField(allow_null=True)
    verdict = serializers.CharField(allow_null=True)
    claim = serializers.CharField(allow_null=True)
    certificate_id = serializers.CharField(allow_null=True)
    issued_at = serializers.CharField(allow_null=True)
    model_sha256 = serializers.CharField(allow_null=True)
    checks = CheckOut(many=True)
    limitations = serializers.ListField(child=serializers.CharField(), allow_null=True)
    not_shown = serializers.ListField(child=serializers.CharField())
