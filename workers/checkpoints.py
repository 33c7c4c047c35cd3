"""A run's checkpoints, each in a file named by its digest; the job's row says which one the next token takes up."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import structlog
from django.db import transaction

from deletion_service.errors import LeaseLostError
from deletion_service.targets.models import Job, UnlearningRun
from ml.digests import file_sha256
from ml.files import sync_directory, write_atomically
from ml.unlearn import CHECKPOINT
from workers.jobs import Lease
from workers.workspace import run_directory

_log = structlog.get_logger(__name__)
_KEPT: Final = "kept-"


class Checkpoints:
    """The folder of one token: what the loop writes there counts once the row names it, under the fence.

    A worker that was replaced writes to its own folder and can record nothing. One killed between a file and its
    record leaves the row with the checkpoint before, whose file is removed only after that record.
    """

    def __init__(self, lease: Lease, run: UnlearningRun) -> None:
        self.folder = run_directory(run) / f"checkpoints-{lease.token}"
        self._root = run_directory(run)
        self._lease = lease

    def take_up(self, job: Job) -> None:
        """Put the checkpoint that `job` names where the loop looks, unless it is gone or not what was written."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self._lease.record(step="train")
        if not job.checkpoint:
            return
        kept = self._root / job.checkpoint
        if kept.is_file() and file_sha256(kept) == job.checkpoint_sha256:
            write_atomically(self.folder / CHECKPOINT, kept.read_bytes())
        else:
            _log.warning("checkpoint_refused", job=job.pk, token=self._lease.token)

    def keep(self, path: Path) -> None:
        """Name the checkpoint at `path` by its digest, record it in the row, then drop the one before.

        Raises:
            LeaseLostError: another worker holds the job; the row still names what it named.
        """
        sha256 = file_sha256(path)
        # Listed while the lease still held: a worker frozen here must not remove what its successor writes.
        before = self._kept()
        kept = path.rename(self.folder / f"{_KEPT}{sha256}.safetensors")
        sync_directory(self.folder)
        try:
            self._lease.record(checkpoint=str(kept.relative_to(self._root)), checkpoint_sha256=sha256)
        except LeaseLostError:
            # It lies in this token's own folder, and no row names it.
            kept.unlink(missing_ok=True)
            raise
        _remove(before - {kept})

    def end(self) -> None:
        """Forget the checkpoints in the transaction of the run's last effect; once it is committed they go."""
        self._lease.record(checkpoint="", checkpoint_sha256="")
        transaction.on_commit(lambda: _remove(self._everything()))

    def begin_again(self) -> None:
        """Forget the checkpoint that was taken up: this version of the service cannot go on from it."""
        (self.folder / CHECKPOINT).unlink(missing_ok=True)
        self._lease.record(checkpoint="", checkpoint_sha256="")
        _log.warning("checkpoint_refused", job=self._lease.job_id, token=self._lease.token)

    def _everything(self) -> set[Path]:
        """Kept checkpoints, those that were taken up, and halves that a killed worker left, of every token so far."""
        names = (f"{_KEPT}*", CHECKPOINT, "*.tmp")
        return {path for name in names for path in self._root.glob(f"checkpoints-*/{name}")}

    def _kept(self) -> set[Path]:
        return set(self._root.glob(f"checkpoints-*/{_KEPT}*"))


def _remove(files: Iterable[Path]) -> None:
    for file in files:
        file.unlink(missing_ok=True)
