"""The unlearning side of the exact tier: prefer it where the version was made for it, and say why where it was not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Final

import structlog

from deletion_service.audit import trail
from deletion_service.targets.catalogue import exact_store, record_sha256
from deletion_service.targets.models import ModelVersion, UnlearningRun
from ml.data.records import read_records
from ml.errors import MlError, RunStoppedError
from ml.exact.candidate import unlearn_exactly
from ml.reports import UnlearningReport
from ml.specs import UnlearningSpec
from workers.bridge import learned_records
from workers.jobs import Lease
from workers.stores import path_of, trial_of, waiting
from workers.workspace import wipe

_log = structlog.get_logger(__name__)
_SAME_FILES: Final = "same_files"


def preferred(run: UnlearningRun) -> bool:
    """True where the version was folded from a store and no earlier run of the batch tried: it would end the same."""
    before = run.batch.before
    return bool(exact_store(before)) and not run.batch.runs.filter(attempt__lt=run.attempt).exists()


def unlearn_if_possible(lease: Lease, run: UnlearningRun, spec: UnlearningSpec) -> tuple[UnlearningReport | None, str]:
    """Make the candidate exactly, or say by a code why that cannot be; another method is left then.

    Raises:
        StoreUnavailableError: the store is in use, or not on this host; to be tried again.
        RunStoppedError: the worker was told to stop.
    """
    before = run.batch.before
    try:
        with waiting():
            report = unlearn_exactly(
                spec,
                path_of(exact_store(before)),
                trial_of(run),
                learned=_learned(spec, before),
                on_progress=lease.on_progress,
                should_stop=lease.should_stop,
            )
    except RunStoppedError:
        raise
    except MlError as exc:
        return None, _refused(lease, run, exc.code, str(exc))
    # Weights are a function of what is left: whoever asks again after a refusal would get a retired version's.
    if before.model.versions.filter(manifest_sha256=report.candidate_manifest_sha256).exists():
        wipe(Path(spec.output_dir))
        return None, _refused(lease, run, _SAME_FILES, "the model has a version with these files already")
    return report, ""


def with_note(report: UnlearningReport, refused: str) -> UnlearningReport:
    """A report of another method that says why the deletion was not exact."""
    if not refused:
        return report
    return replace(report, notes=(*report.notes, f"exact deletion was not possible: {refused}"))


def _refused(lease: Lease, run: UnlearningRun, code: str, why: str) -> str:
    with lease.fenced() as job:
        trail.record(actor="worker", action="run.exact_refused", obj=run, reason=code, request_id=job.request_id or "")
    _log.warning("exact_refused", run=run.pk, code=code)
    wipe(trial_of(run))
    return why


def _learned(spec: UnlearningSpec, before: ModelVersion) -> list[str]:
    """Ids of the forgotten records that a manifest of the version's lineage says were learned."""
    known = learned_records(before) or frozenset()
    records = read_records(spec.forget, what="forget set")
    return [record.record_id for record in records if record_sha256(record.record_id) in known]
