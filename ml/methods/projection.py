"""GU: forget along what the retained loss does not feel.

A wrapper for any method that says which part of its step forgets (`back_propagate`): of the forget gradient only what
is orthogonal to the retained gradient is followed, over all trained weights at once. To first order, what is followed
leaves the retained loss where it is.

Source: arXiv:2511.17100, restated. One retained direction a step, the gradient of all that is not forgetting.
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

from ml.errors import SpecError
from ml.loop import Backward, LoopSettings, StepFunction
from ml.methods.method import Plan, Projection

_EPSILON: Final = 1e-8


def without_component(forget: Tensor, retain: Tensor, denominator: Tensor | None = None) -> Tensor:
    """`g_f - (<g_f, g_r> / <g_r, g_r>) * g_r` with `<a, b> = sum(a * b / denominator)`; (weights,) from (weights,).

    The product of `retain` and `result / denominator` is 0. Where `retain` is 0, `forget` comes back as it is.

    Args:
        denominator: above 0, what an optimiser divides each weight's gradient by; 1 where it is not given.
    Source: arXiv:2511.17100. Oracle: [3, 4] without [1, 1] -> [-0.5, 0.5]; without [1, 0] -> [0, 4]; without [1, 1]
    where the denominator is [2, 1] -> [-0.6666667, 0.3333333].
    """
    weighed = retain if denominator is None else retain / denominator
    length = torch.dot(retain, weighed)
    if float(length) == 0.0:
        return forget
    return forget - (torch.dot(forget, weighed) / length) * retain


def projected(plan: Plan, parameters: Sequence[nn.Parameter], metric: Projection) -> Plan:
    """Return `plan` with every step's forget gradient projected; its optimiser keeps no momentum.

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
    step = _projected_step(plan.step, parameters, loop, state.get("second_moment"))
    return replace(plan, step=step, loop=loop, state={**plan.state, **state})


def _projected_step(
    inner: StepFunction, parameters: Sequence[nn.Parameter], loop: LoopSettings, second_moment: Tensor | None
) -> StepFunction:
    def step(number: int, backward: Backward) -> Mapping[str, Tensor]:
        apart = SeparateGradients(backward, parameters)
        watched = inner(number, apart)
        forget, retain = apart.taken()
        denominator = None if second_moment is None or not number else _denominator(second_moment, number, loop)
        total = without_component(forget, retain, denominator) + retain
        put_gradients(parameters, total)
        if second_moment is not None:
            clipped = total * min(1.0, loop.clip_norm / (float(total.norm()) + 1e-6))
            second_moment.mul_(loop.betas[1]).addcmul_(clipped, clipped, value=1 - loop.betas[1])
        return watched

    return step


def _denominator(second_moment: Tensor, steps: int, loop: LoopSettings) -> Tensor:
    return (second_moment / (1 - loop.betas[1] ** steps)).sqrt() + _EPSILON


class SeparateGradients:
    """A `Backward` that keeps the gradient of what forgets apart from all other gradients of a step."""

    def __init__(self, backward: Backward, parameters: Sequence[nn.Parameter]) -> None:
        self._backward, self._parameters = backward, parameters
        self._forget: Tensor | None = None

    def __call__(self, loss: Tensor) -> None:
        """Add the gradient of a loss that retains."""
        self._backward(loss)

    def forget(self, loss: Tensor) -> None:
        """Add the gradient of a loss that forgets."""
        others = [parameter.grad for parameter in self._parameters]
        for parameter in self._parameters:
            parameter.grad = None
        self._backward(loss)
        added = flat_gradients(self._parameters)
        self._forget = added if self._forget is None else self._forget + added
        for parameter, gradient in zip(self._parameters, others, strict=True):
            parameter.grad = gradient

    def taken(self) -> tuple[Tensor, Tensor]:
        """Both gradients of the step, forgetting and all else: (weights,) each.

        Raises:
            SpecError: one of them was not given.
        """
        if self._forget is None or all(parameter.grad is None for parameter in self._parameters):
            raise SpecError(
                "setting training.projection needs a method with a forgetting and a retained loss; give it a retained "
                "loss (alpha above 0), or choose another method"
            )
        return self._forget, flat_gradients(self._parameters)


def flat_gradients(parameters: Sequence[nn.Parameter]) -> Tensor:
    """The gradients of `parameters` in a row, float32, 0 where none was reached: (weights,)."""
    found = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    return torch.cat([gradient.detach().float().flatten() for gradient in found])


def put_gradients(parameters: Sequence[nn.Parameter], gradients: Tensor) -> None:
    """Undo `flat_gradients`: (weights,)."""
    for parameter, piece in zip(parameters, gradients.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = piece.view_as(parameter).to(parameter.dtype)
