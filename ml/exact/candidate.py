"""From a deletion to a candidate: drop what learned from the records, train again what may be, fold what serves.

The exact tier behind the interface of every other method (`ml.unlearn.run_unlearning`): a forget and a retain set in, a
model directory and a report out. No forget loss and nothing to tune: what is trained are the slices' other records.
Source: arXiv:2406.16257 (S3T).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from ml.data.probes import probe_set, write_probe_digests
from ml.data.records import read_records, refuse_overlap, write_records
from ml.digests import code_sha256, document_sha256, model_manifest
from ml.errors import DigestMismatchError, SpecError, UnknownRecordError
from ml.exact.deletion import delete_records
from ml.exact.results import GUARANTEE, METHOD_VERSION, DeletionResult
from ml.exact.serving import write_serving_copy
from ml.exact.store import ExactManifest, read_manifest, read_results
from ml.exact.training import ExactSpec, train_exact
from ml.loop import ignore_progress, never_stop
from ml.reports import UnlearningReport
from ml.specs import EXACT_METHOD, FileRef, ModelRef, ProgressCallback, Record, StopCheck, UnlearningSpec
from ml.unlearn import TRAINING_PROBES, environment


def unlearn_exactly(
    spec: UnlearningSpec,
    store: Path,
    *,
    on_progress: ProgressCallback = ignore_progress,
    should_stop: StopCheck = never_stop,
) -> UnlearningReport:
    """Delete `spec.forget` from `store` and write the model that serves then to `spec.output_dir`.

    1. Read both sets by digest; refuse overlap, a store of another base, and a model that is no copy of this store.
    2. Delete the forgotten records that the store learned. What was deleted by a call that was killed stays deleted.
    3. Train what the plan has and the store has not, from the retained records that it names; goes on where it stopped.
    4. Fold the serving adapters into a copy of the base.

    Settings, seed, device and dtype are those that the store began with. The store keeps what it learned of everybody
    else, and is left without the records whatever becomes of the candidate. Texts are written beside the retain set
    alone, where whoever wrote that removes them.

    Args:
        store: stacked slices (`ml.exact`); separate adapters serve one person each, and need no candidate.
    Raises:
        UnknownRecordError: the store learned none of the forgotten records.
        MlError: as for `delete_records`, `train_exact` and `write_serving_copy`.
    """
    started = time.process_time()
    forget = read_records(spec.forget, what="forget set")
    retain = read_records(spec.retain, what="retain set")
    refuse_overlap(forget, retain)
    results = _deleted(store, spec, {record.record_id for record in forget})
    folder = Path(spec.checkpoint_dir)
    folder.mkdir(parents=True, exist_ok=True)
    manifest = read_manifest(store)
    records = Path(spec.retain.path).with_name("trained_again.jsonl")
    try:
        manifest = train_exact(
            _training(spec, store, manifest, _named(retain, manifest, records)),
            on_progress=on_progress,
            should_stop=should_stop,
        )
    finally:
        records.unlink(missing_ok=True)
    output = Path(spec.output_dir)
    write_serving_copy(store, _base(spec), output)
    write_probe_digests(folder / TRAINING_PROBES, ())
    serving = [entry.lineage_sha256 for entry in manifest.serving()]
    files = model_manifest(output)
    return UnlearningReport(
        run_id=spec.run_id,
        method=EXACT_METHOD,
        method_version=METHOD_VERSION,
        guarantee=GUARANTEE,
        seed=manifest.seed,
        steps=_steps(results[-1], manifest),
        stopped_early=False,
        resumed_from_step=0,
        candidate_root_sha256=files.root_sha256,
        candidate_manifest_sha256=files.manifest_sha256,
        adapter_sha256=document_sha256([entry.sha256 for entry in manifest.serving()]),
        config_sha256=document_sha256([manifest.base_manifest_sha256, serving]),
        code_sha256=code_sha256(),
        forget_records=len(forget),
        retain_records=len(retain),
        boundary={},
        losses={},
        training_probes=probe_set("training", ()),
        environment=environment(manifest.device),
        cpu_seconds=time.process_time() - started,
        notes=(
            *results[-1].notes,
            *(f"deletion {one.number}: manifest {one.manifest_after_sha256}" for one in results),
        ),
    )


def _base(spec: UnlearningSpec) -> ModelRef:
    if spec.base is None:
        raise SpecError("exact deletion needs the base that the adapters were trained on; name it")
    return spec.base


def _deleted(store: Path, spec: UnlearningSpec, record_ids: set[str]) -> list[DeletionResult]:
    """Delete what of `record_ids` is there; every deletion in the store that was about one of them, first first."""
    manifest = read_manifest(store)
    if _base(spec).manifest_sha256 != manifest.base_manifest_sha256:
        raise DigestMismatchError(f"store {store.name} was trained on another base; name the store of this model")
    if manifest.plan.kind != "stacked":
        raise SpecError(f"store {store.name} keeps separate adapters; remove one with `python -m ml.exact delete`")
    known = {record for part in manifest.plan.slices for record in part.records}
    earlier = [result for result in read_results(store) if record_ids & set(result.records)]
    copies = {copy.manifest_sha256 for copy in manifest.copies}
    stale = {digest for result in earlier for digest in result.copies_to_destroy}
    if spec.model.manifest_sha256 not in copies | stale:
        raise SpecError(
            f"the model is no copy of store {store.name}: it was not folded from these adapters, or changed since; "
            "name its own store, or delete by another method"
        )
    if record_ids & known:
        return [*earlier, delete_records(store, record_ids & known)]
    if not earlier:
        raise UnknownRecordError(f"store {store.name} learned none of the records; check their ids")
    return earlier


def _named(retain: Sequence[Record], manifest: ExactManifest, path: Path) -> FileRef:
    """The retained records that the plan names; those it does not were never learned from it."""
    planned = {record for part in manifest.plan.slices for record in part.records}
    return write_records(path, [record for record in retain if record.record_id in planned])


def _training(spec: UnlearningSpec, store: Path, manifest: ExactManifest, records: FileRef) -> ExactSpec:
    return ExactSpec(
        str(store),
        _base(spec),
        records,
        manifest.plan,
        manifest.settings,
        manifest.seed,
        manifest.device,
        manifest.dtype,
    )


def _steps(result: DeletionResult, manifest: ExactManifest) -> int:
    """Steps of all adapters that stand where the last deletion dropped some: what it cost to train again."""
    return sum(
        entry.steps
        for entry in manifest.adapters
        if entry.order < len(result.may_add) and entry.slice in result.may_add[entry.order]
    )
