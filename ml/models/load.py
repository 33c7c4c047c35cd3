"""Load a language model from a directory, by digest: safetensors only, no remote code, nothing missing.

This module must never reach a network and never fall back to a pickle.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from ml.digests import model_manifest, sha256_hex
from ml.errors import DigestMismatchError, ModelDirectoryError, TokenizerMismatchError
from ml.specs import ModelRef

_CONFIG: Final = "config.json"
_ROUNDED: Final = "quantization_config"

# Progress is ours to report, and logs are not terminals.
transformers_logging.disable_progress_bar()


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model in eval mode, its tokenizer, the longest sequence it takes, and the manifest digest of its files."""

    model: Any
    tokenizer: Any
    context: int
    manifest_sha256: str

    @property
    def pad_id(self) -> int:
        """The id used for right padding; never scored, so the end-of-sequence id serves when no pad token exists."""
        pad = self.tokenizer.pad_token_id
        return int(self.tokenizer.eos_token_id if pad is None else pad)


def model_ref(directory: Path) -> ModelRef:
    """Digest a model directory and return a reference to it."""
    return ModelRef(str(directory), model_manifest(directory).manifest_sha256)


def load_model(
    ref: ModelRef,
    *,
    device: str = "cpu",
    dtype: str = "float32",
    quantisation: Any = None,
    stored_rounded: bool = False,
) -> LoadedModel:
    """Load the model at `ref`, checked before a tensor is read.

    Args:
        quantisation: how transformers quantises the weights while it loads them; none if it is left out.
        stored_rounded: take weights that say themselves how they are quantised; what is attacked never may.
    Raises:
        ModelDirectoryError: unsafe or incomplete directory; a tensor is missing, unexpected or of the wrong shape.
        DigestMismatchError: the files are not the recorded ones.
        TokenizerMismatchError: the tokenizer does not fit the model.
    """
    how = {} if quantisation is None else {"quantization_config": quantisation}
    if how or stored_rounded:
        # A quantised model is put where it belongs while it is loaded, and cannot be moved.
        how["device_map"] = {"": device}
    return _load(ref, AutoModelForCausalLM, device=device, dtype=dtype, how=how, stored_rounded=stored_rounded)


def tokenizer_sha256(loaded: LoadedModel) -> str:
    """Digest of everything that decides how a tokenizer cuts a text."""
    return sha256_hex(loaded.tokenizer.backend_tokenizer.to_str().encode("utf-8"))


def load_rewriter(ref: ModelRef, *, device: str = "cpu") -> LoadedModel:
    """Load a sequence-to-sequence model that rewords questions, checked as `load_model` does; errors are the same."""
    return _load(ref, AutoModelForSeq2SeqLM, device=device, dtype="float32")


def stored_rounding(directory: Path) -> dict[str, Any] | None:
    """What the weights of a model directory say about how they are quantised, if they say anything.

    Raises:
        ModelDirectoryError: the directory has no configuration that can be read.
    """
    try:
        document = json.loads((directory / _CONFIG).read_text(encoding="utf-8"))
    except OSError as exc:
        raise ModelDirectoryError(f"model directory {directory.name} has no {_CONFIG}") from exc
    except ValueError as exc:
        raise ModelDirectoryError(f"model file {_CONFIG} is not JSON") from exc
    found = document.get(_ROUNDED) if isinstance(document, dict) else None
    return found if isinstance(found, dict) else None


def _load(
    ref: ModelRef,
    kind: Any,
    *,
    device: str,
    dtype: str,
    how: Mapping[str, Any] = MappingProxyType({}),
    stored_rounded: bool = False,
) -> LoadedModel:
    directory = Path(ref.path)
    manifest = model_manifest(directory)
    if manifest.manifest_sha256 != ref.manifest_sha256:
        raise DigestMismatchError(f"model directory {directory.name} does not match its recorded manifest digest")
    _refuse_remote_code(directory, stored_rounded=stored_rounded)
    model = _load_weights(directory, kind, dtype, how)
    tokenizer = _load_tokenizer(directory)
    _check_tokenizer(tokenizer, model.config, directory.name)
    model = (model if how else model.to(device)).eval()
    context = int(getattr(model.config, "max_position_embeddings", 0) or 2048)
    return LoadedModel(model, tokenizer, context, manifest.manifest_sha256)


def _refuse_remote_code(directory: Path, *, stored_rounded: bool) -> None:
    if not (directory / _CONFIG).is_file():
        raise ModelDirectoryError(f"model directory {directory.name} has no {_CONFIG}")
    if not any(directory.glob("*.safetensors")):
        raise ModelDirectoryError(f"model directory {directory.name} holds no safetensors weights")
    for path in directory.glob("*.json"):
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as exc:
            raise ModelDirectoryError(f"model file {path.name} is not JSON") from exc
        if isinstance(document, dict) and "auto_map" in document:
            raise ModelDirectoryError(f"model file {path.name} asks for remote code (auto_map); remove that entry")
        if path.name == _CONFIG and not stored_rounded and _asks(_ROUNDED, document):
            raise ModelDirectoryError(
                f"the weights of {directory.name} say themselves how they are quantised (quantization_config), which "
                "overrides how they are attacked; make full weights of them, with python -m ml.full_weights where the "
                "whole model is stored so, and name the served forms in the policy"
            )


def _asks(key: str, document: object) -> bool:
    """Whether `key` stands anywhere in a configuration, in that of a part of the model too."""
    if isinstance(document, dict):
        return document.get(key) is not None or any(_asks(key, value) for value in document.values())
    return isinstance(document, list) and any(_asks(key, value) for value in document)


def _load_weights(directory: Path, kind: Any, dtype: str, how: Mapping[str, Any]) -> Any:
    try:
        model, info = kind.from_pretrained(  # a local directory, checked by digest # nosec B615
            directory,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=getattr(torch, dtype),
            output_loading_info=True,
            **how,
        )
    except Exception as exc:  # noqa: BLE001 - a parser boundary: the library raises many types on a broken directory
        raise ModelDirectoryError(f"model directory {directory.name} cannot be loaded: {type(exc).__name__}") from exc
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        if found := list(info.get(kind) or ()):
            raise ModelDirectoryError(f"model directory {directory.name}: {len(found)} {kind.replace('_', ' ')}")
    return model


def _load_tokenizer(directory: Path) -> Any:
    try:
        tokenizer = AutoTokenizer.from_pretrained(  # a local directory, checked by digest # nosec B615
            directory, local_files_only=True, trust_remote_code=False
        )
    except Exception as exc:  # noqa: BLE001 - a parser boundary, as above
        raise TokenizerMismatchError(f"model directory {directory.name} has no loadable tokenizer") from exc
    if not tokenizer.is_fast:
        raise TokenizerMismatchError(f"model directory {directory.name} needs tokenizer.json: offsets are required")
    return tokenizer


def _check_tokenizer(tokenizer: Any, config: Any, name: str) -> None:
    if tokenizer.eos_token_id is None:
        raise TokenizerMismatchError(f"the tokenizer of {name} has no end-of-sequence token")
    if len(tokenizer) > config.vocab_size:
        raise TokenizerMismatchError(
            f"the tokenizer of {name} has {len(tokenizer)} entries, the model {config.vocab_size} rows"
        )
    for token in ("bos_token_id", "eos_token_id"):
        expected, found = getattr(config, token, None), getattr(tokenizer, token)
        expected_ids = expected if isinstance(expected, list) else [expected]
        if expected is not None and found is not None and found not in expected_ids:
            raise TokenizerMismatchError(f"{token} of {name} differs between tokenizer and model")
