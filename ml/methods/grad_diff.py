"""Gradient difference: ascend on the forget set, descend on the retain set. A baseline.

Source: TOFU, arXiv:2401.06121, restated; learning rate and steps are ours, for LoRA. The ascent is unbounded (clipping
and few steps are the guard) and lowers energy: a refusal by high energy inverts after it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from ml.data.batches import EpochBatches
from ml.data.collate import collate, label_log_probs
from ml.loop import Backward
from ml.methods.losses import grad_diff_loss
from ml.methods.method import METHODS, Need, Plan, Training, UnlearningTask, watched
from ml.methods.retention import Retention
from ml.models.forward import answer_logits
from ml.reports import Guarantee


@dataclass(frozen=True, slots=True)
class GradDiffSettings:
    """`gamma` weighs the ascent, `alpha` the retained cross-entropy."""

    training: Training = field(default_factory=lambda: Training(steps=60, learning_rate=1e-3, rank=8))
    gamma: float = 1.0
    alpha: float = 1.0


@METHODS.register("grad_diff")
class GradDiff:
    """`L = -gamma * NLL(forget) + alpha * NLL(retain)`, both means over labelled tokens."""

    version = "1"
    guarantee: Guarantee = "empirical_approximate"
    needs = frozenset({Need.RETAIN})
    settings = GradDiffSettings

    def plan(self, task: UnlearningTask, settings: GradDiffSettings) -> Plan:
        """Take one forget batch and one retained batch a step."""
        training = settings.training
        rows = task.encode(task.forget)
        turn = EpochBatches([len(row.ids) for row in rows], rows=training.forget_rows, seed=task.seed)
        retention = Retention(task, rows=training.retain_rows, neighbour_rows=training.neighbour_rows)

        def step(number: int, backward: Backward) -> dict[str, Tensor]:
            batch = collate([rows[i] for i in turn.at(number)], pad_id=task.pad_id).to(task.device)
            log_probs, mask = label_log_probs(*answer_logits(task.model, batch))
            retain = retention.cross_entropy(number)
            loss = grad_diff_loss(log_probs, mask, retain, gamma=settings.gamma, alpha=settings.alpha)
            backward(loss)
            return dict(watched(loss=loss, retain=retain))

        return Plan(step=step, loop=training.loop())
