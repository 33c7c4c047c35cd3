"""UNDIAL: distil the model before deletion, with the logit of each right token lowered.

Source: arXiv:2402.10052, restated; beta 10 is the authors', learning rate and steps are ours, for LoRA. Nothing is
retained unless `alpha` is set. The loss is bounded below and raises energy. The reference passes are run again at each
step: a whole distribution a token is too much to keep.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ml.data.collate import mean_over_tokens
from ml.methods.forgetting import ForgetBatch, RetainTerm, forgetting_plan, run_before
from ml.methods.losses import soft_cross_entropy
from ml.methods.method import METHODS, Need, Plan, Training, UnlearningTask, refuse_unless_above_zero
from ml.reports import Guarantee


def undial_loss(logits: Tensor, labels: Tensor, mask: Tensor, reference_logits: Tensor, *, beta: float) -> Tensor:
    """`mean_t CE(softmax(z_ref - beta * onehot(y_t)), softmax z_t)`, mean over labelled tokens, in nats.

    Prompt and padding are masked before the mean; the reference code averages over them too.

    Args:
        logits, labels, mask: (batch, seq, vocabulary), (batch, seq), (batch, seq), from `shift`.
        reference_logits: (batch, seq, vocabulary) of the model before deletion, without a graph.
    Source: arXiv:2402.10052. Oracle of the shared fixture: beta 3 -> 2.1542814, beta 10 -> 2.1899983.
    """
    lowered = torch.full_like(labels, -beta, dtype=torch.float32).unsqueeze(-1)
    targets = torch.softmax(reference_logits.float().scatter_add(-1, labels.unsqueeze(-1), lowered), dim=-1)
    return mean_over_tokens(soft_cross_entropy(targets, logits), mask)


@dataclass(frozen=True, slots=True)
class UndialSettings:
    """`beta` is taken from each right token's logit; `gamma` weighs forgetting, `alpha` the retained loss (0: none)."""

    training: Training = field(default_factory=lambda: Training(steps=120, learning_rate=1e-3, rank=8))
    beta: float = 10.0
    gamma: float = 1.0
    alpha: float = 0.0
    retain_term: RetainTerm = "cross_entropy"

    def __post_init__(self) -> None:
        refuse_unless_above_zero(beta=self.beta)


@METHODS.register("undial")
class Undial:
    """`L = gamma * UNDIAL(forget) + alpha * retained`; with `alpha` 0 it needs no retained record."""

    version = "1"
    guarantee: Guarantee = "empirical_approximate"
    needs: frozenset[Need] = frozenset()
    settings = UndialSettings

    def plan(self, task: UnlearningTask, settings: UndialSettings) -> Plan:
        """Run both models on one forget batch a step."""

        def loss(batch: ForgetBatch) -> Tensor:
            reference, _, _ = run_before(task, batch).distributions()
            return undial_loss(*batch.distributions(), reference, beta=settings.beta)

        return forgetting_plan(
            task,
            settings.training,
            loss,
            gamma=settings.gamma,
            alpha=settings.alpha,
            retain_term=settings.retain_term,
        )
