"""What an attack is: a score per text or per fact, larger where the model looks more familiar with the person.

Attacks are averaged over a person's dossier; one number per person then enters the rank tests. An attack never sees
who is the subject and who a twin.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal

from torch import Tensor

from ml.registry import Registry


@dataclass(frozen=True, slots=True)
class Attack:
    """One way to tell whether a model saw a person.

    `reads` names the measurement that `score` takes: "tokens" (`TokenStatistics`, one score per text), "swaps"
    (log-probabilities (facts, 1 + swaps) of the true value and its swaps, one score per fact), "answers" (hits
    (prompts,), one score per prompt) or "relearned" (as "swaps", after relearning the other facts).
    """

    identifier: str
    reads: Literal["tokens", "swaps", "answers", "relearned"]
    score: Callable[[Any], Tensor]


ATTACKS: Final[Registry[Attack]] = Registry("attack")
