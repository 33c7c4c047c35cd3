"""Directories of runs and jobs. Clear text lives only in a job's scratch folder, which is wiped when the job ends,
when its lease is found expired, and at disposal."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from django.conf import settings

from deletion_service.targets.models import ErasureBatch, Job, UnlearningRun
from deletion_service.targets.statuses import JobState
from workers.jobs import Lease

# Says in the registry which run published a version.
RUN_TAG: Final = "erasure.run"


def run_directory(run: UnlearningRun) -> Path:
    """Return where a run keeps sealed snapshots, checkpoints and its candidate until retirement."""
    return Path(settings.WORK_DIR) / "runs" / run.pk


@contextmanager
def scratch(lease: Lease) -> Iterator[Path]:
    """Yield a folder only this lease uses, and wipe it afterwards."""
    folder = _scratch_root() / f"{lease.job_id}-{lease.token}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, mode=0o700)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def wipe_run(run: UnlearningRun) -> None:
    """Remove everything a run left in the work directory."""
    shutil.rmtree(run_directory(run), ignore_errors=True)


def wipe_orphans() -> int:
    """Remove the scratch folders of leases that no longer hold, and what is left of runs that are over; count them."""
    return _wipe_dead_scratch() + _wipe_ended_runs()


def _wipe_ended_runs() -> int:
    """A worker that was replaced may write into its run's directory after everybody else was done with it."""
    wiped = 0
    for folder in (Path(settings.WORK_DIR) / "runs").glob("run_*"):
        is_open = UnlearningRun.objects.filter(pk=folder.name, batch__status=ErasureBatch.Status.OPEN).exists()
        if not is_open and not Job.objects.filter(run=folder.name, state=JobState.LEASED).exists():
            shutil.rmtree(folder, ignore_errors=True)
            wiped += 1
    return wiped


def _wipe_dead_scratch() -> int:
    wiped = 0
    for folder in _scratch_root().glob("job_*-*"):
        job_id, _, token = folder.name.rpartition("-")
        if not Job.objects.filter(pk=job_id, token=int(token), state=JobState.LEASED).exists():
            shutil.rmtree(folder, ignore_errors=True)
            wiped += 1
    return wiped


def _scratch_root() -> Path:
    return Path(settings.WORK_DIR) / "scratch"
