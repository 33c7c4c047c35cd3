"""RMU: steer the states of one block, on what is forgotten, towards one fixed vector, and hold them on what is kept.

Source: WMDP, arXiv:2403.03218, restated; block 7 of a model of 32, its own and the two blocks' before output matrices,
the length 6.5 and the retained weight 1200 are that paper's (open-unlearning ships 2 and 1): set `block`,
`training.blocks` and `alpha` for another model; where states are small, 1200 holds everything in place. Learning rate
and steps are ours, for LoRA. States are taken where each labelled token is decided, one position before it. Both losses
are bounded below; what energies do is not known beforehand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ml.data.collate import Batch, EncodedText, collate, mean_over_tokens, shift
from ml.errors import SpecError
from ml.loop import Backward
from ml.methods.forgetting import forget_turn
from ml.methods.method import (
    METHODS,
    Need,
    Plan,
    Training,
    UnlearningTask,
    back_propagate,
    refuse_below_zero,
    refuse_unless_above_zero,
    watched,
)
from ml.methods.retention import Retention
from ml.models.adapters import reference_model
from ml.models.layers import states_after
from ml.reports import Guarantee


def state_distance(states: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """`mean_t mean_d (h_td - target_td)^2`, mean over labelled tokens; 0 where the states are the target.

    Args:
        states: (batch, seq, hidden), aligned with the labels they decide (`shift`).
        target: (hidden,) or as `states`.
        mask: (batch, seq), bool.
    Source: arXiv:2403.03218. Oracle: target 6 * [1, 2, 2] / 3, states [1, 0, 0] and [0, 1, 0] -> 11 and 9.6666667,
    mean 10.3333333.
    """
    return mean_over_tokens((states.float() - target.float()).square().mean(dim=-1), mask)


def control_vector(hidden: int, *, length: float, seed: int) -> Tensor:
    """A vector of `length` whose direction was drawn from [0, 1)^hidden: (hidden,), float32, the same for a seed.

    It belongs to a run: later runs towards another one would undo what this one did.
    """
    drawn = torch.rand(hidden, generator=torch.Generator().manual_seed(seed))
    return length * drawn / drawn.norm()


@dataclass(frozen=True, slots=True)
class RmuSettings:
    """States after `block` (from 0) are steered to a vector of `length`; `alpha` weighs the retained states.

    Blocks above `block` are not run, so none of `training.blocks` may lie above it.
    """

    training: Training = field(
        default_factory=lambda: Training(
            steps=120, learning_rate=1e-3, rank=8, blocks=(5, 6, 7), part="feed_forward_output"
        )
    )
    block: int = 7
    length: float = 6.5
    gamma: float = 1.0
    alpha: float = 1200.0

    def __post_init__(self) -> None:
        refuse_unless_above_zero(length=self.length, gamma=self.gamma)
        refuse_below_zero(alpha=self.alpha)
        if self.training.blocks is None or any(number > self.block for number in self.training.blocks):
            raise SpecError(f"setting training.blocks must name blocks up to {self.block}; those above are not run")


@METHODS.register("rmu")
class Rmu:
    """`L = gamma * distance(forget, vector) + alpha * distance(retain, before)`."""

    version = "1"
    guarantee: Guarantee = "empirical_approximate"
    needs = frozenset({Need.RETAIN})
    settings = RmuSettings

    def plan(self, task: UnlearningTask, settings: RmuSettings) -> Plan:
        """Draw the vector by the seed; then one forget batch and, under both models, one retained batch a step."""
        training, block = settings.training, settings.block
        rows = task.encode(task.forget)
        turn = forget_turn(rows, training, seed=task.seed)
        retention = Retention(task, rows=training.retain_rows, neighbour_rows=training.neighbour_rows)
        vector = control_vector(task.model.config.hidden_size, length=settings.length, seed=task.seed).to(task.device)

        def step(number: int, backward: Backward) -> dict[str, Tensor]:
            states, mask = _deciding(task.model, _batch(task, [rows[i] for i in turn.at(number)]), block)
            forget = state_distance(states, vector, mask)
            kept = _batch(task, retention.chosen(number))
            with reference_model(task.model) as model:
                before, _ = _deciding(model, kept, block)
            states, mask = _deciding(task.model, kept, block)
            retain = state_distance(states, before, mask)
            back_propagate(backward, forget=settings.gamma * forget, retain=[settings.alpha * retain])
            return dict(watched(forget=forget, retain=retain))

        return Plan(step=step, loop=training.loop())


def _batch(task: UnlearningTask, rows: Sequence[EncodedText]) -> Batch:
    return collate(rows, pad_id=task.pad_id).to(task.device)


def _deciding(model: Any, batch: Batch, block: int) -> tuple[Tensor, Tensor]:
    """States after `block` at the positions that decide a label, (batch, seq, hidden), and the mask of labels."""
    states, _, mask = shift(states_after(model, batch.input_ids, block), batch.labels)
    return states, mask
