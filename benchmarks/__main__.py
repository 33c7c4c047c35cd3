"""What scoring costs, and what each shortcut saves, on an untrained model of the reference size.

    python -m benchmarks [--threads N] [--repeats N]

Each line compares a way of computing with the plain one that gives the same numbers, in CPU seconds (the smallest of
the repeats), after checking that the numbers agree.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import torch

from ml.attacks.exposure import ValueContest, contests, value_log_probs
from ml.attacks.fused import fused_pass
from ml.attacks.mean_loss import mean_loss
from ml.data.collate import EncodedText, encode_record
from ml.data.people import make_world, throw_away_records
from ml.data.synthetic import StrangerFactory
from ml.models.load import LoadedModel, load_model, model_ref
from ml.models.save import publish_model
from ml.models.scratch import train_tokenizer, untrained_llama
from ml.reference import PRESETS

SWAPS: Final = 39
TEXTS: Final = 800
CONTESTS: Final = 60
TOLERANCE: Final = 1e-3


def main(arguments: Sequence[str] | None = None) -> int:
    """Print one line a comparison; 1 when two ways of computing disagree."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure what scoring costs.")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        loaded, texts, rows = _inputs(Path(folder))
    agreed = [
        _compare(
            "every statistic of a text, fused",
            options.repeats,
            lambda: _fused(loaded, texts),
            lambda: _one_by_one(loaded, texts),
        ),
        _compare(
            "values swapped in one sentence",
            options.repeats,
            lambda: value_log_probs(loaded, rows),
            lambda: _each_text(loaded, rows),
        ),
    ]
    return 0 if all(agreed) else 1


def _inputs(folder: Path) -> tuple[LoadedModel, list[EncodedText], list[ValueContest]]:
    world, shape = make_world(0, base=6, customers=2), PRESETS["demo"].shape
    sample = [record.text for record in throw_away_records(world, seed=0, people=400)]
    tokenizer = train_tokenizer(sample, vocabulary=shape.vocabulary, context=shape.context)
    publish_model(untrained_llama(shape, tokenizer, seed=0), tokenizer, folder / "model")
    loaded = load_model(model_ref(folder / "model"))
    records = [record for person in world.records.values() for record in person][:TEXTS]
    texts = [encode_record(loaded.tokenizer, record, context=loaded.context) for record in records]
    factory = StrangerFactory(random.Random(0), records, shared_values=world.shared_values)  # noqa: S311 - to be repeated
    rows: list[ValueContest] = []
    for record in records:
        fact = record.facts[0] if record.facts else None
        if fact is not None and fact.attribute not in world.shared_values and len(rows) < CONTESTS:
            swaps = [factory.value(fact.attribute, fact.type) for _ in range(SWAPS)]
            rows += contests(loaded.tokenizer, [record], fact.attribute, swaps, context=loaded.context)
    return loaded, texts, rows


def _fused(loaded: LoadedModel, texts: Sequence[EncodedText]) -> torch.Tensor:
    return mean_loss(fused_pass(loaded, texts))


def _one_by_one(loaded: LoadedModel, texts: Sequence[EncodedText]) -> torch.Tensor:
    return torch.cat([mean_loss(fused_pass(loaded, [text])) for text in texts])


@torch.inference_mode()
def _each_text(loaded: LoadedModel, rows: Sequence[ValueContest]) -> torch.Tensor:
    """A forward pass over the whole text for every value."""
    out = []
    for row in rows:
        for value in row.values:
            ids = torch.tensor([[*row.prompt, *value]])
            log_probs = torch.log_softmax(loaded.model(ids).logits[0].float(), dim=-1)
            start = len(row.prompt)
            out.append(sum(float(log_probs[start + i - 1, token]) for i, token in enumerate(value)))
    return torch.tensor(out).reshape(len(rows), -1)


def _compare(title: str, repeats: int, ours: Callable[[], Any], plain: Callable[[], Any]) -> bool:
    fast, result = _cpu_seconds(ours, repeats)
    slow, expected = _cpu_seconds(plain, 1)
    agree = bool(torch.allclose(result, expected, atol=TOLERANCE))
    sys.stdout.write(f"{title:<36} {fast:8.2f} s   plain {slow:8.2f} s   {slow / fast:5.1f} times   agree: {agree}\n")
    return agree


def _cpu_seconds(work: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    best, result = float("inf"), None
    for _ in range(repeats):
        started = time.process_time()
        result = work()
        best = min(best, time.process_time() - started)
    return best, result


if __name__ == "__main__":
    raise SystemExit(main())
