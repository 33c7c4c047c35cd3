"""What a failed attempt or sweep leaves behind: evidence that nothing was shown, never silence."""

from __future__ import annotations

from django.db import transaction

from deletion_service.certificates.models import Sweep
from deletion_service.certificates.policies import current_policy, policy_of_run
from deletion_service.certificates.promotion import latest_evidence
from deletion_service.certificates.sweeps import judge_swept, record_not_swept
from deletion_service.errors import EvidenceMissingError
from deletion_service.targets.models import Job, UnlearningRun
from ml.reports import VerificationReport
from ml.specs import VerdictPolicy
from workers.judging import open_review, record_verdict


@transaction.atomic
def record_abandoned_attempt(job: Job) -> None:
    """Seal a report in which every measurement is missing; the decision rule makes it INCONCLUSIVE."""
    if job.target is None or job.run is None:
        return
    try:
        policy = policy_of_run(job.run.policy_name, job.run.policy_sha256)
    except EvidenceMissingError:
        # Policies change with the product. Nothing was measured, so that under any policy nothing is shown.
        policy = current_policy()
    report = empty_report(job.run, policy, reason=f"the {job.kind} job failed: {job.last_error or 'unknown'}")
    record_verdict(job.target, job.run, report=report, policy=policy)


@transaction.atomic
def record_abandoned_sweep(job: Job) -> None:
    """Say of a candidate that nobody knows whether it brings an earlier deletion back; that blocks its release."""
    if job.target is None or job.run is None or job.run.candidate is None:
        return
    earlier = job.target.model.ledger.count()
    sweep = record_not_swept(job.run.candidate, target=job.target, reason=Sweep.Reason.ERROR, earlier=earlier)
    judge_swept(job.target, sweep, verdict=latest_evidence(job.target).verdict)
    open_review(job.target.request)


def empty_report(run: UnlearningRun, policy: VerdictPolicy, *, reason: str) -> VerificationReport:
    """Return a report that measured nothing, with the reason."""
    before = run.batch.before
    models = {
        "before": before.manifest_sha256,
        "base": before.base.manifest_sha256 if before.base else "",
        # Without a candidate the report is about the model that stands unchanged.
        "candidate": (run.candidate or before).manifest_sha256,
    }
    return VerificationReport(
        run_id=run.pk,
        attempt=run.attempt,
        policy_sha256=policy.sha256,
        models=models,
        artefacts={},
        attacks=(),
        joint=(),
        guards=(),
        hard_rules=(),
        utility=(),
        validity=(),
        groups=(),
        energies=(),
        separation={},
        probe_sets=(),
        seeds={"commitment_sha256": run.verification_seed_sha256},
        environment={},
        cpu_seconds={},
        notes=(reason,),
    )
