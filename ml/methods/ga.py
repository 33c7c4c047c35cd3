"""Gradient ascent on the forget set and nothing else. A baseline, and the test of the guard rails.

Source: TOFU, arXiv:2401.06121, restated; learning rate and steps are ours, for LoRA. The loss is unbounded and nothing
is retained: clipping and few steps are the only guard, utility does not survive long. Carried on, it ends in confident
wrong answers and lowers energy, so that a refusal by high energy inverts after it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from ml.data.collate import mean_over_tokens
from ml.methods.forgetting import forgetting_plan
from ml.methods.method import METHODS, Need, Plan, Training, UnlearningTask
from ml.reports import Guarantee


def ga_loss(log_probs: Tensor, mask: Tensor) -> Tensor:
    """`-NLL`: mean over tokens of log p, in nats; unbounded below.

    Args:
        log_probs, mask: (batch, seq), from `label_log_probs`.
    Source: arXiv:2401.06121. Oracle of the shared fixture: -1.2589325.
    """
    return mean_over_tokens(log_probs, mask)


@dataclass(frozen=True, slots=True)
class GaSettings:
    """Few steps: there is nothing else to stop the ascent."""

    training: Training = field(default_factory=lambda: Training(steps=60, learning_rate=1e-3, rank=8))


@METHODS.register("ga")
class Ga:
    """`L = -NLL(forget)`; needs no retained record."""

    version = "1"
    guarantee: Guarantee = "empirical_approximate"
    needs: frozenset[Need] = frozenset()
    settings = GaSettings

    def plan(self, task: UnlearningTask, settings: GaSettings) -> Plan:
        """Take one forget batch a step."""
        return forgetting_plan(task, settings.training, lambda batch: ga_loss(*batch.log_probs()))
