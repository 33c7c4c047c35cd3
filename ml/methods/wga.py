"""Weighted gradient ascent: tokens that are already forgotten stop contributing.

Source: arXiv:2502.19301, restated; learning rate and steps are ours, for LoRA. The loss is unbounded while tokens are
still known: clipping and few steps are the guard. Pressure against right tokens alone can lower energy, so that a
refusal by high energy inverts: energies must be measured again before they decide one.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from ml.data.collate import mean_over_tokens
from ml.methods.forgetting import RetainTerm, forgetting_plan
from ml.methods.method import METHODS, Need, Plan, Training, UnlearningTask, refuse_unless_above_zero
from ml.reports import Guarantee


def wga_loss(log_probs: Tensor, mask: Tensor, *, beta: float) -> Tensor:
    """`-mean_t p_t^beta * l_t` with l = -log p, mean over tokens, in nats.

    The weight p^beta takes no part in the gradient: with it, the pull on a token would change sign at p = exp(-1/beta).

    Args:
        log_probs, mask: (batch, seq), from `label_log_probs`.
    Source: arXiv:2502.19301. Oracle of the shared fixture: beta 1 -> -0.2450657.
    """
    weights = (beta * log_probs.detach()).exp()
    return mean_over_tokens(weights * log_probs, mask)


@dataclass(frozen=True, slots=True)
class WgaSettings:
    """`beta` says how soon a token counts as forgotten; `gamma` weighs forgetting, `alpha` the retained loss."""

    training: Training = field(default_factory=lambda: Training(steps=120, learning_rate=1e-3, rank=8))
    beta: float = 1.0
    gamma: float = 1.0
    alpha: float = 1.0
    retain_term: RetainTerm = "cross_entropy"

    def __post_init__(self) -> None:
        refuse_unless_above_zero(beta=self.beta)


@METHODS.register("wga")
class Wga:
    """`L = gamma * WGA(forget) + alpha * retained`."""

    version = "1"
    guarantee: Guarantee = "empirical_approximate"
    needs = frozenset({Need.RETAIN})
    settings = WgaSettings

    def plan(self, task: UnlearningTask, settings: WgaSettings) -> Plan:
        """Take one forget batch and one retained batch a step."""
        return forgetting_plan(
            task,
            settings.training,
            lambda batch: wga_loss(*batch.log_probs(), beta=settings.beta),
            gamma=settings.gamma,
            alpha=settings.alpha,
            retain_term=settings.retain_term,
        )
