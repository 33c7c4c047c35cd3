"""GU: forget along what the retained loss does not feel.

A wrapper for any method that says which part of its step forgets (`back_propagate`): of the forget gradient only what
is orthogonal to the retained gradients is followed, over all trained weights at once. To first order, what is followed
leaves the retained losses where they are.

Source: arXiv:2511.17100, restated. Every retained loss that a step propagates is a direction of its own; methods that
share `ml.methods.forgetting` propagate as many as `Training.directions` asks for, one for each part of their retained
rows. More directions keep more rows where they are, each costs a pass, and less of forgetting is left.
Momentum would mix directions of earlier steps back in, so it is off. The step that is taken is not the gradient but
`g / (sqrt(v) + eps)`, so the plain ("euclidean") product keeps its promise only for plain descent; the "adam" product
divides by that denominator as it stood before the step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

import torch
from torch import Tensor, nn

from ml.errors import NonFiniteError, SpecError
from ml.loop import Backward, LoopSettings, StepFunction
from ml.methods.method import Plan, Projection

_EPSILON: Final = 1e-8
_DEPENDENT: Final = 1e-5


def without_components(forget: Tensor, retain: Tensor, denominator: Tensor | None = None) -> Tensor:
    """What of `forget` (weights,) is orthogonal to every row of `retain` (directions, weights), where
    `<a, b> = sum(a * b / denominator)`: (weights,). With one direction, `g_f - (<g_f, g_r> / <g_r, g_r>) * g_r`.

    The product of each direction and `result / denominator` is 0, however short the direction is. One that the others
    hold already, up to `_DEPENDENT` of its length, is left out: it would be rounding errors. Where all are 0, `forget`
    comes back as it is.

    Args:
        denominator: above 0, what an optimiser divides each weight's gradient by; 1 where it is not given.
    Source: arXiv:2511.17100. Oracle: [3, 4] without [1, 1] -> [-0.5, 0.5]; without [1, 0] -> [0, 4]; without [1, 1]
    where the denominator is [2, 1] -> [-0.6666667, 0.3333333].
    """
    scale = torch.ones_like(forget) if denominator is None else denominator.sqrt()
    weighed, directions = (forget / scale).double(), (retain / scale).double()
    directions = torch.nn.functional.normalize(directions, dim=1, eps=torch.finfo(torch.float64).tiny)
    _, lengths, axes = torch.linalg.svd(directions, full_matrices=False)
    axes = axes[lengths > _DEPENDENT]
    return (weighed - axes.T @ (axes @ weighed)).to(forget.dtype) * scale


def projected(plan: Plan, parameters: Sequence[nn.Parameter], metric: Projection, *, directions: int = 1) -> Plan:
    """Return `plan` with every step's forget gradient projected; its optimiser keeps no momentum.

    Args:
        directions: into how many parts a step should divide what it retains.
    Raises:
        SpecError: the plan trains nothing; in its first step, when it does not say what forgets and what retains.
    """
    if plan.step is None or plan.loop is None:
        raise SpecError("setting training.projection needs a method that trains in steps; leave it out")
    loop = replace(plan.loop, betas=(0.0, plan.loop.betas[1]))
    second_moment = torch.zeros(sum(parameter.numel() for parameter in parameters), device=parameters[0].device)
    state: Mapping[str, Tensor] = {} if metric == "euclidean" else {"second_moment": second_moment}
    if set(state) & set(plan.state):
        raise SpecError("a method's own state is named as the projection's is; rename it")
    step = _projected_step(plan.step, parameters, loop, state.get("second_moment"), directions)
    return replace(plan, step=step, loop=loop, state={**plan.state, **state})


def _projected_step(
    inner: StepFunction,
    parameters: Sequence[nn.Parameter],
    loop: LoopSettings,
    second_moment: Tensor | None,
    directions: int,
) -> StepFunction:
    def step(number: int, backward: Backward) -> Mapping[str, Tensor]:
        apart = SeparateGradients(backward, parameters, directions)
        watched = inner(number, apart)
        forget, retain = apart.taken()
        if not bool(torch.isfinite(retain).all()):
            raise NonFiniteError(f"the retained gradient of step {number} is not finite; lower the learning rate")
        denominator = None if second_moment is None or not number else _denominator(second_moment, number, loop)
        total = without_components(forget, retain, denominator) + retain.sum(dim=0)
        put_gradients(parameters, total)
        if second_moment is not None:
            clipped = total * min(1.0, loop.clip_norm / (float(total.norm()) + 1e-6))
            second_moment.mul_(loop.betas[1]).addcmul_(clipped, clipped, value=1 - loop.betas[1])
        return watched

    return step


def _denominator(second_moment: Tensor, steps: int, loop: LoopSettings) -> Tensor:
    return (second_moment / (1 - loop.betas[1] ** steps)).sqrt() + _EPSILON


class SeparateGradients:
    """A `Backward` that keeps the gradient of what forgets apart from those of all other losses of a step."""

    def __init__(self, backward: Backward, parameters: Sequence[nn.Parameter], directions: int) -> None:
        self._backward, self._parameters, self.directions = backward, parameters, directions
        self._forget: Tensor | None = None
        self._retain: list[Tensor] = []

    def __call__(self, loss: Tensor) -> None:
        """Take the gradient of a loss that retains as one more direction."""
        self._retain.append(self._gradient(loss))

    def forget(self, loss: Tensor) -> None:
        """Add the gradient of a loss that forgets."""
        added = self._gradient(loss)
        self._forget = added if self._forget is None else self._forget + added

    def _gradient(self, loss: Tensor) -> Tensor:
        others = [parameter.grad for parameter in self._parameters]
        for parameter in self._parameters:
            parameter.grad = None
        self._backward(loss)
        added = flat_gradients(self._parameters)
        for parameter, gradient in zip(self._parameters, others, strict=True):
            parameter.grad = gradient
        return added

    def taken(self) -> tuple[Tensor, Tensor]:
        """The gradient of forgetting (weights,), and those of all else (directions, weights).

        Raises:
            SpecError: one of them was not given, or what retains came in one part although more were wanted.
        """
        if any(parameter.grad is not None for parameter in self._parameters):
            self._retain.append(flat_gradients(self._parameters))  # what a second process added
        if self._forget is None or not self._retain:
            raise SpecError(
                "setting training.projection needs a method with a forgetting and a retained loss; give it a retained "
                "loss (alpha above 0), or choose another method"
            )
        if len(self._retain) < min(2, self.directions):
            raise SpecError(
                "setting training.directions: this method retains by one loss of one part; leave it out, choose "
                "another method, or give it more retained rows"
            )
        return self._forget, torch.stack(self._retain)


def flat_gradients(parameters: Sequence[nn.Parameter]) -> Tensor:
    """The gradients of `parameters` in a row, float32, 0 where none was reached: (weights,)."""
    found = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    return torch.cat([gradient.detach().float().flatten() for gradient in found])


def put_gradients(parameters: Sequence[nn.Parameter], gradients: Tensor) -> None:
    """Undo `flat_gradients`: (weights,)."""
    for parameter, piece in zip(parameters, gradients.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = piece.view_as(parameter).to(parameter.dtype)
