"""Does the candidate keep what it must keep? Paired non-inferiority (verification section 10)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ml.errors import EmptySetError
from ml.metrics.intervals import clustered_bca
from ml.reports import UtilityResult
from ml.specs import UtilityRule


def non_inferiority(
    rule: UtilityRule, before: Tensor, after: Tensor, clusters: Sequence[int], *, seed: int
) -> UtilityResult:
    """Bound the mean paired change of one score, larger being better.

    Args:
        before, after: (items,), scores of the same items on the two models.
        clusters: the person of each item.
    Returns:
        One-sided 95 % bounds; "missing" with a reason where there are too few items or persons to bound anything.
    """
    persons = len(set(clusters))
    if len(before) < rule.minimum_items:
        return UtilityResult(rule.id, rule.score, "missing", "too_few_items", len(before), persons)
    try:
        bounds = clustered_bca((after.double() - before.double()).tolist(), clusters, seed=seed)
    except EmptySetError:
        return UtilityResult(rule.id, rule.score, "missing", "too_few_persons", len(before), persons)
    return UtilityResult(
        id=rule.id,
        score=rule.score,
        status="measured",
        items=len(before),
        persons=persons,
        mean_before=float(before.double().mean()),
        mean_after=float(after.double().mean()),
        mean_change=bounds.mean,
        lower=bounds.lower,
        upper=bounds.upper,
    )
