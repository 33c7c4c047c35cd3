"""The percentile among value swaps: worked numbers, and what chance alone gives."""

from __future__ import annotations

import random

import pytest
import torch

from ml.errors import EmptySetError, SpecError
from ml.metrics.percentile import facts_needed, percentile_test, value_percentiles


def test_oracle_of_the_percentile_shortcut() -> None:
    # O-21
    shown = percentile_test([0.9, 0.7, 0.4, 0.95, 0.6, 0.8, 0.3, 0.85])
    assert (shown.mean, shown.z, shown.p_value) == pytest.approx((0.6875, 1.83711731, 0.03309629), abs=1e-8)


@pytest.mark.parametrize(("distance", "facts"), [(0.05, 286), (0.10, 72), (0.15, 32), (0.20, 18)])
def test_facts_needed_to_bound_the_mean(distance: float, facts: int) -> None:
    assert facts_needed(distance) == facts


def test_a_value_beats_the_swaps_below_it_and_half_of_those_beside_it() -> None:
    log_probs = torch.tensor([[-1.0, -2.0, -3.0, -1.0, 0.0], [-9.0, -1.0, -1.0, -1.0, -1.0]])
    assert value_percentiles(log_probs).tolist() == [0.625, 0.0]


def test_strangers_are_flagged_as_often_as_the_level_says() -> None:
    rng = random.Random(3)
    flagged = sum(percentile_test([rng.random() for _ in range(12)]).p_value <= 0.05 for _ in range(4000))
    assert 0.04 < flagged / 4000 < 0.06


def test_the_number_of_facts_has_the_promised_power() -> None:
    rng = random.Random(4)
    inside = 0
    for _ in range(2000):
        values = [rng.random() for _ in range(72)]
        shown = percentile_test(values)
        reach = 1.6449 / (12 * 72) ** 0.5
        inside += abs(shown.mean - 0.5) + reach < 0.10
    assert inside / 2000 == pytest.approx(0.8, abs=0.04)


def test_nothing_has_no_percentile() -> None:
    with pytest.raises(EmptySetError):
        percentile_test([])
    with pytest.raises(EmptySetError):
        value_percentiles(torch.zeros(0, 5))
    with pytest.raises(EmptySetError):
        value_percentiles(torch.zeros(3, 1))
    with pytest.raises(SpecError):
        percentile_test([1.5])
    with pytest.raises(SpecError):
        facts_needed(0.5)
