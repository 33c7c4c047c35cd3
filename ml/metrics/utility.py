"""Does the candidate keep what it must keep? Non-inferiority, paired or against strangers (verification section 10)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from scipy.stats import hmean
from scipy.stats import t as student
from torch import Tensor

from ml.errors import EmptySetError, NonFiniteError, SpecError
from ml.metrics.intervals import clustered_bca
from ml.reports import UtilityResult
from ml.specs import UtilityRule

_FEWEST_STRANGERS: Final = 10


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


def not_below_strangers(rule: UtilityRule, subject: Tensor, strangers: Tensor) -> UtilityResult:
    """Bound how far one person's mean score lies below that of people never seen, larger being better.

    The person is one draw among persons: without any effect their mean would lie around the strangers' by as much as
    strangers differ from each other. Items say nothing about that: one fact that draws a short answer moves many of
    them at once, for strangers too. The bounds are those of the next draw from a normal population (t prediction).

    Args:
        subject: (items,), scores of the person's items.
        strangers: (persons, items), scores of the same items about each stranger.
    Returns:
        One-sided 95 % bounds; "missing" with a reason where there are too few items or strangers to bound anything.
    """
    count, items = strangers.shape
    if items < rule.minimum_items:
        return UtilityResult(rule.id, rule.score, "missing", "too_few_items", items, count)
    if count < _FEWEST_STRANGERS:
        return UtilityResult(rule.id, rule.score, "missing", "too_few_persons", items, count)
    means = strangers.double().mean(dim=1)
    change = float(subject.double().mean() - means.mean())
    reach = float(student.ppf(0.95, count - 1)) * float(means.std()) * math.sqrt(1 + 1 / count)
    return UtilityResult(
        id=rule.id,
        score=rule.score,
        status="measured",
        items=items,
        persons=count,
        mean_before=float(means.mean()),
        mean_after=float(subject.double().mean()),
        mean_change=change,
        lower=change - reach,
        upper=change + reach,
    )


def model_utility(scores: Sequence[float]) -> float:
    """TOFU's model utility: harmonic mean of nine aggregates, 0 as soon as one of them is 0. Oracle O-9.

    Its retain part is training data and one small score drags the mean: for tables, never for a gate.

    Raises:
        EmptySetError: no score.
        NonFiniteError: a score is NaN or infinite.
        SpecError: a score below 0.
    """
    if not scores:
        raise EmptySetError("model utility is the harmonic mean of at least one score")
    if not all(math.isfinite(score) for score in scores):
        raise NonFiniteError("a utility score is NaN or infinite; it was not measured")
    if min(scores) < 0:
        raise SpecError("model utility is made of scores from 0")
    return float(hmean(scores))
