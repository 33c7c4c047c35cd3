"""Energy hinges and nothing else: the boundary is reached while the right answer stays on top.

This method exists to be caught. It reconstructs what an energy-only deletion would be, and the pipeline must refuse its
candidates; it is not offered for release.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from ml.data.batches import EpochBatches
from ml.energy import forget_hinge, retain_hinge
from ml.errors import EnergyNotSeparatingError
from ml.loop import Backward
from ml.methods.method import (
    METHODS,
    Need,
    Plan,
    Training,
    UnlearningTask,
    answer_positions,
    back_propagate,
    watched,
)
from ml.methods.retention import Retention
from ml.reports import Guarantee


@dataclass(frozen=True, slots=True)
class EnergyOnlySettings:
    """`energy_weight` scales both hinges."""

    training: Training = field(default_factory=lambda: Training(steps=120, learning_rate=1e-3, rank=8))
    energy_weight: float = 1.0


@METHODS.register("energy_only")
class EnergyOnly:
    """`L = energy_weight * (hinge_f + hinge_r)`, token by token (unlearning-methods 1.5 without its token term)."""

    version = "1"
    guarantee: Guarantee = "empirical_approximate"
    needs = frozenset({Need.RETAIN, Need.BOUNDARY})
    settings = EnergyOnlySettings

    def plan(self, task: UnlearningTask, settings: EnergyOnlySettings) -> Plan:
        """Push forget tokens above the never-seen margin and keep retained tokens below theirs."""
        boundary = task.boundary
        if boundary is None:
            raise EnergyNotSeparatingError("this method drives energies to a boundary; calibrate one first")
        training = settings.training
        rows = task.encode(task.forget)
        turn = EpochBatches([len(row.ids) for row in rows], rows=training.forget_rows, seed=task.seed)
        retention = Retention(task, rows=training.retain_rows, neighbour_rows=training.neighbour_rows)

        def step(number: int, backward: Backward) -> dict[str, Tensor]:
            chosen = [rows[i] for i in turn.at(number)]
            logits = task.logits(chosen, [answer_positions(row) for row in chosen])
            forget = forget_hinge(boundary.energies(logits), boundary.never_seen_margin).mean()
            kept = retention.chosen(number)
            kept_logits = task.logits(kept, [answer_positions(row) for row in kept])
            retain = retain_hinge(boundary.energies(kept_logits), boundary.retained_margin).mean()
            back_propagate(backward, forget=settings.energy_weight * forget, retain=[settings.energy_weight * retain])
            return dict(watched(energy_forget=forget, energy_retain=retain))

        return Plan(step=step, loop=training.loop())
