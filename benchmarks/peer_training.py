"""Our training step beside that of the field's reference implementation: same model, batch, loss and threads.

    python -m benchmarks.peer_training --peer DIR [--rows N] [--steps N] [--repeats N] [--threads N]
        [--vocabulary N...]

`--peer` is a copy of the repository locuslab/open-unlearning (read at commit d3d7cf9), whose own trainers, dataset and
collator are run, with the packages they import (`pip install datasets omegaconf`); none of it is part of this project.
Both train the same fresh LoRA adapter on a model of the reference shape, on the same token ids, `--rows` forget and as
many retained rows a step, by NPO and by gradient difference with cross-entropy on the retained rows, with AdamW in one
fused update. The two take turns; the least time of the repeats counts, from the first step's preparation to the last
step. Before that both are asked for loss and gradient of one batch, by an adapter that has moved. `--vocabulary` gives
the output layer other numbers of rows: ours computes logits for answers alone, which matters the more the larger it is.

Exits with 1 when losses or gradients differ by more than 1e-4 of their size.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import types
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from peft import PeftModel
from torch import Tensor
from torch.utils.data import Dataset
from transformers import TrainingArguments

from ml.data.collate import IGNORED, EncodedText, encode_records
from ml.data.people import make_world, throw_away_records
from ml.loop import train
from ml.methods import METHODS, Plan, Training, UnlearningTask
from ml.models.adapters import attach_adapter, trained_parameters
from ml.models.load import LoadedModel, load_model, model_ref
from ml.models.save import publish_model
from ml.models.scratch import train_tokenizer, untrained_llama
from ml.reference import PRESETS
from ml.specs import ModelRef, Record

TOLERANCE: Final = 1e-4
PEERS: Final = {"npo": ("trainer.unlearn.npo", "NPO"), "grad_diff": ("trainer.unlearn.grad_diff", "GradDiff")}
_RANK: Final = 8
_LEARNING_RATE: Final = 1e-3
_MOVED: Final = 0.02


@dataclass(frozen=True, slots=True)
class Material:
    """A model on disk, and who is forgotten and kept."""

    model: ModelRef
    forget: tuple[Record, ...]
    retain: tuple[Record, ...]
    bank: Any

    def fresh(self) -> tuple[LoadedModel, PeftModel]:
        """The model, and it with an adapter that changes nothing yet."""
        loaded = load_model(self.model)
        return loaded, attach_adapter(loaded.model, rank=_RANK, alpha=float(_RANK), seed=0)


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds of one optimisation step."""

    cpu: float
    wall: float


def make_material(folder: Path, *, vocabulary: int) -> Material:
    """A model of the reference shape, with so many rows of the output layer, that learned nothing: a step costs the
    same whatever the weights are."""
    world, shape = make_world(0, base=24, customers=2), PRESETS["demo"].shape
    texts = [record.text for record in throw_away_records(world, seed=0, people=600)]
    tokenizer = train_tokenizer(texts, vocabulary=shape.vocabulary, context=shape.context)
    model = untrained_llama(replace(shape, vocabulary=vocabulary), tokenizer, seed=0)
    publish_model(model, tokenizer, folder / f"model-{vocabulary}")
    forget, retain = (tuple(world.corpus(people)) for people in (world.customers, world.base))
    return Material(model_ref(folder / f"model-{vocabulary}"), forget, retain, world.bank)


# --- ours -----------------------------------------------------------------------------------------------------------


def our_plan(material: Material, loaded: LoadedModel, model: PeftModel, method: str, *, rows: int, steps: int) -> Plan:
    """The plan of one of our methods, with as many retained rows a step as forgotten ones."""
    training = Training(
        steps=steps,
        learning_rate=_LEARNING_RATE,
        rank=_RANK,
        forget_rows=rows,
        retain_rows=rows,
        neighbour_rows=0,
        checkpoint_every=0,
    )
    task = UnlearningTask(
        model=model,
        tokenizer=loaded.tokenizer,
        context=loaded.context,
        pad_id=loaded.pad_id,
        device="cpu",
        seed=0,
        forget=material.forget,
        retain=material.retain,
        neighbours=(),
        bank=material.bank,
        boundary=None,
    )
    kind = METHODS[method]
    return kind().plan(task, kind.settings(training=training))


def our_cost(material: Material, method: str, *, rows: int, steps: int) -> Cost:
    """Train for so many steps, scoring under the model before included."""
    loaded, model = material.fresh()
    clock = _Clock()
    plan = our_plan(material, loaded, model, method, rows=rows, steps=steps)
    if plan.step is None or plan.loop is None:
        raise AssertionError(f"{method} trains nothing")
    train(model, plan.step, plan.loop, phase=method)
    return clock.per_step(steps)


# --- the reference implementation -----------------------------------------------------------------------------------


class Rows(Dataset[dict[str, Tensor]]):
    """Texts as the reference implementation's collator wants them."""

    def __init__(self, texts: Sequence[EncodedText]) -> None:
        self._texts = texts

    def __len__(self) -> int:
        return len(self._texts)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        text = self._texts[index]
        labels = [IGNORED] * text.first_label + list(text.ids[text.first_label :])
        return {"input_ids": torch.tensor(text.ids), "labels": torch.tensor(labels)}


class Peer:
    """Trainers, dataset and collator from a copy of the reference implementation's repository."""

    def __init__(self, repository: Path, folder: Path) -> None:
        source = repository / "src"
        sys.path.insert(0, str(source))
        # Its package entry point imports methods that need further packages.
        package = types.ModuleType("trainer")
        package.__path__ = [str(source / "trainer")]
        sys.modules["trainer"] = package
        from data.collators import DataCollatorForSupervisedDataset  # type: ignore[import-not-found]
        from data.unlearn import ForgetRetainDataset  # type: ignore[import-not-found]

        self._collator, self._dataset, self._folder = DataCollatorForSupervisedDataset, ForgetRetainDataset, folder

    def trainer(self, material: Material, loaded: LoadedModel, model: PeftModel, method: str, **counts: int) -> Any:
        """One of its trainers over the material; `counts` has "rows" and "steps"."""
        forget, retain = (
            Rows(encode_records(loaded.tokenizer, records, context=loaded.context))
            for records in (material.forget, material.retain)
        )
        arguments = TrainingArguments(
            output_dir=str(self._folder / "peer"),
            max_steps=counts["steps"],
            per_device_train_batch_size=counts["rows"],
            learning_rate=_LEARNING_RATE,
            weight_decay=0.0,
            optim="adamw_torch_fused",
            save_strategy="no",
            logging_steps=10,
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            dataloader_pin_memory=False,
            remove_unused_columns=False,
            seed=0,
        )
        settings = {"beta": METHODS[method].settings().beta} if method == "npo" else {}
        return _called(*PEERS[method])(
            model=model,
            args=arguments,
            train_dataset=self._dataset(forget, retain),
            data_collator=self._collator(loaded.tokenizer),
            **settings,
        )

    def cost(self, material: Material, method: str, *, rows: int, steps: int) -> Cost:
        """Train for so many steps, copying the model before included."""
        loaded, model = material.fresh()
        clock = _Clock()
        self.trainer(material, loaded, model, method, rows=rows, steps=steps).train()
        return clock.per_step(steps)


def _called(module: str, name: str) -> type[Any]:
    """One of its trainers, which takes what this version of transformers passes besides."""
    theirs = getattr(__import__(module, fromlist=[name]), name)

    class Called(theirs):  # type: ignore[misc, valid-type]
        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
            return super().compute_loss(model, inputs, return_outputs)

    return Called


class _Clock:
    def __init__(self) -> None:
        self._cpu, self._wall = time.process_time(), time.perf_counter()

    def per_step(self, steps: int) -> Cost:
        return Cost((time.process_time() - self._cpu) / steps, (time.perf_counter() - self._wall) / steps)


# --- both -----------------------------------------------------------------------------------------------------------


def disagreement(material: Material, peer: Peer, method: str, *, rows: int) -> tuple[float, float]:
    """How far loss and gradient of one batch lie apart, as shares of their size, once the adapter has moved."""
    few = Material(material.model, material.forget[:rows], material.retain[:rows], material.bank)
    loaded, model = few.fresh()
    trainer = peer.trainer(few, loaded, model, method, rows=rows, steps=1)
    plan = our_plan(few, loaded, model, method, rows=rows, steps=1)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in trained_parameters(model):
            parameter += _MOVED * torch.randn(parameter.shape, generator=generator)
    batch = trainer.data_collator([{"forget": f, "retain": r} for f, r in zip(*_both(trainer), strict=True)])
    trainer.model.train()
    theirs = trainer.compute_loss(trainer.model, batch)
    theirs.backward()
    expected = _taken(model)
    if plan.step is None:
        raise AssertionError(f"{method} trains nothing")
    total: list[float] = []

    def backward(loss: Tensor) -> None:
        total.append(float(loss.detach()))
        loss.backward()

    plan.step(0, backward)
    found = _taken(model)
    apart = abs(sum(total) - float(theirs.detach())) / max(1.0, abs(float(theirs.detach())))
    return apart, float((found - expected).norm() / expected.norm())


def _both(trainer: Any) -> tuple[list[Any], list[Any]]:
    sets = trainer.train_dataset
    return tuple([rows[i] for i in range(len(rows))] for rows in (sets.forget, sets.retain))  # type: ignore[return-value]


def _taken(model: PeftModel) -> Tensor:
    """The gradient of all trained parameters in one row, which leaves them without."""
    flat = torch.cat([parameter.grad.flatten().clone() for parameter in trained_parameters(model)])
    model.zero_grad(set_to_none=True)
    return flat


def compared(material: Material, peer: Peer, method: str, *, rows: int, steps: int, repeats: int) -> dict[str, Any]:
    """Agreement, and the least cost of each in turns."""
    loss, gradient = disagreement(material, peer, method, rows=rows)
    turns = [
        (our_cost(material, method, rows=rows, steps=steps), peer.cost(material, method, rows=rows, steps=steps))
        for _ in range(repeats)
    ]
    ours, theirs = (
        Cost(min(turn[side].cpu for turn in turns), min(turn[side].wall for turn in turns)) for side in (0, 1)
    )
    return {
        "method": method,
        "loss_apart": loss,
        "gradient_apart": gradient,
        "ours": asdict(ours),
        "reference": asdict(theirs),
        "times": theirs.cpu / ours.cpu,
        "times_wall": theirs.wall / ours.wall,
    }


def _line(row: Mapping[str, Any]) -> str:
    """One method's comparison in words."""
    ours, theirs = row["ours"], row["reference"]
    return (
        f"{row['vocabulary']:>6} rows, {row['method']:<10} a step, CPU ms: {1000 * ours['cpu']:6.1f} and "
        f"{1000 * theirs['cpu']:6.1f} of the "
        f"reference, {row['times']:.2f} times; wall {1000 * ours['wall']:.1f} and {1000 * theirs['wall']:.1f}, "
        f"{row['times_wall']:.2f} times; apart: loss {row['loss_apart']:.1e}, gradient {row['gradient_apart']:.1e}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Print one line a method; 1 when the two do not compute the same."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peer_training", description="Compare training steps.")
    parser.add_argument("--peer", type=Path, required=True, help="a copy of locuslab/open-unlearning")
    parser.add_argument("--rows", type=int, default=16, help="forget rows a step, and retained rows a step")
    parser.add_argument("--steps", type=int, default=140, help="about ten epochs of the forgotten rows")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    usual = PRESETS["demo"].shape.vocabulary
    parser.add_argument("--vocabulary", type=int, nargs="+", default=[usual], help="rows of the output layer")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        peer = Peer(options.peer, folder)
        rows = []
        for vocabulary in options.vocabulary:
            material = make_material(folder, vocabulary=vocabulary)
            for method in PEERS:
                found = compared(
                    material, peer, method, rows=options.rows, steps=options.steps, repeats=options.repeats
                )
                rows.append({"vocabulary": vocabulary, **found})
    for row in rows:
        sys.stdout.write(f"{_line(row)}\n")
    return 0 if all(row[name] <= TOLERANCE for row in rows for name in ("loss_apart", "gradient_apart")) else 1


if __name__ == "__main__":
    raise SystemExit(main())
