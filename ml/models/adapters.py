"""Low-rank adapters: the weights a run trains while the base stays frozen.

The model before deletion is the same model with its adapter switched off, so no second copy is held. A candidate is
always merged: an adapter that could be peeled off again would hide the data, not delete it.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MethodType
from typing import Any, Final

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.layer import Linear as LoraLinear
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import save
from torch import Tensor
from torch.autograd.function import once_differentiable

from ml.digests import sha256_hex
from ml.errors import SpecError
from ml.models.layers import Part, linear_layer_names

FOLDED_WEIGHTS: Final = 2**18
"""Largest layer, in weights, whose adapter is folded into the weight at every pass: a copy of it is cheap to make."""


def attach_adapter(
    model: Any,
    *,
    rank: int,
    alpha: float,
    seed: int,
    blocks: Collection[int] | None = None,
    part: Part = "all",
    layers: Sequence[str] | None = None,
) -> PeftModel:
    """Freeze `model` and attach a fresh LoRA adapter to all its linear layers but the output layer.

    Its first output is zero, so the model's behaviour does not change. The caller's random state is left as it was.

    Args:
        rank: of the update, at least 1.
        alpha: the update is scaled by alpha / rank.
        blocks, part: only these blocks, counted from 0, and only this part of each.
        layers: these alone, by their full names, instead.
    Raises:
        SpecError: `rank` is below 1 or above what a layer can have, or the model has no such block or part.
    """
    if rank < 1:
        raise SpecError("an adapter needs a rank of at least 1")
    targets: str | Sequence[str] = "all-linear"
    if layers is not None or blocks is not None or part != "all":
        targets = linear_layer_names(model, blocks, part) if layers is None else layers
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets, lora_dropout=0.0, bias="none")
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # peft asks transformers for a property that transformers has renamed.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        torch.manual_seed(seed)
        adapted = get_peft_model(model, config)
    for name, layer in adapted.named_modules():
        if isinstance(layer, LoraLinear):
            _refuse_beyond(rank, name, layer)
            if _is_small(layer):
                layer.forward = MethodType(_folded, layer)
    return adapted


def _refuse_beyond(rank: int, name: str, layer: LoraLinear) -> None:
    largest = min(layer.in_features, layer.out_features)
    if rank > largest:
        raise SpecError(f"an adapter of rank {rank} is larger than layer {name}; choose a rank of at most {largest}")


def _is_small(layer: LoraLinear) -> bool:
    base = layer.get_base_layer()
    weight = base.weight
    # Other kinds of linear layer, such as the Conv1D of GPT-2, hold their weight the other way round.
    return isinstance(base, torch.nn.Linear) and weight.numel() <= FOLDED_WEIGHTS and weight.dtype == torch.float32


def _folded(layer: LoraLinear, x: Tensor) -> Tensor:
    """`(W + s B A) x` in one product, where the adapter's own path `W x + s B (A x)` takes three and two sums."""
    base = layer.get_base_layer()
    if layer.disable_adapters:
        return torch.nn.functional.linear(x, base.weight, base.bias)
    (name,) = layer.active_adapters
    down, up, scale = layer.lora_A[name].weight, layer.lora_B[name].weight, layer.scaling[name]
    # One gradient of the whole weight costs more than two of a narrow adapter, and less than those of a wide one.
    is_narrow = 3 * down.shape[0] * (layer.in_features + layer.out_features) <= base.weight.numel()
    if is_narrow and base.bias is None and not base.weight.requires_grad:
        return _FoldedLinear.apply(x, base.weight, down, up, scale)
    return torch.nn.functional.linear(x, torch.addmm(base.weight, up, down, alpha=scale), base.bias)


class _FoldedLinear(torch.autograd.Function):
    """`(W + s B A) x`, whose backward never makes the gradient of the whole weight.

    With u = A x and v = B'g, dB = s g u' and dA = s v x'. Both are computed with the rank as the number of rows: the
    other way round their products take three times as long.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, base: Tensor, down: Tensor, up: Tensor, scale: float) -> Tensor:
        weight = torch.addmm(base, up, down, alpha=scale)
        ctx.save_for_backward(x, weight, down, up)
        ctx.scale = scale
        return torch.nn.functional.linear(x, weight)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, down, up = ctx.saved_tensors
        wants_x, _, wants_down, wants_up, _ = ctx.needs_input_grad
        g, flat = gradients[0].flatten(0, -2), x.flatten(0, -2)
        into_x = (g @ weight).view_as(x) if wants_x else None
        into_down = ctx.scale * ((up.t() @ g.t()) @ flat) if wants_down else None
        into_up = ctx.scale * ((down @ flat.t()) @ g).t() if wants_up else None
        return into_x, None, into_down, into_up, None


@contextmanager
def reference_model(model: PeftModel) -> Iterator[PeftModel]:
    """The model as it was before unlearning: the adapter is off and nothing is recorded for a gradient.

    Inside such a block another one costs nothing.
    """
    if _is_switched_off(model):
        with torch.no_grad():
            yield model
        return
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    with torch.no_grad(), model.disable_adapter():
        yield model
    if trained != {name for name, parameter in model.named_parameters() if parameter.requires_grad}:
        raise SpecError("switching the adapter off changed which parameters are trained; update peft's handling here")


def _is_switched_off(model: PeftModel) -> bool:
    return next((layer.disable_adapters for layer in model.modules() if isinstance(layer, BaseTunerLayer)), False)


@contextmanager
def scaled_adapter(model: PeftModel, share: float) -> Iterator[PeftModel]:
    """Inside the block of code, let the adapter count for `share` of what it is: exact, and no weight changes.

    0 is the base, 1 the model as it was given.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, LoraLinear)]
    before = [dict(layer.scaling) for layer in layers]
    try:
        for layer in layers:
            layer.scaling.update({name: share * scale for name, scale in layer.scaling.items()})
        yield model
    finally:
        for layer, scaling in zip(layers, before, strict=True):
            layer.scaling.update(scaling)


def trained_parameters(model: PeftModel) -> list[torch.nn.Parameter]:
    """The adapter's weights, in the order in which every copy of the model has them."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def base_parameters(model: PeftModel) -> list[torch.nn.Parameter]:
    """The weights below the adapter, tied ones once."""
    return [parameter for name, parameter in model.named_parameters() if "lora_" not in name]


def adapter_tensors(model: PeftModel) -> dict[str, Tensor]:
    """The adapter's weights by name."""
    return {name: p.detach().cpu().contiguous() for name, p in model.named_parameters() if p.requires_grad}


def put_adapter_tensors(model: PeftModel, tensors: Mapping[str, Tensor]) -> None:
    """Put weights that `adapter_tensors` returned into the adapter, and freeze them.

    Raises:
        SpecError: the adapter has no weight of a name, or one of another shape.
    """
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in tensors.items():
            parameter = parameters.get(name)
            if parameter is None or "lora_" not in name or parameter.shape != tensor.shape:
                raise SpecError("stored adapter weights do not fit this model's adapter; load them onto their own base")
            parameter.copy_(tensor)
            parameter.requires_grad_(False)


def adapter_sha256(model: PeftModel) -> str:
    """Digest of the adapter as the bytes of a safetensors file; the file itself is never kept."""
    return sha256_hex(save(adapter_tensors(model)))


def merge_adapter(model: PeftModel) -> Any:
    """Add the adapter into the weights, in place, and return the plain model."""
    return model.merge_and_unload(safe_merge=True)
