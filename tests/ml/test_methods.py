"""Deletion methods: their losses against hand-worked numbers, and what they refuse."""

from __future__ import annotations

import math

import pytest
import torch

from ml.data.collate import chosen_log_probs, label_log_probs
from ml.errors import UnknownMemberError
from ml.finetune import cross_entropy_of
from ml.methods import METHODS
from ml.methods.losses import divergence, grad_diff_loss, npo_loss
from tests.ml.fixture_z import FORGET, FORGET_LABELS, REFERENCE, RETAIN, RETAIN_LABELS, as_batch

CLOSE = {"abs": 1e-6}


def forget_log_probs() -> tuple[torch.Tensor, torch.Tensor]:
    return label_log_probs(*as_batch(FORGET, FORGET_LABELS))


def reference_sum() -> torch.Tensor:
    log_probs, _ = label_log_probs(*as_batch(REFERENCE, FORGET_LABELS))
    return -log_probs.sum(dim=-1)


def test_gradient_difference_of_the_fixture() -> None:
    # -1.2589325 + 0.3165090
    kept = cross_entropy_of(RETAIN, RETAIN_LABELS)
    loss = grad_diff_loss(*forget_log_probs(), kept, gamma=1.0, alpha=1.0)
    assert float(loss) == pytest.approx(-0.9424235, **CLOSE)


@pytest.mark.parametrize(("beta", "expected"), [(0.1, 12.6235154), (1.0, 0.4904837)])
def test_npo_of_the_fixture_uses_the_sum_of_an_answer(beta: float, expected: float) -> None:
    # S = 2.5178649, S_ref = 1.2374801
    assert float(reference_sum()) == pytest.approx(1.2374801, **CLOSE)
    assert float(npo_loss(*forget_log_probs(), reference_sum(), beta=beta)) == pytest.approx(expected, abs=2e-6)


def test_npo_at_the_reference_has_the_gradient_of_ascent_on_the_sum() -> None:
    logits, labels = as_batch(FORGET, FORGET_LABELS)
    logits.requires_grad_(True)
    log_probs, mask = label_log_probs(logits, labels)
    sums = -log_probs.sum(dim=-1)
    loss = npo_loss(log_probs, mask, sums.detach(), beta=0.1)
    assert float(loss) == pytest.approx(13.8629436, abs=1e-5)
    assert float(loss) == pytest.approx(2 / 0.1 * math.log(2), abs=1e-5)
    (of_npo,) = torch.autograd.grad(loss, logits, retain_graph=True)
    (of_sum,) = torch.autograd.grad(-sums.mean(), logits)
    assert torch.allclose(of_npo, of_sum, atol=1e-6)


def test_divergence_of_the_fixture_is_measured_from_the_model_before() -> None:
    assert float(divergence(REFERENCE, FORGET).mean()) == pytest.approx(0.6094556, **CLOSE)
    assert float(divergence(FORGET, FORGET).abs().max()) == pytest.approx(0.0, abs=1e-7)


def test_chosen_log_probabilities_of_the_fixture() -> None:
    assert chosen_log_probs(FORGET, FORGET_LABELS).tolist() == pytest.approx([-0.3423496, -2.1755154], **CLOSE)


def test_an_unknown_method_lists_the_known_ones() -> None:
    with pytest.raises(UnknownMemberError, match=", ".join(METHODS)):
        METHODS["amnesia"]
