"""Exact rank tests and their multiplicity corrections (verification section 9). Standard library only, no clock.

Scores are one number per person; index 0 is the data subject, 1..K are never-trained twins. Larger means more
familiar to the model. Every p-value is one-sided and exact under exchangeability of subject and twins; ties count
against the claim being made, so that a constant score proves nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ml.errors import NonFiniteError, SpecError

# p-values are ratios of small integers compared with decimal limits: 12 * (1/240) must equal 0.05.
TOLERANCE = 1e-12


def detection_p(after: Sequence[float]) -> float:
    """H0: the subject is no more familiar than a twin. (1 + #{k: T_k >= T_0}) / (K + 1). Oracle O-18."""
    return _upper_tail(_checked(after))


def low_p(after: Sequence[float]) -> float:
    """H0: the subject is no less familiar than a twin. (1 + #{k: T_k <= T_0}) / (K + 1)."""
    return _lower_tail(_checked(after))


def residual_p(before: Sequence[float], after: Sequence[float], rho: float) -> float:
    """H0: at least the fraction `rho` of the influence remains. Small means bounded. Oracle O-18."""
    return _lower_tail(_combined(before, after, -rho))


def over_forgetting_p(before: Sequence[float], after: Sequence[float], rho_over: float) -> float:
    """H0: the subject fell at least `rho_over` of the influence below the twins. Small means bounded. Oracle O-18."""
    return _upper_tail(_combined(before, after, rho_over))


def residual_ratio(before: Sequence[float], after: Sequence[float]) -> float | None:
    """rho-hat = (T+_0 - mean T+_k) / (T-_0 - mean T-_k); `None` when the attack saw nothing to begin with."""
    shift_before = before[0] - _mean(before[1:])
    if abs(shift_before) < TOLERANCE:
        return None
    return (after[0] - _mean(after[1:])) / shift_before


def residual_upper(before: Sequence[float], after: Sequence[float], *, alpha: float = 0.05) -> float | None:
    """The 95 % upper bound of rho: the smallest on a 0.01 grid in [-1, 2] that is rejected with all above it.

    `None` when no rho up to 2 is rejected: nothing is bounded.
    """
    upper = None
    for step in range(200, -101, -1):
        if residual_p(before, after, step / 100) > alpha + TOLERANCE:
            break
        upper = step / 100
    return upper


def strength(before: Sequence[float]) -> float | None:
    """d-minus: the subject's distance from the twins on `M-`, in twin standard deviations; `None` without spread."""
    spread = standard_deviation(before[1:])
    return None if spread < TOLERANCE else (before[0] - _mean(before[1:])) / spread


def two_sided_p(scores: Sequence[float]) -> float:
    """Placebo: is the subject an outlier among twins on a model that saw neither? min(1, 2 min(p_detect, p_low))."""
    return min(1.0, 2.0 * min(detection_p(scores), low_p(scores)))


def min_p(attacks: Sequence[Sequence[float]]) -> float:
    """Joint detection over attacks that share the same twins: share of persons whose min-P is <= the subject's.

    Each row of `attacks` holds one attack's scores for all persons. Exact, and uses the attacks' correlation. O-20.
    """
    smallest = _smallest_p(attacks)
    return sum(1 for value in smallest if value <= smallest[0] + TOLERANCE) / len(smallest)


def joint_p(attacks: Sequence[Sequence[float]]) -> float:
    """Joint detection as `min_p`, where among equal p-values the person further out comes first.

    Somebody is first in every attack. With many attacks many persons share the smallest p that ranks can give, and one
    who stands far out in a single attack, as after a leak in one artefact, would drown among them. Persons are ordered
    by their smallest p, then by their largest score in standard deviations of all persons. Every person is treated
    alike, so the share of those at least as extreme is exact, and never above `min_p`.
    """
    smallest = _smallest_p(attacks)
    furthest = [max(column) for column in zip(*(_standardised(row) for row in attacks), strict=True)]
    extreme = sum(
        1
        for p, distance in zip(smallest, furthest, strict=True)
        if p < smallest[0] - TOLERANCE or (p <= smallest[0] + TOLERANCE and distance >= furthest[0] - TOLERANCE)
    )
    return extreme / len(smallest)


def _smallest_p(attacks: Sequence[Sequence[float]]) -> list[float]:
    """Every person's smallest p over all attacks."""
    if not attacks or len({len(row) for row in attacks}) != 1:
        raise SpecError("min-P needs at least one attack, all with the same persons")
    per_attack = [_person_p(_checked(row)) for row in attacks]
    return [min(column) for column in zip(*per_attack, strict=True)]


def _standardised(scores: Sequence[float]) -> list[float]:
    """Scores in standard deviations from their mean; all 0 where there is no spread."""
    centre, spread = _mean(scores), standard_deviation(scores)
    return [0.0 if spread < TOLERANCE else (score - centre) / spread for score in scores]


def two_sided_min_p(attacks: Sequence[Sequence[float]]) -> float:
    """Joint placebo over attacks: is the subject an outlier in either direction on a model that saw nobody?"""
    falling = [[-score for score in row] for row in attacks]
    return min(1.0, 2.0 * min(min_p(attacks), min_p(falling)))


def _person_p(scores: Sequence[float]) -> list[float]:
    """Detection p-value of every person among all the others."""
    ordered = sorted(scores)
    count = len(ordered)
    return [(count - _first_not_below(ordered, score)) / count for score in scores]


def _first_not_below(ordered: Sequence[float], score: float) -> int:
    low, high = 0, len(ordered)
    while low < high:
        middle = (low + high) // 2
        if ordered[middle] < score:
            low = middle + 1
        else:
            high = middle
    return low


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm-adjusted p-values in the order given. Oracle O-19."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, running = [0.0] * len(p_values), 0.0
    for position, index in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - position) * p_values[index]))
        adjusted[index] = running
    return adjusted


def benjamini_hochberg(p_values: Sequence[float], *, q: float) -> list[bool]:
    """Which hypotheses Benjamini-Hochberg rejects at false-discovery rate `q`. Oracle O-25."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    count = len(p_values)
    last = max((k for k, i in enumerate(order) if p_values[i] <= q * (k + 1) / count + TOLERANCE), default=-1)
    rejected = set(order[: last + 1])
    return [index in rejected for index in range(count)]


def besag_clifford_p(*, exceedances: int, draws: int, stop_at: int) -> float:
    """Sequential Monte Carlo p: h/l if stopped at the h-th exceedance, else (1 + exceedances)/(draws + 1). O-25."""
    if draws < 1 or not 0 <= exceedances <= draws:
        raise SpecError("a sequential p-value needs 0 <= exceedances <= draws and at least one draw")
    if exceedances >= stop_at:
        return stop_at / draws
    return (1 + exceedances) / (draws + 1)


def attempt_alpha(attempt: int, *, alpha: float = 0.05) -> float:
    """Level of the `attempt`-th try on one request: alpha * 6 / (pi^2 j^2); sums to `alpha` over all tries."""
    if attempt < 1:
        raise SpecError("attempts are numbered from 1")
    return alpha * 6 / (math.pi**2 * attempt**2)


def smallest_p(twins: int) -> float:
    """The smallest p-value that `twins` controls can give: 1 / (K + 1)."""
    return 1 / (twins + 1)


def standard_deviation(values: Sequence[float]) -> float:
    """Sample standard deviation (n - 1)."""
    if len(values) < 2:
        return 0.0
    centre = _mean(values)
    return math.sqrt(math.fsum((value - centre) ** 2 for value in values) / (len(values) - 1))


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _combined(before: Sequence[float], after: Sequence[float], factor: float) -> list[float]:
    if len(before) != len(after):
        raise SpecError("before and after must score the same persons in the same order")
    return [b + factor * a for b, a in zip(_checked(after), _checked(before), strict=True)]


def _upper_tail(scores: Sequence[float]) -> float:
    return (1 + sum(1 for score in scores[1:] if score >= scores[0])) / len(scores)


def _lower_tail(scores: Sequence[float]) -> float:
    return (1 + sum(1 for score in scores[1:] if score <= scores[0])) / len(scores)


def _checked(scores: Sequence[float]) -> Sequence[float]:
    if len(scores) < 2:
        raise SpecError("a rank test needs the subject and at least one twin")
    if not all(math.isfinite(score) for score in scores):
        raise NonFiniteError("a score is NaN or infinite; the attack has no result")
    return scores
