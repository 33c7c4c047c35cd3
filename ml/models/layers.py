"""The blocks of a network one by one: what each passes on, and a way to change it for a while.

A hook lives exactly as long as its block of code, whatever is raised inside.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final, Literal, TypeAlias

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ml.errors import SpecError

Change = Callable[[Tensor, Tensor], Tensor]
Part: TypeAlias = Literal["all", "feed_forward", "feed_forward_output"]
"""Which linear layers of a block: every one, those of its feed-forward part, or the last of these alone."""

_FEED_FORWARDS: Final = ("mlp", "feed_forward", "ffn")
_FEED_FORWARD_OUTPUTS: Final = ("down_proj", "c_proj", "dense_4h_to_h", "fc_out", "fc2", "w2")
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


def block_at(model: Any, number: int) -> nn.Module:
    """One block, counted from 0.

    Raises:
        SpecError: the model has no such block.
    """
    found = blocks(model)
    if not 0 <= number < len(found):
        raise SpecError(f"there is no block {number}; the model has {len(found)}, counted from 0")
    return found[number]


def linear_layer_names(model: Any, numbers: Collection[int] | None, part: Part) -> list[str]:
    """Full names of the linear layers in `part` of the blocks `numbers` (every block where `None`).

    Names are whole paths, so that block 3 is never taken for block 30.

    Raises:
        SpecError: a block does not exist, has no such part of a known name, or nothing is left.
    """
    names = {id(module): name for name, module in model.named_modules()}
    chosen = range(len(blocks(model))) if numbers is None else numbers
    modules = [module for number in chosen for module in _part(block_at(model, number), part).modules()]
    found = [names[id(module)] for module in modules if isinstance(module, nn.Linear | Conv1D)]
    if not found:
        raise SpecError("no linear layer is left to train; name at least one block that has some")
    return found


def _part(block: nn.Module, part: Part) -> nn.Module:
    if part == "all":
        return block
    inner = _named(block, _FEED_FORWARDS)
    return inner if part == "feed_forward" else _named(inner, _FEED_FORWARD_OUTPUTS)


def _named(module: nn.Module, names: Sequence[str]) -> nn.Module:
    for name in names:
        found = getattr(module, name, None)
        if isinstance(found, nn.Module):
            return found
    raise SpecError(f"a block has no part of a known name ({', '.join(names)}); train all its layers")


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


class _Reached(Exception):  # noqa: N818 - ends a pass where it was asked to end
    """A pass has come to the block it was run for."""


def states_after(model: Any, input_ids: Tensor, block: int) -> Tensor:
    """What one block passes on, (rows, seq, hidden), with its graph; the blocks above it are not run.

    Raises:
        SpecError: the model has no such block.
    """
    heard: list[Tensor] = []

    def hook(_module: nn.Module, _given: Any, output: Any) -> None:
        heard.append(_state(output))
        raise _Reached

    handle = block_at(model, block).register_forward_hook(hook)
    try:
        with suppress(_Reached):
            model(input_ids=input_ids, use_cache=False)
    finally:
        handle.remove()
    return heard[0]


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
