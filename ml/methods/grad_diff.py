"""Gradient difference: ascend on the forget set, descend on the retain set. A baseline.

Source: TOFU, arXiv:2401.06121, restated; learning rate and steps are ours, for LoRA. The ascent is unbounded (clipping
and few steps are the guard) and may lower energy, after which a refusal by high energy inverts: measure it again.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ml.methods.forgetting import RetainTerm, forgetting_plan
from ml.methods.ga import ga_loss
from ml.methods.method import METHODS, Need, Plan, Training, UnlearningTask
from ml.reports import Guarantee


@dataclass(frozen=True, slots=True)
class GradDiffSettings:
    """`gamma` weighs the ascent, `alpha` the retained loss."""

    training: Training = field(default_factory=lambda: Training(steps=60, learning_rate=1e-3, rank=8))
    gamma: float = 1.0
    alpha: float = 1.0
    retain_term: RetainTerm = "cross_entropy"


@METHODS.register("grad_diff")
class GradDiff:
    """`L = -gamma * NLL(forget) + alpha * retained`, both means over labelled tokens."""

    version = "1"
    guarantee: Guarantee = "empirical_approximate"
    needs = frozenset({Need.RETAIN})
    settings = GradDiffSettings

    def plan(self, task: UnlearningTask, settings: GradDiffSettings) -> Plan:
        """Take one forget batch and one retained batch a step."""
        return forgetting_plan(
            task,
            settings.training,
            lambda batch: ga_loss(*batch.log_probs()),
            gamma=settings.gamma,
            alpha=settings.alpha,
            retain_term=settings.retain_term,
        )
