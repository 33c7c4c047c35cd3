"""PDU: flatten the logits of what is forgotten under a limit on the retained loss, by a primal-dual method.

Source: arXiv:2506.05314, restated. The dual rate 1 and the slack 0.3 are the authors', the first dual value 50 the
lower end of what they recommend; they wait five epochs with the first dual step, the steps waited here, learning rate
and number of steps are ours, for LoRA. The forget loss is bounded below and raises energy.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ml.data.collate import mean_over_tokens
from ml.errors import SpecError
from ml.methods.forgetting import ForgetBatch, forgetting_plan
from ml.methods.method import METHODS, Need, Plan, Training, UnlearningTask, refuse_unless_above_zero
from ml.methods.retention import Retention
from ml.reports import Guarantee


def pdu_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """`mean_t (max_k z_tk - mean_k z_tk)^2`, mean over labelled tokens, in squared logits; 0 only for flat logits.

    Args:
        logits, mask: (batch, seq, vocabulary) and (batch, seq), from `shift`; padded rows would move the mean. The
            reference code masks with unshifted labels.
    Source: arXiv:2506.05314. Oracle of the shared fixture: 4.4453125.
    """
    scores = logits.float()
    return mean_over_tokens((scores.amax(dim=-1) - scores.mean(dim=-1)).square(), mask)


def dual_step(dual: float, retain_loss: float, *, limit: float, rate: float) -> float:
    """`max(0, dual + rate * (retain_loss - limit))`: the price of retained loss rises while it is above its limit."""
    return max(0.0, dual + rate * (retain_loss - limit))


@dataclass(frozen=True, slots=True)
class PduSettings:
    """`gamma` weighs forgetting; `first_dual` weighs the retained loss at first and then moves by `dual_rate`.

    slack: how far, in nats, the retained cross-entropy may rise above that of the model before deletion.
    dual_wait: steps with the first dual value.
    """

    training: Training = field(default_factory=lambda: Training(steps=120, learning_rate=1e-3, rank=8))
    gamma: float = 1.0
    first_dual: float = 50.0
    dual_rate: float = 1.0
    slack: float = 0.3
    dual_wait: int = 20

    def __post_init__(self) -> None:
        refuse_unless_above_zero(first_dual=self.first_dual, dual_rate=self.dual_rate)
        if self.slack < 0 or self.dual_wait < 0:
            raise SpecError("settings slack and dual_wait must not be below 0")


@METHODS.register("pdu")
class Pdu:
    """`L = gamma * PDU(forget) + dual * (NLL(retain) - limit)`, with one dual step after each step."""

    version = "1"
    guarantee: Guarantee = "empirical_approximate"
    needs = frozenset({Need.RETAIN})
    settings = PduSettings

    def plan(self, task: UnlearningTask, settings: PduSettings) -> Plan:
        """Measure the limit on the whole retain set under the model before; then one batch of each kind a step."""
        training = settings.training
        retention = Retention(task, rows=training.retain_rows, neighbour_rows=training.neighbour_rows)
        limit = retention.cross_entropy_before() + settings.slack
        dual = torch.tensor(settings.first_dual, dtype=torch.float64)

        def price(number: int, retain_loss: float) -> float:
            now = float(dual)
            if number >= settings.dual_wait:
                dual.fill_(dual_step(now, retain_loss, limit=limit, rate=settings.dual_rate))
            return now

        def loss(batch: ForgetBatch) -> Tensor:
            logits, _, mask = batch.distributions()
            return pdu_loss(logits, mask)

        plan = forgetting_plan(task, training, loss, gamma=settings.gamma, alpha=price)
        return replace(plan, state={"dual": dual})
