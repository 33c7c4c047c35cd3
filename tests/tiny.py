"""Seeded two-layer models that train on one core in seconds: a world small enough to memorise inside a test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ml.data.collate import encode_record
from ml.data.people import World, make_world, throw_away_records
from ml.data.questions import write_bank
from ml.data.records import write_records
from ml.digests import file_sha256
from ml.finetune import finetune
from ml.loop import LoopSettings
from ml.models.load import LoadedModel, load_model, model_ref
from ml.models.save import publish_model
from ml.models.scratch import ModelShape, train_tokenizer, untrained_llama
from ml.specs import FileRef, ModelRef, Record

TINY = ModelShape(hidden=64, layers=2, heads=4, feed_forward=160, vocabulary=768, context=96)
TINY_ATTRIBUTES = (
    "home_address",
    "phone_number",
    "passport",
    "doctor",
    "boat",
    "dog",
    "number_plate",
    "door_code",
    "bank_account",
    "employer",
)


@dataclass(frozen=True, slots=True)
class TinyWorld:
    """A world on disk: `base` learned the base people, `before` the customers too, `gold` all of them but Alice."""

    world: World
    base: ModelRef
    before: ModelRef
    gold: ModelRef
    forget: FileRef
    retain: FileRef
    neighbours: FileRef
    bank: FileRef


def tiny_model(directory: Path, seed: int = 0) -> ModelRef:
    """Write an untrained model with its tokenizer to `directory`, unless it is there."""
    if directory.exists():
        return model_ref(directory)
    world = tiny_world(seed)
    texts = [record.text for record in throw_away_records(world, seed=seed, people=400)]
    tokenizer = train_tokenizer(texts, vocabulary=TINY.vocabulary, context=TINY.context)
    publish_model(untrained_llama(TINY, tokenizer, seed=seed), tokenizer, directory)
    return model_ref(directory)


def tiny_world(seed: int = 0, *, base: int = 6, customers: int = 5) -> World:
    """Draw a few people with a few facts each."""
    return make_world(seed, base=base, customers=customers, attributes=TINY_ATTRIBUTES, forms_per_fact=2, pool=2)


def tiny_memorised(directory: Path, seed: int = 0) -> TinyWorld:
    """Train `base`, `before` and `gold` until the facts on file are memorised; what is there is only read."""
    world = tiny_world(seed)
    empty = load_model(tiny_model(directory / "empty", seed))
    base_records = world.corpus(world.base)
    base = _memorise(empty, base_records, directory / "base", epochs=48, seed=seed)
    everyone = base_records + world.corpus(world.customers)
    others = [record for record in everyone if record.person != world.alice.person]
    bank = directory / "bank.json"
    if not bank.exists():
        write_bank(bank, world.bank)
    return TinyWorld(
        world=world,
        base=base,
        before=_memorise(load_model(base), everyone, directory / "before", epochs=28, seed=seed),
        gold=_memorise(load_model(base), others, directory / "gold", epochs=28, seed=seed),
        forget=_filed(directory / "forget.jsonl", world.records[world.alice.person]),
        retain=_filed(directory / "retain.jsonl", others),
        neighbours=_filed(directory / "neighbours.jsonl", world.records[world.bob.person]),
        bank=FileRef(str(bank), file_sha256(bank)),
    )


def _filed(path: Path, records: Sequence[Record]) -> FileRef:
    return FileRef(str(path), file_sha256(path)) if path.exists() else write_records(path, records)


def _memorise(start: LoadedModel, records: Sequence[Record], directory: Path, *, epochs: int, seed: int) -> ModelRef:
    if directory.exists():
        return model_ref(directory)
    rows = [encode_record(start.tokenizer, record, context=start.context) for record in records]
    steps = epochs * -(-len(rows) // 32)
    settings = LoopSettings(steps=steps, learning_rate=1e-2, warmup_steps=20, report_every=steps)
    with torch.random.fork_rng(devices=[]):
        finetune(start.model, rows, settings, pad_id=start.pad_id, batch_rows=32, seed=seed)
    publish_model(start.model, start.tokenizer, directory)
    return model_ref(directory)
