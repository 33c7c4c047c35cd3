"""How much a metric can be trusted: faithfulness over models, and robustness to relearning and rounding."""

from __future__ import annotations

import random

import pytest

from ml.errors import EmptySetError, NonFiniteError, SpecError
from ml.metrics.meta import (
    faithfulness,
    harmonic_mean,
    quantisation_robustness,
    quantisation_robustness_one_sided,
    relearning_robustness,
    relearning_robustness_one_sided,
    twin_position,
    twin_rank,
)

# --- robustness: oracle O-17 --------------------------------------------------------------------------------------


def test_the_oracle_of_the_specification() -> None:
    assert relearning_robustness_one_sided(0.50, 0.35) == pytest.approx(0.7, abs=1e-12)
    assert relearning_robustness(0.50, 0.35) == pytest.approx(0.82352941, abs=1e-8)  # 1 - .15 / .85
    assert quantisation_robustness(0.10, 0.25) == pytest.approx(0.57142857, abs=1e-8)  # 1 - .15 / .35
    assert quantisation_robustness_one_sided(0.10, 0.25) == pytest.approx(0.4, abs=1e-12)


def test_the_symmetric_forms_do_not_care_which_side_moved_further() -> None:
    assert relearning_robustness(0.35, 0.50) == relearning_robustness(0.50, 0.35)
    assert quantisation_robustness(0.25, 0.10) == quantisation_robustness(0.10, 0.25)


def test_the_one_sided_forms_blame_only_what_comes_back() -> None:
    assert relearning_robustness_one_sided(0.2, 0.5) == 1.0  # the unlearned model regained less
    assert relearning_robustness_one_sided(0.5, -0.1) == 0.0
    assert relearning_robustness_one_sided(-0.1, -0.2) == 0.0
    assert quantisation_robustness_one_sided(0.25, 0.10) == 1.0
    assert quantisation_robustness_one_sided(-0.1, 0.3) == 0.0
    assert quantisation_robustness_one_sided(-0.3, -0.1) == 0.0


def test_changes_in_opposite_directions_are_not_robust_at_all() -> None:
    assert relearning_robustness(0.4, -0.4) == 0.0
    assert quantisation_robustness(1.0, -2.0) == 0.0


def test_a_metric_that_never_moves_has_no_robustness_instead_of_a_perfect_one() -> None:
    with pytest.raises(EmptySetError):
        relearning_robustness(0.0, 0.0)
    with pytest.raises(EmptySetError):
        quantisation_robustness(0.0, 0.0)


def test_the_harmonic_mean_is_pulled_by_the_weaker_one() -> None:
    assert harmonic_mean(0.5, 1.0) == pytest.approx(2 / 3)
    assert harmonic_mean(0.0, 1.0) == 0.0


# --- a person among twins -----------------------------------------------------------------------------------------


def test_a_position_counts_in_standard_deviations_of_the_twins() -> None:
    assert twin_position([5.0, 1.0, 2.0, 3.0], resolution=1.0) == pytest.approx(3.0)  # mean 2, sd 1
    assert twin_position([-1.0, 1.0, 2.0, 3.0], resolution=1.0) == pytest.approx(-3.0)


def test_twins_who_all_score_alike_lend_one_step_of_the_score_as_their_spread() -> None:
    assert twin_position([0.5, 0.0, 0.0], resolution=0.1) == pytest.approx(5.0)
    assert twin_position([0.0, 0.0, 0.0], resolution=0.1) == 0.0
    with pytest.raises(SpecError):
        twin_position([0.5, 0.0], resolution=0.0)


def test_a_rank_is_the_share_of_twins_below_with_ties_in_the_middle() -> None:
    assert twin_rank([2.0, 1.0, 2.0, 3.0]) == pytest.approx(0.5)
    assert twin_rank([9.0, 1.0, 2.0]) == 1.0
    for alone in ([1.0], []):
        with pytest.raises(SpecError):
            twin_rank(alone)
        with pytest.raises(SpecError):
            twin_position(alone, resolution=1.0)


# --- faithfulness -------------------------------------------------------------------------------------------------


def _models(rng: random.Random, shift: float, *, models: int = 24, people: int = 2) -> list[list[float]]:
    return [[rng.gauss(shift, 1) for _ in range(people)] for _ in range(models)]


def test_faithfulness_is_the_share_of_pairs_in_the_right_order() -> None:
    knowing, ignorant = [[3.0], [2.0], [5.0], [4.0], [1.0]], [[0.0], [1.0], [0.5], [3.5], [0.0]]
    wins = sum((k > i) + (k == i) / 2 for (k,) in knowing for (i,) in ignorant)
    assert faithfulness(knowing, ignorant, seed=0).mean == pytest.approx(wins / 25)


def test_a_score_that_separates_perfectly_has_a_bound_of_one_and_a_constant_one_of_a_half() -> None:
    rng = random.Random(0)
    area = faithfulness(_models(rng, 40), _models(rng, 0), seed=0)
    assert (area.mean, area.lower) == (1.0, 1.0)
    flat = faithfulness([[0.0, 0.0]] * 5, [[0.0, 0.0]] * 5, seed=0)
    assert (flat.mean, flat.lower, flat.upper) == (0.5, 0.5, 0.5)


def test_a_score_that_falls_with_knowledge_is_not_faithful() -> None:
    rng = random.Random(0)
    assert faithfulness(_models(rng, -5), _models(rng, 0), seed=0).upper < 0.1


def test_people_of_one_model_are_not_counted_as_independent() -> None:
    rng = random.Random(3)
    shared = [rng.gauss(0, 1) for _ in range(24)]  # what a model does to everybody it is asked about

    def cells(shift: float, people: int) -> list[list[float]]:
        return [[shift + s] * people for s in shared]

    few, many = (faithfulness(cells(1, n), cells(0, n), seed=0) for n in (1, 8))
    assert many.lower == pytest.approx(few.lower, abs=1e-9)  # copies of a person add nothing


@pytest.mark.slow
def test_the_lower_bound_covers_what_it_claims() -> None:
    rng = random.Random("coverage")
    covered = 0
    for _ in range(200):
        effects = [rng.gauss(0, 0.7) for _ in range(24)]
        knowing = [[1 + e + rng.gauss(0, 1) for _ in range(2)] for e in effects]
        ignorant = [[e + rng.gauss(0, 1) for _ in range(2)] for e in effects]
        # Two scores of different models: difference N(1, 2 * (1 + .49)).
        covered += faithfulness(knowing, ignorant, seed=1).lower <= 0.7188
    assert covered >= 180


def test_what_was_not_measured_has_no_faithfulness() -> None:
    good = [[1.0, 2.0]] * 5
    with pytest.raises(EmptySetError):
        faithfulness(good[:4], good[:4], seed=0)
    with pytest.raises(EmptySetError):
        faithfulness([[]] * 5, good, seed=0)
    with pytest.raises(SpecError):
        faithfulness([*good[:4], [1.0]], good, seed=0)
    with pytest.raises(SpecError):
        faithfulness(good, good[:4], seed=0)
    with pytest.raises(NonFiniteError):
        faithfulness([*good[:4], [1.0, float("nan")]], good, seed=0)
