"""The blocks of a network one by one: what each passes on, and a way to change it for a while.

A hook lives exactly as long as its block of code, whatever is raised inside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor, nn

from ml.errors import SpecError

Change = Callable[[Tensor, Tensor], Tensor]

_FINAL_NORMS: Final = ("norm", "ln_f", "final_layernorm", "final_layer_norm")


def blocks(model: Any) -> nn.ModuleList:
    """The repeated blocks below the output layer, in network order.

    Raises:
        SpecError: the model has no list of as many blocks as its configuration says.
    """
    count = model.config.num_hidden_layers
    for module in model.base_model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise SpecError(f"the model has no list of {count} blocks; name where its layers are")


def middle_block(model: Any) -> int:
    """The block half way up, counted from 0."""
    return len(blocks(model)) // 2


def final_norm(model: Any) -> nn.Module:
    """The norm between the last block and the output layer.

    Raises:
        SpecError: it has none of the known names.
    """
    for name in _FINAL_NORMS:
        norm = getattr(model.base_model, name, None)
        if isinstance(norm, nn.Module):
            return norm
    raise SpecError(f"the model has no final norm of a known name ({', '.join(_FINAL_NORMS)})")


@contextmanager
def listening(model: Any) -> Iterator[Mapping[int, Tensor]]:
    """Inside the block of code, keep what each block passed on in the last forward pass: (rows, seq, hidden)."""
    heard: dict[int, Tensor] = {}

    def keep(number: int) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_module: nn.Module, _given: Any, output: Any) -> None:
            heard[number] = _state(output)

        return hook

    handles = [block.register_forward_hook(keep(number)) for number, block in enumerate(blocks(model))]
    try:
        yield heard
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def changed(model: Any, block: int, change: Change) -> Iterator[None]:
    """Inside the block of code, let `change` replace what one block passes on.

    Args:
        block: counted from 0.
        change: takes states (rows, seq, hidden) and the position of each in its text, (rows or 1, seq) int64; returns
            states of the same shape and dtype. Where a cache holds the positions before, they were changed when it
            was made.
    Raises:
        SpecError: inside the block of code, when the model does not tell its blocks the positions.
    """

    def hook(_module: nn.Module, _given: Any, named: Mapping[str, Any], output: Any) -> Any:
        positions = named.get("position_ids")
        if not isinstance(positions, torch.Tensor):
            raise SpecError("the model does not tell its blocks where they are in a text; states cannot be changed")
        state = change(_state(output), positions)
        return (state, *output[1:]) if isinstance(output, tuple) else state

    handle = blocks(model)[block].register_forward_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _state(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output
