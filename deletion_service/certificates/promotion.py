"""Decide on evidence, promote what passed, confirm what the registry reads back. The database decides; a worker
projects (service-stack section 6)."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from typing import Final

from django.db import transaction
from django.utils import timezone

from deletion_service.access.models import StaffMember
from deletion_service.audit import trail
from deletion_service.certificates.evidence import open_evidence
from deletion_service.certificates.models import Evidence, EvidenceDecision, Promotion, Sweep
from deletion_service.certificates.policies import refuse_test_candidate, refuse_test_policy
from deletion_service.certificates.sweeps import check_swept, latest_sweep
from deletion_service.errors import EvidenceMissingError, GuardError
from deletion_service.requests.codes import OutcomePlan, ReasonCode
from deletion_service.requests.lifecycle import move
from deletion_service.requests.models import ErasureRequest
from deletion_service.requests.statuses import RequestStatus
from deletion_service.targets import lifecycle
from deletion_service.targets.contamination import candidate_of, check_accounted_for, record_contaminated
from deletion_service.targets.jobs import owe
from deletion_service.targets.models import ErasureTarget, ModelVersion
from deletion_service.targets.statuses import JobKind, TargetStatus, Verdict, VersionStatus

Choice = EvidenceDecision.Choice
Reason = EvidenceDecision.Reason
_RELEASED_BECAUSE: Final[dict[str, str]] = {
    Choice.RELEASE: Reason.ALL_GATES_PASSED,
    Choice.RELEASE_PARTIAL: Reason.PASSED_TARGETS_ONLY,
}


@transaction.atomic
def decide_evidence(
    request: ErasureRequest, *, choice: str, reason: str, reviewer: StaffMember, retrain_on: date | None = None
) -> EvidenceDecision:
    """Release what passed, or decline. What is recorded here cannot be changed; another round needs another decision.

    1. The request is in evidence review and has evidence for every judged target.
    2. Everything to be released is PASS, by evidence that is opened and judged again, under a release policy, and was
    tested for earlier deletions.
    3. Targets move, promotions get their epoch, jobs are owed.

    Raises:
        GuardError: the choice does not fit the verdicts.
        ResurfacedError: a version that would be released brings an earlier deletion back.
        EvidenceMissingError: evidence is absent or does not hold.
    """
    # The lock lets one of two who decide at once go first; the other then finds what was decided.
    ErasureRequest.objects.select_for_update().get(pk=request.pk)
    request.refresh_from_db()
    judged, passed = check_choice(request, choice, reason)
    decision = EvidenceDecision.objects.create(
        request=request,
        attempt=request.attempt,
        round=request.evidence_decisions.filter(attempt=request.attempt).count() + 1,
        choice=choice,
        reason=reason,
        decided_by=reviewer,
        role=reviewer.role,
    )
    actor = f"staff:{reviewer.handle}"
    trail.record(actor=actor, action=f"evidence.{choice}", obj=decision, reason=reason, request_id=request.pk)
    if choice == Choice.DECLINE:
        _decline(request, decision, judged, actor=actor, retrain_on=retrain_on)
    else:
        _release(request, decision, judged, passed, actor=actor)
    return decision


def confirm_promotion(promotion: Promotion) -> None:
    """Record that the registry reads back as decided. Called inside the worker's fenced transaction."""
    ModelVersion.objects.filter(pk=promotion.from_version_id).update(status=VersionStatus.SUPERSEDED)
    ModelVersion.objects.filter(pk=promotion.to_version_id).update(status=VersionStatus.SERVING)
    Promotion.objects.filter(pk=promotion.pk).update(status=Promotion.Status.CONFIRMED, confirmed_at=timezone.now())
    trail.record(actor="worker", action="model.promoted", obj=promotion, request_id=promotion.target.request_id)


def report_conflict(promotion: Promotion) -> None:
    """Record that the registry moved meanwhile: nothing is issued, the case goes back to a person."""
    Promotion.objects.filter(pk=promotion.pk).update(status=Promotion.Status.CONFLICT)
    send_back(promotion.target, reason=ReasonCode.PROMOTION_CONFLICT)


def send_back(target: ErasureTarget, *, reason: ReasonCode) -> None:
    """Return a target that was being released to evidence review, and its request with it."""
    lifecycle.move(target, TargetStatus.JUDGED, actor="worker", reason=reason)
    return_to_review(target.request)


def return_to_review(request: ErasureRequest) -> None:
    """Open the review again for targets that were sent back, once no other is being released: until then nobody can
    decide, and what was decided is carried out. The lock makes one of two targets that settle at once the last."""
    row = ErasureRequest.objects.select_for_update().get(pk=request.pk)
    sent_back = request.targets.filter(status=TargetStatus.JUDGED).first()
    under_way = request.targets.filter(status=TargetStatus.RELEASING).exists()
    if row.status != RequestStatus.RELEASING or sent_back is None or under_way:
        return
    reason = ReasonCode(sent_back.events.latest("id").reason)
    move(request, RequestStatus.EVIDENCE_REVIEW, actor="worker", reason=reason)


def latest_evidence(target: ErasureTarget) -> Evidence:
    """Return the evidence of a target's newest attempt.

    Raises:
        EvidenceMissingError: there is none.
    """
    evidence = target.evidence.order_by("-attempt", "-sealed_at").first()
    if evidence is None:
        raise EvidenceMissingError(f"erasure target {target.pk} has no evidence; its verification never finished")
    return evidence


def decisions_about(target: ErasureTarget) -> list[EvidenceDecision]:
    """Return the decisions that released or declined a target, oldest first; each owed it jobs of its own round."""
    rounds = set(target.jobs.filter(kind__in=[JobKind.PROMOTE, JobKind.RETIRE]).values_list("round", flat=True))
    made = target.request.evidence_decisions.order_by("pk")
    return [decision for number, decision in enumerate(made, start=1) if number in rounds]


def latest_decision(target: ErasureTarget) -> EvidenceDecision:
    """Return the decision that stands for a target, which need not be the newest one on its request.

    Raises:
        EvidenceMissingError: nobody has decided.
    """
    decisions = decisions_about(target)
    if not decisions:
        raise EvidenceMissingError(f"nobody has decided on the evidence of erasure target {target.pk}; decide first")
    return decisions[-1]


def check_choice(request: ErasureRequest, choice: str, reason: str) -> tuple[list[ErasureTarget], list[ErasureTarget]]:
    """Return the judged and the passing targets that a choice would be about.

    Raises:
        GuardError: the choice does not fit the verdicts.
        ResurfacedError: a version that would be released brings an earlier deletion back.
    """
    if request.status != RequestStatus.EVIDENCE_REVIEW:
        raise GuardError(f"{request.pk} is not in evidence review; nothing can be decided on its evidence")
    judged = list(request.targets.filter(status=TargetStatus.JUDGED))
    passed = [target for target in judged if target.verdict == Verdict.PASS]
    if choice not in Choice.values or reason not in Reason.values:
        raise GuardError("a decision needs a known choice and reason code", pointer="/reason")
    if not judged:
        raise GuardError(f"{request.pk} has no judged target; there is nothing to decide")
    if choice == Choice.RELEASE:
        _check_nothing_resurfaced(judged)
    if choice == Choice.RELEASE and len(passed) != len(judged):
        raise GuardError(f"not every target of {request.pk} passed; release those that did, or decline")
    if choice == Choice.RELEASE_PARTIAL and not 0 < len(passed) < len(judged):
        raise GuardError(f"{request.pk} has nothing to release in part; release all or decline")
    if choice == Choice.DECLINE and passed and len(passed) == len(judged) and reason != Reason.RETRAIN_PLANNED:
        raise GuardError(f"every target of {request.pk} passed; declining needs the reason retrain_planned")
    if choice == Choice.DECLINE and _serving_already(judged):
        raise GuardError(f"a version released for {request.pk} already serves; remove what stopped it, release again")
    if choice != Choice.DECLINE and reason != (known := _RELEASED_BECAUSE[choice]):
        raise GuardError(f"the reason of {choice} is {known}, no other", pointer="/reason")
    return judged, passed


def _check_nothing_resurfaced(targets: Sequence[ErasureTarget]) -> None:
    for target in targets:
        sweep = latest_sweep(candidate_of(target))
        if sweep is not None and sweep.result == Sweep.Result.FAIL:
            check_swept(sweep.version)


def _serving_already(targets: Sequence[ErasureTarget]) -> bool:
    """Whether the registry follows a release of one of these targets: declining could no longer be true."""
    return Promotion.objects.filter(target__in=targets, status=Promotion.Status.CONFIRMED).exists()


def _release(
    request: ErasureRequest,
    decision: EvidenceDecision,
    judged: Sequence[ErasureTarget],
    passed: Sequence[ErasureTarget],
    *,
    actor: str,
) -> None:
    for target in judged:
        if target in passed:
            _release_target(target, decision, actor=actor)
        else:
            _decline_target(target, decision, actor=actor)
    move(request, RequestStatus.RELEASING, actor=actor, reason=ReasonCode.EVIDENCE_APPROVED)


def _release_target(target: ErasureTarget, decision: EvidenceDecision, *, actor: str) -> None:
    evidence = latest_evidence(target)
    document = open_evidence(evidence)
    refuse_test_policy(document.policy)
    refuse_test_candidate(evidence.run.method)
    candidate = evidence.run.candidate
    if evidence.verdict != Verdict.PASS or candidate is None:
        raise EvidenceMissingError(f"erasure target {target.pk} has no passing evidence; it cannot be released")
    if document.report.models.get("candidate") != candidate.manifest_sha256:
        raise EvidenceMissingError(f"evidence {evidence.pk} is about other weights than the candidate; verify again")
    check_swept(candidate)
    record_contaminated(target)
    check_accounted_for(target)
    lifecycle.move(target, TargetStatus.RELEASING, actor=actor, reason=decision.reason)
    serving = ModelVersion.objects.get(model=target.model, status=VersionStatus.SERVING)
    if serving.pk == candidate.pk:
        owe(JobKind.RETIRE, target.request, target=target, run=evidence.run, round_=_round(decision))
        return
    Promotion.objects.create(
        model=target.model,
        epoch=(
            Promotion.objects.filter(model=target.model).order_by("-epoch").values_list("epoch", flat=True).first() or 0
        )
        + 1,
        target=target,
        evidence=evidence,
        decision=decision,
        from_version=evidence.run.batch.before,
        to_version=candidate,
    )
    owe(JobKind.PROMOTE, target.request, target=target, run=evidence.run, round_=_round(decision))


def _decline_target(target: ErasureTarget, decision: EvidenceDecision, *, actor: str) -> None:
    """Nothing of this target is released; its rows still leave the training sources."""
    lifecycle.move(target, TargetStatus.NOT_RELEASED, actor=actor, reason=decision.reason)
    owe(JobKind.RETIRE, target.request, target=target, round_=_round(decision))


def _decline(
    request: ErasureRequest,
    decision: EvidenceDecision,
    judged: Sequence[ErasureTarget],
    *,
    actor: str,
    retrain_on: date | None,
) -> None:
    if decision.reason == Reason.RETRAIN_PLANNED:
        if retrain_on is None or retrain_on < timezone.localdate():
            raise GuardError("planning to retrain needs a date to come", pointer="/retrain_on")
        ErasureRequest.objects.filter(pk=request.pk).update(outcome_plan=OutcomePlan.RETRAIN, planned_on=retrain_on)
    for target in judged:
        _decline_target(target, decision, actor=actor)


def _round(decision: EvidenceDecision) -> int:
    """A job round of its own for every decision on a request."""
    return EvidenceDecision.objects.filter(request=decision.request, pk__lte=decision.pk).count()
