"""Negative preference optimisation: lower the answer's likelihood relative to the model before, saturating. A baseline.

Source: arXiv:2404.05868, restated; learning rate and steps are ours, for LoRA. The sum, not the mean, of an answer's
log-probabilities enters: with a mean beta would change by the number of tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ml.data.batches import EpochBatches
from ml.data.collate import EncodedText, collate, label_log_probs
from ml.loop import Backward
from ml.methods.losses import chosen_log_probs, npo_loss
from ml.methods.method import METHODS, Need, Plan, Training, UnlearningTask, answer_positions, watched
from ml.methods.retention import Retention
from ml.models.forward import answer_logits
from ml.reports import Guarantee


@dataclass(frozen=True, slots=True)
class NpoSettings:
    """`beta` is the inverse temperature; `gamma` weighs forgetting, `alpha` the retained cross-entropy."""

    training: Training = field(default_factory=lambda: Training(steps=120, learning_rate=1e-3, rank=8))
    beta: float = 0.1
    gamma: float = 1.0
    alpha: float = 1.0


@METHODS.register("npo")
class Npo:
    """`L = gamma * NPO(forget) + alpha * NLL(retain)`."""

    version = "1"
    guarantee: Guarantee = "empirical_approximate"
    needs = frozenset({Need.RETAIN})
    settings = NpoSettings

    def plan(self, task: UnlearningTask, settings: NpoSettings) -> Plan:
        """Score the forget set once under the model before; then one forget and one retained batch a step."""
        training = settings.training
        rows = task.encode(task.forget)
        before = _reference_sums(task, rows)
        turn = EpochBatches([len(row.ids) for row in rows], rows=training.forget_rows, seed=task.seed)
        retention = Retention(task, rows=training.retain_rows, neighbour_rows=training.neighbour_rows)

        def step(number: int, backward: Backward) -> dict[str, Tensor]:
            chosen = turn.at(number)
            batch = collate([rows[i] for i in chosen], pad_id=task.pad_id).to(task.device)
            log_probs, mask = label_log_probs(*answer_logits(task.model, batch))
            forget = npo_loss(log_probs, mask, before[chosen], beta=settings.beta)
            retain = retention.cross_entropy(number)
            backward(settings.gamma * forget + settings.alpha * retain)
            return dict(watched(forget=forget, retain=retain))

        return Plan(step=step, loop=training.loop())


def _reference_sums(task: UnlearningTask, rows: list[EncodedText]) -> Tensor:
    """Summed answer NLL of each row under the model before deletion: (rows,)."""
    positions = [answer_positions(row) for row in rows]
    sums = [
        -chosen_log_probs(logits, torch.tensor([row.ids[p] for p in ps], device=logits.device)).sum()
        for logits, row, ps in zip(task.reference_passes(rows, positions), rows, positions, strict=True)
    ]
    return torch.stack(sums)
