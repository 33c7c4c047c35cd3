"""Attack the candidate, judge the evidence, seal it."""

from __future__ import annotations

from django.conf import settings

from deletion_service.certificates.evidence import seal_evidence
from deletion_service.certificates.policies import policy_of_run
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
from ml.verify import run_verification
from workers.bridge import naming, open_snapshots, use_threads, verification_spec
from workers.jobs import Lease
from workers.workspace import scratch


def run(lease: Lease) -> None:
    """1. Measure, resuming finished parts.  2. Judge and seal under the fence.  3. Owe the sweep over earlier deletions
    or, where the candidate cannot be released anyway, let the last one open the review."""
    job = lease.job()
    if job.target is None or job.run is None:
        raise ValueError("a verification job has a target and a run")
    policy = policy_of_run(job.run.policy_name, job.run.policy_sha256)
    with scratch(lease) as folder:
        spec = verification_spec(job.target, job.run, open_snapshots(job.target, job.run, folder), policy)
        use_threads()
        before = job.run.batch.before
        with naming(job.run.candidate, before, before.base):
            report = run_verification(
                spec,
                on_progress=lease.on_progress,
                should_stop=lease.should_stop,
                processes=settings.COMPUTE_PROCESSES,
            )
    with lease.fenced():
        record_verdict(job.target, job.run, report=report, policy=policy)
        lease.finish()


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
