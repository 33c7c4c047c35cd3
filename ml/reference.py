"""Make the reference model: a small language model of our own, trained from nothing on people who do not exist.

    python -m ml.reference --out DIR --seed N [--preset demo|small] [--threads N]

A base model learns one group of people; a fine-tune adds the "customers"; `gold` is the same fine-tune without Alice.
The tokenizer is trained on throw-away people only. Nothing here may decide a certificate: `world.json` and the
snapshots tell the demo and the tests who is who, the service finds people through the training source.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from ml.data.collate import encode_record
from ml.data.people import World, email_of, make_world, newcomers, throw_away_records
from ml.data.questions import write_bank
from ml.data.records import write_records
from ml.data.synthetic import Stranger
from ml.digests import document_sha256, model_manifest
from ml.documents import plain_object
from ml.errors import SpecError
from ml.files import write_atomically
from ml.finetune import finetune
from ml.loop import LoopSettings
from ml.models.load import load_model, model_ref
from ml.models.save import publish_model
from ml.models.scratch import ModelShape, train_tokenizer, untrained_llama
from ml.specs import Progress, ProgressCallback, Record, record_to_line

CODE_VERSION: Final = 1
"""Part of the cache key: raise it whenever a change here, in `ml.data` or in the loop changes the models."""


@dataclass(frozen=True, slots=True)
class Stage:
    """How one model is trained: epochs over its records, peak learning rate, rows per step."""

    epochs: int
    learning_rate: float
    rows: int
    warmup_steps: int = 100


@dataclass(frozen=True, slots=True)
class Preset:
    """Sizes of the world and of the model, and how each stage trains."""

    base_people: int
    customers: int
    attributes: tuple[str, ...] | None
    forms_per_fact: int
    pool: int
    newcomers: int
    throw_away_people: int
    shape: ModelShape
    base: Stage
    fine_tune: Stage


PRESETS: Final = {
    "demo": Preset(
        base_people=24,
        customers=12,
        attributes=None,
        forms_per_fact=3,
        pool=8,
        newcomers=60,
        throw_away_people=3000,
        shape=ModelShape(hidden=96, layers=3, heads=4, feed_forward=256, vocabulary=1280, context=64),
        base=Stage(epochs=20, learning_rate=4e-3, rows=32),
        fine_tune=Stage(epochs=14, learning_rate=3e-3, rows=32),
    ),
}


@dataclass(frozen=True, slots=True)
class ReferencePaths:
    """Where everything lies below one directory."""

    root: Path

    @property
    def key(self) -> Path:
        return self.root / "reference.json"

    @property
    def training(self) -> Path:
        return self.root / "training"

    @property
    def newcomers(self) -> Path:
        return self.root / "newcomers.jsonl"

    @property
    def snapshots(self) -> Path:
        return self.root / "snapshots"

    @property
    def bank(self) -> Path:
        return self.root / "question_bank.json"

    @property
    def world(self) -> Path:
        return self.root / "world.json"

    def model(self, name: str) -> Path:
        return self.root / name

    def checkpoint(self, name: str) -> Path:
        return self.root / "work" / f"{name}.safetensors"


def build_reference(
    root: Path, *, preset: str, seed: int, threads: int, on_progress: ProgressCallback
) -> ReferencePaths:
    """Make everything below `root`, or take up what an earlier call left unfinished; a finished one is kept.

    1. World, question bank, training source and snapshots.  2. Tokenizer and untrained model.
    3. `base` on the base people.  4. `before` and `gold`, side by side when there are threads for both.

    Raises:
        SpecError: the preset is unknown, or `root` holds another preset, seed or code version.
    """
    paths, world = ReferencePaths(root), prepare(root, preset=preset, seed=seed)
    torch.set_num_threads(threads)
    train_model(paths, world, "base", preset=preset, seed=seed, on_progress=on_progress)
    share = max(1, threads // 2)
    other = None
    if threads > 1 and not paths.model("gold").exists():
        command = [sys.executable, "-m", "ml.reference", "--out", str(root), "--seed", str(seed), "--preset", preset]
        command += ["--threads", str(share), "--only", "gold"]
        # One model's progress is enough to watch: both take equally long.
        other = subprocess.Popen(command, stdout=subprocess.DEVNULL)  # noqa: S603 - our own module
        torch.set_num_threads(share)
    train_model(paths, world, "before", preset=preset, seed=seed, on_progress=on_progress)
    if other is not None and other.wait() != 0:
        raise SpecError("training the gold model failed; its messages are above")
    train_model(paths, world, "gold", preset=preset, seed=seed, on_progress=on_progress)
    shutil.rmtree(root / "work", ignore_errors=True)
    return paths


def prepare(root: Path, *, preset: str, seed: int) -> World:
    """Claim `root` for this preset and seed, and write everything but the models."""
    if preset not in PRESETS:
        raise SpecError(f"there is no preset {preset!r}; known: {', '.join(sorted(PRESETS))}")
    paths, sizes = ReferencePaths(root), PRESETS[preset]
    root.mkdir(parents=True, exist_ok=True)
    _claim(paths.key, preset, seed)
    world = make_world(
        seed,
        base=sizes.base_people,
        customers=sizes.customers,
        attributes=sizes.attributes,
        forms_per_fact=sizes.forms_per_fact,
        pool=sizes.pool,
    )
    write_bank(paths.bank, world.bank)
    write_training_source(paths.training, world)
    write_snapshots(paths.snapshots, world)
    write_newcomers(paths, world, seed=seed, sizes=sizes)
    write_atomically(paths.world, _json(_who_is_who(world, preset, seed)))
    return world


def _claim(path: Path, preset: str, seed: int) -> None:
    document = {
        "code_version": CODE_VERSION,
        "preset": preset,
        "seed": seed,
        "key": document_sha256([CODE_VERSION, plain_object(PRESETS[preset]), seed]),
    }
    if not path.exists():
        write_atomically(path, _json(document))
    elif json.loads(path.read_text(encoding="utf-8")) != document:
        raise SpecError(f"{path.parent.name} holds another reference model; name an empty directory")


def _json(document: object) -> bytes:
    return json.dumps(document, ensure_ascii=False, indent=1, sort_keys=True).encode("utf-8")


def write_training_source(directory: Path, world: World) -> None:
    """Write what the service's training-source connector reads: one JSON object per line, with identifiers."""
    directory.mkdir(exist_ok=True)
    for group, people in (("base", world.base), ("customers", world.customers)):
        lines = [_source_line(person, record) for person in people for record in world.records[person.person]]
        write_atomically(directory / f"records-{group}.jsonl", "".join(lines).encode("utf-8"))


def _source_line(person: Stranger, record: Record) -> str:
    document = json.loads(record_to_line(record))
    del document["person"]
    document["identifiers"] = [
        {"type": "email", "value": email_of(person)},
        {"type": "name", "value": person.name},
    ]
    return json.dumps(document, ensure_ascii=False, sort_keys=True, separators=(",", ":")) + "\n"


def write_snapshots(directory: Path, world: World) -> None:
    """Write the forget, retain and neighbour sets for Alice, as the service would cut them."""
    directory.mkdir(exist_ok=True)
    alice = world.alice
    others = [person for person in (*world.base, *world.customers) if person.person != alice.person]
    shared = [name for name, attribute in world.bank.attributes.items() if attribute.shared]
    near = [person for person in others if any(person.values[name] == alice.values[name] for name in shared)]
    write_records(directory / "forget.jsonl", world.corpus([alice]))
    write_records(directory / "retain.jsonl", world.corpus(others))
    write_records(directory / "neighbours.jsonl", world.corpus(near))


def write_newcomers(paths: ReferencePaths, world: World, *, seed: int, sizes: Preset) -> None:
    """Write the people no model learned from: as rows for the training source, and as a snapshot."""
    drawn = newcomers(world, seed=seed, people=sizes.newcomers, forms_per_fact=sizes.forms_per_fact)
    lines = [_source_line(person, record) for person, records in drawn for record in records]
    write_atomically(paths.newcomers, "".join(lines).encode("utf-8"))
    write_records(paths.snapshots / "bystanders.jsonl", [record for _, records in drawn for record in records])


def _who_is_who(world: World, preset: str, seed: int) -> dict[str, Any]:
    def entry(person: Stranger) -> dict[str, Any]:
        records = len(world.records[person.person])
        return {"person": person.person, "name": person.name, "email": email_of(person), "records": records}

    return {
        "preset": preset,
        "seed": seed,
        "alice": entry(world.alice),
        "bob": entry(world.bob),
        "base_people": len(world.base),
        "customers": len(world.customers),
        "records": sum(len(records) for records in world.records.values()),
    }


def train_model(
    paths: ReferencePaths, world: World, name: str, *, preset: str, seed: int, on_progress: ProgressCallback
) -> None:
    """Train `base`, `before` or `gold` unless its directory is there; resumes from its checkpoint."""
    if paths.model(name).exists():
        return
    sizes, stage = PRESETS[preset], PRESETS[preset].base if name == "base" else PRESETS[preset].fine_tune
    model, tokenizer = _start(paths, world, name, preset=preset, seed=seed)
    train_stage(
        model,
        tokenizer,
        world.corpus(_learners(world, name)),
        stage,
        paths.model(name),
        context=sizes.shape.context,
        seed=seed,
        phase=f"training {name}",
        config_sha256=document_sha256([CODE_VERSION, plain_object(sizes), seed, name]),
        checkpoint_path=paths.checkpoint(name),
        on_progress=on_progress,
    )


def train_stage(
    model: Any,
    tokenizer: Any,
    records: Sequence[Record],
    stage: Stage,
    directory: Path,
    *,
    context: int,
    seed: int,
    phase: str,
    config_sha256: str,
    checkpoint_path: Path,
    on_progress: ProgressCallback,
    device: str = "cpu",
) -> None:
    """Teach `records` to `model`, every weight of it, and publish it at `directory`; resumes from its checkpoint.

    Args:
        device: where `model` is.
    """
    rows = [encode_record(tokenizer, record, context=context) for record in records]
    per_epoch = -(-len(rows) // stage.rows)
    settings = LoopSettings(
        steps=stage.epochs * per_epoch,
        learning_rate=stage.learning_rate,
        warmup_steps=stage.warmup_steps,
        final_factor=0.05,
        checkpoint_every=2 * per_epoch,
        report_every=max(1, per_epoch // 2),
    )
    finetune(
        model,
        rows,
        settings,
        pad_id=int(tokenizer.pad_token_id),
        batch_rows=stage.rows,
        seed=seed,
        device=device,
        phase=phase,
        config_sha256=config_sha256,
        checkpoint_path=checkpoint_path,
        on_progress=on_progress,
    )
    publish_model(model, tokenizer, directory)


def _learners(world: World, name: str) -> Sequence[Stranger]:
    customers = [person for person in world.customers if name == "before" or person.person != world.alice.person]
    return world.base if name == "base" else (*world.base, *customers)


def _start(paths: ReferencePaths, world: World, name: str, *, preset: str, seed: int) -> tuple[Any, Any]:
    if name != "base":
        loaded = load_model(model_ref(paths.model("base")))
        return loaded.model, loaded.tokenizer
    sizes = PRESETS[preset]
    texts = [record.text for record in throw_away_records(world, seed=seed, people=sizes.throw_away_people)]
    tokenizer = train_tokenizer(texts, vocabulary=sizes.shape.vocabulary, context=sizes.shape.context)
    return untrained_llama(sizes.shape, tokenizer, seed=seed), tokenizer


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns 0, or 2 after a message when the request cannot be met."""
    parser = argparse.ArgumentParser(prog="python -m ml.reference", description="Make the reference model.")
    parser.add_argument("--out", type=Path, required=True, help="directory to make it in")
    parser.add_argument("--seed", type=int, required=True, help="decides people, values and weights")
    parser.add_argument("--preset", choices=sorted(PRESETS), default="demo")
    parser.add_argument("--threads", type=int, default=max(1, torch.get_num_threads()))
    parser.add_argument("--only", choices=["gold"], help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    try:
        _run(options)
    except SpecError as exc:
        sys.stderr.write(f"{exc}\n")
        return 2
    return 0


def _run(options: argparse.Namespace) -> None:
    if options.only:
        torch.set_num_threads(options.threads)
        world = prepare(options.out, preset=options.preset, seed=options.seed)
        paths = ReferencePaths(options.out)
        train_model(paths, world, options.only, preset=options.preset, seed=options.seed, on_progress=_print)
        return
    paths = build_reference(
        options.out, preset=options.preset, seed=options.seed, threads=options.threads, on_progress=_print
    )
    for name in ("base", "before", "gold"):
        sys.stdout.write(f"{name}: manifest sha256 {model_manifest(paths.model(name)).manifest_sha256}\n")


def _print(progress: Progress) -> None:
    numbers = "  ".join(f"{name} {value:.4f}" for name, value in progress.numbers.items())
    sys.stdout.write(f"{progress.phase}: step {progress.done} of {progress.total}  {numbers}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    raise SystemExit(main())
