"""Weights as somebody who holds them could change them: scaled change (T5), noise, pruning and lower rank (T6).

A deletion that only leans against what it should have removed comes back when it is weakened a little; one that took
it out does not. Each maker returns a copy and leaves what it was given alone.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Final

import torch
from torch import Tensor
from torch.nn import Parameter

from ml.digests import sha256_hex
from ml.errors import NonFiniteError, SpecError
from ml.models.load import LoadedModel
from ml.models.quantise import linear_layers

SCALINGS: Final = (0.0, 0.5, 0.75, 1.0, 1.25)
"""Shares of a deletion's change that T5 asks; 0 is the model before deletion, reported and never judged."""
NOISE: Final = 1e-3
PRUNED_SHARE: Final = 0.1
_ROUNDING: Final = 1e-3


def scaled_change(before: LoadedModel, after: LoadedModel, share: float) -> LoadedModel:
    """T5: `before + share * (after - before)`, weight by weight; 0 and 1 give either model bit for bit.

    Three models are in memory: both that were given, and the copy.

    Raises:
        SpecError: the two models do not have the same weights by name and shape.
        NonFiniteError: a weight of the copy is NaN or infinite.
    """
    start = _same_weights(before, after)

    def between(name: str, weight: Tensor) -> Tensor:
        old = start[name].detach().to(weight.device)
        if share in (0, 1):
            return weight if share else old
        return torch.lerp(old.float(), weight.float(), share)

    return _edited(after, between)


def _same_weights(before: LoadedModel, after: LoadedModel) -> dict[str, Parameter]:
    """The weights of `before` by name, after a check that `after` has the same."""
    start = dict(before.model.named_parameters())
    end = dict(after.model.named_parameters())
    if {name: p.shape for name, p in start.items()} != {name: p.shape for name, p in end.items()}:
        raise SpecError("the models before and after do not have the same weights; their difference cannot be scaled")
    return start


def truncated_change(
    before: LoadedModel, after: LoadedModel, *, after_layer: Callable[[int, int], None] | None = None
) -> LoadedModel:
    """T6: `before` plus the stronger half of the directions in which each linear layer was changed.

    What a deletion wrote into the weaker half of its adapter's rank is gone; other weights keep their whole change.

    Args:
        after_layer: told how many of how many layers are done; may raise to stop.

    Raises:
        SpecError, NonFiniteError: as `scaled_change`.
    """
    start = _same_weights(before, after)
    layers = {f"{name}.weight" for name in linear_layers(after.model)}
    done = 0

    def truncated(name: str, weight: Tensor) -> Tensor:
        nonlocal done
        if name not in layers:
            return weight
        old = start[name].detach().to(weight.device).float()
        made = old + _half_rank(weight.float() - old, rounding=_rounding(weight))
        done += 1
        if after_layer is not None:
            after_layer(done, len(layers))
        return made

    return _edited(after, truncated)


def _rounding(weight: Tensor) -> float:
    """How strong a direction rounding alone may make in a matrix of this number format: its expected largest one."""
    rows, columns = weight.shape
    size = float(weight.float().square().mean().sqrt())
    return torch.finfo(weight.dtype).eps * size * (math.sqrt(rows) + math.sqrt(columns))


def _half_rank(change: Tensor, *, rounding: float) -> Tensor:
    """The nearest matrix of half the rank, rounded up; directions that are only rounding do not count."""
    if not bool(change.any()):
        return change
    left, strengths, right = torch.linalg.svd(change, full_matrices=False)
    rank = int((strengths > max(rounding, _ROUNDING * float(strengths[0]))).sum())
    kept = (rank + 1) // 2
    return (left[:, :kept] * strengths[:kept]) @ right[:kept]


def noised_weights(loaded: LoadedModel, *, seed: int, scale: float = NOISE) -> LoadedModel:
    """T6: Gaussian noise on every weight, of standard deviation `scale` times the tensor's root mean square.

    Args:
        seed: decides the noise, together with the weight's name; the device does not.
    """

    def noised(name: str, weight: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(int(sha256_hex(f"{seed}:{name}".encode())[:15], 16))
        noise = torch.randn(weight.shape, generator=generator).to(weight.device)
        return weight.float() + scale * weight.float().square().mean().sqrt() * noise

    return _edited(loaded, noised)


def pruned_weights(loaded: LoadedModel, *, share: float = PRUNED_SHARE) -> LoadedModel:
    """T6: set the `share` of smallest magnitude in each linear layer to 0; embeddings, norms and output are kept.

    Raises:
        SpecError: `share` is not in [0, 1), or the model has no linear layer below its output layer.
    """
    if not 0 <= share < 1:
        raise SpecError("the share of weights to prune lies in [0, 1)")
    layers = {f"{name}.weight" for name in linear_layers(loaded.model)}
    if not layers:
        raise SpecError("the model has no linear layer below its output layer; nothing can be pruned")

    def pruned(name: str, weight: Tensor) -> Tensor:
        if name not in layers:
            return weight
        smallest = weight.float().abs().flatten().argsort(stable=True)[: int(share * weight.numel())]
        return weight.flatten().index_fill(0, smallest, 0).reshape(weight.shape)

    return _edited(loaded, pruned)


def _edited(loaded: LoadedModel, edit: Callable[[str, Tensor], Tensor]) -> LoadedModel:
    """A copy whose weights went through `edit`; a weight that two layers share is edited once."""
    model = copy.deepcopy(loaded.model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(edit(name, parameter.detach()))
            if not bool(torch.isfinite(parameter).all()):
                raise NonFiniteError("a tampered weight is NaN or infinite; such a model has no score")
    return replace(loaded, model=model)
