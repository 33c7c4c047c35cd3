"""The field's own metrics, on the worked examples of the verification specification."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ml.errors import EmptySetError, NonFiniteError, SpecError
from ml.metrics.forget_quality import distance_upper, forget_quality
from ml.metrics.membership import membership_auc, privleak, relative_difference, similar_membership
from ml.metrics.rouge import rouge
from ml.metrics.truth_ratio import closer_to_one, option_probability, share_of_right, true_better, truth_ratio
from ml.metrics.utility import model_utility

RIGHT = torch.tensor([0.5, 1.0], dtype=torch.float64)
WRONG = torch.tensor([[1.0, 2.0, 1.5], [0.9, 0.8, 1.3]], dtype=torch.float64)


@pytest.mark.parametrize("mode", ["native", "parity"])
def test_the_truth_ratio_averages_losses_and_not_probabilities(mode: str) -> None:
    # O-8
    ratios = truth_ratio(RIGHT, WRONG, mode=mode)
    assert ratios.tolist() == pytest.approx([0.36787944, 1.0], abs=1e-8)
    assert closer_to_one(ratios, mode=mode) == pytest.approx(0.68393972, abs=1e-8)
    assert true_better(ratios) == pytest.approx(0.31606028, abs=1e-8)
    assert float(share_of_right(RIGHT, WRONG, mode=mode).mean()) == pytest.approx(0.61552929, abs=1e-8)


def test_several_right_answers_count_as_one_of_their_mean_loss() -> None:
    two = truth_ratio(torch.tensor([[0.4, 0.6]]), WRONG[:1])
    assert float(two[0]) == pytest.approx(float(truth_ratio(RIGHT[:1], WRONG[:1])[0]))


def test_the_parity_floor_shows_only_where_a_probability_is_as_small() -> None:
    hopeless = torch.tensor([30.0]), torch.tensor([[25.0]])
    assert float(truth_ratio(*hopeless)[0]) == pytest.approx(math.exp(5))
    assert float(truth_ratio(*hopeless, mode="parity")[0]) < 1


def test_the_share_of_an_option_and_model_utility() -> None:
    # O-9
    share = option_probability(torch.tensor([0.6]), torch.tensor([[0.2, 0.1, 0.1]]))
    assert float(share[0]) == pytest.approx(0.6, abs=1e-7)
    assert model_utility((0.8, 0.5, 0.4, 0.9, 0.7, 0.6, 0.9, 0.8, 0.5)) == pytest.approx(0.62860310, abs=1e-8)
    assert model_utility((0.9, 0.0)) == 0


def test_membership_is_an_area_that_is_one_when_forget_texts_look_trained_on() -> None:
    # O-11
    area = membership_auc(torch.tensor([0.2, 0.5, 0.9]), torch.tensor([0.6, 1.0, 1.4, 0.9]))
    assert area == pytest.approx(0.875)
    assert privleak(area) == pytest.approx(-75.0)
    assert privleak(area, 0.55) == pytest.approx(-72.22222, abs=1e-5)
    assert similar_membership(area, 0.55) == pytest.approx(0.40909091, abs=1e-8)
    assert relative_difference(0.875, 0.5) == pytest.approx(75.0)


@given(st.floats(0, 1), st.floats(0.01, 0.99))
def test_membership_summaries_are_best_at_the_reference(area: float, reference: float) -> None:
    assert privleak(reference, reference) == 0
    assert similar_membership(reference, reference) == 1
    assert 0 <= similar_membership(area, reference) <= 1
    assert (privleak(area, reference) < 0) == (area > reference)


def test_forget_quality_is_a_two_sample_test_with_its_distance() -> None:
    # O-24
    ours = torch.arange(1, 9, dtype=torch.float64) / 10
    quality = forget_quality(ours, ours + 0.45)
    assert quality.distance == pytest.approx(0.625)
    assert quality.p_value == pytest.approx(0.08702409, abs=1e-8)
    assert (quality.items, quality.reference_items) == (8, 8)


def test_a_bound_of_the_distance_lies_above_it_and_draws_whole_persons() -> None:
    generator = torch.Generator().manual_seed(0)
    ours, theirs = torch.rand(200, generator=generator), torch.rand(200, generator=generator) + 0.3
    persons = [index // 20 for index in range(200)]
    upper = distance_upper(ours, theirs, persons, seed=1, resamples=200)
    assert forget_quality(ours, theirs).distance < upper < 1
    assert upper == distance_upper(ours, theirs, persons, seed=1, resamples=200)
    with pytest.raises(EmptySetError, match="at least 5"):
        distance_upper(ours[:80], theirs[:80], persons[:80], seed=1)


def test_rouge_counts_words_in_order_with_and_without_stems() -> None:
    # O-13
    born = rouge("She was born near Taipei", "The author was born in Taipei in 1991")
    assert born.recall == pytest.approx(0.375)
    assert born.f1 == pytest.approx(0.46153846, abs=1e-8)
    assert born.word_recall == pytest.approx(0.375)
    assert rouge("he runs home quickly", "running quickly home").f1 == pytest.approx(0.57142857, abs=1e-8)
    plain = rouge("he runs home quickly", "running quickly home", stemming=False)
    assert plain.f1 == pytest.approx(0.28571429, abs=1e-8)


def test_nothing_and_not_a_number_are_refused() -> None:
    with pytest.raises(EmptySetError):
        truth_ratio(torch.zeros(0), torch.zeros(0, 5))
    with pytest.raises(EmptySetError):
        option_probability(torch.tensor([0.5]), torch.zeros(1, 0))
    with pytest.raises(EmptySetError):
        model_utility([])
    with pytest.raises(EmptySetError):
        forget_quality(torch.zeros(0), torch.ones(3))
    with pytest.raises(NonFiniteError):
        truth_ratio(torch.tensor([math.nan]), WRONG[:1])
    with pytest.raises(NonFiniteError):
        forget_quality(torch.tensor([math.inf]), torch.ones(3))
    with pytest.raises(NonFiniteError):
        model_utility([0.5, math.nan])
    with pytest.raises(SpecError):
        model_utility([0.5, -0.1])
    with pytest.raises(SpecError):
        privleak(0.5, 1.0)
    with pytest.raises(SpecError):
        similar_membership(1.2, 0.5)
