"""W5: values compete again while the states of one block are pushed: along one direction, or by noise. White box.

A deletion that moved everybody's states a little along one direction is undone by moving them back; the direction is
learned on people who stay (arXiv:2606.03291 recovered 50 to 90 % of "forgotten" facts so).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import torch
from torch import Tensor

from ml.attacks.fused import DEFAULT_BUDGET
from ml.attacks.value_states import mean_value_states
from ml.data.collate import EncodedText
from ml.models.layers import changed
from ml.models.load import LoadedModel

STRENGTHS: Final = (0.5, 1.0, 2.0)
NOISE: Final = 0.1


def mean_state(
    loaded: LoadedModel,
    texts: Sequence[EncodedText],
    block: int,
    *,
    budget: int = DEFAULT_BUDGET,
    after_batch: Callable[[int], None] | None = None,
) -> Tensor:
    """Mean over texts of what `block` passes on where it predicts their values: (hidden,) float32.

    The direction of the attack is this of the model before deletion minus this of the candidate, on retained people.
    """
    return mean_value_states(loaded, texts, budget=budget, after_batch=after_batch)[block].mean(dim=0)


@contextmanager
def steered(loaded: LoadedModel, block: int, push: Tensor) -> Iterator[None]:
    """Inside the block of code, add `push` (hidden,) to what a network block passes on, at every position."""

    def add(states: Tensor, _positions: Tensor) -> Tensor:
        return (states.float() + push.to(states.device)).to(states.dtype)

    with changed(loaded.model, block, add):
        yield


@contextmanager
def shaken(loaded: LoadedModel, block: int, *, seed: int, scale: float = NOISE) -> Iterator[None]:
    """Inside the block of code, add Gaussian noise of `scale` times each state's own root mean square.

    Args:
        seed: decides the noise, which depends on the position in the text and on nothing else: every person and value
            meets the same, whoever shares the batch, on any device.
    """
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(loaded.context, loaded.model.config.hidden_size, generator=generator)

    def add(states: Tensor, positions: Tensor) -> Tensor:
        wide = states.float()
        size = wide.square().mean(dim=-1, keepdim=True).sqrt()
        return (wide + scale * size * noise.to(states.device)[positions]).to(states.dtype)

    with changed(loaded.model, block, add):
        yield
