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


MOST_STEPS: Final = 20


def roc_points(higher: Tensor, lower: Tensor, *, at_least: int) -> list[tuple[float, float]]:
    """Shares of `lower` and of `higher` above falling thresholds: (n,) and (m,), from (0, 0) to (1, 1).

    Thresholds are quantiles of `lower` alone, so that no point tells where a single value of `higher` stands; and from
    one point to the next come no values of a sample, or `at_least`. Every point is exact.

    Raises:
        EmptySetError: a sample has fewer values than that.
    """
    ours, theirs = (np.sort(sample.double().numpy()) for sample in (higher, lower))
    if min(len(ours), len(theirs)) < at_least:
        raise EmptySetError(f"a curve needs at least {at_least} values on both sides")
    steps = min(MOST_STEPS, len(theirs) // at_least)
    cuts = [theirs[len(theirs) - step * len(theirs) // steps] for step in range(1, steps)]
    above = [(0, len(ours) - int(np.searchsorted(ours, theirs[-1], "right")))]
    above += [_not_below(theirs, ours, cut) for cut in cuts]
    points, last = [(0, 0)], (0, 0)
    for counts in above:
        moved = [now - then for now, then in zip(counts, last, strict=True)]
        ahead = [len(theirs) - counts[0], len(ours) - counts[1]]
        if any(moved) and any(ahead) and all(n == 0 or n >= at_least for n in (*moved, *ahead)):
            points.append(counts)
            last = counts
    return [(x / len(theirs), y / len(ours)) for x, y in (*points, (len(theirs), len(ours)))]


def _not_below(theirs: Array, ours: Array, cut: float) -> tuple[int, int]:
    """How many of each are at or above a threshold; both ascending."""
    first, second = (len(sample) - int(np.searchsorted(sample, cut, "left")) for sample in (theirs, ours))
    return first, second


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
