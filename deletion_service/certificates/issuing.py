"""Issue a drafted certificate: the second person's signature, the log entry, the request's next step. Publish it."""

from __future__ import annotations

from django.db import transaction
from django.utils import timezone

from deletion_service.access.models import StaffMember
from deletion_service.audit import trail
from deletion_service.certificates.custody import approver_signer, log_signer
from deletion_service.certificates.envelope import add_signature, read_envelope
from deletion_service.certificates.log import append_certificate, proof_for, publish_checkpoint
from deletion_service.certificates.models import Certificate, CertificateEvent, LogEntry
from deletion_service.errors import EvidenceMissingError, FourEyesError, IllegalTransitionError, StaleStateError
from deletion_service.requests.codes import Outcome, OutcomePlan, ReasonCode
from deletion_service.requests.lifecycle import move
from deletion_service.requests.models import ErasureRequest
from deletion_service.requests.statuses import RequestStatus
from deletion_service.targets.jobs import owe
from deletion_service.targets.statuses import JobKind, TargetStatus
from ml.digests import sha256_hex

Status = Certificate.Status


@transaction.atomic
def issue_certificate(certificate: Certificate, *, member: StaffMember) -> Certificate:
    """Sign as approver, log, and move on when it was the last one awaited.

    1. Drafted, and by another person than the evidence approver.  2. The bytes are those that were drafted.
    3. Second signature; one leaf in the log.  4. All issued: the request goes to notifying.

    Raises:
        IllegalTransitionError: it is not a draft.
        FourEyesError: `member` approved the evidence.
        EvidenceMissingError: the stored bytes changed since they were drafted.
    """
    check_issuer(certificate, member)
    envelope = read_envelope(bytes(certificate.envelope))
    if sha256_hex(envelope.payload) != certificate.statement_sha256:
        raise EvidenceMissingError(f"certificate {certificate.pk} is not the statement that was drafted")
    signed = add_signature(envelope, signer=approver_signer()).to_bytes()
    actor = f"staff:{member.handle}"
    _move(certificate, Status.ISSUED, actor=actor, envelope=signed, issued_by=member, issued_at=timezone.now())
    append_certificate(certificate, signed)
    _notify_when_complete(certificate.target.request, actor=actor)
    return certificate


def check_issuer(certificate: Certificate, member: StaffMember) -> None:
    """Raise unless `member` may issue `certificate` now; the database refuses the same person as well."""
    if certificate.status != Status.DRAFTED:
        raise IllegalTransitionError(
            f"certificate {certificate.pk} is {certificate.status}; only a draft can be issued"
        )
    if member.pk == certificate.evidence_approver_id:
        raise FourEyesError(f"you approved the evidence of {certificate.pk}; another person must issue it")


@transaction.atomic
def publish_certificate(certificate: Certificate) -> Certificate:
    """Attach the inclusion proof under a signed checkpoint; the worker calls this, holding the log key."""
    if certificate.status == Status.PUBLISHED:
        return certificate
    entry = LogEntry.objects.get(certificate=certificate, kind=LogEntry.Kind.CERTIFICATE)
    proof = proof_for(entry, publish_checkpoint(log_signer()))
    _move(certificate, Status.PUBLISHED, actor="worker", published_at=timezone.now(), log_proof=proof.to_document())
    return certificate


def outcome_of(request: ErasureRequest) -> Outcome:
    """Derive a request's outcome from its targets; `erased` needs every one released."""
    statuses = set(request.targets.exclude(status=TargetStatus.CANCELLED).values_list("status", flat=True))
    if statuses == {TargetStatus.RELEASED}:
        return Outcome.ERASED
    if TargetStatus.RELEASED in statuses:
        return Outcome.PARTIALLY_ERASED
    if request.outcome_plan == OutcomePlan.RETRAIN:
        return Outcome.SCHEDULED_RETRAIN
    return Outcome.NOT_ERASED


def _notify_when_complete(request: ErasureRequest, *, actor: str) -> None:
    targets = request.targets.exclude(status=TargetStatus.CANCELLED)
    if targets.exclude(certificates__status__in=[Status.ISSUED, Status.PUBLISHED]).exists():
        return
    released = targets.filter(status=TargetStatus.RELEASED).exists()
    reason = ReasonCode.CERTIFICATE_ISSUED if released else ReasonCode.REPORT_ISSUED
    move(request, RequestStatus.NOTIFYING, actor=actor, reason=reason)
    owe(JobKind.NOTIFY, request)


def _move(certificate: Certificate, to: str, *, actor: str, **changes: object) -> None:
    old = certificate.status
    if Certificate.objects.filter(pk=certificate.pk, status=old).update(status=to, **changes) != 1:
        raise StaleStateError(f"certificate {certificate.pk} is no longer {old}; load it again")
    CertificateEvent.objects.create(certificate=certificate, old_status=old, new_status=to, actor=actor)
    trail.record(
        actor=actor,
        action=f"certificate.{to}",
        obj=certificate,
        reason=certificate.verdict,
        request_id=certificate.target.request_id,
    )
    certificate.refresh_from_db()
