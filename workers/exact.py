"""The unlearning side of the exact tier: prefer it where the version was made for it, and say why where it was not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Final

import structlog

from deletion_service.audit import trail
from deletion_service.targets.catalogue import exact_store, record_sha256
from deletion_service.targets.models import TrainingManifestEntry, UnlearningRun
from ml.data.records import read_records
from ml.errors import ExactImpossibleError, MlError, RunStoppedError
from ml.exact.candidate import unlearn_exactly
from ml.files import write_atomically
from ml.reports import UnlearningReport
from ml.specs import UnlearningSpec
from workers.bridge import learned_records
from workers.jobs import Lease
from workers.stores import path_of, trial_of, trials_of, waiting, was_exact
from workers.workspace import run_directory, wipe

_log = structlog.get_logger(__name__)
_REFUSED: Final = "exact_refused.json"
_LEARNED_BY_BASE: Final = "learned_by_base"
_SAME_FILES: Final = "same_files"


def preferred(run: UnlearningRun) -> bool:
    """True where the version was folded from a store and no earlier run of the batch was exact: it would end the
    same."""
    earlier = run.batch.runs.filter(attempt__lt=run.attempt)
    return bool(exact_store(run.batch.before)) and not any(was_exact(one) for one in earlier)


def unlearn_if_possible(lease: Lease, run: UnlearningRun, spec: UnlearningSpec) -> tuple[UnlearningReport | None, str]:
    """Make the candidate exactly, or say why that cannot be; another method is left then. What was refused once is not
    tried again in this run.

    Raises:
        StoreUnavailableError: the store is in use, or cannot be reached or written from here; to be tried again.
        RunStoppedError: the worker was told to stop.
    """
    if why := _refused_before(run):
        return None, why
    learned = _learned(run, spec)
    if _base_learned(run, learned):
        return None, _refused(lease, run, spec, _LEARNED_BY_BASE, "the base learned records of the person itself")
    name = exact_store(run.batch.before)
    try:
        with waiting(name):
            report = unlearn_exactly(
                spec,
                path_of(name),
                _trial(run, lease.token),
                learned=learned,
                on_progress=lease.on_progress,
                should_stop=lease.should_stop,
            )
    except RunStoppedError:
        raise
    except MlError as exc:
        cause = exc.__cause__ if isinstance(exc, ExactImpossibleError) else exc
        return None, _refused(lease, run, spec, getattr(cause, "code", exc.code), str(exc))
    # Weights are a function of what is left: whoever asks again after a refusal would get a retired version's.
    if run.batch.model.versions.filter(manifest_sha256=report.candidate_manifest_sha256).exists():
        return None, _refused(lease, run, spec, _SAME_FILES, "the model has a version with these files already")
    return report, ""


def with_note(report: UnlearningReport, refused: str) -> UnlearningReport:
    """A report of another method that says why the deletion was not exact."""
    if not refused:
        return report
    return replace(report, notes=(*report.notes, f"exact deletion was not possible: {refused}"))


def _trial(run: UnlearningRun, token: int) -> Path:
    """This token's copy of the store: what the newest token before it left, if anything."""
    own = trial_of(run, token)
    left = trials_of(run)
    if left and not own.exists():
        left[-1].rename(own)
    return own


def _refused(lease: Lease, run: UnlearningRun, spec: UnlearningSpec, code: str, why: str) -> str:
    with lease.fenced() as job:
        trail.record(actor="worker", action="run.exact_refused", obj=run, reason=code, request_id=job.request_id or "")
    _log.warning("exact_refused", run=run.pk, code=code, why=why)
    write_atomically(run_directory(run) / _REFUSED, json.dumps(why).encode())
    for left in (Path(spec.output_dir), *trials_of(run)):
        wipe(left)
    return why


def _refused_before(run: UnlearningRun) -> str:
    path = run_directory(run) / _REFUSED
    return str(json.loads(path.read_bytes())) if path.exists() else ""


def _learned(run: UnlearningRun, spec: UnlearningSpec) -> list[str]:
    """Ids of the forgotten records that a manifest of the version's lineage says were learned."""
    known = learned_records(run.batch.before) or frozenset()
    records = read_records(spec.forget, what="forget set")
    return [record.record_id for record in records if record_sha256(record.record_id) in known]


def _base_learned(run: UnlearningRun, learned: list[str]) -> bool:
    """Whether the base's own manifest names one of the records: dropping adapters would not take it from there."""
    entries = TrainingManifestEntry.objects.filter(manifest__version=run.batch.before.base_id)
    return entries.filter(record_sha256__in=[record_sha256(one) for one in learned]).exists()
