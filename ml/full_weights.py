"""Make full weights of a model whose knowledge lies in LoRA adapters, or in weights that are stored rounded.

    python -m ml.full_weights --model DIR [--adapter DIR]... --out DIR

Deletion edits, attacks and releases full weights: they are the version to register and to delete from. Adapters are
added in the order given, on top of the model as it stands; weights that bitsandbytes stored in 8 or 4 bits are brought
back to floating point first (its library must be installed). What was made says everything the parts say, so whoever
keeps the parts keeps what a later deletion takes out: destroy them with the version before.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch
from transformers import AutoModelForCausalLM

from ml.command_line import USAGE_ERROR
from ml.digests import model_manifest
from ml.errors import MlError, ModelDirectoryError, SpecError
from ml.models.adapter_files import with_adapters
from ml.models.load import LoadedModel, load_model, model_ref, stored_rounding
from ml.models.save import publish_model
from ml.models.served import refuse_missing_loader
from ml.specs import ModelRef

_STORED_BY: Final = "bitsandbytes"


def full_weights(ref: ModelRef, adapters: Sequence[ModelRef] = ()) -> LoadedModel:
    """Load the model at `ref` in float32 with `adapters` added into its weights.

    Raises:
        SpecError: these are full weights already, and there is nothing to add.
        LoaderMissingError: the weights are stored by a library that is not installed.
        ModelDirectoryError, DigestMismatchError: a directory is unsafe, broken, stored in a way that is not known, or
            not the one that was named.
    """
    rounding = stored_rounding(Path(ref.path))
    if rounding is None and not adapters:
        raise SpecError(f"model directory {Path(ref.path).name} holds full weights already; register it as it is")
    loaded = load_model(ref) if rounding is None else _brought_back(ref, rounding)
    if not adapters:
        return loaded
    return replace(loaded, model=with_adapters(loaded.model, adapters).eval())


def _brought_back(ref: ModelRef, rounding: dict[str, Any]) -> LoadedModel:
    bits = {name for name in ("load_in_4bit", "load_in_8bit") if rounding.get(name)}
    if rounding.get("quant_method", _STORED_BY if bits else None) != _STORED_BY:
        raise ModelDirectoryError(
            f"the weights of {Path(ref.path).name} are not stored by {_STORED_BY}; make full weights of them with the "
            "library that stored them"
        )
    refuse_missing_loader(("bnb_nf4" if "load_in_4bit" in bits else "bnb_int8",))
    loaded = load_model(ref, stored_rounded=True)
    try:
        model = loaded.model.dequantize()
        # What comes back keeps the ways of its old form, and cannot be saved in another.
        plain = AutoModelForCausalLM.from_config(model.config, dtype=torch.float32)
        plain.load_state_dict(model.state_dict())
    except Exception as exc:  # noqa: BLE001 - a parser boundary: the libraries raise many types on odd weights
        kind = type(exc).__name__
        raise ModelDirectoryError(f"the weights of {Path(ref.path).name} cannot be brought back: {kind}") from exc
    # How its makers have it sample is part of what is served.
    plain.generation_config = model.generation_config
    return replace(loaded, model=plain.eval())


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the model and print its digest; 2 after a message when the request cannot be met."""
    parser = argparse.ArgumentParser(prog="python -m ml.full_weights", description="Make full weights of a model.")
    parser.add_argument("--model", type=Path, required=True, help="directory of the model")
    parser.add_argument("--adapter", type=Path, action="append", default=[], help="directory of a LoRA adapter; repeat")
    parser.add_argument("--out", type=Path, required=True, help="directory to make")
    options = parser.parse_args(arguments)
    try:
        if options.out.exists():
            raise SpecError(f"{options.out.name} exists already; name a directory to make")
        refs = [ModelRef(str(path), model_manifest(path).manifest_sha256) for path in options.adapter]
        made = full_weights(model_ref(options.model), refs)
        publish_model(made.model, made.tokenizer, options.out)
    except MlError as exc:
        sys.stderr.write(f"{exc.code}: {exc}\n")
        return USAGE_ERROR
    sys.stdout.write(f"manifest {model_manifest(options.out).manifest_sha256}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
