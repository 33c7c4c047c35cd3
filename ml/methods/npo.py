"""Negative preference optimisation: lower the answer's likelihood relative to the model before, saturating. A baseline.

Source: arXiv:2404.05868, restated; learning rate and steps are ours, for LoRA. The sum, not the mean, of an answer's
log-probabilities enters: with a mean beta would change by the number of tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from ml.methods.forgetting import ForgetBatch, RetainTerm, forgetting_plan, reference_sums
from ml.methods.losses import npo_loss
from ml.methods.method import METHODS, Need, Plan, Training, UnlearningTask, refuse_unless_above_zero
from ml.reports import Guarantee


@dataclass(frozen=True, slots=True)
class NpoSettings:
    """`beta` is the inverse temperature; `gamma` weighs forgetting, `alpha` the retained loss."""

    training: Training = field(default_factory=lambda: Training(steps=120, learning_rate=1e-3, rank=8))
    beta: float = 0.1
    gamma: float = 1.0
    alpha: float = 1.0
    retain_term: RetainTerm = "cross_entropy"

    def __post_init__(self) -> None:
        refuse_unless_above_zero(beta=self.beta)


@METHODS.register("npo")
class Npo:
    """`L = gamma * NPO(forget) + alpha * retained`."""

    version = "1"
    guarantee: Guarantee = "empirical_approximate"
    needs = frozenset({Need.RETAIN})
    settings = NpoSettings

    def plan(self, task: UnlearningTask, settings: NpoSettings) -> Plan:
        """Score the forget set once under the model before; then one forget and one retained batch a step."""
        rows = task.encode(task.forget)
        before = reference_sums(task, rows)

        def loss(batch: ForgetBatch) -> Tensor:
            return npo_loss(*batch.log_probs(), before[batch.chosen], beta=settings.beta)

        return forgetting_plan(
            task,
            settings.training,
            loss,
            rows=rows,
            gamma=settings.gamma,
            alpha=settings.alpha,
            retain_term=settings.retain_term,
        )
