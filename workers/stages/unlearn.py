"""Unlearn one target's records from its model and register the candidate."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from django.conf import settings

from deletion_service.certificates.policies import refuse_test_candidate
from deletion_service.targets.catalogue import register_version
from deletion_service.targets.jobs import owe
from deletion_service.targets.locate import record_found_again, search_again
from deletion_service.targets.models import ErasureTarget, Job, ModelVersion, UnlearningRun
from deletion_service.targets.registries import RUN_TAG, open_registry
from deletion_service.targets.statuses import JobKind, VersionStatus
from ml.errors import CheckpointError
from ml.reports import UnlearningReport
from ml.specs import UnlearningSpec
from ml.unlearn import TRAINING_PROBES, run_unlearning
from workers import exact
from workers.bridge import PROBES, naming, open_snapshots, seal_set, take_snapshots, unlearning_spec, use_threads
from workers.checkpoints import Checkpoints
from workers.jobs import Lease
from workers.workspace import run_directory, scratch


def run(lease: Lease) -> None:
    """1. Search again and snapshot the sets, once a run.  2. Unlearn, resuming from this run's checkpoint.
    3. Publish and register.

    The candidate is published before anybody decides on it, so that verification loads what would be served, by
    digest, from where it would be served; only promotion lets an alias point to it.
    """
    job = lease.job()
    target, unlearning = _target_and_run(job)
    refuse_test_candidate(unlearning.method)
    if not unlearning.snapshots:
        matches = search_again(target)
        described = take_snapshots(target, unlearning)
        with lease.fenced():
            record_found_again(target, matches)
            UnlearningRun.objects.filter(pk=unlearning.pk).update(snapshots=described)
        unlearning.refresh_from_db()
    checkpoints = Checkpoints(lease, unlearning)
    checkpoints.take_up(job)
    output = run_directory(unlearning) / f"candidate-{lease.token}"
    with scratch(lease) as folder:
        refs = open_snapshots(target, unlearning, folder)
        spec = unlearning_spec(target, unlearning, refs, output=output, checkpoints=checkpoints.folder)
        use_threads()
        with naming(unlearning.batch.before):
            report = _unlearn(lease, spec, checkpoints, run=unlearning)
    probes = (checkpoints.folder / TRAINING_PROBES).read_bytes()
    sealed = seal_set(target, unlearning, PROBES, probes)
    _register(lease, unlearning, output, report, checkpoints=checkpoints, probes=sealed)


def _target_and_run(job: Job) -> tuple[ErasureTarget, UnlearningRun]:
    if job.target is None or job.run is None:
        raise ValueError("an unlearning job has a target and a run")
    return job.target, job.run


def _unlearn(lease: Lease, spec: UnlearningSpec, checkpoints: Checkpoints, *, run: UnlearningRun) -> UnlearningReport:
    """Exactly where the version was made for it and that can be done; otherwise by the method of the plan."""
    refused = ""
    if exact.preferred(run):
        report, refused = exact.unlearn_if_possible(lease, run, spec)
        if report is not None:
            return report
    return exact.with_note(_unlearn_as_planned(lease, spec, checkpoints), refused)


def _unlearn_as_planned(lease: Lease, spec: UnlearningSpec, checkpoints: Checkpoints) -> UnlearningReport:
    """Go on from the checkpoint; where this version of the service cannot, begin again."""
    run = partial(
        run_unlearning,
        spec,
        on_progress=lease.on_progress,
        should_stop=lease.should_stop,
        on_checkpoint=checkpoints.keep,
        processes=settings.COMPUTE_PROCESSES,
    )
    try:
        return run()
    except CheckpointError:
        checkpoints.begin_again()
        return run()


def _register(
    lease: Lease,
    unlearning: UnlearningRun,
    output: Path,
    report: UnlearningReport,
    *,
    checkpoints: Checkpoints,
    probes: dict[str, str | int],
) -> None:
    before = unlearning.batch.before
    registry = open_registry(before.model.registry)
    published = registry.publish(output, parent=before.number, tags={RUN_TAG: unlearning.pk})
    with lease.fenced() as job:
        candidate = register_version(
            before.model,
            number=published.number,
            kind=ModelVersion.Kind.UNLEARNED,
            status=VersionStatus.CANDIDATE,
            parent=before,
            base=before.base,
            actor="worker",
        )
        UnlearningRun.objects.filter(pk=unlearning.pk).update(
            status=UnlearningRun.Status.UNLEARNED,
            candidate=candidate,
            report=report.to_document(),
            snapshots=unlearning.snapshots | {PROBES: probes},
        )
        owe(JobKind.VERIFY, job.case, target=job.target, run=unlearning, round_=job.round)
        checkpoints.end()
        lease.finish()
