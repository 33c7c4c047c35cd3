"""From stored measurements to one number per person and attack: the only input of the rank tests.

A detection attack's scores are standardised by the kind of value before they are averaged, over all persons together,
so that a kind with a wide spread does not drown the others; primaries are plain means, as the policy defines them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ml.attacks import ATTACKS
from ml.attacks.fused import TokenStatistics
from ml.attacks.mean_loss import mean_loss
from ml.errors import NonFiniteError
from ml.verification.bench import Bench
from ml.verification.parts import Failure, Part


def attack_part(bench: Bench, attack: str, role: str) -> Part | Failure:
    """The measurement that an attack reads, on one role."""
    reads = ATTACKS[attack].reads
    measure = {"tokens": bench.tokens, "swaps": bench.swaps, "answers": bench.answers, "relearned": bench.relearned}
    return measure[reads](role)


def item_scores(bench: Bench, attack: str, part: Part) -> Tensor:
    """Scores of one attack: (persons of the part, items), larger = more familiar."""
    member = ATTACKS[attack]
    if member.reads == "tokens":
        return member.score(_statistics(bench, part)).reshape(bench.persons, -1)
    if member.reads == "answers":
        return member.score(part.tensors["hits"]).reshape(-1, len(bench.plan.questions))
    held = len(bench.plan.relearned) if member.reads == "relearned" else 0
    return member.score(part.tensors["log_probs"]).reshape(-1, len(bench.plan.facts) - held)


def _statistics(bench: Bench, part: Part) -> TokenStatistics:
    """Token statistics with what the zlib and reference attacks need beside them."""
    base = bench.tokens("base")
    reference = None if isinstance(base, Failure) else mean_loss(TokenStatistics(**base.tensors))
    return replace(TokenStatistics(**part.tensors), compressed_bytes=bench.compressed, reference_loss=reference)


def person_scores(items: Tensor, kinds: Sequence[str] | None = None) -> list[float]:
    """Mean per person: (persons, items) to a list. With `kinds`, the kind of each item, scores are standardised."""
    values = items.double()
    if kinds is not None:
        values = standardised(values, kinds)
    return [float(value) for value in values.mean(dim=1)]


def standardised(items: Tensor, kinds: Sequence[str]) -> Tensor:
    """Subtract each kind's mean and divide by its standard deviation, over all persons and items of the kind.

    A kind without spread becomes 0: it tells nobody apart.

    Raises:
        NonFiniteError: a score is NaN or infinite; its kind's spread would be none.
    """
    if not bool(torch.isfinite(items).all()):
        raise NonFiniteError("a score is NaN or infinite; its kind has no spread")
    out = torch.zeros_like(items)
    for kind in set(kinds):
        columns = torch.tensor([i for i, other in enumerate(kinds) if other == kind])
        block = items[:, columns]
        spread = block.std()
        if len(items) * len(columns) > 1 and float(spread) > 0:
            out[:, columns] = (block - block.mean()) / spread
    return out


def item_kinds(bench: Bench, attack: str) -> list[str]:
    """The type of the value that each item of an attack's scores is about, in the order of `item_scores`."""
    plan = bench.plan
    asked = {
        "answers": [question.attribute for question in plan.questions],
        "relearned": [attribute for attribute in plan.facts if attribute not in plan.relearned],
    }
    return [plan.subject.types[attribute] for attribute in asked.get(ATTACKS[attack].reads, plan.facts)]
