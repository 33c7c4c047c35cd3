"""Exact rank tests: every oracle of the verification specification, and what they do in repeated use."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml.errors import NonFiniteError, SpecError
from ml.rank_tests import (
    attempt_alpha,
    benjamini_hochberg,
    besag_clifford_p,
    detection_p,
    holm,
    joint_p,
    low_p,
    min_p,
    over_forgetting_p,
    residual_p,
    residual_ratio,
    residual_upper,
    smallest_p,
    standard_deviation,
    strength,
    two_sided_min_p,
    two_sided_p,
)

BEFORE = (5.0, 0.2, -0.1, 0.4, -0.5)
AFTER = (0.3, 0.1, -0.2, 0.5, -0.4)
SCORES = st.lists(st.floats(-50, 50), min_size=2, max_size=40)


# --- oracles ------------------------------------------------------------------------------------------------------


def test_the_residual_bound_ranks_the_subject_by_what_is_left_of_the_influence() -> None:
    # O-18: W = T+ - 0.2 T- = (-.70, .06, -.18, .42, -.30); the subject is the lowest of five.
    assert residual_p(BEFORE, AFTER, 0.2) == pytest.approx(0.2)


def test_the_over_forgetting_bound_ranks_the_subject_by_how_far_it_fell() -> None:
    # O-18: W' = T+ + 0.2 T- = (1.30, .14, -.22, .58, -.50); the subject is the highest of five.
    assert over_forgetting_p(BEFORE, AFTER, 0.2) == pytest.approx(0.2)


def test_detection_counts_the_twins_that_look_at_least_as_familiar() -> None:
    # O-18: only one twin (0.5) reaches the subject's 0.3.
    assert detection_p(AFTER) == pytest.approx(0.4)
    assert low_p(AFTER) == pytest.approx(4 / 5)


def test_holm_steps_down_and_never_lets_a_later_p_value_fall() -> None:
    # O-19
    assert holm((0.004, 0.03, 0.02, 0.2)) == pytest.approx([0.016, 0.06, 0.06, 0.2])


def test_min_p_is_the_share_of_persons_at_least_as_extreme_in_their_best_attack() -> None:
    # O-20: five persons, three attacks; every person's smallest p is (.2, .2, .4, .6, .2).
    persons = ((3.0, 1.0, 2.0), (0.5, 1.2, 0.1), (0.7, 0.2, 0.4), (0.1, 0.9, 0.3), (0.6, 0.4, 2.5))
    assert min_p(list(zip(*persons, strict=True))) == pytest.approx(0.6)


def test_a_leak_in_one_attack_is_not_drowned_by_whoever_is_first_in_the_others() -> None:
    """Nine attacks have nine first persons; by ranks alone all of them are as extreme as somebody 14 deviations out."""
    rng = random.Random(1)
    rows = [[rng.gauss(0, 1) for _ in range(240)] for _ in range(9)]
    rows[4][0] = 14.0
    assert min_p(rows) > 0.05 / 12
    assert joint_p(rows) == pytest.approx(1 / 240)


def test_breaking_ties_leaves_the_joint_test_exact() -> None:
    """A stranger is as often among the n most extreme as any other person, whatever the shape of the scores."""
    rng = random.Random(2)
    shapes = (lambda: rng.gauss(0, 1), lambda: rng.expovariate(1), lambda: float(rng.random() < 0.1))
    found = [joint_p([[draw() for _ in range(20)] for draw in shapes]) for _ in range(4000)]
    for level in (0.05, 0.1, 0.3):
        assert sum(p <= level + 1e-9 for p in found) / len(found) <= level + 3 * (level * (1 - level) / 4000) ** 0.5
    assert sum(p <= 0.3 + 1e-9 for p in found) / len(found) > 0.25


@given(st.lists(st.lists(st.integers(-3, 3), min_size=6, max_size=6), min_size=1, max_size=5))
def test_breaking_ties_never_raises_a_p_value_nor_sees_a_constant(rows: list[list[int]]) -> None:
    scores = [[float(score) for score in row] for row in rows]
    assert 1 / 6 - 1e-12 <= joint_p(scores) <= min_p(scores)
    assert joint_p([[0.0] * 6 for _ in rows]) == 1.0
    assert joint_p([[2 * score + 1 for score in row] for row in scores]) == joint_p(scores)


def test_a_joint_placebo_looks_in_both_directions() -> None:
    rows = [[0.0, *range(1, 40)], [5.5, *range(1, 40)]]  # lowest of 40 in one attack, in the middle in the other
    assert two_sided_min_p(rows) == two_sided_min_p([[-score for score in row] for row in rows])
    assert two_sided_min_p([[20.5, *range(1, 40)]]) == 1.0
    assert two_sided_min_p([rows[0]]) == pytest.approx(2 / 40)


def test_benjamini_hochberg_rejects_up_to_the_last_p_value_under_its_line() -> None:
    # O-25: thresholds .0125 .025 .0375 .05
    assert benjamini_hochberg((0.004, 0.03, 0.02, 0.2), q=0.05) == [True, True, True, False]


def test_a_sequential_p_value_stops_at_the_tenth_exceedance_or_at_the_last_draw() -> None:
    # O-25
    assert besag_clifford_p(exceedances=10, draws=40, stop_at=10) == pytest.approx(0.25)
    assert besag_clifford_p(exceedances=1, draws=199, stop_at=10) == pytest.approx(0.01)


def test_levels_of_all_attempts_together_spend_no_more_than_alpha() -> None:
    assert attempt_alpha(1) == pytest.approx(0.030396, abs=1e-6)
    assert attempt_alpha(2) == pytest.approx(0.007599, abs=1e-6)
    assert sum(attempt_alpha(j) for j in range(1, 2000)) < 0.05


def test_strength_is_the_distance_in_standard_deviations_of_the_twins() -> None:
    # twins (.2, -.1, .4, -.5): mean 0, sd sqrt(.46 / 3)
    assert strength(BEFORE) == pytest.approx(5 / math.sqrt(0.46 / 3))
    assert standard_deviation((1.0,)) == 0.0


def test_the_residual_ratio_compares_the_distance_after_with_the_distance_before() -> None:
    # (0.3 - 0) / (5 - 0): both groups of twins have mean 0
    assert residual_ratio(BEFORE, AFTER) == pytest.approx(0.06)


# --- edges --------------------------------------------------------------------------------------------------------


def test_a_constant_score_proves_nothing_in_any_direction() -> None:
    flat = [1.0] * 40
    assert detection_p(flat) == low_p(flat) == residual_p(flat, flat, 0.2) == over_forgetting_p(flat, flat, 0.3) == 1.0
    assert residual_ratio(flat, flat) is None
    assert strength(flat) is None


def test_no_upper_bound_exists_when_nothing_can_be_rejected() -> None:
    assert residual_upper(BEFORE, AFTER) is None  # five persons cannot reach 0.05


def test_the_upper_bound_is_the_smallest_fraction_rejected_with_all_above_it() -> None:
    before = [10.0] + [k / 100 for k in range(-20, 20)]
    after = [1.0] + [k / 100 for k in range(-20, 20)]
    upper = residual_upper(before, after)
    assert upper is not None
    assert residual_p(before, after, upper) <= 0.05 < residual_p(before, after, upper - 0.01)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_no_number_is_an_error(bad: float) -> None:
    with pytest.raises(NonFiniteError):
        detection_p((1.0, bad))
    with pytest.raises(NonFiniteError):
        residual_p((1.0, 2.0), (bad, 1.0), 0.2)
    with pytest.raises(NonFiniteError):
        min_p([(1.0, 2.0), (bad, 0.0)])


def test_a_test_without_twins_or_with_other_persons_is_refused() -> None:
    with pytest.raises(SpecError):
        detection_p((1.0,))
    with pytest.raises(SpecError):
        residual_p((1.0, 2.0, 3.0), (1.0, 2.0), 0.2)
    with pytest.raises(SpecError):
        min_p([])
    with pytest.raises(SpecError):
        min_p([(1.0, 2.0), (1.0, 2.0, 3.0)])
    with pytest.raises(SpecError):
        besag_clifford_p(exceedances=3, draws=2, stop_at=10)
    with pytest.raises(SpecError):
        attempt_alpha(0)


@given(SCORES)
def test_p_values_stay_within_what_the_number_of_twins_allows(scores: list[float]) -> None:
    floor = smallest_p(len(scores) - 1)
    for p in (detection_p(scores), low_p(scores), two_sided_p(scores), min_p([scores, scores])):
        assert floor <= p <= 1.0


@given(SCORES, st.integers(-3, 3))
def test_ranks_do_not_change_when_every_score_is_shifted_and_scaled(scores: list[float], power: int) -> None:
    # Powers of two and small integers keep the arithmetic exact, so that ties stay ties.
    whole = [float(round(score)) for score in scores]
    moved = [score * 2.0**power + 8.0 for score in whole]
    assert detection_p(moved) == detection_p(whole)
    assert min_p([moved]) == detection_p(whole)


@given(st.lists(st.floats(0.001, 1), min_size=1, max_size=15))
def test_holm_rejects_no_more_than_the_unadjusted_and_no_less_than_bonferroni(p_values: list[float]) -> None:
    for raw, adjusted in zip(p_values, holm(p_values), strict=True):
        assert raw <= adjusted <= min(1.0, len(p_values) * raw) + 1e-12


@given(st.lists(st.floats(-5, 5), min_size=6, max_size=30), st.floats(0.05, 0.6))
def test_raising_the_subject_after_deletion_never_makes_it_look_more_forgotten(twins: list[float], rise: float) -> None:
    before, lower = [6.0, *twins], [0.0, *twins]
    assert residual_p(before, [rise, *twins], 0.2) >= residual_p(before, lower, 0.2)
    assert over_forgetting_p(before, [rise, *twins], 0.3) <= over_forgetting_p(before, lower, 0.3)


# --- what the tests do in repeated use ----------------------------------------------------------------------------


Noise = Callable[[np.random.Generator, tuple[int, int]], np.ndarray]


def _gaussian(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    return rng.normal(size=shape)


def _student_t3(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    return rng.standard_t(3, size=shape)


def _people(
    rng: np.random.Generator, people: int, *, twins: int, before: float, after: float, noise: Noise = _gaussian
) -> list[tuple[list[float], list[float]]]:
    """Subjects `before` and `after` above their twins; scores at the two moments share half of their variance."""
    common = noise(rng, (people, twins + 1))
    moments = [(common + noise(rng, (people, twins + 1))) / math.sqrt(2) for _ in range(2)]
    for scores, gap in zip(moments, (before, after), strict=True):
        scores[:, 0] += gap
    return list(zip(moments[0].tolist(), moments[1].tolist(), strict=True))


@pytest.mark.parametrize("twins", [19, 39, 199])
@pytest.mark.parametrize("noise", [_gaussian, _student_t3])
def test_the_residual_test_keeps_its_level_at_the_boundary(twins: int, noise: Noise) -> None:
    people = _people(np.random.default_rng(twins), 5000, twins=twins, before=12.0, after=2.4, noise=noise)
    rejected = sum(residual_p(before, after, 0.2) <= 0.05 for before, after in people)
    assert 0.04 <= rejected / 5000 <= 0.06


def test_an_attack_of_strength_13_passes_a_true_deletion_as_often_as_planned() -> None:
    people = _people(np.random.default_rng(13), 4000, twins=239, before=13.0, after=0.0)
    passed = sum(residual_p(b, a, 0.2) <= 0.05 and over_forgetting_p(b, a, 0.3) <= 0.05 for b, a in people)
    assert 0.80 <= passed / 4000 <= 0.86


def test_half_of_the_influence_left_is_never_bounded_to_a_fifth() -> None:
    # Section 9.6: PASS when half remains at rho = 0.2: 0.0000.
    people = _people(np.random.default_rng(50), 2000, twins=239, before=13.0, after=6.5)
    assert sum(residual_p(before, after, 0.2) <= 0.05 for before, after in people) == 0
