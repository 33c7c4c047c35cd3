"""Confidence bounds: Clopper-Pearson, the paired t-interval, and the paired BCa bootstrap clustered by person.

All bounds are one-sided; two of them at level 1 - a make an interval of confidence 1 - 2a. Arrays are float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from ml.errors import EmptySetError, NonFiniteError, SpecError

Array = NDArray[np.float64]
RESAMPLES: Final = 10_000
# Fewer persons than this say nothing about persons, and their mean would say too much about each of them.
MINIMUM_CLUSTERS: Final = 5
_CHUNK: Final = 2_000_000


@dataclass(frozen=True, slots=True)
class Bounds:
    """A mean and its one-sided lower and upper bounds."""

    mean: float
    lower: float
    upper: float


def clopper_pearson_upper(hits: int, trials: int, *, alpha: float = 0.05) -> float:
    """Largest rate still compatible with `hits` of `trials` at level `alpha`, one-sided. Oracle O-14.

    Raises:
        SpecError: not 0 <= hits <= trials, or no trial: nothing was observed and nothing is bounded.
    """
    if trials < 1 or not 0 <= hits <= trials:
        raise SpecError("a rate is bounded from at least one trial and 0 <= hits <= trials")
    return 1.0 if hits == trials else float(stats.beta.ppf(1 - alpha, hits + 1, trials - hits))


def clopper_pearson_lower(hits: int, trials: int, *, alpha: float = 0.05) -> float:
    """Smallest rate still compatible with `hits` of `trials` at level `alpha`, one-sided."""
    return 1.0 - clopper_pearson_upper(trials - hits, trials, alpha=alpha)


@dataclass(frozen=True, slots=True)
class PairedT:
    """Paired t-test of "mean change <= -margin": statistic, one-sided p-value and lower bound of the mean change."""

    mean: float
    sd: float
    statistic: float
    p_value: float
    lower: float


def paired_t(changes: Sequence[float], *, margin: float, alpha: float = 0.05) -> PairedT:
    """Test non-inferiority of independent paired changes. Oracle O-22; use it for 200 items or more.

    Raises:
        EmptySetError: fewer than two changes, or no spread.
    """
    values = _finite(changes)
    if len(values) < 2 or float(values.std()) == 0.0:
        raise EmptySetError("a t-interval needs at least two changes that differ")
    mean, sd = float(values.mean()), float(values.std(ddof=1))
    error = sd / len(values) ** 0.5
    statistic = (mean + margin) / error
    freedom = len(values) - 1
    lower = mean - float(stats.t.ppf(1 - alpha, freedom)) * error
    return PairedT(mean, sd, statistic, float(stats.t.sf(statistic, freedom)), lower)


def clustered_bca(
    changes: Sequence[float],
    clusters: Sequence[int],
    *,
    seed: int,
    alpha: float = 0.05,
    resamples: int = RESAMPLES,
) -> Bounds:
    """Bias-corrected and accelerated bootstrap bounds of a mean change; whole clusters are drawn.

    Items of one person are not independent, so persons are resampled, and the acceleration is their jackknife's.

    Args:
        changes: score after minus score before, one per item.
        clusters: the person of each item.
        alpha: level of each one-sided bound.
    Raises:
        EmptySetError: fewer than five clusters.
        NonFiniteError: a change is NaN or infinite.
    """
    values = _finite(changes)
    _, group = np.unique(np.asarray(clusters), return_inverse=True)
    if len(group) != len(values):
        raise SpecError("every change needs its cluster")
    sums = np.asarray(np.bincount(group, values), dtype=np.float64)
    counts = np.asarray(np.bincount(group), dtype=np.float64)
    if len(sums) < MINIMUM_CLUSTERS:
        raise EmptySetError(f"a bound over persons needs at least {MINIMUM_CLUSTERS} of them, there are {len(sums)}")
    mean = float(values.mean())
    means = _resampled_means(sums, counts, seed=seed, resamples=resamples)
    levels = _bca_levels(means, mean, sums, counts, alpha)
    lower, upper = np.quantile(means, levels)
    return Bounds(mean, float(lower), float(upper))


def _resampled_means(sums: Array, counts: Array, *, seed: int, resamples: int) -> Array:
    rng = np.random.default_rng(seed)
    size = max(1, _CHUNK // len(sums))
    pieces = []
    for start in range(0, resamples, size):
        drawn = rng.integers(len(sums), size=(min(size, resamples - start), len(sums)))
        pieces.append(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1))
    return np.concatenate(pieces)


def _bca_levels(means: Array, mean: float, sums: Array, counts: Array, alpha: float) -> Array:
    """Quantile levels of the bootstrap means that give bounds of level `alpha`."""
    below = (means < mean).mean() + (means == mean).mean() / 2
    bias = stats.norm.ppf(np.clip(below, 1 / len(means), 1 - 1 / len(means)))
    jackknife = (sums.sum() - sums) / (counts.sum() - counts)
    centred = jackknife.mean() - jackknife
    spread = float((centred**2).sum()) ** 1.5
    acceleration = float((centred**3).sum()) / (6 * spread) if spread > 0 else 0.0
    shifted = bias + stats.norm.ppf([alpha, 1 - alpha])
    return np.asarray(stats.norm.cdf(bias + shifted / (1 - acceleration * shifted)), dtype=np.float64)


def _finite(changes: Sequence[float]) -> Array:
    values = np.asarray(changes, dtype=np.float64)
    if not bool(np.isfinite(values).all()):
        raise NonFiniteError("a change is NaN or infinite; its score was not measured")
    return values
