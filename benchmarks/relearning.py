"""Relearning harder than the policy does: what comes back of facts that were not taught again?

    python -m benchmarks.relearning --reference DIR --model DIR [--seed N] [--threads N]

Half of Alice's facts are taught again, by adapters and by training every weight, at budgets that no policy names; the
other half is then asked for. `before` never forgot, `gold` never knew: a model that hid its memory ends near the first,
one that has none near the second. Deletion may train against relearning of its own, so the policy's attack is no
longer one it never saw; these are.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch

from ml.attacks.fused import fused_pass
from ml.attacks.generation import answer_hits, greedy_answers, make_prompts
from ml.attacks.mean_loss import value_log_probability
from ml.attacks.relearning import ROWS_PER_STEP, SCALE, relearn
from ml.data.collate import EncodedText, encode_records
from ml.data.dossiers import answered_span, open_facts, read_dossier
from ml.data.questions import read_bank
from ml.data.records import read_records
from ml.digests import file_sha256
from ml.finetune import finetune
from ml.loop import LoopSettings
from ml.models.load import LoadedModel, load_model, model_ref
from ml.models.quantise import linear_layers
from ml.reference import ReferencePaths
from ml.specs import FileRef, Record, RelearningBudget


@dataclass(frozen=True, slots=True)
class Attack:
    """One way of teaching again; rank 0 trains every weight."""

    name: str
    rank: int
    epochs: int
    learning_rate: float


ATTACKS: Final = (
    Attack("adapter r8, 6 epochs (as reference-1)", 8, 6, 5e-3),
    Attack("adapter r32, 6 epochs", 32, 6, 5e-3),
    Attack("adapter r8, 24 epochs", 8, 24, 5e-3),
    Attack("adapter r8, 24 epochs, lr 1e-3", 8, 24, 1e-3),
    Attack("every weight, 6 epochs, lr 1e-3", 0, 6, 1e-3),
    Attack("every weight, 24 epochs, lr 3e-4", 0, 24, 3e-4),
)


@dataclass(frozen=True, slots=True)
class Facts:
    """Lessons that are taught again, and questions about the other half with the texts that answer them."""

    lessons: list[Record]
    questions: list[Record]
    attributes: list[str]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print, per attack and model, the share of other facts answered and the mean log-probability of their tokens."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.relearning", description="Relearn harder.")
    parser.add_argument("--reference", type=Path, required=True, help="directory of a reference model")
    parser.add_argument("--model", type=Path, required=True, help="candidate model directory")
    parser.add_argument("--seed", type=int, default=0, help="decides halves and orders")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    paths = ReferencePaths(options.reference)
    models = {"before": paths.model("before"), "candidate": options.model, "gold": paths.model("gold")}
    facts = _facts(paths, seed=options.seed)
    sys.stdout.write(f"{'hits / log p of the other half':<40}" + "".join(f"{name:>18}" for name in models) + "\n")
    _line("nothing taught", [_recalled(load_model(model_ref(path)), facts) for path in models.values()])
    for attack in ATTACKS:
        _line(attack.name, [_attacked(path, facts, attack, seed=options.seed) for path in models.values()])
    return 0


def _facts(paths: ReferencePaths, *, seed: int) -> Facts:
    bank = read_bank(_file(paths.bank))
    dossier = read_dossier(read_records(_file(paths.snapshots / "forget.jsonl"), what="forget set"))
    others = read_records(_file(paths.snapshots / "retain.jsonl"), what="retain set")
    known = list(open_facts(dossier, bank, others))
    taught = set(random.Random(seed).sample(known, len(known) // 2))  # noqa: S311 - to be repeated, not secret
    asked = [(r, a) for a in known if a not in taught for r in dossier.records if answered_span(r, a) is not None]
    lessons = [r for a in sorted(taught) for r in dossier.records if answered_span(r, a) is not None]
    return Facts(lessons, [record for record, _ in asked], [attribute for _, attribute in asked])


def _attacked(path: Path, facts: Facts, attack: Attack, *, seed: int) -> tuple[float, float]:
    loaded = load_model(model_ref(path))
    lessons = encode_records(loaded.tokenizer, facts.lessons, context=loaded.context)
    if attack.rank:
        budget = RelearningBudget(0.5, attack.epochs, attack.learning_rate, attack.rank)
        teach_adapter(loaded, lessons, budget, seed=seed)
    else:
        _teach_all(loaded, lessons, attack, seed=seed)
    return _recalled(loaded, facts)


def teach_adapter(loaded: LoadedModel, lessons: Sequence[EncodedText], budget: RelearningBudget, *, seed: int) -> None:
    """Teach `lessons` through one adapter, as attack T1 does, and add it into the weights, in place."""
    adapters = relearn(loaded, [lessons], budget, seed=seed)
    with torch.no_grad():
        for name, layer in linear_layers(loaded.model).items():
            layer.weight += SCALE * (adapters.down[name][0] @ adapters.up[name][0]).T


def _teach_all(loaded: LoadedModel, lessons: Sequence[EncodedText], attack: Attack, *, seed: int) -> None:
    steps = attack.epochs * -(-len(lessons) // ROWS_PER_STEP)
    settings = LoopSettings(steps=steps, learning_rate=attack.learning_rate, warmup_steps=1, report_every=steps)
    loaded.model.requires_grad_(True)
    finetune(loaded.model, lessons, settings, pad_id=loaded.pad_id, batch_rows=ROWS_PER_STEP, seed=seed)
    loaded.model.eval()


def _recalled(loaded: LoadedModel, facts: Facts) -> tuple[float, float]:
    prompts = make_prompts(loaded.tokenizer, facts.questions, facts.attributes, prefill=0.0, context=loaded.context)
    answers = greedy_answers(loaded, [prompt.encoded.ids[: prompt.length] for prompt in prompts])
    hits = answer_hits(loaded.tokenizer, prompts, answers)
    statistics = fused_pass(loaded, [prompt.encoded for prompt in prompts])
    return float(hits.mean()), float(value_log_probability(statistics).mean())


def _line(name: str, results: Sequence[tuple[float, float]]) -> None:
    cells = "".join(f"{f'{hits:.3f} / {log_prob:.2f}':>18}" for hits, log_prob in results)
    sys.stdout.write(f"{name:<40}{cells}\n")
    sys.stdout.flush()


def _file(path: Path) -> FileRef:
    return FileRef(str(path), file_sha256(path))


if __name__ == "__main__":
    raise SystemExit(main())
