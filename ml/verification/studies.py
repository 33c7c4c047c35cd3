"""What a red team is made of: single attacks as they are run, and the families they belong to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from ml.data.values import VALUE_TYPES
from ml.documents import Json
from ml.specs import RedTeamBudget
from ml.verification.bench import Bench

Score = Callable[[Bench, str, int, int], Tensor]
"""Scores of the subject and the first twins: (bench, role, persons, share) to (persons, items), subject first.

Larger is more familiar. `share` is the part of memory to use, 1 for all of it, 2 for half. A score of 0 from a study
that names `attributes` says that the value did not come out.
"""


@dataclass(frozen=True, slots=True)
class Study:
    """One attack as it is run.

    `identifier` names the attack in the specification. `depends` holds what decides its scores besides the inputs of
    the verification. `attributes` names what each item asks for, where scores are hits; `texts` are the texts asked
    about the subject, `left_out` how many were dropped, and `missing` says why nothing can be asked at all.
    """

    name: str
    identifier: str
    score: Score
    depends: Mapping[str, Json] = field(default_factory=dict)
    attributes: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    left_out: int = 0
    missing: str | None = None


@dataclass(frozen=True, slots=True)
class RedTeamFamily:
    """A family of attacks: the fraction `rho` that may remain, and how its studies are made."""

    rho: float
    studies: Callable[[Bench, RedTeamBudget], Sequence[Study]]


def entropy_bits(bench: Bench, attribute: str) -> float:
    """Entropy of an attribute's kind of value; what the records do not hold is the person's name."""
    return VALUE_TYPES[bench.plan.subject.types.get(attribute, "person_name")].bits


def ordinary_tokens(bench: Bench) -> list[int]:
    """Every token that a text may hold, none that steers the model."""
    return sorted(set(range(len(bench.tokenizer))) - set(bench.tokenizer.all_special_ids))
