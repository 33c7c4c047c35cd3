"""Unlearn one target's records from its model and register the candidate."""

from __future__ import annotations

import shutil
from pathlib import Path

from django.conf import settings

from deletion_service.certificates.policies import refuse_test_candidate
from deletion_service.targets.catalogue import register_version
from deletion_service.targets.jobs import owe
from deletion_service.targets.locate import record_found_again, search_again
from deletion_service.targets.models import ErasureTarget, Job, ModelVersion, UnlearningRun
from deletion_service.targets.registries import RUN_TAG, open_registry
from deletion_service.targets.statuses import JobKind, VersionStatus
from ml.reports import UnlearningReport
from ml.unlearn import TRAINING_PROBES, run_unlearning
from workers.bridge import PROBES, naming, open_snapshots, seal_set, take_snapshots, unlearning_spec, use_threads
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
    checkpoints = _checkpoints(lease, job, unlearning)
    output = run_directory(unlearning) / f"candidate-{lease.token}"
    with scratch(lease) as folder:
        refs = open_snapshots(target, unlearning, folder)
        spec = unlearning_spec(target, unlearning, refs, output=output, checkpoints=checkpoints)
        use_threads()
        with naming(unlearning.batch.before):
            report = run_unlearning(
                spec,
                on_progress=lease.on_progress,
                should_stop=lease.should_stop,
                processes=settings.COMPUTE_PROCESSES,
            )
    probes = (checkpoints / TRAINING_PROBES).read_bytes()
    _register(lease, unlearning, output, report, probes=seal_set(target, unlearning, PROBES, probes))


def _target_and_run(job: Job) -> tuple[ErasureTarget, UnlearningRun]:
    if job.target is None or job.run is None:
        raise ValueError("an unlearning job has a target and a run")
    return job.target, job.run


def _checkpoints(lease: Lease, job: Job, unlearning: UnlearningRun) -> Path:
    """Return this token's checkpoint folder, with the last token's checkpoints in it; a zombie writes to its own."""
    folder = run_directory(unlearning) / f"checkpoints-{lease.token}"
    earlier = run_directory(unlearning) / job.checkpoint if job.checkpoint else None
    if earlier is not None and earlier.is_dir() and not folder.exists():
        partial = folder.with_suffix(".part")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(earlier, partial)
        partial.rename(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lease.record(checkpoint=folder.name, step="train")
    return folder


def _register(
    lease: Lease, unlearning: UnlearningRun, output: Path, report: UnlearningReport, *, probes: dict[str, str | int]
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
        lease.finish()
