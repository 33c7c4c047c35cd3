"""Adapters that others saved: checked before anything of theirs is loaded, and added into a model's weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch
from peft import PeftModel, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import safe_open

from ml.digests import model_manifest
from ml.errors import DigestMismatchError, ModelDirectoryError, SpecError
from ml.specs import ModelRef

_CONFIG: Final = "adapter_config.json"
_WEIGHTS: Final = "adapter_model.safetensors"
_PLAIN_STARTS: Final = (True, False, "gaussian")


def with_adapters(model: Any, chosen: Sequence[ModelRef]) -> Any:
    """Add adapters into the weights of `model`, in place: what a server computes that has all of them switched on.

    Raises:
        SpecError: none is chosen.
        ModelDirectoryError, DigestMismatchError: an adapter is unsafe, broken, of other layers, or not the one that
            was named.
    """
    names = [f"adapter_{place}" for place in range(len(chosen))]
    adapted = None
    for name, ref in zip(names, chosen, strict=True):
        directory = Path(ref.path)
        if model_manifest(directory).manifest_sha256 != ref.manifest_sha256:
            raise DigestMismatchError(f"adapter directory {directory.name} does not match its recorded manifest digest")
        _refuse_unfit(directory, alone=len(chosen) == 1)
        try:
            adapted = _loaded(model if adapted is None else adapted, directory, name)
        except ModelDirectoryError:
            raise
        except Exception as exc:  # noqa: BLE001 - a parser boundary: the library raises many types on a broken directory
            kind = type(exc).__name__
            raise ModelDirectoryError(f"adapter directory {directory.name} cannot be loaded: {kind}") from exc
    if adapted is None:
        raise SpecError("a form with adapters names at least one")
    _untie(adapted.get_base_model())
    try:
        merged = adapted.merge_and_unload(safe_merge=True, adapter_names=names)
    except Exception as exc:  # noqa: BLE001 - as above
        names_shown = ", ".join(Path(ref.path).name for ref in chosen)
        raise ModelDirectoryError(f"adapters {names_shown} cannot be added up: {type(exc).__name__}") from exc
    _say_untied(merged)
    return merged


def _loaded(model: Any, directory: Path, name: str) -> PeftModel:
    """Put one more adapter on a model.

    Raises:
        ModelDirectoryError: its tensors are not those of the layers that it names. To peft that is no error.
    """
    with safe_open(directory / _WEIGHTS, framework="pt") as stored:
        tensors = set(stored.keys())
    if isinstance(model, PeftModel):
        model.load_adapter(str(directory), adapter_name=name, local_files_only=True)
    else:
        model = PeftModel.from_pretrained(model, str(directory), adapter_name=name, local_files_only=True)
    # With an adapter of the output layer the weights below it are saved too. Left to itself, peft would look the name
    # of the base model up, on a hub if it is nowhere else.
    forms = (get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=also) for also in (False, True))
    if tensors not in map(set, forms):
        raise ModelDirectoryError(f"the tensors of adapter directory {directory.name} are not those of its own layers")
    return model


def _refuse_unfit(directory: Path, *, alone: bool) -> None:
    for name in (_CONFIG, _WEIGHTS):
        if not (directory / name).is_file():
            raise ModelDirectoryError(f"adapter directory {directory.name} has no {name}")
    try:
        config = json.loads((directory / _CONFIG).read_text(encoding="utf-8"))
    except ValueError as exc:
        raise ModelDirectoryError(f"{_CONFIG} of {directory.name} is not JSON") from exc
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise ModelDirectoryError(f"adapter directory {directory.name} holds no LoRA adapter")
    if config.get("megatron_config"):
        raise ModelDirectoryError(f"{_CONFIG} of {directory.name} names a module to import (megatron_config)")
    if config.get("init_lora_weights", True) not in _PLAIN_STARTS:
        raise ModelDirectoryError(
            f"the adapter of {directory.name} starts by changing the model below it (init_lora_weights); convert it to "
            "a plain LoRA adapter"
        )
    # Left to itself, peft puts no whole layer of a second adapter in place, and says nothing.
    if config.get("modules_to_save") and not alone:
        raise ModelDirectoryError(
            f"the adapter of {directory.name} brings whole layers along (modules_to_save), which cannot be combined "
            "with other adapters; add it alone (python -m ml.full_weights), and name the result as the model"
        )


def _say_untied(model: Any) -> None:
    """A saved model must say that its output layer is not the token vectors, or it is loaded as if it were."""
    head = model.get_output_embeddings()
    if head is not None and head.weight is not model.get_input_embeddings().weight:
        model.config.tie_word_embeddings = False


def _untie(model: Any) -> None:
    """Give an output layer that an adapter changes weights of its own, where the token vectors are the same weights."""
    layers = model.get_output_embeddings(), model.get_input_embeddings()
    head, vectors = (getattr(layer, "base_layer", layer) for layer in layers)
    if any(isinstance(layer, BaseTunerLayer) for layer in layers) and head.weight is vectors.weight:
        head.weight = torch.nn.Parameter(head.weight.detach().clone())
