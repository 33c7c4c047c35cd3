"""Train every adapter of a plan that is not on file yet, each on top of those before it in its order, frozen.

An adapter may depend on nothing but the base, the slices before it in its order, its own records, the settings and the
store's seed: its lineage. Its own seed is drawn from the lineage, never from a global generator or a counter, so that
it has the same bytes in a world in which no other slice exists. Adapters are stored unmerged; `serving` folds a copy.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from safetensors.torch import save

from ml.data.collate import EncodedText, encode_records
from ml.data.records import read_records, refuse_repeated_texts
from ml.digests import code_sha256, document_sha256, sha256_hex
from ml.documents import plain
from ml.errors import CheckpointError, ModelDirectoryError, RecordError, SpecError
from ml.exact.plan import Plan
from ml.exact.results import id_digests
from ml.exact.serving import read_adapters
from ml.exact.store import (
    AdapterEntry,
    ExactManifest,
    ExactSettings,
    adapter_path,
    checkpoint_path,
    finish,
    has_manifest,
    locked,
    read_manifest,
    read_results,
    refuse_remains,
    write_manifest,
)
from ml.files import write_atomically
from ml.finetune import finetune
from ml.loop import LoopSettings, ignore_progress, never_stop
from ml.models.adapters import adapter_tensors, attach_adapter, put_adapter_tensors
from ml.models.load import LoadedModel, load_model
from ml.specs import FileRef, ModelRef, Progress, ProgressCallback, Record, StopCheck
from ml.unlearn import environment

_SEED_DIGITS: Final = 12


@dataclass(frozen=True, slots=True)
class ExactSpec:
    """What to train: `records` are exactly those of the plan; `checkpoint_every` counts steps and decides no byte."""

    store: str
    base: ModelRef
    records: FileRef
    plan: Plan
    settings: ExactSettings
    seed: int
    device: str = "cpu"
    dtype: str = "float32"
    checkpoint_every: int = 50


def train_exact(
    spec: ExactSpec, *, on_progress: ProgressCallback = ignore_progress, should_stop: StopCheck = never_stop
) -> ExactManifest:
    """Bring the store to where every order of the plan is trained to its end, and return its manifest.

    1. Finish a deletion that was killed. Read the records by digest; refuse those that were deleted here by their
       ids, and a plan that does not fit them.
    2. Take up the store, or begin one; refuse a store of another plan, base or settings.
    3. Order by order, position by position: skip an adapter on file whose lineage is as it should be; train the
       others, each from its checkpoint if there is one; write the weights, then the manifest.

    After a deletion the same call, with the plan and the records that are left, adds what can be added again. A deleted
    text that comes back under a new id is not noticed: the store keeps no texts.

    Raises:
        RunStoppedError: `should_stop` said so; call again to resume.
        SpecError: the store is another run's, or in use.
        RecordError: a record was deleted here before, or the records are not those of the plan, or not those that an
            adapter on file learned from.
        OverlapError: two records have one text.
        CheckpointError: an unfinished training cannot go on here; the message says what to delete.
        MlError: an input is not what its digest says, or malformed.
    """
    spec.settings.check()
    store = Path(spec.store)
    if store.exists() and not store.is_dir():
        raise SpecError(f"{store.name} is not a directory; name another store")
    store.mkdir(parents=True, exist_ok=True)
    with locked(store):
        begun = _finished(store)
        records = _records(spec, {digest for result in read_results(store) for digest in result.record_sha256})
        manifest = _taken_up(begun, spec)
        loaded = load_model(spec.base, device=spec.device, dtype=spec.dtype)
        spec.plan.check(int(loaded.model.config.num_hidden_layers))
        write_manifest(store, manifest)
        places = [(number, position) for number, order in enumerate(spec.plan.orders) for position in range(len(order))]
        for done, (number, position) in enumerate(places):
            on_progress(Progress("adapters", done, len(places)))
            chosen = [records[record] for record in spec.plan.slice_at(number, position).records]
            before = manifest.prefixes()[number][:position]
            entry = _described(spec, number, position, chosen, before)
            if _is_on_file(manifest, entry):
                continue
            rows = encode_records(loaded.tokenizer, chosen, context=loaded.context)
            entry = _train_one(spec, loaded, rows, entry, before, on_progress, should_stop)
            manifest = replace(manifest, adapters=(*manifest.adapters, entry))
            write_manifest(store, manifest)
            checkpoint_path(store, number, position).unlink(missing_ok=True)
        on_progress(Progress("adapters", len(places), len(places)))
    return manifest


def learned_sha256(records: Sequence[Record]) -> str:
    """Digest of what an adapter learns from `records`, in their order: not of pseudonyms, which differ by snapshot."""
    return document_sha256([[one.record_id, one.text, one.answer_start] for one in records])


def number_of_layers(base: ModelRef) -> int:
    """Blocks of the model at `base`, from its configuration; raises `ModelDirectoryError` where it does not say."""
    try:
        return int(json.loads((Path(base.path) / "config.json").read_text(encoding="utf-8"))["num_hidden_layers"])
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise ModelDirectoryError(f"model directory {Path(base.path).name} does not say its num_hidden_layers") from exc


def _finished(store: Path) -> ExactManifest | None:
    """The manifest of the store, if it was begun, with nothing left to delete."""
    if not has_manifest(store):
        refuse_remains(store)
        return None
    manifest = read_manifest(store)
    finish(store, manifest)
    return manifest


def _records(spec: ExactSpec, deleted: Collection[str]) -> dict[str, Record]:
    """The training records by id: those of the plan, no text twice, none whose digest of the id is in `deleted`."""
    found = read_records(spec.records, what="training records")
    if back := len(id_digests(record.record_id for record in found) & set(deleted)):
        raise RecordError(f"{back} of the training records were deleted from this store; leave them out of the file")
    refuse_repeated_texts(found, what="training records")
    records = {record.record_id: record for record in found}
    if set(records) != {record for part in spec.plan.slices for record in part.records}:
        raise RecordError("the training records are not those of the plan; give exactly the records that it names")
    return records


def _taken_up(manifest: ExactManifest | None, spec: ExactSpec) -> ExactManifest:
    """The manifest to go on from, with the plan of `spec`."""
    fresh = ExactManifest(spec.base.manifest_sha256, spec.plan, spec.settings, spec.seed, spec.device, spec.dtype)
    if manifest is None:
        return fresh
    known = replace(fresh, adapters=manifest.adapters, copies=manifest.copies, deletions=manifest.deletions)
    if replace(known, plan=manifest.plan) != manifest or not spec.plan.extends(manifest.plan):
        raise SpecError(
            f"store {Path(spec.store).name} has another plan, records that were not deleted, or another base, seed, "
            "device or settings; go on with its own, or name another store"
        )
    return known


def _described(
    spec: ExactSpec, order: int, position: int, records: Sequence[Record], before: Sequence[AdapterEntry]
) -> AdapterEntry:
    """The entry of an adapter as it will be, but for the digest of its bytes."""
    settings, layers = spec.settings, spec.plan.groups[position]
    records_sha256 = learned_sha256(records)
    lineage_sha256 = document_sha256(
        {
            "base": spec.base.manifest_sha256,
            "before": [entry.lineage_sha256 for entry in before],
            "records": records_sha256,
            "layers": list(layers),
            "settings": plain(settings),
            "seed": spec.seed,
            "device": spec.device,
            "dtype": spec.dtype,
        }
    )
    return AdapterEntry(
        order=order,
        position=position,
        slice=spec.plan.slice_at(order, position).name,
        layers=layers,
        records=len(records),
        records_sha256=records_sha256,
        lineage_sha256=lineage_sha256,
        seed=int(lineage_sha256[:_SEED_DIGITS], 16),
        steps=settings.epochs * -(-len(records) // settings.batch_rows),
        sha256="",
        environment=environment(spec.device),
    )


def _is_on_file(manifest: ExactManifest, wanted: AdapterEntry) -> bool:
    found = manifest.prefixes()[wanted.order][wanted.position : wanted.position + 1]
    if found and found[0].lineage_sha256 != wanted.lineage_sha256:
        raise RecordError(
            f"order {wanted.order}, position {wanted.position} was trained on other records of the same ids; "
            "delete them before they change"
        )
    return bool(found)


def _train_one(
    spec: ExactSpec,
    loaded: LoadedModel,
    rows: Sequence[EncodedText],
    entry: AdapterEntry,
    before: Sequence[AdapterEntry],
    on_progress: ProgressCallback,
    should_stop: StopCheck,
) -> AdapterEntry:
    """Train one adapter and write its weights. The base in `loaded` is left as it was, unless something is raised."""
    store, settings = Path(spec.store), spec.settings
    layers = [layer for one in (*before, entry) for layer in one.layers]
    model = attach_adapter(loaded.model, rank=settings.rank, alpha=settings.alpha, seed=entry.seed, blocks=layers)
    put_adapter_tensors(model, read_adapters(store, before))
    try:
        finetune(
            model.to(spec.device),
            rows,
            LoopSettings(
                steps=entry.steps,
                learning_rate=settings.learning_rate,
                warmup_steps=settings.warmup_steps,
                checkpoint_every=spec.checkpoint_every,
            ),
            pad_id=loaded.pad_id,
            batch_rows=settings.batch_rows,
            seed=entry.seed,
            device=spec.device,
            phase=f"order {entry.order}, position {entry.position}",
            config_sha256=document_sha256([entry.lineage_sha256, code_sha256(), dict(entry.environment)]),
            checkpoint_path=checkpoint_path(store, entry.order, entry.position),
            on_progress=on_progress,
            should_stop=should_stop,
        )
    except CheckpointError as exc:  # not another store: later deletions in this one would know nothing of it
        raise CheckpointError(
            f"the training of order {entry.order}, position {entry.position} was stopped under other code, libraries "
            "or threads, or its checkpoint is damaged; delete checkpoints/ of this store and train again"
        ) from exc
    path = adapter_path(store, entry.order, entry.position)
    path.parent.mkdir(exist_ok=True)
    weights = save(adapter_tensors(model))
    write_atomically(path, weights)
    model.unload()
    return replace(entry, sha256=sha256_hex(weights))
