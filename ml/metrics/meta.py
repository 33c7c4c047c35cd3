"""Which metrics deserve trust: faithfulness, and robustness to relearning and to rounding (verification section 7).

All numbers lie in [0, 1]; 1 is a metric that tells knowing models from the others, and is not moved by what should not
move it. Source: the idea is arXiv:2506.12618's, the symmetric forms are those of arXiv:2605.24614.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from ml.errors import EmptySetError, NonFiniteError, SpecError
from ml.metrics.intervals import MINIMUM_CLUSTERS, Bounds
from ml.metrics.roc import clustered_auroc
from ml.rank_tests import standard_deviation

RESAMPLES: Final = 10_000


def twin_position(scores: Sequence[float], *, resolution: float) -> float:
    """How far a person stands above the twins, in twin standard deviations; index 0 is the person.

    Args:
        resolution: the smallest step the score can take. Twins who all score alike have no spread of their own, so
            one step counts as their standard deviation.
    Raises:
        SpecError: no twin, or a resolution that is not above 0.
    """
    if len(scores) < 2 or resolution <= 0:
        raise SpecError("a position among twins needs a twin and a resolution above 0")
    mean = sum(scores[1:]) / len(scores[1:])
    spread = standard_deviation(scores[1:])
    return (scores[0] - mean) / (spread if spread > 0 else resolution)


def twin_rank(scores: Sequence[float]) -> float:
    """Share of twins that a person stands above, ties counting half: 1 is above all; index 0 is the person."""
    if len(scores) < 2:
        raise SpecError("a rank among twins needs a twin")
    wins = sum((scores[0] > score) + (scores[0] == score) / 2 for score in scores[1:])
    return wins / (len(scores) - 1)


def faithfulness(knowing: Sequence[Sequence[float]], ignorant: Sequence[Sequence[float]], *, seed: int) -> Bounds:
    """Chance that a person whom a model learned scores above one whom a model did not, with one-sided 95 % bounds.

    A score belongs to a person on a model, and what one model says of several people is not independent: whole models
    are drawn, each with all its people.

    Args:
        knowing: for each model the scores of people it learned.
        ignorant: for the same models, in the same order, the scores of people it did not learn.
    Raises:
        EmptySetError: fewer than five models, or a model without people of either kind.
        SpecError: one model has more people of a kind than another: drawing models would weigh people differently.
        NonFiniteError: a score is NaN or infinite.
    """
    if (
        len(knowing) != len(ignorant)
        or len({len(row) for row in knowing}) > 1
        or len({len(row) for row in ignorant}) > 1
    ):
        raise SpecError("faithfulness needs the same number of people of each kind from every model")
    if len(knowing) < MINIMUM_CLUSTERS or not knowing[0] or not ignorant[0]:
        raise EmptySetError(f"faithfulness needs people of both kinds from at least {MINIMUM_CLUSTERS} models")
    higher, lower = np.asarray(knowing, dtype=np.float64), np.asarray(ignorant, dtype=np.float64)
    if not bool(np.isfinite(higher).all() and np.isfinite(lower).all()):
        raise NonFiniteError("a score to be ranked is NaN or infinite")
    pairs = higher[:, None, :, None] - lower[None, :, None, :]
    wins = ((pairs > 0) + (pairs == 0) / 2).mean(axis=(2, 3))
    return clustered_auroc(wins, seed=seed, resamples=RESAMPLES)


def relearning_robustness(unlearned: float, retained: float) -> float:
    """1 - |du - dr| / (|du| + |dr|): does relearning move a metric alike where the data are gone and where they were
    never learned? Oracle O-17.

    Args:
        unlearned: change of the metric by relearning on a model that unlearned the person.
        retained: the same on a model that never learned the person.
    Raises:
        EmptySetError: neither moved; the ratio is undefined.
    """
    return _alike(unlearned, retained)


def quantisation_robustness(before: float, after: float) -> float:
    """1 - |after - before| / (|after| + |before|): does rounding the weights leave a metric where it was? Oracle O-17.

    Raises:
        EmptySetError: both are 0; the ratio is undefined.
    """
    return _alike(before, after)


def relearning_robustness_one_sided(unlearned: float, retained: float) -> float:
    """min(dr / du, 1), at least 0: only what comes back beyond a model that never learned counts. Oracle O-17."""
    return 1.0 if unlearned <= retained else max(0.0, retained / unlearned) if unlearned > 0 else 0.0


def quantisation_robustness_one_sided(before: float, after: float) -> float:
    """min(before / after, 1), at least 0, for metrics that rise with knowledge: only a rise by rounding counts."""
    return 1.0 if after <= before else max(0.0, before / after) if after > 0 else 0.0


def harmonic_mean(first: float, second: float) -> float:
    """Harmonic mean of two numbers in [0, 1]; 0 when one of them is."""
    return 0.0 if first * second == 0 else 2 * first * second / (first + second)


def _alike(first: float, second: float) -> float:
    size = abs(first) + abs(second)
    if size == 0:
        raise EmptySetError("both numbers are 0; how alike they are is undefined")
    return 1 - abs(first - second) / size
