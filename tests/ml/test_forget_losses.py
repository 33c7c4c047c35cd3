"""Forget losses: hand-worked numbers, gradients with frozen weights, and indifference to what bears no label."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ml.data.collate import IGNORED, Batch, label_log_probs, label_mask, shift
from ml.errors import EmptySequenceError
from ml.methods.ceu import ceu_loss
from ml.methods.fact_spans import fact_span_loss, still_said
from ml.methods.flat import FDivergence, flat_loss, mean_probabilities
from ml.methods.forgetting import ForgetBatch
from ml.methods.ga import ga_loss
from ml.methods.idk_dpo import idk_dpo_loss
from ml.methods.layered_grad_diff import retain_multiplier
from ml.methods.losses import divergence, soft_cross_entropy
from ml.methods.pdu import dual_step, pdu_loss
from ml.methods.rmu import control_vector, state_distance
from ml.methods.satimp import satimp_loss
from ml.methods.simnpo import simnpo_loss
from ml.methods.ugradsl import smoothed_ascent_loss
from ml.methods.undial import undial_loss
from ml.methods.wga import wga_loss
from tests.ml.fixture_z import FORGET, FORGET_LABELS, REFERENCE, as_batch

CLOSE = {"abs": 1e-6}
# p of the labels, -log p of the labels
P = (0.7100999, 0.1135496)
L = (0.3423496, 2.1755154)

WILD = torch.tensor([[-7.0, 40.0, 3.0, -25.0]])


def with_prompt_and_padding(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The same two labels behind a prompt of three tokens and before two of padding."""
    ignored = torch.tensor([IGNORED])
    row = torch.cat([ignored, ignored, ignored, labels, ignored, ignored]).unsqueeze(0)
    return torch.cat([WILD, -WILD, logits, WILD, WILD, -WILD]).unsqueeze(0), row


def undial(logits: Tensor, labels: Tensor, *, beta: float) -> Tensor:
    lay_out = as_batch if logits.shape[1] == 3 else with_prompt_and_padding
    reference, _ = lay_out(REFERENCE, FORGET_LABELS)
    return undial_loss(*shift(logits, labels), reference[:, :-1].expand(len(logits), -1, -1), beta=beta)


def pdu(logits: Tensor, labels: Tensor) -> Tensor:
    aligned, _, mask = shift(logits, labels)
    return pdu_loss(aligned, mask)


# Each from logits (batch, seq, rows) and labels (batch, seq) of a whole row, as a model and `collate` hand them over.
LOSSES: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], float]] = {
    # -(0.3423496 + 2.1755154) / 2
    "ga": (lambda z, y: ga_loss(*label_log_probs(z, y)), -1.2589325),
    # -(2 / 4.5) log sigmoid(4.5 * 1.2589325)
    "simnpo": (lambda z, y: simnpo_loss(*label_log_probs(z, y), beta=4.5, delta=0.0), 0.0015371),
    "simnpo of the authors": (lambda z, y: simnpo_loss(*label_log_probs(z, y), beta=2.5, delta=0.0), 0.0336554),
    "simnpo with a margin": (lambda z, y: simnpo_loss(*label_log_probs(z, y), beta=4.5, delta=1.0), 0.1206432),
    # -(0.7100999 * 0.3423496 + 0.1135496 * 2.1755154) / 2
    "wga": (lambda z, y: wga_loss(*label_log_probs(z, y), beta=1.0), -0.2450657),
    # weights 0.0523414 and 1.673335e-5
    "satimp": (lambda z, y: satimp_loss(*label_log_probs(z, y), beta1=5.0, beta2=1.0), -0.0089777),
    "satimp of the authors": (lambda z, y: satimp_loss(*label_log_probs(z, y), beta1=5.0, beta2=0.1), -0.0273265),
    # (2.1910265 + 0.3487729) / 2
    "ceu": (lambda z, y: ceu_loss(*shift(z, y), ignore_first=0), 1.2698997),
    "ceu without the first token": (lambda z, y: ceu_loss(*shift(z, y), ignore_first=1), 0.3487729),
    "undial": (lambda z, y: undial(z, y, beta=10.0), 2.1899983),
    "undial at 3": (lambda z, y: undial(z, y, beta=3.0), 2.1542814),
    # (2 - 0.375)^2 = 2.640625, (3 - 0.5)^2 = 6.25
    "pdu": (pdu, 4.4453125),
    # (0.7100999 + 0.1135496) / 2
    "flat's probability": (lambda z, y: mean_probabilities(*label_log_probs(z, y)).mean(), 0.4118248),
    # 0.3076504 for token 0, -1.9755154 for token 1
    "ugradsl": (lambda z, y: smoothed_ascent_loss(*shift(z, y), smoothing=-0.4), -0.8339325),
    "ugradsl without smoothing": (lambda z, y: smoothed_ascent_loss(*shift(z, y), smoothing=0.0), -1.2589325),
}
BY_SEQUENCE = {name for name in LOSSES if name.startswith(("simnpo", "flat"))}


def gradient(loss: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Gradient by the logits that predict the two labels: (2, 4)."""
    logits, labels = as_batch(FORGET, FORGET_LABELS)
    logits.requires_grad_(True)
    (found,) = torch.autograd.grad(loss(logits, labels), logits)
    assert not found[0, 2].any()
    return found[0, :2]


def finite_differences(loss: Callable[[Tensor], Tensor]) -> Tensor:
    """Central differences of a loss of the two logit rows, in float64: (2, 4)."""
    base, size = FORGET.double(), 1e-4
    found = torch.zeros_like(base)
    for row, column in torch.cartesian_prod(torch.arange(2), torch.arange(4)).tolist():
        moved = torch.zeros_like(base)
        moved[row, column] = size
        found[row, column] = (loss(base + moved) - loss(base - moved)) / (2 * size)
    return found.float()


def label_losses(logits: Tensor) -> Tensor:
    return -torch.log_softmax(logits, dim=-1)[torch.arange(2), FORGET_LABELS]


@pytest.mark.parametrize("name", LOSSES)
def test_the_loss_of_the_fixture_is_the_hand_worked_number(name: str) -> None:
    loss, expected = LOSSES[name]
    assert float(loss(*as_batch(FORGET, FORGET_LABELS))) == pytest.approx(expected, **CLOSE)


@pytest.mark.parametrize("name", LOSSES)
def test_prompt_and_padding_change_nothing_however_wild_their_logits(name: str) -> None:
    loss, expected = LOSSES[name]
    logits, labels = with_prompt_and_padding(FORGET, FORGET_LABELS)
    logits.requires_grad_(True)
    found = loss(logits, labels)
    assert float(found.detach()) == pytest.approx(expected, **CLOSE)
    (slope,) = torch.autograd.grad(found, logits)
    assert slope[0, 2:4].any()
    assert not slope[0, :2].any()
    assert not slope[0, 4:].any()


@pytest.mark.parametrize("name", LOSSES)
def test_labels_that_are_one_place_off_give_another_number(name: str) -> None:
    loss, expected = LOSSES[name]
    logits, labels = with_prompt_and_padding(FORGET, FORGET_LABELS)
    assert float(loss(logits, labels.roll(1, dims=1))) != pytest.approx(expected, rel=1e-3)
    assert float(loss(logits, labels.roll(-1, dims=1))) != pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("name", LOSSES)
def test_a_batch_without_a_label_is_refused_and_is_not_zero(name: str) -> None:
    loss, _ = LOSSES[name]
    with pytest.raises(EmptySequenceError):
        loss(torch.zeros(1, 3, 4), torch.full((1, 3), IGNORED))


@pytest.mark.parametrize("name", sorted({*LOSSES} - BY_SEQUENCE - {"ceu without the first token"}))
def test_tokens_are_averaged_over_the_batch_and_not_row_by_row(name: str) -> None:
    # a second row with one label: token 0 of the fixture, so three tokens in two rows
    loss, _ = LOSSES[name]
    logits, labels = as_batch(FORGET, FORGET_LABELS)
    shorter = labels.clone()
    shorter[0, 2] = IGNORED
    both = loss(torch.cat([logits, logits]), torch.cat([labels, shorter]))
    expected = (2 * loss(logits, labels) + loss(logits, shorter)) / 3
    assert float(both) == pytest.approx(float(expected), **CLOSE)


def test_simnpo_averages_within_a_sequence_and_then_over_sequences() -> None:
    loss, expected = LOSSES["simnpo"]
    logits, labels = as_batch(FORGET, FORGET_LABELS)
    shorter = labels.clone()
    shorter[0, 2] = IGNORED
    both = loss(torch.cat([logits, logits]), torch.cat([labels, shorter]))
    # one token: -(2 / 4.5) log sigmoid(4.5 * 0.3423496)
    alone = 2 / 4.5 * math.log1p(math.exp(-4.5 * L[0]))
    assert float(both) == pytest.approx((expected + alone) / 2, **CLOSE)


# --- weights that take no part in the gradient --------------------------------------------------------------------


def test_the_gradient_of_weighted_ascent_is_the_one_of_the_paper() -> None:
    # -p_t * (softmax - onehot) / 2
    found = gradient(LOSSES["wga"][0])
    for token in (0, 1):
        onehot = torch.nn.functional.one_hot(FORGET_LABELS[token], 4)
        expected = -P[token] * (torch.softmax(FORGET[token], dim=-1) - onehot) / 2
        assert torch.allclose(found[token], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "weight"),
    [
        ("wga", lambda p: p),
        ("satimp", lambda p: p**5 * (1 - p)),
        ("satimp of the authors", lambda p: p**5 * (1 - p) ** 0.1),
    ],
)
def test_the_weights_of_ascent_stay_frozen_in_its_gradient(name: str, weight: Callable[[Tensor], Tensor]) -> None:
    frozen = weight(torch.exp(-label_losses(FORGET.double())))
    found = gradient(LOSSES[name][0])
    assert torch.allclose(found, finite_differences(lambda z: -(frozen * label_losses(z)).mean()), atol=1e-6)
    moving = finite_differences(lambda z: -(weight(torch.exp(-label_losses(z))) * label_losses(z)).mean())
    # without the detach the unlikely token would be pulled the other way
    label = FORGET_LABELS[1]
    assert float(found[1, label]) > 0 > float(moving[1, label])
    assert not torch.allclose(found, moving, atol=1e-6)


def test_a_forgotten_token_hardly_contributes_to_weighted_ascent() -> None:
    of_ascent, of_weighted = gradient(LOSSES["ga"][0]), gradient(LOSSES["wga"][0])
    assert torch.allclose(of_weighted[0] / of_ascent[0], torch.full((4,), P[0]), atol=1e-5)
    assert torch.allclose(of_weighted[1] / of_ascent[1], torch.full((4,), P[1]), atol=1e-5)


def test_a_certain_token_has_no_importance_and_no_infinite_gradient() -> None:
    logits = torch.tensor([[[60.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]], requires_grad=True)
    loss = LOSSES["satimp of the authors"][0](logits, torch.tensor([[IGNORED, 0]]))
    (slope,) = torch.autograd.grad(loss, logits)
    assert float(loss.detach()) == pytest.approx(0.0, abs=1e-6)
    assert bool(torch.isfinite(slope).all())


def test_the_shift_of_the_fixture_aligns_two_labels() -> None:
    logits, labels, mask = shift(*as_batch(FORGET, FORGET_LABELS))
    assert torch.equal(logits[0], FORGET)
    assert torch.equal(labels[0], FORGET_LABELS)
    assert mask.all()


# --- losses of the whole distribution -----------------------------------------------------------------------------


def padded_batch(logits: Tensor, labels: Tensor) -> ForgetBatch:
    """A model whose output layer has two rows more than its tokenizer has tokens."""
    rows, kept = logits.shape[:2]
    more = torch.cat([logits, torch.full((rows, kept, 1), 30.0), torch.full((rows, kept, 1), -30.0)], dim=-1)
    return ForgetBatch([0], Batch(labels, labels), more[:, :-1][label_mask(labels)], vocabulary=4)


def test_rows_that_stand_for_no_token_enter_no_distribution() -> None:
    batch = padded_batch(*as_batch(FORGET, FORGET_LABELS))
    logits, labels, mask = batch.distributions()
    assert float(ceu_loss(logits, labels, mask, ignore_first=0)) == pytest.approx(1.2698997, **CLOSE)
    assert float(pdu_loss(logits, mask)) == pytest.approx(4.4453125, **CLOSE)
    assert float(smoothed_ascent_loss(logits, labels, mask, smoothing=-0.4)) == pytest.approx(-0.8339325, **CLOSE)
    reference, _, _ = padded_batch(*as_batch(REFERENCE, FORGET_LABELS)).distributions()
    assert float(undial_loss(logits, labels, mask, reference, beta=10.0)) == pytest.approx(2.1899983, **CLOSE)


def test_the_target_of_ceu_is_frozen_and_its_gradient_is_the_gap_to_it() -> None:
    others = FORGET.double().scatter(-1, FORGET_LABELS.unsqueeze(-1), -torch.inf)
    target = torch.softmax(others, dim=-1)
    found = gradient(LOSSES["ceu"][0])
    assert torch.allclose(found, (torch.softmax(FORGET.double(), dim=-1) - target).float() / 2, atol=1e-6)

    def moving(z: Tensor) -> Tensor:
        own = torch.softmax(z.scatter(-1, FORGET_LABELS.unsqueeze(-1), -torch.inf), dim=-1)
        return -(own * torch.log_softmax(z, dim=-1)).sum(dim=-1).mean()

    frozen = finite_differences(lambda z: -(target * torch.log_softmax(z, dim=-1)).sum(dim=-1).mean())
    assert torch.allclose(found, frozen, atol=1e-6)
    # without the detach the other tokens would be pulled together as well
    assert not torch.allclose(found, finite_differences(moving), atol=1e-2)


def test_ceu_leaves_out_a_row_that_has_no_more_tokens_than_are_ignored() -> None:
    loss, expected = LOSSES["ceu without the first token"]
    logits, labels = as_batch(FORGET, FORGET_LABELS)
    shorter = labels.clone()
    shorter[0, 2] = IGNORED
    both = loss(torch.cat([logits, logits]), torch.cat([labels, shorter]))
    assert float(both) == pytest.approx(expected, **CLOSE)
    with pytest.raises(EmptySequenceError):
        loss(logits, shorter)


def test_undial_is_content_once_the_model_is_its_target() -> None:
    lowered = REFERENCE.clone()
    lowered[torch.arange(2), FORGET_LABELS] -= 10.0
    logits, labels = as_batch(lowered, FORGET_LABELS)
    logits.requires_grad_(True)
    (slope,) = torch.autograd.grad(undial(logits, labels, beta=10.0), logits)
    assert torch.allclose(slope, torch.zeros_like(slope), atol=1e-6)


def test_pdu_is_content_with_flat_logits_only_and_ignores_their_level() -> None:
    assert float(pdu(*as_batch(torch.full((2, 4), 7.0), FORGET_LABELS))) == 0.0
    assert float(pdu(*as_batch(FORGET + 5.0, FORGET_LABELS))) == pytest.approx(4.4453125, abs=1e-5)


def test_the_price_of_retained_loss_rises_above_its_limit_and_never_falls_below_zero() -> None:
    # 1 + (0.5 - 0.3); 0.1 + (0.1 - 0.3) < 0
    assert dual_step(1.0, 0.5, limit=0.3, rate=1.0) == pytest.approx(1.2)
    assert dual_step(0.1, 0.1, limit=0.3, rate=1.0) == 0.0
    assert dual_step(1.0, 0.5, limit=0.3, rate=5.0) == pytest.approx(2.0)


def test_soft_cross_entropy_to_a_single_token_is_its_negative_log_probability() -> None:
    onehot = torch.nn.functional.one_hot(FORGET_LABELS, 4).float()
    assert soft_cross_entropy(onehot, FORGET).tolist() == pytest.approx(L, **CLOSE)


# --- marked facts -------------------------------------------------------------------------------------------------

FIRST = torch.tensor([[True, False]])


def fact_span(first: Tensor, *, weight: float, gamma: float = 0.1) -> Tensor:
    log_probs, mask = label_log_probs(*as_batch(FORGET, FORGET_LABELS))
    drift = divergence(REFERENCE, FORGET).unsqueeze(0)
    return fact_span_loss(log_probs, first, mask & ~first, drift, gamma=gamma, divergence_weight=weight)


def test_only_the_marked_token_is_ascended_and_the_other_is_kept() -> None:
    # -0.3423496 + 0.1 * 2.1755154
    assert float(fact_span(FIRST, weight=0.0)) == pytest.approx(-0.1247980, **CLOSE)
    # the other way round: -2.1755154 + 0.1 * 0.3423496
    assert float(fact_span(~FIRST, weight=0.0)) == pytest.approx(-2.1412804, **CLOSE)


def test_the_divergence_of_a_marked_token_lowers_its_loss_and_that_of_others_does_not_count() -> None:
    own = float(divergence(REFERENCE, FORGET)[0])
    assert float(fact_span(FIRST, weight=0.1)) == pytest.approx(-0.1247980 - 0.1 * own, **CLOSE)


def test_a_mask_that_marks_nothing_is_refused() -> None:
    with pytest.raises(EmptySequenceError):
        fact_span(torch.zeros_like(FIRST), weight=0.0)
    with pytest.raises(EmptySequenceError):
        fact_span(torch.ones_like(FIRST), weight=0.0)


def test_a_text_has_had_enough_once_few_of_its_facts_tokens_would_be_said() -> None:
    # token 0 is the most likely one, token 1 is not: a share of one half
    logits, labels, mask = shift(*as_batch(FORGET, FORGET_LABELS))
    assert still_said(logits, labels, mask, stop_share=0.4).tolist() == [True]
    assert still_said(logits, labels, mask, stop_share=0.5).tolist() == [False]
    assert still_said(logits, labels, ~FIRST, stop_share=0.0).tolist() == [False]
    assert still_said(logits, labels, FIRST, stop_share=0.9).tolist() == [True]


# --- layers and states --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rise", "expected"), [(-3.0, 1.2), (0.0, 1.2), (0.1, 1.2), (0.5, 1.5), (1.0, 2.3), (5000.0, 2.3)]
)
def test_what_is_lost_of_the_retained_set_weighs_more_between_two_limits(rise: float, expected: float) -> None:
    # 0.3 * 6^0.5 + 0.8 = 1.53
    assert retain_multiplier(rise) == pytest.approx(expected)


def test_the_distance_of_states_is_a_mean_over_tokens_and_dimensions() -> None:
    # 6 * [1, 2, 2] / 3 = [2, 4, 4]: (1 + 16 + 16) / 3 = 11 and (4 + 9 + 16) / 3 = 9.6666667
    target, states = torch.tensor([2.0, 4.0, 4.0]), torch.tensor([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]])
    both, first = torch.tensor([[True, True]]), torch.tensor([[True, False]])
    assert float(state_distance(states, target, both)) == pytest.approx(10.3333333, **CLOSE)
    assert float(state_distance(states, target, first)) == pytest.approx(11.0, **CLOSE)
    assert float(state_distance(states, states, both)) == 0.0
    with pytest.raises(EmptySequenceError):
        state_distance(states, target, ~both)


def test_a_control_vector_is_fixed_by_its_seed_has_its_length_and_is_nowhere_negative() -> None:
    vector = control_vector(64, length=6.5, seed=3)
    assert float(vector.norm()) == pytest.approx(6.5, abs=1e-5)
    assert float(vector.min()) >= 0.0
    assert torch.equal(vector, control_vector(64, length=6.5, seed=3))
    assert not torch.equal(vector, control_vector(64, length=6.5, seed=4))


# --- template answers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("divergence", "expected"),
    [("kl", -0.1296800), ("total_variation", -0.0634936), ("pearson", -0.1100000), ("jensen_shannon", 0.0222943)],
)
def test_flat_of_two_probabilities_by_each_divergence(divergence: FDivergence, expected: float) -> None:
    # KL: -0.8 + exp(-0.4); Pearson: -0.8 + 0.09 + 0.6
    template, forget = torch.tensor([0.8], requires_grad=True), torch.tensor([0.6], requires_grad=True)
    loss = flat_loss(template, forget, divergence=divergence)
    assert float(loss.detach()) == pytest.approx(expected, **CLOSE)
    up, down = torch.autograd.grad(loss, [template, forget])
    assert float(up) < 0 < float(down)


def test_flat_is_taken_of_each_pair_and_then_averaged() -> None:
    template, forget = torch.tensor([0.8, 0.2]), torch.tensor([0.6, 0.1])
    # -0.8 + exp(-0.4) and -0.2 + exp(-0.9)
    expected = (-0.8 + math.exp(-0.4) - 0.2 + math.exp(-0.9)) / 2
    assert float(flat_loss(template, forget, divergence="kl")) == pytest.approx(expected, **CLOSE)


def test_preference_for_a_template_is_npo_where_the_template_has_not_moved() -> None:
    # G_f = -2.5178649 + 1.2374801
    forget = torch.tensor([-1.2803848])
    assert float(idk_dpo_loss(torch.zeros(1), forget, beta=0.1)) == pytest.approx(12.6235154, abs=2e-6)
    assert float(idk_dpo_loss(torch.zeros(1), forget, beta=1.0)) == pytest.approx(0.4904837, abs=2e-6)


def test_preference_for_a_template_falls_with_its_own_gain_and_rises_with_the_other() -> None:
    template, forget = torch.zeros(1, requires_grad=True), torch.zeros(1, requires_grad=True)
    start = idk_dpo_loss(template, forget, beta=0.1)
    # (2 / 0.1) ln 2, with a slope of one in each
    assert float(start.detach()) == pytest.approx(13.8629436, abs=2e-6)
    assert [float(slope) for slope in torch.autograd.grad(start, [template, forget])] == pytest.approx([-1.0, 1.0])
    # gap 3: 20 ln(1 + exp(-0.3))
    moved = idk_dpo_loss(torch.tensor([2.0]), torch.tensor([-1.0]), beta=0.1)
    assert float(moved) == pytest.approx(20 * math.log1p(math.exp(-0.3)), abs=2e-6)


def test_negative_smoothing_pushes_the_right_token_down_harder_and_pulls_the_others_up() -> None:
    plain, smoothed = gradient(LOSSES["ugradsl without smoothing"][0]), gradient(LOSSES["ugradsl"][0])
    for token, label in enumerate(FORGET_LABELS.tolist()):
        # ascent follows the negative gradient: (1 - s)(onehot - p) + s (1 / V - p), by 2 tokens
        p = torch.softmax(FORGET[token], dim=-1)
        onehot = torch.nn.functional.one_hot(FORGET_LABELS[token], 4)
        assert torch.allclose(smoothed[token], (1.4 * (onehot - p) - 0.4 * (0.25 - p)) / 2, atol=1e-6)
        assert smoothed[token, label] > plain[token, label] > 0
        others = [k for k in range(4) if k != label]
        assert all(smoothed[token, k] < plain[token, k] for k in others)
