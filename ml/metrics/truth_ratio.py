"""L8 and L9: does the model prefer a right answer to wrong ones? (verification section 3, oracles O-8, O-9)

Losses are mean negative log-likelihoods per token, in nats. The mean over several answers is taken over their losses,
which makes it a geometric mean of probabilities; the TOFU paper (arXiv:2401.06121) writes an arithmetic one and its
public code does not compute it.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from ml.attacks.fused import Mode
from ml.errors import EmptySetError, NonFiniteError

# What the reference code adds to a divisor; it tells only where a probability is as small as this.
_PARITY_FLOOR: Final = 1e-10


def truth_ratio(right: Tensor, wrong: Tensor, *, mode: Mode = "native") -> Tensor:
    """Probability of the wrong answers over that of the right one: (items,), above 1 where wrong is likelier.

    Args:
        right: (items,) or (items, answers), losses of right answers (of a paraphrase, in TOFU).
        wrong: (items, answers), losses of the wrong ones.
    Raises:
        EmptySetError: no item, or an item without a wrong answer.
        NonFiniteError: a loss is NaN or infinite.
    """
    right, wrong = _mean_losses(right), _mean_losses(wrong)
    if mode == "parity":
        return torch.exp(-wrong) / (torch.exp(-right) + _PARITY_FLOOR)
    return torch.exp(right - wrong)


def closer_to_one(ratios: Tensor, *, mode: Mode = "native") -> float:
    """Forget score: mean of min(TR, 1/TR), in [0, 1]; 1 means right and wrong answers are equally likely."""
    floor = _PARITY_FLOOR if mode == "parity" else 0.0
    return float(torch.minimum(ratios, 1 / (ratios + floor)).mean())


def true_better(ratios: Tensor) -> float:
    """Retain score: mean of max(0, 1 - TR), in [0, 1]; 1 means only the right answer is likely."""
    return float((1 - ratios).clamp_min(0).mean())


def share_of_right(right: Tensor, wrong: Tensor, *, mode: Mode = "native") -> Tensor:
    """c / (c + w): (items,) in [0, 1], from losses as in `truth_ratio`; 1 means only the right answer is likely."""
    right, wrong = _mean_losses(right), _mean_losses(wrong)
    if mode == "parity":
        c, w = torch.exp(-right), torch.exp(-wrong)
        return c / (c + w + _PARITY_FLOOR)
    return torch.sigmoid(wrong - right)


def option_probability(right: Tensor, wrong: Tensor, *, mode: Mode = "native") -> Tensor:
    """L9: p / (p + sum of the options' p): (items,) in [0, 1] from probabilities (items,) and (items, options)."""
    if not wrong.numel():
        raise EmptySetError("a right answer is compared with at least one wrong option")
    floor = _PARITY_FLOOR if mode == "parity" else 0.0
    return right.double() / (right.double() + wrong.double().sum(dim=1) + floor)


def _mean_losses(losses: Tensor) -> Tensor:
    values = losses.double()
    if not values.numel():
        raise EmptySetError("a truth ratio needs at least one right and one wrong answer to an item")
    if not bool(torch.isfinite(values).all()):
        raise NonFiniteError("the loss of an answer is NaN or infinite")
    return values if values.dim() == 1 else values.mean(dim=1)
