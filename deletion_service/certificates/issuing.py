"""Issue a drafted certificate: the second person's signature, the log entry, the request's next step. Publish it."""

from __future__ import annotations

from typing import Final

from django.conf import settings
from django.db import transaction
from django.db.models import Max
from django.utils import timezone

from deletion_service.access.models import StaffMember
from deletion_service.certificates import lifecycle
from deletion_service.certificates.canonical import time_text
from deletion_service.certificates.custody import approver_signer, issuer_document, log_signer
from deletion_service.certificates.envelope import add_signature, read_envelope
from deletion_service.certificates.facts import Approval, ErasureFacts
from deletion_service.certificates.log import append_certificate, proof_for, publish_checkpoint
from deletion_service.certificates.models import ISSUED_STATUSES, Certificate, LogEntry
from deletion_service.certificates.promotion import decisions_about, latest_decision
from deletion_service.certificates.revoking import latest_revocations
from deletion_service.certificates.sweeps import swept_bytes
from deletion_service.certificates.verify import VerificationResult, verify_certificate
from deletion_service.errors import (
    EvidenceMissingError,
    FourEyesError,
    IllegalTransitionError,
    SigningError,
)
from deletion_service.requests.codes import Outcome, OutcomePlan, ReasonCode
from deletion_service.requests.lifecycle import move
from deletion_service.requests.models import ErasureRequest
from deletion_service.requests.statuses import RequestStatus
from deletion_service.targets.jobs import owe
from deletion_service.targets.statuses import JobKind, TargetStatus, Verdict
from ml.digests import canonical_json, sha256_hex

Status = Certificate.Status
_REDRAFT: Final = "have it drafted again: manage.py redraft_certificate"


@transaction.atomic
def issue_certificate(certificate: Certificate, *, member: StaffMember) -> Certificate:
    """Sign as approver, log, and move on when it was the last one awaited.

    1. Drafted, and by another person than any who decided on its evidence.  2. The bytes are those that were drafted,
    are about this target, and hold when the evidence is judged again.  3. Second signature; what came out is checked
    as a stranger would.  4. One leaf in the log.  5. All issued: the request goes to notifying.

    Raises:
        IllegalTransitionError: it is not a draft.
        FourEyesError: `member` approved the evidence, now or in an earlier round.
        EvidenceMissingError: the statement is not the one drafted, or does not hold.
        SigningError: a key does not count now.
    """
    check_issuer(certificate, member)
    check_draft(certificate)
    envelope = read_envelope(bytes(certificate.envelope))
    signed = add_signature(envelope, signer=approver_signer()).to_bytes()
    _check_signed(certificate, signed)
    actor = f"staff:{member.handle}"
    lifecycle.move(certificate, Status.ISSUED, actor=actor, envelope=signed, issued_by=member, issued_at=timezone.now())
    append_certificate(certificate, signed)
    _notify_when_complete(certificate.target.request, actor=actor)
    return certificate


def check_issuer(certificate: Certificate, member: StaffMember) -> None:
    """Raise unless `member` may issue `certificate` now; the database refuses the same person as well."""
    if certificate.status != Status.DRAFTED:
        raise IllegalTransitionError(
            f"certificate {certificate.pk} is {certificate.status}; only a draft can be issued"
        )
    deciders = {decision.decided_by_id for decision in decisions_about(certificate.target)}
    if member.pk in deciders | {certificate.evidence_approver_id}:
        raise FourEyesError(f"you approved the evidence of {certificate.pk}; another person must issue it")


def check_draft(certificate: Certificate) -> VerificationResult:
    """Judge a draft again as anybody will judge the certificate, and compare it with the rows it is about.

    Raises:
        EvidenceMissingError: it is not the statement drafted for this target and decision, or a check of it fails.
    """
    data = bytes(certificate.envelope)
    if sha256_hex(read_envelope(data).payload) != certificate.statement_sha256:
        raise EvidenceMissingError(f"certificate {certificate.pk} is not the statement that was drafted; {_REDRAFT}")
    result = examine(certificate)
    if result.statement is None or not result.ok:
        failed = result.failed[0]
        raise EvidenceMissingError(f"draft {certificate.pk} fails {failed.name}: {failed.sentence}; {_REDRAFT}")
    if differing := _differences(certificate, result.statement.facts):
        raise EvidenceMissingError(f"draft {certificate.pk} is about another {' and '.join(differing)}; {_REDRAFT}")
    return result


def examine(certificate: Certificate) -> VerificationResult:
    """Return what anybody's check says of a stored certificate; of a draft, all but the signature still missing."""
    draft = certificate.status == Status.DRAFTED
    return verify_certificate(
        bytes(certificate.envelope),
        issuer=issuer_document(),
        log_proof=None if certificate.log_proof is None else canonical_json(certificate.log_proof),
        evidence=bytes(certificate.evidence.document),
        sweep=swept_bytes(certificate.evidence.run.candidate),
        expect=certificate.verdict,  # type: ignore[arg-type]  # the evidence's constraint holds the same three words
        revocations=None if draft else latest_revocations(),
        draft=draft,
        accept_test_policy=settings.TESTING,
    )


def _differences(certificate: Certificate, facts: ErasureFacts) -> list[str]:
    """Name what a statement says otherwise than the rows of the certificate that carries it."""
    target, decision, evidence = certificate.target, certificate.decision, certificate.evidence
    released = target.status == TargetStatus.RELEASED
    approval = Approval(decision.role, time_text(decision.at))
    pairs: list[tuple[str, object, object]] = [
        ("certificate", facts.certificate_id, certificate.pk),
        ("target", (facts.target_id, evidence.target_id), (target.pk, target.pk)),
        ("request", facts.request.id, target.request_id),
        ("decision", (decision, approval in facts.approvals), (latest_decision(target), True)),
        ("evidence", facts.evaluation.evidence_digest.sha256, evidence.sha256),
        ("outcome of its release", facts.verdict == Verdict.PASS and not released, False),
    ]
    return [name for name, stated, stored in pairs if stated != stored]


def _check_signed(certificate: Certificate, signed: bytes) -> None:
    """Refuse to put out what nobody would accept: every key must count at the time stated and now."""
    document = issuer_document()
    for signature in read_envelope(signed).signatures:
        key = document.key(signature.keyid)
        reason = "is not in the issuer document" if key is None else key.why_not_valid_at(timezone.now())
        if reason:
            role = "signing" if key is None else key.role
            raise SigningError(f"a {role} key of {certificate.pk} {reason}; install a valid key, then {_REDRAFT}")
    result = verify_certificate(
        signed,
        issuer=document,
        evidence=bytes(certificate.evidence.document),
        sweep=swept_bytes(certificate.evidence.run.candidate),
        expect=certificate.verdict,  # type: ignore[arg-type]  # as above
        accept_test_policy=settings.TESTING,
    )
    if not result.ok:
        failed = result.failed[0]
        raise SigningError(f"certificate {certificate.pk} would fail {failed.name}: {failed.sentence}; {_REDRAFT}")


@transaction.atomic
def discard_draft(certificate: Certificate, *, actor: str) -> None:
    """Put a draft that cannot be issued aside, for ever on record, and owe the worker another one.

    Raises:
        IllegalTransitionError: it is not a draft.
    """
    lifecycle.move(certificate, Status.DISCARDED, actor=actor)
    target = certificate.target
    rounds = target.jobs.filter(kind=JobKind.CERTIFY).aggregate(Max("round"))["round__max"] or 0
    owe(JobKind.CERTIFY, target.request, target=target, round_=rounds + 1)


@transaction.atomic
def publish_certificate(certificate: Certificate) -> Certificate:
    """Attach the inclusion proof under a signed checkpoint; the worker calls this, holding the log key."""
    if certificate.status != Status.ISSUED:
        return certificate
    entry = LogEntry.objects.get(certificate=certificate, kind=LogEntry.Kind.CERTIFICATE)
    proof = proof_for(entry, publish_checkpoint(log_signer()))
    lifecycle.move(
        certificate, Status.PUBLISHED, actor="worker", published_at=timezone.now(), log_proof=proof.to_document()
    )
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
    if targets.exclude(certificates__status__in=ISSUED_STATUSES).exists():
        return
    released = targets.filter(status=TargetStatus.RELEASED).exists()
    reason = ReasonCode.CERTIFICATE_ISSUED if released else ReasonCode.REPORT_ISSUED
    move(request, RequestStatus.NOTIFYING, actor=actor, reason=reason)
    owe(JobKind.NOTIFY, request)
