"""Influence approximation: one step of plain descent on the whole of both sets, as if the forgotten texts were learned
with the opposite sign.

Source: arXiv:2507.23257, restated. Its gradient restriction belongs to the training of the model and is not done here;
there, image classifiers take one step of Adam, whose first step is hardly more than a sign. The weights themselves are
edited. Where the model knows both sets by heart, both gradients are small, and so is what one step does. It may
lower energy: measure it again before it decides a refusal.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ml.errors import EmptySetError
from ml.methods.method import METHODS, Need, Plan, Training, UnlearningTask
from ml.methods.sweeps import mean_gradients
from ml.models.adapters import base_parameters
from ml.reports import Guarantee


def influence_step(weights: Tensor, forget: Tensor, retain: Tensor, *, rate: float) -> Tensor:
    """`w - rate * (g_r - g_f)`, elementwise.

    Source: arXiv:2507.23257. Oracle: rate 0.1, weight 1, gradients 2 (forget) and 0.5 (retain) -> 1.15.
    """
    return weights - rate * (retain - forget)


@dataclass(frozen=True, slots=True)
class IauSettings:
    """Of `training`, only the learning rate has an effect."""

    training: Training = field(default_factory=lambda: Training(steps=1, learning_rate=0.5, rank=1))


@METHODS.register("iau")
class Iau:
    """One edit of the weights by `influence_step`, with gradients of mean losses over all texts."""

    version = "1"
    guarantee: Guarantee = "empirical_approximate"
    needs = frozenset({Need.RETAIN})
    settings = IauSettings

    def plan(self, task: UnlearningTask, settings: IauSettings) -> Plan:
        """Measure both gradients; the edit follows."""
        if not task.retain:
            raise EmptySetError("the retain set is empty; the step needs it to correct what the forgotten texts push")
        parameters = base_parameters(task.model)
        sets = task.encode(task.forget), task.encode((*task.retain, *task.neighbours))

        def edit() -> None:
            forget, retain = (
                mean_gradients(task.model, rows, parameters, pad_id=task.pad_id, device=task.device) for rows in sets
            )
            with torch.no_grad():
                for parameter, ascent, descent in zip(parameters, forget, retain, strict=True):
                    moved = influence_step(parameter.float(), ascent, descent, rate=settings.training.learning_rate)
                    parameter.copy_(moved)

        return Plan(step=None, loop=None, edit=edit)
