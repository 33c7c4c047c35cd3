"""Intervals, AUROC, fluency, utility and the blind baseline."""

from __future__ import annotations

import math
import random
import zlib

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from ml.errors import EmptySetError, NonFiniteError, SpecError
from ml.metrics import blind
from ml.metrics.blind import blind_auroc
from ml.metrics.fluency import ngram_entropy, opening_log_probability, weighted_ngram_entropy
from ml.metrics.intervals import (
    clopper_pearson_lower,
    clopper_pearson_upper,
    clustered_bca,
    paired_t,
)
from ml.metrics.roc import auroc_interval, clustered_auroc, roc_points
from ml.metrics.utility import non_inferiority, not_below_strangers
from ml.specs import UtilityRule
from tests.ml.fixture_f import one_text

CHANGES = (0.01, -0.02, 0.0, 0.03, -0.01, -0.03, 0.02, 0.0, -0.01, 0.01)


@pytest.mark.parametrize(
    ("hits", "trials", "bound"),
    [(0, 59, 0.04950761), (1, 93, 0.04999398), (2, 100, 0.06161920), (0, 299, 0.00996915)],
)
def test_the_clopper_pearson_bound_is_exact(hits: int, trials: int, bound: float) -> None:
    # O-14
    assert clopper_pearson_upper(hits, trials) == pytest.approx(bound, abs=1e-8)
    assert clopper_pearson_lower(trials - hits, trials) == pytest.approx(1 - bound, abs=1e-8)


def test_nothing_is_bounded_by_no_trial() -> None:
    assert clopper_pearson_upper(3, 3) == 1.0
    for hits, trials in ((0, 0), (4, 3), (-1, 3)):
        with pytest.raises(SpecError):
            clopper_pearson_upper(hits, trials)


def test_the_paired_t_interval() -> None:
    # O-22
    result = paired_t(CHANGES, margin=0.03)
    assert result.mean == pytest.approx(0.0, abs=1e-12)
    assert result.sd == pytest.approx(0.01825742, abs=1e-8)
    assert result.statistic == pytest.approx(5.19615242, abs=1e-7)
    assert result.p_value == pytest.approx(2.8348e-4, abs=1e-8)
    assert result.lower == pytest.approx(-0.01058348, abs=1e-7)
    with pytest.raises(EmptySetError):
        paired_t([0.1, 0.1], margin=0.03)


def test_the_bootstrap_is_seeded_and_brackets_the_mean() -> None:
    rng = np.random.default_rng(1)
    changes, persons = rng.normal(-0.01, 0.05, 400), np.repeat(np.arange(40), 10)
    first = clustered_bca(changes, persons, seed=7)
    assert first == clustered_bca(changes, persons, seed=7)
    assert first != clustered_bca(changes, persons, seed=8)
    assert first.lower < first.mean < first.upper
    # Items are independent here, so the clustered bound is close to the plain t bound.
    assert first.lower == pytest.approx(paired_t(changes, margin=0.02).lower, abs=0.002)


def test_persons_who_move_together_widen_the_bound() -> None:
    rng = np.random.default_rng(2)
    shifts = np.repeat(rng.normal(0, 0.05, 20), 50)
    persons = np.repeat(np.arange(20), 50)
    by_person = clustered_bca(shifts, persons, seed=1)
    by_item = clustered_bca(shifts, np.arange(1000), seed=1)
    assert by_person.mean - by_person.lower > 4 * (by_item.mean - by_item.lower)


def test_unchanged_items_have_a_bound_of_zero_width() -> None:
    bounds = clustered_bca([0.0] * 50, [i % 10 for i in range(50)], seed=1)
    assert (bounds.mean, bounds.lower, bounds.upper) == (0.0, 0.0, 0.0)


def test_a_bound_over_persons_needs_persons_and_numbers() -> None:
    with pytest.raises(EmptySetError):
        clustered_bca([0.1, 0.2, 0.3, 0.4], [0, 1, 2, 3], seed=1)
    with pytest.raises(NonFiniteError):
        clustered_bca([0.1, float("nan")], [0, 1], seed=1)
    with pytest.raises(SpecError):
        clustered_bca([0.1, 0.2], [0], seed=1)


@pytest.mark.slow
def test_the_bootstrap_bound_covers_a_skewed_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(3)
    covered = 0
    for run in range(400):
        person = np.repeat(rng.exponential(1.0, 40), 5)
        changes = person + rng.normal(0, 0.5, 200)
        covered += clustered_bca(changes, np.repeat(np.arange(40), 5), seed=run, resamples=2000).lower <= 1.0
    assert 0.92 <= covered / 400 <= 0.98


def test_auroc_has_an_interval_that_shrinks_with_the_sample() -> None:
    generator = torch.Generator().manual_seed(1)
    high, low = torch.randn(30, generator=generator) + 1, torch.randn(200, generator=generator)
    few, many = auroc_interval(high[:10], low), auroc_interval(high, low)
    assert many.lower < many.mean < many.upper
    assert many.upper - many.lower < few.upper - few.lower
    # pairs (1,0) (1,2) (3,0) (3,2): three of four ordered
    assert auroc_interval(torch.tensor([1.0, 3.0]), torch.tensor([0.0, 2.0])).mean == pytest.approx(0.75)
    with pytest.raises(EmptySetError):
        auroc_interval(torch.tensor([1.0]), low)


def test_the_interval_of_an_auroc_covers_one_half_when_nothing_separates() -> None:
    generator = torch.Generator().manual_seed(2)
    covered = 0
    for _ in range(200):
        bounds = auroc_interval(torch.randn(28, generator=generator), torch.randn(600, generator=generator))
        covered += bounds.lower <= 0.5 <= bounds.upper
    assert covered >= 180


def test_drawing_persons_bounds_an_auroc() -> None:
    bounds = clustered_auroc(np.full((20, 20), 0.5), seed=1)
    assert (bounds.mean, bounds.lower, bounds.upper) == pytest.approx((0.5, 0.5, 0.5))


def test_ngram_entropies_of_a_short_text() -> None:
    # O-23
    words = ["the", "cat", "sat", "on", "the", "cat", "mat"]
    assert ngram_entropy(words, 2) == pytest.approx(2.25162917, abs=1e-7)
    assert ngram_entropy(words, 3) == pytest.approx(2.32192809, abs=1e-7)
    assert weighted_ngram_entropy(words) == pytest.approx(2.29849512, abs=1e-7)


def test_a_text_that_repeats_itself_or_says_nothing_has_no_entropy() -> None:
    assert weighted_ngram_entropy(["na"] * 20) == 0.0
    assert weighted_ngram_entropy([]) == 0.0
    assert weighted_ngram_entropy(["word"]) == 0.0


def test_the_opening_of_an_answer_is_judged_without_its_value() -> None:
    # The first two labels of fixture F have probabilities .7 and .2.
    read = opening_log_probability(one_text(), torch.tensor([2]))
    assert float(read[0]) == pytest.approx(math.log(0.7 * 0.2) / 2)
    assert float(opening_log_probability(one_text(), torch.tensor([0]))[0]) == pytest.approx(math.log(0.7))


RULE = UtilityRule("U1", "probability", 0.02, 100)


def test_utility_is_bounded_from_paired_items() -> None:
    before = torch.linspace(0.9, 1.0, 120)
    result = non_inferiority(RULE, before, before - 0.01, [i % 12 for i in range(120)], seed=1)
    assert result.status == "measured"
    assert result.mean_change == pytest.approx(-0.01, abs=1e-6)
    assert result.lower == pytest.approx(-0.01, abs=1e-6)
    assert (result.items, result.persons) == (120, 12)


def test_too_few_items_or_persons_leave_utility_missing_and_not_fine() -> None:
    few = non_inferiority(RULE, torch.ones(99), torch.ones(99), [i % 12 for i in range(99)], seed=1)
    assert (few.status, few.reason, few.lower) == ("missing", "too_few_items", None)
    alone = non_inferiority(RULE, torch.ones(120), torch.ones(120), [0] * 120, seed=1)
    assert (alone.status, alone.reason, alone.lower) == ("missing", "too_few_persons", None)


def strangers(count: int = 19, items: int = 120, *, seed: int = 1) -> torch.Tensor:
    """Scores around 1 of people who differ from each other, and of items that differ too."""
    generator = torch.Generator().manual_seed(seed)
    persons = 1 + 0.01 * torch.randn(count, 1, generator=generator)
    return persons + 0.1 * torch.randn(count, items, generator=generator)


def test_a_person_is_bounded_against_strangers_by_how_much_strangers_differ() -> None:
    others = strangers()
    result = not_below_strangers(RULE, others.mean(dim=0) - 0.01, others)
    spread = float(others.double().mean(dim=1).std())
    # t(.95, 18) = 1.7341
    assert result.mean_change == pytest.approx(-0.01, abs=1e-6)
    assert result.lower == pytest.approx(-0.01 - 1.7341 * spread * math.sqrt(1 + 1 / 19), abs=1e-5)
    assert result.upper == pytest.approx(-0.01 + 1.7341 * spread * math.sqrt(1 + 1 / 19), abs=1e-5)
    assert (result.items, result.persons) == (120, 19)


def test_a_stranger_held_against_strangers_falls_below_the_bound_about_as_often_as_stated() -> None:
    def fell(seed: int) -> bool:
        drawn = strangers(20, 100, seed=seed)
        result = not_below_strangers(RULE, drawn[0], drawn[1:])
        assert result.upper is not None
        return result.upper < 0

    assert 0.02 < sum(fell(seed) for seed in range(400)) / 400 < 0.08


def test_broken_answers_lie_below_every_stranger() -> None:
    others = strangers()
    result = not_below_strangers(RULE, 0.5 * others[0], others)
    assert result.upper is not None
    assert result.upper < -0.3


def test_too_few_strangers_leave_the_comparison_missing_and_not_fine() -> None:
    few = not_below_strangers(RULE, torch.ones(120), strangers(9))
    assert (few.status, few.reason, few.lower) == ("missing", "too_few_persons", None)
    short = not_below_strangers(RULE, torch.ones(99), strangers(19, 99))
    assert (short.status, short.reason) == ("missing", "too_few_items")


def _people(rng: random.Random, count: int, letters: str) -> list[list[str]]:
    names = ["".join(rng.choices(letters, k=7)) for _ in range(count)]
    return [[f"{name} has the number {rng.randrange(10**6)}." for _ in range(10)] for name in names]


def test_a_classifier_without_the_model_cannot_tell_sound_twins() -> None:
    rng = random.Random(4)
    real = _people(rng, 40, "abcdefghij")
    twins = [[copy] for copy in _people(rng, 40, "abcdefghij")]
    bounds = blind_auroc(real, twins, seed=1)
    assert 0.35 < bounds.mean < 0.6
    assert bounds.upper < 0.65


def test_a_classifier_without_the_model_tells_twins_whose_names_are_of_another_kind() -> None:
    rng = random.Random(4)
    real = _people(rng, 40, "abcdefghij")
    twins = [[copy] for copy in _people(rng, 40, "ghijklmnop")]
    assert blind_auroc(real, twins, seed=1).mean > 0.8


def test_the_blind_baseline_counts_every_run_of_one_to_three_letters_and_none_across_texts() -> None:
    texts = ["", "a", "ab", "Zoë über 12 — straße", "", "x"]
    wanted = np.zeros((len(texts), blind.BUCKETS))
    for row, text in enumerate(texts):
        letters = text.encode("utf-8")
        for size in blind.SIZES:
            for start in range(len(letters) - size + 1):
                wanted[row, zlib.crc32(letters[start : start + size]) % blind.BUCKETS] += 1
    assert np.array_equal(blind._features(texts), np.log1p(wanted))


def test_the_blind_baseline_needs_people() -> None:
    people = _people(random.Random(1), 7, "abc")
    with pytest.raises(EmptySetError):
        blind_auroc(people, [[texts] for texts in people], seed=1)


# --- curves -------------------------------------------------------------------------------------------------------


def test_a_curve_goes_up_first_where_everything_known_stands_above() -> None:
    points = roc_points(torch.arange(20.0, 32.0), torch.arange(0.0, 10.0), at_least=5)
    assert points == [(0.0, 0.0), (0.0, 1.0), (0.5, 1.0), (1.0, 1.0)]
    assert roc_points(torch.ones(9), torch.ones(9), at_least=5) == [(0.0, 0.0), (1.0, 1.0)]
    with pytest.raises(EmptySetError):
        roc_points(torch.ones(4), torch.ones(90), at_least=5)


_SCORES = st.lists(st.integers(-8, 8), min_size=5, max_size=120)


@given(_SCORES, _SCORES)
def test_every_point_of_a_curve_is_exact_and_tells_of_five_at_least(own: list[int], others: list[int]) -> None:
    points = roc_points(torch.tensor(own), torch.tensor(others), at_least=5)
    assert (points[0], points[-1]) == ((0.0, 0.0), (1.0, 1.0))
    cuts = {max(others) + 0.5, *others}
    exact = {(0.0, 0.0), (1.0, 1.0)} | {
        (sum(x >= cut for x in others) / len(others), sum(x >= cut for x in own) / len(own)) for cut in cuts
    }
    assert set(points) <= exact
    for (x0, y0), (x1, y1) in zip(points, points[1:], strict=False):
        for share, size in ((x1 - x0, len(others)), (y1 - y0, len(own))):
            assert share == 0 or round(share * size) >= 5


@given(st.lists(st.floats(-24, 24), min_size=5, max_size=40), st.integers(0, 39), st.floats(-1.5, 1.5))
def test_where_a_single_fact_stands_between_two_thresholds_changes_no_point(
    own: list[float], which: int, step: float
) -> None:
    others = torch.arange(-20.0, 20.0, 0.1, dtype=torch.float64)
    cuts = [float(others[len(others) - k * len(others) // 20]) for k in range(1, 20)]

    def cell(score: float) -> int:
        return sum(score >= cut for cut in cuts) + (score > float(others[-1]))

    place = which % len(own)
    other = [*own[:place], own[place] + step, *own[place + 1 :]]
    assume(cell(own[place]) == cell(other[place]))
    first, second = (torch.tensor(scores, dtype=torch.float64) for scores in (own, other))
    assert roc_points(first, others, at_least=5) == roc_points(second, others, at_least=5)
