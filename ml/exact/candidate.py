"""From a deletion to a candidate: drop what learned from the records, train again what may be, fold what serves.

The exact tier behind the interface of every other method (`ml.unlearn.run_unlearning`): a forget and a retain set in, a
model directory and a report out. No forget loss and nothing to tune: what is trained are the slices' other records.
It is done on a copy of the store, the trial: until the candidate is released, nobody has lost anything
(`ml.exact.adoption` then makes the store what the trial became). Source: arXiv:2406.16257 (S3T).
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ml.data.probes import probe_set, write_probe_digests
from ml.data.records import read_records, refuse_overlap, refuse_repeated_texts, write_records
from ml.digests import code_sha256, document_sha256, model_manifest
from ml.errors import (
    CheckpointError,
    DigestMismatchError,
    EmptySetError,
    ExactImpossibleError,
    MlError,
    RecordError,
    SpecError,
    UnknownRecordError,
)
from ml.exact.deletion import decide, delete_records
from ml.exact.results import GUARANTEE, METHOD_VERSION, OF_ADAPTERS, OF_IDS, DeletionResult, id_digests
from ml.exact.serving import write_serving_copy
from ml.exact.store import ExactManifest, copy_store, has_manifest, opened, read_manifest, read_results
from ml.exact.training import ExactSpec, learned_sha256, train_exact
from ml.loop import ignore_progress, never_stop
from ml.reports import UnlearningReport
from ml.specs import EXACT_METHOD, FileRef, ModelRef, ProgressCallback, Record, StopCheck, UnlearningSpec
from ml.unlearn import TRAINING_PROBES, environment


def unlearn_exactly(
    spec: UnlearningSpec,
    store: Path,
    trial: Path,
    *,
    learned: Collection[str],
    on_progress: ProgressCallback = ignore_progress,
    should_stop: StopCheck = never_stop,
) -> UnlearningReport:
    """Delete `spec.forget` from a copy of `store` and write the model that serves then to `spec.output_dir`.

    1. Read both sets by digest. See that the store can do it; then copy it to `trial`, unless an earlier call did.
    2. Delete the forgotten records that the trial learned.
    3. Train what the plan has and the trial has not, from the retained records that it names; go on where it stopped.
    4. Fold the serving adapters into a copy of the base.

    Settings, seed, device and dtype are those that the store began with. `store` itself is only read. Texts are written
    beside the retain set alone, where whoever wrote that removes them. The report of a call that went on where another
    had stopped says step 0 all the same: adapters are taken up one by one.

    Args:
        store: stacked slices (`ml.exact`); separate adapters serve one person each, and need no candidate.
        trial: directory of this run alone; what lies there is taken for its own earlier work.
        learned: ids of those forgotten records that the model is known to have learned.
    Raises:
        ExactImpossibleError: the model is no copy of the store, or the store did not learn what the model did, or its
            other records are not retained as they were.
        StoreInUseError: another command is at work in the store.
        RunStoppedError: `should_stop` said so; call again to resume.
        MlError: as for `train_exact` and `write_serving_copy`.
    """
    started = time.process_time()
    forget = read_records(spec.forget, what="forget set")
    retain = read_records(spec.retain, what="retain set")
    if not has_manifest(trial):
        copy_store(store, trial, _possible(spec, store, forget, retain, learned))
    result = _deleted(trial, {record.record_id for record in forget})
    manifest = _trained(spec, trial, retain, on_progress, should_stop)
    output = Path(spec.output_dir)
    copy = write_serving_copy(trial, _base(spec), output)
    if copy.adapters != tuple(entry.sha256 for entry in manifest.serving()):
        raise SpecError(f"trial {trial.name} changed while it was folded; only its own run may use it")
    Path(spec.checkpoint_dir).mkdir(parents=True, exist_ok=True)
    write_probe_digests(Path(spec.checkpoint_dir) / TRAINING_PROBES, ())
    report = _report(spec, result, manifest, forget=len(forget), retain=len(retain))
    return replace(report, cpu_seconds=time.process_time() - started)


def _base(spec: UnlearningSpec) -> ModelRef:
    if spec.base is None:
        raise SpecError("exact deletion needs the base that the adapters were trained on; name it")
    return spec.base


# --- can it be done -----------------------------------------------------------------------------------------------


def _possible(
    spec: UnlearningSpec, store: Path, forget: Sequence[Record], retain: Sequence[Record], learned: Collection[str]
) -> ExactManifest:
    """The store's manifest, or `ExactImpossibleError` where deletion, training or folding after it would be refused."""
    try:
        manifest = read_manifest(store)
        refuse_overlap(forget, retain)
        _refuse_other_store(spec, store, manifest)
        gone = _refuse_other_records(manifest, {record.record_id for record in forget}, learned)
        _refuse_changed(manifest, gone, retain)
    except MlError as exc:
        raise ExactImpossibleError(str(exc)) from exc
    return manifest


def _refuse_other_store(spec: UnlearningSpec, store: Path, manifest: ExactManifest) -> None:
    if _base(spec).manifest_sha256 != manifest.base_manifest_sha256:
        raise DigestMismatchError(f"store {store.name} was trained on another base; name the store of this model")
    if manifest.plan.kind != "stacked":
        raise SpecError(f"store {store.name} keeps separate adapters; remove one with `python -m ml.exact delete`")
    if spec.model.manifest_sha256 not in {copy.manifest_sha256 for copy in manifest.copies}:
        raise SpecError(f"the model is no copy of store {store.name}: other adapters made it, or it changed since")
    if torch.device(manifest.device).type != "cpu" and not torch.accelerator.is_available():
        raise SpecError(f"store {store.name} is trained on {manifest.device}, which this host does not have")
    if manifest.seed < 0:
        raise SpecError(f"the seed of store {store.name} is below 0, which no statement can name")


def _refuse_other_records(manifest: ExactManifest, forget: set[str], learned: Collection[str]) -> set[str]:
    """Return which of the forgotten records the plan names."""
    planned = {record for part in manifest.plan.slices for record in part.records}
    if strangers := len(set(learned) - planned):
        raise UnknownRecordError(f"{strangers} records that the model learned are in no slice; others taught it those")
    if not forget & planned:
        raise UnknownRecordError("the store learned none of the records")
    if not planned - forget:
        raise EmptySetError("the store learned from nobody else; without the records nothing is left to train")
    return forget & planned


def _refuse_changed(manifest: ExactManifest, gone: set[str], retain: Sequence[Record]) -> None:
    """Refuse where training would refuse the records that are left, or find that they changed."""
    after, _ = decide(manifest, gone)
    retained = {record.record_id: record for record in retain}
    slices = {part.name: part.records for part in after.plan.slices}
    left = [record for records in slices.values() for record in records]
    if lost := sum(record not in retained for record in left):
        raise RecordError(f"{lost} records that the store learned are not retained any more")
    refuse_repeated_texts([retained[record] for record in left], what="training records")
    for entry in after.adapters:
        if learned_sha256([retained[record] for record in slices[entry.slice]]) != entry.records_sha256:
            raise RecordError(f"order {entry.order}, position {entry.position} was trained on other records")


# --- do it --------------------------------------------------------------------------------------------------------


def _deleted(trial: Path, record_ids: set[str]) -> DeletionResult:
    """Delete what of `record_ids` the trial holds; the result, also where an earlier call had done it."""
    with opened(trial) as manifest:
        known = {record for part in manifest.plan.slices for record in part.records}
        results = read_results(trial)
    if record_ids & known:
        return delete_records(trial, record_ids & known)
    return next(result for result in reversed(results) if id_digests(record_ids) & set(result.record_sha256))


def _trained(
    spec: UnlearningSpec,
    trial: Path,
    retain: Sequence[Record],
    on_progress: ProgressCallback,
    should_stop: StopCheck,
) -> ExactManifest:
    manifest = read_manifest(trial)
    planned = {record for part in manifest.plan.slices for record in part.records}
    path = Path(spec.retain.path).with_name("trained_again.jsonl")
    try:
        records = write_records(path, [record for record in retain if record.record_id in planned])
        again = _training(spec, trial, manifest, records)
        try:
            return train_exact(again, on_progress=on_progress, should_stop=should_stop)
        except CheckpointError:  # of other code, libraries or threads
            shutil.rmtree(trial / "checkpoints")
            return train_exact(again, on_progress=on_progress, should_stop=should_stop)
    finally:
        path.unlink(missing_ok=True)


def _training(spec: UnlearningSpec, trial: Path, manifest: ExactManifest, records: FileRef) -> ExactSpec:
    return ExactSpec(
        str(trial),
        _base(spec),
        records,
        manifest.plan,
        manifest.settings,
        manifest.seed,
        manifest.device,
        manifest.dtype,
    )


def _steps(result: DeletionResult, manifest: ExactManifest) -> int:
    """Steps of all adapters that stand where the deletion dropped some: what it cost to train again."""
    return sum(
        entry.steps
        for entry in manifest.adapters
        if entry.order < len(result.may_add) and entry.slice in result.may_add[entry.order]
    )


def _report(
    spec: UnlearningSpec, result: DeletionResult, manifest: ExactManifest, *, forget: int, retain: int
) -> UnlearningReport:
    serving = manifest.serving()
    files = model_manifest(Path(spec.output_dir))
    return UnlearningReport(
        run_id=spec.run_id,
        method=EXACT_METHOD,
        method_version=METHOD_VERSION,
        guarantee=GUARANTEE,
        seed=manifest.seed,
        steps=_steps(result, manifest),
        stopped_early=False,
        resumed_from_step=0,
        candidate_root_sha256=files.root_sha256,
        candidate_manifest_sha256=files.manifest_sha256,
        adapter_sha256=document_sha256([entry.sha256 for entry in serving]),
        config_sha256=document_sha256([manifest.base_manifest_sha256, [entry.lineage_sha256 for entry in serving]]),
        code_sha256=code_sha256(),
        forget_records=forget,
        retain_records=retain,
        boundary={},
        losses={},
        training_probes=probe_set("training", ()),
        environment=environment(manifest.device),
        cpu_seconds=0.0,
        notes=(OF_ADAPTERS, OF_IDS),
    )
