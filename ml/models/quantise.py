"""Round the weights of linear layers as a deployment would, back into floating point: what a served copy computes.

The rounded copy stands for a quantised artefact in verification: an update smaller than half a step disappears, and
with it a deletion that only hid what it should have removed (arXiv:2410.16454).
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any, Final

import torch
from torch import Tensor, nn

from ml.errors import NonFiniteError, SpecError
from ml.models.load import LoadedModel

GROUP: Final = 32


def round_int8(weight: Tensor) -> Tensor:
    """Round to 8 bits with one step per output channel: the largest magnitude of a row becomes 127.

    Args:
        weight: (out, in), any float dtype.
    Returns:
        (out, in) in the dtype of `weight`; every entry is within half a step, max|row| / 254, of where it was.
    """
    return _round_rows(weight.float(), 127).to(weight.dtype)


def round_int4(weight: Tensor, *, group: int = GROUP) -> Tensor:
    """Round to 4 bits with one step per `group` neighbouring inputs: the largest magnitude of a group becomes 7.

    Args:
        weight: (out, in), any float dtype; the last group of a row may be shorter.
    """
    rows, columns = weight.shape
    padded = nn.functional.pad(weight.float(), (0, -columns % group))
    grouped = _round_rows(padded.reshape(-1, group), 7).reshape(rows, -1)
    return grouped[:, :columns].to(weight.dtype)


def _round_rows(weight: Tensor, levels: int) -> Tensor:
    if not bool(torch.isfinite(weight).all()):
        raise NonFiniteError("a weight is NaN or infinite; such a model cannot be quantised")
    step = weight.abs().amax(dim=1, keepdim=True) / levels
    step = torch.where(step > 0, step, torch.ones_like(step))
    return (weight / step).round().clamp(-levels, levels) * step


ROUNDINGS: Final = {"int8": round_int8, "int4": round_int4}


def quantised(loaded: LoadedModel, artefact: str) -> LoadedModel:
    """Return a copy of the model whose linear layers are rounded; embeddings, norms and the output layer are kept.

    Raises:
        SpecError: `artefact` is not "int8" or "int4", or the model has no linear layer to round.
    """
    if artefact not in ROUNDINGS:
        raise SpecError(f"artefact {artefact!r} is unknown; known: {', '.join(sorted(ROUNDINGS))}")
    model = copy.deepcopy(loaded.model)
    layers = linear_layers(model)
    if not layers:
        raise SpecError("the model has no linear layer below its output layer; name how its artefacts are rounded")
    with torch.no_grad():
        for layer in layers.values():
            layer.weight.copy_(ROUNDINGS[artefact](layer.weight))
    return replace(loaded, model=model)


def linear_layers(model: Any) -> dict[str, nn.Linear]:
    """The linear layers below the output layer, by name, in network order."""
    head = model.get_output_embeddings()
    return {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear) and m is not head}
