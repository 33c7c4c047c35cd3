"""Adapters as others would hand them over."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model

from ml.digests import model_manifest
from ml.models.load import LoadedModel, load_model
from ml.specs import ModelRef

QUANTISED = Path(sys.prefix) / "quantised"


def made_adapter(
    start: ModelRef,
    directory: Path,
    *,
    seed: int,
    teach: Callable[[LoadedModel], None] | None = None,
    layers: str | list[str] = "all-linear",
) -> ModelRef:
    """A LoRA adapter as its makers would save it: of random weights, or of what `teach` trains into it."""
    loaded = load_model(start)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        adapted = get_peft_model(loaded.model, LoraConfig(r=16, lora_alpha=32, target_modules=layers))
        if teach is None:
            for name, parameter in adapted.named_parameters():
                if "lora_B" in name:
                    torch.nn.init.normal_(parameter, std=0.05)
        else:
            teach(replace(loaded, model=adapted))
    adapted.save_pretrained(str(directory))
    (directory / "README.md").unlink(missing_ok=True)
    return ModelRef(str(directory), model_manifest(directory).manifest_sha256)


def logits(model: object) -> torch.Tensor:
    """What a model says to an arbitrary text."""
    with torch.inference_mode():
        return model(torch.arange(3, 40)[None]).logits  # type: ignore[operator, no-any-return]
