"""Test every earlier deletion again: on a candidate before people decide on it, or on a version from outside."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from deletion_service.certificates.models import Sweep
from deletion_service.certificates.policies import current_policy, policy_of_run
from deletion_service.certificates.promotion import latest_evidence
from deletion_service.certificates.sweeps import judge_swept, record_not_swept, seal_sweep
from deletion_service.targets.ledger import Scores, earlier_deletions, keep_spike_in, keep_vault
from deletion_service.targets.models import ErasureTarget, ModelVersion, UnlearningRun
from ml.errors import SpecError
from ml.sweep import record_scores, run_sweep
from ml.sweep_reports import SweepReport
from ml.verification.retest import UntestedError
from workers.bridge import naming, open_snapshots, use_threads
from workers.jobs import Lease
from workers.judging import open_review
from workers.sweeping import (
    Own,
    Sweeping,
    ledger_file,
    own_sentinels,
    scores_of,
    sweeping_of_run,
    sweeping_of_version,
)
from workers.workspace import scratch, sweep_directory, wipe


def run(lease: Lease) -> None:
    """1. Test every entry of the ledger on the version, resuming finished parts; with none there is nothing to do.
    2. For a candidate, note what the model before shows of its own spike-in or vault.  3. Judge and seal under the
    fence.  4. The last target that was waited for opens the review."""
    job = lease.job()
    if job.version is not None:
        _sweep_from_outside(lease, job.version)
    elif job.target is None or job.run is None or job.run.candidate is None:
        raise ValueError("a sweep is about a version, or about a target and a run with a candidate")
    else:
        _sweep_candidate(lease, job.target, job.run, job.run.candidate)


def _sweep_candidate(lease: Lease, target: ErasureTarget, run: UnlearningRun, candidate: ModelVersion) -> None:
    policy = policy_of_run(run.policy_name, run.policy_sha256)
    with scratch(lease) as folder:
        refs = open_snapshots(target, run, folder)
        sweeping = sweeping_of_run(target, run, refs, policy)
        report = _tested(lease, sweeping, candidate, folder)
        own = [(row, _seen_before(lease, sweeping, row, target, run, folder)) for row in own_sentinels(run, refs)]
    with lease.fenced():
        _keep(target, own)
        sweep = _sealed(candidate, target, sweeping, report)
        judge_swept(target, sweep, verdict=latest_evidence(target).verdict)
        open_review(target.request)
        lease.finish()


def _sweep_from_outside(lease: Lease, version: ModelVersion) -> None:
    with scratch(lease) as folder:
        sweeping = sweeping_of_version(version, lease.job_id, folder, current_policy())
        report = _tested(lease, sweeping, version, folder)
    with lease.fenced():
        _sealed(version, None, sweeping, report)
        lease.finish()
    wipe(sweep_directory(lease.job_id))


def _tested(lease: Lease, sweeping: Sweeping, version: ModelVersion, folder: Path) -> SweepReport | None:
    entries = earlier_deletions(version.model)
    if not entries:
        return None
    spec = sweeping.spec(version, ledger_file(entries, folder))
    use_threads()
    with naming(version, version.base):
        return run_sweep(spec, on_progress=lease.on_progress, should_stop=lease.should_stop)


def _sealed(
    version: ModelVersion, target: ErasureTarget | None, sweeping: Sweeping, report: SweepReport | None
) -> Sweep:
    if report is None:
        return record_not_swept(version, target=target, reason=Sweep.Reason.NO_EARLIER_DELETIONS, earlier=0)
    return seal_sweep(version, target=target, policy=sweeping.policy, report=report)


# --- this deletion ------------------------------------------------------------------------------------------------


def _seen_before(
    lease: Lease, sweeping: Sweeping, own: Own, target: ErasureTarget, run: UnlearningRun, folder: Path
) -> Scores | None:
    """What the model before shows of a sentinel; `None` where it cannot be asked about."""
    before = run.batch.before
    spec = sweeping.spec(before, own.ledger(target, folder))
    use_threads()
    try:
        with naming(before, before.base):
            seen = record_scores(spec, on_progress=lease.on_progress, should_stop=lease.should_stop)
    except SpecError as exc:
        if not isinstance(exc.__cause__, UntestedError):
            raise
        return None
    return scores_of(seen)


def _keep(target: ErasureTarget, own: Sequence[tuple[Own, Scores | None]]) -> None:
    """A spike-in that cannot be asked about stays on record as such; a person's probes would be kept for nothing."""
    for row, scores in own:
        if row.kind == "spike_in":
            keep_spike_in(target, mark=row.mark, probes=row.probes, scores=scores or {})
        elif scores is not None:
            keep_vault(target, probes=row.probes, scores=scores)
