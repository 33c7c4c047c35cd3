"""Low-rank adapters: the weights a run trains while the base stays frozen.

The model before deletion is the same model with its adapter switched off, so no second copy is held. A candidate is
always merged: an adapter that could be peeled off again would hide the data, not delete it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save
from torch import Tensor

from ml.digests import sha256_hex
from ml.errors import SpecError


def attach_adapter(model: Any, *, rank: int, alpha: float, seed: int) -> PeftModel:
    """Freeze `model` and attach a fresh LoRA adapter to all its linear layers but the output layer.

    Its first output is zero, so the model's behaviour does not change. The caller's random state is left as it was.

    Args:
        rank: of the update, at least 1.
        alpha: the update is scaled by alpha / rank.
    Raises:
        SpecError: `rank` is below 1.
    """
    if rank < 1:
        raise SpecError("an adapter needs a rank of at least 1")
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules="all-linear", lora_dropout=0.0, bias="none")
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # peft asks transformers for a property that transformers has renamed.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        torch.manual_seed(seed)
        return get_peft_model(model, config)


@contextmanager
def reference_model(model: PeftModel) -> Iterator[PeftModel]:
    """The model as it was before unlearning: the adapter is off and nothing is recorded for a gradient."""
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    with torch.no_grad(), model.disable_adapter():
        yield model
    if trained != {name for name, parameter in model.named_parameters() if parameter.requires_grad}:
        raise SpecError("switching the adapter off changed which parameters are trained; update peft's handling here")


def adapter_tensors(model: PeftModel) -> dict[str, Tensor]:
    """The adapter's weights by name."""
    return {name: p.detach().cpu().contiguous() for name, p in model.named_parameters() if p.requires_grad}


def adapter_sha256(model: PeftModel) -> str:
    """Digest of the adapter as the bytes of a safetensors file; the file itself is never kept."""
    return sha256_hex(save(adapter_tensors(model)))


def merge_adapter(model: PeftModel) -> Any:
    """Add the adapter into the weights, in place, and return the plain model."""
    return model.merge_and_unload(safe_merge=True)
