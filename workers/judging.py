"""What follows once evidence is there: seal it, owe the sweep, open the review.

Must never load the machine-learning stack: the sweep over abandoned work calls this, in a process that has none.
"""

from __future__ import annotations

from deletion_service.certificates.evidence import seal_evidence
from deletion_service.requests.codes import ReasonCode
from deletion_service.requests.lifecycle import move
from deletion_service.requests.models import ErasureRequest
from deletion_service.requests.statuses import RequestStatus
from deletion_service.targets import lifecycle
from deletion_service.targets.jobs import owe
from deletion_service.targets.models import ErasureTarget, UnlearningRun
from deletion_service.targets.statuses import JobKind, TargetStatus, Verdict
from ml.reports import VerificationReport
from ml.specs import VerdictPolicy


def record_verdict(
    target: ErasureTarget, run: UnlearningRun, *, report: VerificationReport, policy: VerdictPolicy
) -> None:
    """Seal the evidence; a PASS owes the sweep that comes next, anything else moves the target and may open the
    evidence review."""
    evidence = seal_evidence(target, run, report=report, policy=policy)
    UnlearningRun.objects.filter(pk=run.pk, candidate__isnull=False).update(status=UnlearningRun.Status.VERIFIED)
    if target.status == TargetStatus.WORKING and evidence.verdict == Verdict.PASS:
        owe(JobKind.SWEEP, target.request, target=target, run=run, round_=run.attempt)
        return
    if target.status == TargetStatus.WORKING:
        lifecycle.move(
            target, TargetStatus.JUDGED, actor="worker", reason=evidence.verdict.lower(), verdict=evidence.verdict
        )
    open_review(target.request)


def open_review(request: ErasureRequest) -> None:
    """Move a working request to evidence review once no target is still at work."""
    waiting = request.targets.filter(status__in=[TargetStatus.APPROVED, TargetStatus.WORKING])
    if request.status == RequestStatus.WORKING and not waiting.exists():
        move(request, RequestStatus.EVIDENCE_REVIEW, actor="worker", reason=ReasonCode.ALL_TARGETS_JUDGED)
