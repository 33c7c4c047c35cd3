"""G14: tokens behind a question, searched so that the value becomes as likely as they can make it. Long, optional.

Only likelihoods are asked for (grey box): at every step one token of every suffix is replaced, and kept where that
helps. A suffix elicits what was never learned as well, so the likelihood it reaches says nothing by itself; only the
difference to twins does, each with a suffix of their own from the same start, the same proposals and the same budget.

Source: arXiv:2408.10682 (optimised prompts recover what was unlearned). Departure: random search instead of gradients,
which every device and model can run.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ml.attacks.exposure import DEFAULT_ROWS, ValueContest, value_log_probs
from ml.errors import ContextLengthError, SpecError
from ml.models.load import LoadedModel
from ml.specs import MOST_SUFFIX_STEPS


@dataclass(frozen=True, slots=True)
class SuffixTask:
    """One value to be elicited: the question, the words that begin the answer, the value; token ids.

    Tasks of one `fact` start from the same suffix and meet the same proposals, whoever they are about.
    """

    question: tuple[int, ...]
    opening: tuple[int, ...]
    value: tuple[int, ...]
    fact: int


def best_suffix_log_probs(
    loaded: LoadedModel,
    tasks: Sequence[SuffixTask],
    *,
    length: int,
    steps: int,
    tokens: Sequence[int],
    seed: int,
    batch_rows: int = DEFAULT_ROWS,
    after_step: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Highest summed log-probability of each value that its suffix reaches: (tasks,) float32, nats.

    Args:
        length: tokens of a suffix.
        tokens: what a suffix may be made of.
        after_step: told how many of how many steps are done; may raise to stop.
    Raises:
        SpecError: no token, no step or more than 500, nothing to draw from.
        ContextLengthError: a question, its suffix and its answer do not fit into the model's context.
        NonFiniteError: a log-probability is NaN or infinite.
    """
    if length < 1 or not 1 <= steps <= MOST_SUFFIX_STEPS or not tokens:
        raise SpecError(
            f"a suffix has at least one token, is searched in 1 to {MOST_SUFFIX_STEPS} steps and drawn from some"
        )
    longest = max(len(task.question) + length + len(task.opening) + len(task.value) for task in tasks)
    if longest > loaded.context:
        raise ContextLengthError(f"a question with its suffix has {longest} tokens, the model takes {loaded.context}")
    drawn = {task.fact: _draws(seed, task.fact) for task in tasks}
    starts = {fact: [rng.choice(tokens) for _ in range(length)] for fact, rng in sorted(drawn.items())}
    suffixes = [list(starts[task.fact]) for task in tasks]
    best = _scores(loaded, tasks, suffixes, batch_rows)
    for step in range(steps):
        proposals = {fact: (rng.randrange(length), rng.choice(tokens)) for fact, rng in sorted(drawn.items())}
        tried = [_replaced(suffix, *proposals[task.fact]) for task, suffix in zip(tasks, suffixes, strict=True)]
        scores = _scores(loaded, tasks, tried, batch_rows)
        better = (scores > best).tolist()
        suffixes = [new if won else old for won, new, old in zip(better, tried, suffixes, strict=True)]
        best = torch.maximum(best, scores)
        if after_step is not None:
            after_step(step + 1, steps)
    return best


def _draws(seed: int, fact: int) -> random.Random:
    return random.Random(f"{seed}:suffix:{fact}")  # noqa: S311 - draws must be reproducible from the seed


def _replaced(suffix: Sequence[int], place: int, token: int) -> list[int]:
    return [*suffix[:place], token, *suffix[place + 1 :]]


def _scores(
    loaded: LoadedModel, tasks: Sequence[SuffixTask], suffixes: Sequence[Sequence[int]], batch_rows: int
) -> Tensor:
    contests = [
        ValueContest((*task.question, *suffix, *task.opening), (task.value,))
        for task, suffix in zip(tasks, suffixes, strict=True)
    ]
    return value_log_probs(loaded, contests, batch_rows=batch_rows)[:, 0]
