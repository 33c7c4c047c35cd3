"""Directories of runs and jobs.

The person's records lie in clear text only in a job's scratch folder, which is wiped when the job ends, when its lease
is found expired, and at disposal; and in the scratch folder of a rerun, which is wiped when that ends or its process is
found dead. What was computed from them outlives the job in the run's directory, in the clear: checkpoints, the
candidate, a copy of a store of adapters with ids of records, the measured parts of a verification with the model's
answers. Only the worker's own user may enter either; a run's directory goes at retirement, and disposal looks that it
is gone.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from django.conf import settings

from deletion_service.errors import WorkspaceError
from deletion_service.requests.models import ErasureRequest
from deletion_service.targets.models import ErasureBatch, Job, UnlearningRun
from deletion_service.targets.statuses import JobState
from workers.jobs import Lease

_RERUN: Final = "rerun-"


def run_directory(run: UnlearningRun) -> Path:
    """Return where a run keeps sealed snapshots, checkpoints and its candidate until retirement."""
    return Path(settings.WORK_DIR) / "runs" / run.pk


def make_run_directory(run: UnlearningRun) -> Path:
    """Return the directory of a run, made for the worker's own user alone."""
    folder = run_directory(run)
    folder.mkdir(parents=True, mode=0o700, exist_ok=True)
    return folder


def sweep_directory(job_id: str) -> Path:
    """Return where the sweep of a version from outside keeps finished parts, whoever takes the job up."""
    return Path(settings.WORK_DIR) / "sweeps" / job_id


@contextmanager
def scratch(lease: Lease) -> Iterator[Path]:
    """Yield a folder only this lease uses, and wipe it afterwards."""
    folder = _scratch_root() / f"{lease.job_id}-{lease.token}"
    wipe(folder)
    folder.mkdir(parents=True, mode=0o700)
    try:
        yield folder
    finally:
        wipe(folder)


@contextmanager
def rerun_scratch(evidence_id: str) -> Iterator[Path]:
    """Yield a new folder for measuring evidence again, and wipe it afterwards.

    Its lock ends with the process that holds it, however that ends; then the sweep wipes the folder.

    Raises:
        WorkspaceError: the sweep took the folder before it was locked.
    """
    folder = _scratch_root() / f"{_RERUN}{evidence_id}-{secrets.token_hex(4)}"
    folder.mkdir(parents=True, mode=0o700)
    with _held(folder) as is_mine:
        if not is_mine or not folder.exists():
            raise WorkspaceError("the scratch folder was swept away as it was made; try again")
        try:
            yield folder
        finally:
            wipe(folder)


@contextmanager
def _held(folder: Path) -> Iterator[bool]:
    """Hold the lock of a folder for as long as the block lasts; False when somebody else holds it."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        yield _locked(handle)
    finally:
        os.close(handle)


def _locked(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def wipe(folder: Path) -> None:
    """Remove a folder as far as possible; `check_wiped` says what was not."""
    shutil.rmtree(folder, ignore_errors=True)


def wipe_run(run: UnlearningRun) -> None:
    """Remove everything a run left in the work directory."""
    wipe(run_directory(run))


def check_wiped(request: ErasureRequest) -> list[str]:
    """Return the ids of a request's runs, of which nothing is left in the work directory.

    Raises:
        WorkspaceError: a directory of a run or job of this request is still there.
    """
    runs = list(UnlearningRun.objects.filter(batch__targets__request=request).distinct())
    folders = [run_directory(run) for run in runs]
    for job_id in request.jobs.values_list("pk", flat=True):
        folders += _scratch_root().glob(f"{job_id}-*")
    for run in runs:
        for evidence_id in run.evidence.values_list("pk", flat=True):
            folders += _scratch_root().glob(f"{_RERUN}{evidence_id}-*")
    if left := [folder.name for folder in folders if folder.exists()]:
        raise WorkspaceError(f"{', '.join(left)} cannot be removed from the work directory; check who owns it")
    return [run.pk for run in runs]


def wipe_orphans() -> int:
    """Remove the scratch folders of leases that no longer hold, and what is left of runs that are over; count them."""
    return _wipe_dead_scratch() + _wipe_ended_runs() + _wipe_dead_reruns() + _wipe_ended_sweeps()


def _wipe_dead_reruns() -> int:
    wiped = 0
    for folder in _scratch_root().glob(f"{_RERUN}*"):
        with _held(folder) as is_dead:
            if is_dead:
                wipe(folder)
                wiped += 1
    return wiped


def _wipe_ended_runs() -> int:
    """A worker that was replaced may write into its run's directory after everybody else was done with it."""
    wiped = 0
    for folder in (Path(settings.WORK_DIR) / "runs").glob("run_*"):
        is_open = UnlearningRun.objects.filter(pk=folder.name, batch__status=ErasureBatch.Status.OPEN).exists()
        if not is_open and not Job.objects.filter(run=folder.name, state=JobState.LEASED).exists():
            wipe(folder)
            wiped += 1
    return wiped


def _wipe_ended_sweeps() -> int:
    wiped = 0
    for folder in (Path(settings.WORK_DIR) / "sweeps").glob("job_*"):
        if not Job.objects.filter(pk=folder.name, state__in=[JobState.READY, JobState.LEASED]).exists():
            wipe(folder)
            wiped += 1
    return wiped


def _wipe_dead_scratch() -> int:
    wiped = 0
    for folder in _scratch_root().glob("job_*-*"):
        job_id, _, token = folder.name.rpartition("-")
        if not Job.objects.filter(pk=job_id, token=int(token), state=JobState.LEASED).exists():
            wipe(folder)
            wiped += 1
    return wiped


def _scratch_root() -> Path:
    return Path(settings.WORK_DIR) / "scratch"
