"""Selective synaptic dampening: shrink, once and without training, the weights that matter more to what is forgotten
than to everything else.

Source: arXiv:2308.07707, restated; the threshold 10 and the constant 1 are that paper's, for image classifiers. What
matters is the diagonal of the empirical Fisher information, text by text, over answer tokens alone. The weights
themselves are edited, tied embeddings included; a fresh adapter has nothing to dampen. Little is to be expected where
people share their weights, and energies must be measured again before they decide a refusal.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ml.errors import EmptySetError
from ml.methods.method import METHODS, Need, Plan, Training, UnlearningTask, refuse_unless_above_zero
from ml.methods.sweeps import mean_squared_gradients
from ml.models.adapters import base_parameters
from ml.reports import Guarantee


def dampened(weights: Tensor, general: Tensor, forget: Tensor, *, threshold: float, constant: float) -> Tensor:
    """`w * min(constant * I_D / I_f, 1)` where `I_f > threshold * I_D`, else `w`; elementwise.

    Args:
        general, forget: importances I_D and I_f, at least 0, shaped as `weights`.
    Source: arXiv:2308.07707. Oracle: threshold 10, constant 1, weights [1, 2, 3], general [1, 1, 1], forget
        [20, 5, 0.5] -> [0.05, 2, 3].
    """
    chosen = forget > threshold * general
    # Where nothing is chosen the quotient may be 0 / 0, and is not used.
    factor = torch.where(chosen, (constant * general / forget).clamp(max=1.0), 1.0)
    return weights * factor


@dataclass(frozen=True, slots=True)
class SsdSettings:
    """`threshold`: how many times as important a weight must be to what is forgotten; `constant` scales what is left.

    Nothing is trained: of `training`, no setting has an effect on the candidate.
    """

    training: Training = field(default_factory=lambda: Training(steps=1, learning_rate=1e-3, rank=1))
    threshold: float = 10.0
    constant: float = 1.0

    def __post_init__(self) -> None:
        refuse_unless_above_zero(threshold=self.threshold, constant=self.constant)


@METHODS.register("ssd")
class Ssd:
    """One edit of the weights by `dampened`; importances in general are those of all sets, the forgotten included."""

    version = "1"
    guarantee: Guarantee = "empirical_approximate"
    needs = frozenset({Need.RETAIN})
    settings = SsdSettings

    def plan(self, task: UnlearningTask, settings: SsdSettings) -> Plan:
        """Measure both importances; the edit follows."""
        if not task.retain:
            raise EmptySetError("the retain set is empty; without it every weight would matter to the forgotten alone")
        rows = task.encode(task.forget)
        others = task.encode((*task.retain, *task.neighbours))
        parameters = base_parameters(task.model)

        def edit() -> None:
            forget, general = (
                mean_squared_gradients(task.model, side, parameters, pad_id=task.pad_id, device=task.device)
                for side in (rows, [*rows, *others])
            )
            with torch.no_grad():
                for parameter, important, usual in zip(parameters, forget, general, strict=True):
                    changed = dampened(
                        parameter.float(), usual, important, threshold=settings.threshold, constant=settings.constant
                    )
                    parameter.copy_(changed)

        return Plan(step=None, loop=None, edit=edit)
