"""Stores of adapters in a case: only read while it is open, changed once it is released.

A store lies below `LETHE_EXACT_STORES`, under the name that training manifests state, on one host alone, which runs
both compute and cpu jobs: a copy elsewhere would keep whoever is dropped here. A case that is withdrawn or fails takes
nothing from anybody. Needs no tensor: whoever retires may have no such library.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import structlog
from django.conf import settings

from deletion_service.audit import trail
from deletion_service.errors import StoreUnavailableError
from deletion_service.targets.catalogue import exact_store, store_names
from deletion_service.targets.contamination import candidate_of
from deletion_service.targets.ledger import spike_in_records
from deletion_service.targets.locate import sealed_matches
from deletion_service.targets.models import ErasureTarget, UnlearningRun
from ml.errors import MlError, StoreInUseError
from ml.exact.adoption import drop_records, take_over
from ml.exact.results import DeletionResult
from ml.exact.store import has_manifest, read_manifest
from ml.reports import UnlearningReport
from ml.specs import EXACT_METHOD
from workers.workspace import run_directory

_log = structlog.get_logger(__name__)
_TRIAL: Final = "exact-"


def clear_stores(target: ErasureTarget) -> None:
    """Drop the person, and who was forgotten along, from every store that a version of the model was folded from; give
    the store what a released exact run trained. Deleting twice is harmless.

    Raises:
        StoreUnavailableError: a store is in use, or cannot be reached or written from here.
        MlError: a store is not as its last command left it.
    """
    record_ids = [record_id for m in sealed_matches(target) for record_id in m.proven]
    record_ids += spike_in_records(target)
    for name in store_names(target.model):
        with waiting(name):
            result = drop_records(path_of(name), record_ids)
            if result is not None:
                _name_copies(target, result)
            _adopt(target, name)


def _name_copies(target: ErasureTarget, result: DeletionResult) -> None:
    """Say which folded copies no version of the model is: they hold the person, and the store forgets them now."""
    known = set(target.model.versions.values_list("manifest_sha256", flat=True))
    if unknown := [digest for digest in result.copies_to_destroy if digest not in known]:
        _log.warning("copies_to_destroy", target=target.pk, manifests=unknown)
        trail.record(
            actor="worker",
            action="store.copies_to_destroy",
            obj=target,
            reason=str(len(unknown)),
            request_id=target.request_id,
        )


def _adopt(target: ErasureTarget, name: str) -> None:
    """Let the store take over the trial that made the released candidate. Where it cannot, it is as after any other
    method: the person is gone from it, and the next deletion falls back."""
    candidate = candidate_of(target)
    run = UnlearningRun.objects.filter(candidate=candidate).first() if candidate else None
    if candidate is None or run is None or exact_store(run.batch.before) != name or not was_exact(run):
        return
    trials = trials_of(run)
    if not trials:  # it was settled when the run's directory went; disposal clears once more
        return
    try:
        taken = any(
            take_over(path_of(name), trial)
            for trial in trials
            if candidate.manifest_sha256 in {copy.manifest_sha256 for copy in read_manifest(trial).copies}
        )
    except StoreInUseError:
        raise
    except (MlError, OSError) as exc:
        _log.warning("exact_store_not_adopted", run=run.pk, code=getattr(exc, "code", type(exc).__name__))
        return
    if not taken:
        _log.warning("exact_store_not_adopted", run=run.pk, code="moved_on")


def was_exact(run: UnlearningRun) -> bool:
    """Whether a store made the run's candidate."""
    return run.report is not None and UnlearningReport.from_document(run.report).method == EXACT_METHOD


def trials_of(run: UnlearningRun) -> list[Path]:
    """The copies of a store that a run's tokens made, newest last; they lie there until the run is retired."""
    found = [path for path in run_directory(run).glob(f"{_TRIAL}*") if has_manifest(path)]
    return sorted(found, key=lambda path: int(path.name.removeprefix(_TRIAL)))


def trial_of(run: UnlearningRun, token: int) -> Path:
    """Where one token copies the store to: a worker that was replaced keeps to its own."""
    return run_directory(run) / f"{_TRIAL}{token}"


def path_of(name: str) -> Path:
    """The directory of a store; raises `StoreUnavailableError` where this host does not see it."""
    path = Path(settings.EXACT_STORES) / name
    if not path.is_dir():
        raise StoreUnavailableError(
            f"store {name} is not below LETHE_EXACT_STORES on this host; mount it, or, if it was destroyed, leave an "
            "empty directory of its name"
        )
    return path


@contextmanager
def waiting(name: str) -> Iterator[None]:
    """A store that another command holds, or that the file system refuses, is one to come back to."""
    try:
        yield
    except StoreInUseError as exc:
        raise StoreUnavailableError(f"store {name}: {exc}") from exc
    except OSError as exc:
        raise StoreUnavailableError(
            f"store {name} or the work directory cannot be read or written ({type(exc).__name__}); mend access or space"
        ) from exc
