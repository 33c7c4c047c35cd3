"""Attack the candidate, judge the evidence, seal it."""

from __future__ import annotations

from django.conf import settings

from deletion_service.certificates.policies import policy_of_run
from ml.verify import run_verification
from workers.bridge import naming, open_snapshots, use_threads, verification_spec
from workers.jobs import Lease
from workers.judging import record_verdict
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
