"""Area under the ROC curve with an interval. 1.0 means the first sample always scores higher; ties count half."""

from __future__ import annotations

from typing import Final

import numpy as np
from scipy import stats
from torch import Tensor

from ml.energy import auroc
from ml.errors import EmptySetError
from ml.metrics.intervals import Array, Bounds


def auroc_interval(higher: Tensor, lower: Tensor, *, alpha: float = 0.05) -> Bounds:
    """AUROC with two-sided bounds of confidence 1 - `alpha` after DeLong: (n,) and (m,).

    Raises:
        EmptySetError: a sample has fewer than two values; one value has no spread.
    """
    if len(higher) < 2 or len(lower) < 2:
        raise EmptySetError("an AUROC interval needs at least two values on both sides")
    area = auroc(higher, lower)
    first, second = higher.double().numpy(), lower.double().numpy()
    spreads = (
        _placements(first, second).var(ddof=1) / len(first),
        _placements(second, first).var(ddof=1) / len(second),
    )
    reach = float(stats.norm.ppf(1 - alpha / 2)) * float(sum(spreads)) ** 0.5
    return Bounds(area, max(0.0, area - reach), min(1.0, area + reach))


MOST_POINTS: Final = 40


def roc_points(higher: Tensor, lower: Tensor, *, at_least: int) -> list[tuple[float, float]]:
    """Shares of `lower` and of `higher` above falling thresholds: (n,) and (m,), from (0, 0) to (1, 1).

    From one point to the next come no values of a sample, or `at_least` of them and a 40th part: so no point tells of a
    single value, and every point is exact.

    Raises:
        EmptySetError: a sample has fewer values than that.
    """
    samples = [np.sort(sample.double().numpy()) for sample in (lower, higher)]
    steps = [max(at_least, len(sample) // MOST_POINTS) for sample in samples]
    if any(len(sample) < at_least for sample in samples):
        raise EmptySetError(f"a curve needs at least {at_least} values on both sides")
    thresholds = np.unique(np.concatenate(samples))[::-1]
    above = np.stack([len(sample) - np.searchsorted(sample, thresholds, "left") for sample in samples], axis=1)
    sizes = np.array([len(sample) for sample in samples])
    points, last = [np.zeros(2, dtype=int)], np.zeros(2, dtype=int)
    for counts in above:
        moved, ahead = counts - last, sizes - counts
        whole = all(
            n == 0 or n >= step for n, step in [*zip(moved, steps, strict=True), *((n, at_least) for n in ahead)]
        )
        if whole and moved.any() and ahead.any():
            points.append(counts)
            last = counts
    return [(float(x), float(y)) for x, y in (point / sizes for point in [*points, sizes])]


def _placements(values: Array, others: Array) -> Array:
    """Share of `others` below each value, ties counting half."""
    ordered = np.sort(others)
    below, not_above = np.searchsorted(ordered, values, "left"), np.searchsorted(ordered, values, "right")
    return np.asarray((below + not_above) / (2 * len(ordered)), dtype=np.float64)


def clustered_auroc(wins: Array, *, seed: int, alpha: float = 0.05, resamples: int = 2000) -> Bounds:
    """AUROC over texts that come in persons, with one-sided bounds from drawing persons.

    Args:
        wins: (persons, persons); entry (i, j) is the chance that a text of person i scores above a text of the twins
            of person j. A person is drawn together with the twins.
    """
    count = len(wins)
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(count, np.full(count, 1 / count), size=resamples).astype(np.float64)
    areas = ((weights @ wins) * weights).sum(axis=1) / count**2
    lower, upper = np.quantile(areas, [alpha, 1 - alpha])
    return Bounds(float(wins.mean()), float(lower), float(upper))
