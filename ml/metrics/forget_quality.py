"""How far a candidate's answers lie from a retrained model's: TOFU's forget quality and a bound (section 11, O-24).

Source: arXiv:2401.06121. A large p-value only says that the distance is small against the sample: with 40 items it
passes distances that 400 items reject. So the distance and its bound are reported with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy import stats
from torch import Tensor

from ml.errors import EmptySetError, NonFiniteError, SpecError
from ml.metrics.intervals import MINIMUM_CLUSTERS, Array

EQUIVALENCE_MARGIN: Final = 0.15


@dataclass(frozen=True, slots=True)
class ForgetQuality:
    """Two-sample Kolmogorov-Smirnov: `p_value` (TOFU's forget quality), `distance` in [0, 1], and the sizes."""

    p_value: float
    distance: float
    items: int
    reference_items: int


def forget_quality(candidate: Tensor, retrained: Tensor) -> ForgetQuality:
    """Compare the truth ratios of two models on the same questions: (n,) and (m,). Oracle O-24.

    Raises:
        EmptySetError: a model has no score.
        NonFiniteError: a score is NaN or infinite.
    """
    ours, theirs = _scores(candidate), _scores(retrained)
    result = stats.ks_2samp(ours, theirs)
    return ForgetQuality(float(result.pvalue), float(result.statistic), len(ours), len(theirs))


def distance_upper(
    candidate: Tensor,
    retrained: Tensor,
    clusters: Sequence[int],
    *,
    seed: int,
    alpha: float = 0.05,
    resamples: int = 2000,
) -> float:
    """One-sided 1 - `alpha` bootstrap bound of the distance; whole persons are drawn, with both models' scores of each.

    Compare it with `EQUIVALENCE_MARGIN`. The bound leans to the large side: drawing again makes two equal samples
    differ.

    Args:
        candidate, retrained: (items,), truth ratios of the same items.
        clusters: the person of each item.
    Raises:
        EmptySetError: fewer than five persons.
    """
    ours, theirs = _scores(candidate), _scores(retrained)
    if not len(ours) == len(theirs) == len(clusters):
        raise SpecError("a bound of the distance needs the same items on both models, each with its person")
    _, group = np.unique(np.asarray(clusters), return_inverse=True)
    people = [np.flatnonzero(group == index) for index in range(int(group.max(initial=-1)) + 1)]
    if len(people) < MINIMUM_CLUSTERS:
        raise EmptySetError(f"a bound over persons needs at least {MINIMUM_CLUSTERS} of them, there are {len(people)}")
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(resamples):
        rows = np.concatenate([people[i] for i in rng.integers(len(people), size=len(people))])
        drawn.append(float(stats.ks_2samp(ours[rows], theirs[rows], method="asymp").statistic))
    return float(np.quantile(drawn, 1 - alpha))


def _scores(values: Tensor) -> Array:
    scores = values.double().numpy()
    if not len(scores):
        raise EmptySetError("a distribution of nothing has no distance")
    if not bool(np.isfinite(scores).all()):
        raise NonFiniteError("a truth ratio is NaN or infinite")
    return np.asarray(scores, dtype=np.float64)
