"""Stores of adapters in a case: only read while it is open, changed once it is released.

A store lies below `LETHE_EXACT_STORES` on every host with workers, under the name that training manifests state. A case
that is withdrawn or fails takes nothing from anybody. Needs no tensor: whoever retires may have no such library.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog
from django.conf import settings

from deletion_service.errors import StoreUnavailableError
from deletion_service.targets.catalogue import exact_store, store_names
from deletion_service.targets.contamination import candidate_of
from deletion_service.targets.ledger import spike_in_records
from deletion_service.targets.locate import sealed_matches
from deletion_service.targets.models import ErasureTarget, UnlearningRun
from ml.errors import StoreInUseError
from ml.exact.adoption import drop_records, take_over
from ml.exact.store import has_manifest
from workers.workspace import run_directory

_log = structlog.get_logger(__name__)


def clear_stores(target: ErasureTarget) -> None:
    """Drop the person, and who was forgotten along, from every store that a version of the model was folded from; give
    the store what a released exact run trained. Deleting twice is harmless.

    Raises:
        StoreUnavailableError: a store is in use, or not on this host.
        MlError: a store is not as its last command left it, or a file could not be removed.
    """
    record_ids = [record_id for m in sealed_matches(target) for record_id in m.proven]
    record_ids += spike_in_records(target)
    for name in store_names(target.model):
        with waiting():
            drop_records(path_of(name), record_ids)
            _adopt(target, name)


def _adopt(target: ErasureTarget, name: str) -> None:
    candidate = candidate_of(target)
    run = UnlearningRun.objects.filter(candidate=candidate).first() if candidate else None
    if run is None or exact_store(run.batch.before) != name or not has_manifest(trial_of(run)):
        return
    if not take_over(path_of(name), trial_of(run)):
        _log.warning("exact_store_moved_on", run=run.pk)


def trial_of(run: UnlearningRun) -> Path:
    """Where a run keeps its copy of a store until it is retired."""
    return run_directory(run) / "exact"


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
def waiting() -> Iterator[None]:
    """A store that another command holds is one to come back to."""
    try:
        yield
    except StoreInUseError as exc:
        raise StoreUnavailableError(str(exc)) from exc
