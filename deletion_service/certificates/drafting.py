"""Gather the facts of a finished target and draft its statement. States only what has happened; what is still due is
listed as pending with its date."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import date, timedelta
from typing import Final

from django.conf import settings
from django.db import transaction
from django.utils import timezone

from deletion_service.audit import trail
from deletion_service.certificates.canonical import time_text
from deletion_service.certificates.envelope import sign_envelope
from deletion_service.certificates.evaluation import DigestSet, Evaluation, evaluation_of
from deletion_service.certificates.evidence import open_evidence
from deletion_service.certificates.evidence_document import EvidenceDocument
from deletion_service.certificates.facts import (
    Approval,
    Descendant,
    Disposal,
    ErasureFacts,
    MethodFacts,
    ModelBefore,
    NamedDigest,
    Pending,
    RequestFacts,
    Retirement,
    Scope,
    SourceResult,
    Validity,
    manifest_rows,
)
from deletion_service.certificates.forms import count_bucket
from deletion_service.certificates.models import Certificate, CertificateEvent, Evidence, EvidenceDecision
from deletion_service.certificates.signing import Signer
from deletion_service.certificates.statement import build_statement, statement_bytes
from deletion_service.certificates.sweeps import sustainability_of
from deletion_service.errors import GuardError
from deletion_service.ids import certificate_id
from deletion_service.requests.codes import Capacity, DataClass, ReasonCode
from deletion_service.requests.models import DisposalEvent, ErasureRequest
from deletion_service.targets.contamination import candidate_of, descendants
from deletion_service.targets.ledger import vault_until
from deletion_service.targets.models import (
    ContaminatedVersion,
    ErasureTarget,
    ModelVersion,
    SourceErasure,
    UnlearningRun,
)
from deletion_service.targets.statuses import TargetStatus, Verdict
from ml.digests import ModelManifest, sha256_hex
from ml.reports import UnlearningReport

# Classes of data that are destroyed before anything is stated (compliance section 3.1).
_DISPOSED: Final = ("A", "B", "F")
_INVALIDATED_IF = (
    "the weights change",
    "an adapter is added",
    "a quantised build that is not listed is served",
    "the model is trained again on data of the same person",
)


@transaction.atomic
def draft_certificate(
    target: ErasureTarget, decision: EvidenceDecision, *, evidence: Evidence, signer: Signer
) -> Certificate:
    """Build, validate and sign the statement of a finished target; a repetition returns the first draft.

    The worker calls this inside its fenced transaction, holding the issuer key.
    """
    standing = Certificate.objects.exclude(status=Certificate.Status.DISCARDED)
    if drafted := standing.filter(target=target, decision=decision).first():
        return drafted
    identifier = certificate_id()
    facts = erasure_facts(target, decision, evidence=evidence, identifier=identifier)
    payload = statement_bytes(build_statement(facts))
    certificate = Certificate.objects.create(
        id=identifier,
        target=target,
        evidence=evidence,
        decision=decision,
        verdict=facts.verdict,
        envelope=sign_envelope(payload, signers=[signer]).to_bytes(),
        statement_sha256=sha256_hex(payload),
        evidence_approver=decision.decided_by,
    )
    CertificateEvent.objects.create(certificate=certificate, new_status=Certificate.Status.DRAFTED, actor="worker")
    trail.record(
        actor="worker",
        action="certificate.drafted",
        obj=certificate,
        reason=certificate.verdict,
        request_id=target.request_id,
    )
    return certificate


def check_statement(target: ErasureTarget, decision: EvidenceDecision, *, evidence: Evidence) -> None:
    """Raise what drafting would raise, while the request's own data are still there to repair things with."""
    facts = erasure_facts(target, decision, evidence=evidence, identifier=certificate_id())
    expected = Disposal("dek_destroyed", _DISPOSED, facts.issued_at, _audit_kit(target))
    statement_bytes(build_statement(replace(facts, disposal=expected)))


def erasure_facts(
    target: ErasureTarget, decision: EvidenceDecision, *, evidence: Evidence, identifier: str
) -> ErasureFacts:
    """Return what is true of a target now, in the form a statement is built from."""
    verdict = _verdict(target, evidence)
    request, run = target.request, evidence.run
    new_version = run.candidate or run.batch.before
    document = open_evidence(evidence)
    return ErasureFacts(
        certificate_id=identifier,
        issued_at=time_text(timezone.now()),
        verdict=verdict,  # type: ignore[arg-type]  # the constraint on the row holds the same three words
        capacity="processor" if request.capacity == Capacity.PROCESSOR else "controller",
        request=RequestFacts(
            id=request.pk,
            regime=request.regime,
            received_on=timezone.localdate(request.received_at).isoformat(),
            subject_commitment=f"sha256:{request.subject.commitment_sha256}",
            upstream_id=request.upstream_id or None,
        ),
        target_id=target.pk,
        attempt=str(evidence.attempt),
        model_name=target.model.name,
        manifest=manifest_rows(ModelManifest.from_document(new_version.manifest)),
        model_before=_named(run.batch.before),
        method=_method(run),
        scope=_scope(target),
        evaluation=_evaluation(document, evidence, new_version, declined=verdict != evidence.verdict),
        verification_seed_commitment=f"sha256:{run.verification_seed_sha256}",
        verification_seed_origin="fixed" if run.seed_fixed else "drawn",
        retirement=tuple(_retirements(target, released=verdict == Verdict.PASS)),
        sources=tuple(_sources(target)),
        recipients=None,
        disposal=_disposal(request, target),
        approvals=tuple(_approvals(request, decision)),
        pending=tuple(_pending(request, target)),
        key_custody=settings.KEY_CUSTODY,  # type: ignore[arg-type]  # its form is checked
        validity=Validity(_recheck_by().isoformat(), _INVALIDATED_IF),
        supersedes=None,
        sustainability=sustainability_of(target, run.candidate),
    )


def _verdict(target: ErasureTarget, evidence: Evidence) -> str:
    """Return what may be stated: a PASS only of what was released, since nothing else is in use."""
    if target.status not in (TargetStatus.RELEASED, TargetStatus.NOT_RELEASED):
        raise GuardError(f"erasure target {target.pk} is {target.status}; finish its release before drafting")
    if evidence.verdict == Verdict.PASS and target.status != TargetStatus.RELEASED:
        return Verdict.INCONCLUSIVE
    return evidence.verdict


def _evaluation(
    document: EvidenceDocument, evidence: Evidence, new_version: ModelVersion, *, declined: bool
) -> Evaluation:
    return evaluation_of(
        document.judged_again(),
        report=document.report,
        policy=document.policy,
        candidate_manifest_sha256=new_version.manifest_sha256,
        evidence_sha256=evidence.sha256,
        declined=declined,
    )


def _named(version: ModelVersion) -> ModelBefore:
    name = f"{version.model.name} version {version.number}"
    return ModelBefore(name, DigestSet(version.root_sha256), version.manifest_sha256)


def _method(run: UnlearningRun) -> MethodFacts:
    report = None if run.report is None else UnlearningReport.from_document(run.report)
    return MethodFacts(
        name=report.method if report else run.method,
        version=report.method_version if report else "not-run",
        guarantee=report.guarantee if report else "unchanged",
        code_digest=f"sha256:{report.code_sha256}" if report else None,
        config_digest=f"sha256:{report.config_sha256}" if report else None,
        image_digest=settings.IMAGE_DIGEST or None,
        seeds=(str(report.seed) if report else run.seed,),
    )


def _scope(target: ErasureTarget) -> Scope:
    before = target.batch.before if target.batch else None
    manifest = getattr(before, "training_manifest", None)
    datasets = () if manifest is None else (NamedDigest(manifest.dataset_name, DigestSet(manifest.dataset_sha256)),)
    return Scope(
        layers=("training", "finetuning", "weights", "outputs"),
        record_count=count_bucket(target.record_count),
        datasets=datasets,
        descendants=tuple(_descendants(target)),
    )


def _descendants(target: ErasureTarget) -> Iterator[Descendant]:
    """What was made from the model before and is gone; the release waits for every one that is not."""
    if target.batch is None:
        return
    derived = descendants([target.batch.before], candidate=candidate_of(target))
    gone = target.contaminated.filter(version__in=derived, probe=ContaminatedVersion.Probe.GONE)
    for row in gone.select_related("version").order_by("version__number"):
        yield Descendant(DigestSet(row.version.root_sha256), "retired", None)


def _retirements(target: ErasureTarget, *, released: bool) -> Iterator[Retirement]:
    """What became of each version that learned from the person; nothing is retired unless a version was released."""
    if not released:
        return
    for row in target.contaminated.select_related("version").order_by("version__number"):
        yield Retirement(
            digest=DigestSet(row.version.root_sha256),
            action="retained" if row.action == ContaminatedVersion.Action.RETAIN else "deleted",
            until=row.retain_until.isoformat() if row.retain_until else None,
            probe=row.probe,  # type: ignore[arg-type]  # the same three words
            probed_at=time_text(row.probed_at) if row.probed_at else None,
        )


def _sources(target: ErasureTarget) -> Iterator[SourceResult]:
    for row in target.sources.order_by("name"):
        yield SourceResult(
            name=row.name,
            action="kept" if row.action == SourceErasure.Action.PENDING else row.action,  # type: ignore[arg-type]
            probe=row.probe,  # type: ignore[arg-type]  # the same three words
            probed_at=time_text(row.probed_at) if row.probed_at else None,
        )


def _disposal(request: ErasureRequest, target: ErasureTarget) -> Disposal | None:
    done = {e.data_class: e for e in DisposalEvent.objects.filter(request=request)}
    if not {DataClass.PAYLOAD, DataClass.IDENTITY} <= done.keys():
        return None
    classes = tuple(data_class for data_class in _DISPOSED if data_class in done)
    latest = max(done[data_class].at for data_class in classes)
    return Disposal("dek_destroyed", classes, time_text(latest), _audit_kit(target))


def _audit_kit(target: ErasureTarget) -> str:
    """What of the person is kept to check again: nothing, or probes under a key of their own until a day."""
    until = vault_until(target)
    return "none" if until is None else f"sealed_until:{until.isoformat()}"


def _approvals(request: ErasureRequest, decision: EvidenceDecision) -> Iterator[Approval]:
    started = request.events.filter(reason=ReasonCode.START_APPROVED).order_by("-id").first()
    person = request.starter or request.reviewer
    if started is not None:
        # Nobody here approves the start of an instruction: its sender has.
        yield Approval(person.role if person else "controller", time_text(started.at))
    yield Approval(decision.role, time_text(decision.at))


def _pending(request: ErasureRequest, target: ErasureTarget) -> Iterator[Pending]:
    if request.sealed_items.filter(data_class=DataClass.CONTACT).exists():
        due = timezone.localdate() + timedelta(days=settings.COMPLAINT_WINDOW_DAYS)
        yield Pending("dispose_contact_data", due.isoformat())
    for row in target.contaminated.filter(action=ContaminatedVersion.Action.RETAIN):
        if row.retain_until:
            yield Pending("dispose_retained_weights", row.retain_until.isoformat())


def _recheck_by() -> date:
    return timezone.localdate() + timedelta(days=settings.RECHECK_DAYS)
