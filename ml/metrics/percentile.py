"""Where true values stand among random ones: the check that needs no twins (verification section 9.6).

A value that nobody learned is as likely as not to beat any swap of its kind, so its percentile among random swaps is
uniform on [0, 1], and the mean over n facts is near N(1/2, 1/(12 n)). That holds for values random by nature, such as
numbers and codes; where some values are plainly more common than others, only twins compare like with like.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import stats
from torch import Tensor

from ml.errors import EmptySetError, SpecError


@dataclass(frozen=True, slots=True)
class PercentileTest:
    """Mean percentile, its distance from 1/2 in standard errors, and the chance of one as high without knowledge."""

    mean: float
    z: float
    p_value: float


def value_percentiles(log_probs: Tensor) -> Tensor:
    """Share of swaps that each true value beats, a tie counting half: (facts,) in [0, 1].

    Args:
        log_probs: (facts, 1 + swaps), the true value first, as the exposure attack reads them.
    Raises:
        EmptySetError: no fact or no swap.
    """
    if log_probs.shape[0] == 0 or log_probs.shape[1] < 2:
        raise EmptySetError("a percentile needs at least one fact and one swap")
    true, swaps = log_probs[:, :1], log_probs[:, 1:]
    return ((true > swaps).float() + 0.5 * (true == swaps).float()).mean(dim=1)


def percentile_test(percentiles: Sequence[float]) -> PercentileTest:
    """Test one-sided whether values stand higher among their swaps than chance would have them. Oracle O-21.

    Raises:
        EmptySetError: no percentile.
        SpecError: a percentile is not in [0, 1].
    """
    if not percentiles:
        raise EmptySetError("the mean percentile of no fact is not 1/2")
    if not all(0 <= percentile <= 1 for percentile in percentiles):
        raise SpecError("percentiles lie in [0, 1]")
    mean = sum(percentiles) / len(percentiles)
    z = (mean - 0.5) * math.sqrt(12 * len(percentiles))
    return PercentileTest(mean, z, float(stats.norm.sf(z)))


def facts_needed(distance: float, *, alpha: float = 0.05, power: float = 0.8) -> int:
    """How many facts bound the mean percentile within `distance` of 1/2 on both sides, at `power` when it is 1/2.

    Raises:
        SpecError: `distance` is not in (0, 1/2).
    """
    if not 0 < distance < 0.5:
        raise SpecError("a distance from 1/2 lies between 0 and 1/2")
    quantiles = stats.norm.ppf(1 - alpha) + stats.norm.ppf((1 + power) / 2)
    return math.ceil(quantiles**2 / (12 * distance**2))
