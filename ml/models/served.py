"""The forms in which a candidate is served, each of which a policy can have attacked (verification sections 1 and 6).

* `merged`: full weights, as released.
* `int8`, `int4`: rounded as a deployment rounds, back into floating point (`ml.models.quantise`); need no library.
* `bnb_int8`, `bnb_nf4`: loaded by the loader that serves them, bitsandbytes through transformers.
* `with_1`, `with_1_2`, ...: with adapters on top that clients may select, every combination of those that are named.
"""

from __future__ import annotations

import copy
import importlib.metadata
import importlib.util
import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any, Final

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors import safe_open
from transformers import BitsAndBytesConfig

from ml.digests import model_manifest
from ml.documents import Json
from ml.errors import DigestMismatchError, LoaderMissingError, ModelDirectoryError, SpecError
from ml.models.load import LoadedModel, load_model
from ml.models.quantise import GROUP, ROUNDINGS, linear_layers, quantised
from ml.specs import ModelRef, VerdictPolicy

LOADERS: Final[Mapping[str, Mapping[str, Any]]] = {
    "bnb_int8": {"load_in_8bit": True},
    "bnb_nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
}
MOST_ADAPTERS: Final = 4
_OTHER_ADAPTERS: Final = "Adapters other than those named, and these at another scale, unmerged, or on rounded copies."
_NO_LONGER_UNTESTED: Final = ("Adapter combinations and scalings", "Adapter scalings")
_LIBRARY: Final = "bitsandbytes"
_WITH: Final = re.compile(r"with(_[1-9])+")
_ADAPTER_CONFIG: Final = "adapter_config.json"
_PLAIN_STARTS: Final = (True, False, "gaussian")
_ADAPTER_WEIGHTS: Final = "adapter_model.safetensors"


def copies(adapters: int) -> tuple[str, ...]:
    """Every form but `merged`, where `adapters` of them may be selected."""
    return (*ROUNDINGS, *LOADERS, *combinations_of(adapters))


def combinations_of(adapters: int) -> tuple[str, ...]:
    """The names of all combinations of so many adapters, smaller ones first.

    Raises:
        SpecError: there are more than `MOST_ADAPTERS`.
    """
    if adapters > MOST_ADAPTERS:
        raise SpecError(f"{adapters} adapters have too many combinations; name at most {MOST_ADAPTERS}")
    numbers = range(1, 1 + adapters)
    return tuple("_".join(["with", *map(str, chosen)]) for size in numbers for chosen in combinations(numbers, size))


def with_every_adapter(policy: VerdictPolicy, adapters: int) -> VerdictPolicy:
    """`policy` asking of every combination of adapters what it asks of rounded copies; a policy of its own name.

    Raises:
        SpecError: too many adapters, or no family of the policy is about more than one form.
    """
    if not adapters:
        return policy
    every = combinations_of(adapters)
    asked = {rule.id for rule in policy.families if len(rule.artefacts) > 1}
    if not asked:
        raise SpecError(f"no family of verdict policy {policy.name} is about served copies; use one that has some")
    families = tuple(
        replace(rule, artefacts=tuple(dict.fromkeys((*rule.artefacts, *every)))) if rule.id in asked else rule
        for rule in policy.families
    )
    if families == policy.families:
        return policy
    left = (_OTHER_ADAPTERS, *(sentence.replace(*_NO_LONGER_UNTESTED) for sentence in policy.not_tested))
    return replace(policy, name=f"{policy.name}-with-adapters", families=families, not_tested=left)


def refuse_missing_loader(artefacts: Iterable[str]) -> None:
    """Raise `LoaderMissingError` when one of `artefacts` is served by a library that is not installed."""
    named = next((name for name in artefacts if name in LOADERS), None)
    if named is not None and importlib.util.find_spec(_LIBRARY) is None:
        raise LoaderMissingError(
            f"artefact {named} is served by {_LIBRARY}, which is not installed; install lethe[quantised], or leave "
            f"{named} out of the policy"
        )


def identity(role: str, adapters: Sequence[ModelRef] = ()) -> dict[str, Json]:
    """What makes a served form beside the candidate's own files: part of every digest of what was measured on it."""
    if role in ROUNDINGS:
        return {"rounding": role, "group": GROUP if role == "int4" else None}
    if role in LOADERS:
        return {"loader": role, _LIBRARY: importlib.metadata.version(_LIBRARY)}
    chosen: list[Json] = [adapters[number - 1].manifest_sha256 for number in _numbers(role)]
    return {"adapters": chosen, "peft": importlib.metadata.version("peft")}


def versions(artefacts: Iterable[str]) -> dict[str, str]:
    """The libraries that make the named forms, for a report to state."""
    named = set(artefacts)
    needed = {_LIBRARY: not named.isdisjoint(LOADERS), "peft": any(map(_WITH.fullmatch, named))}
    return {library: importlib.metadata.version(library) for library, is_needed in needed.items() if is_needed}


def served(
    role: str, candidate: LoadedModel, ref: ModelRef, *, adapters: Sequence[ModelRef], device: str, dtype: str
) -> LoadedModel:
    """The candidate as it is served in form `role`; what was given is left alone.

    The 8-bit loader chooses some columns over a whole batch, as it does when it serves: a score depends a little on the
    texts beside it, the subject's as the twins'.

    Args:
        candidate, ref: in full precision, and where it came from.
        adapters: those that clients may select, counted from 1 in the name of a form.
    Raises:
        SpecError: no such form.
        LoaderMissingError: a library is missing.
        ModelDirectoryError, DigestMismatchError: an adapter is unsafe, broken, or not the one that was named.
    """
    if role in ROUNDINGS:
        return quantised(candidate, role)
    if role in LOADERS:
        refuse_missing_loader((role,))
        logging.getLogger(_LIBRARY).setLevel(logging.ERROR)  # it tells of every layer, at every pass
        how = BitsAndBytesConfig(**LOADERS[role], bnb_4bit_compute_dtype=getattr(torch, dtype))
        loaded = load_model(ref, device=device, dtype=dtype, quantisation=how)
        _refuse_unquantised(loaded.model, role)
        return loaded
    if role not in combinations_of(len(adapters)):
        raise SpecError(f"a candidate is not served as {role!r}")
    chosen = [adapters[number - 1] for number in _numbers(role)]
    return replace(candidate, model=_with_adapters(copy.deepcopy(candidate.model), chosen).eval())


def _refuse_unquantised(model: Any, role: str) -> None:
    """A loader that passes a layer over would have it attacked as if it had been rounded."""
    layers = linear_layers(model)
    kept = [name for name, layer in layers.items() if not type(layer).__module__.startswith(_LIBRARY)]
    if not layers:
        raise ModelDirectoryError(f"the model has no linear layer that {_LIBRARY} could round; leave {role} out")
    if kept:
        raise ModelDirectoryError(f"{len(kept)} layers of artefact {role} were left as they are, {kept[0]} first")


def _untie(model: Any) -> None:
    """Give the output layer weights of its own: its adapter changes that layer alone, and theirs the token vectors."""
    head, vectors = (
        getattr(layer, "base_layer", layer) for layer in (model.get_output_embeddings(), model.get_input_embeddings())
    )
    if head is not None and head.weight is vectors.weight:
        head.weight = torch.nn.Parameter(head.weight.detach().clone())
        model.config.tie_word_embeddings = False


def _numbers(role: str) -> list[int]:
    if not _WITH.fullmatch(role):
        raise SpecError(f"a candidate is not served as {role!r}")
    return [int(number) for number in role.split("_")[1:]]


def _with_adapters(model: Any, chosen: Sequence[ModelRef]) -> Any:
    """Add adapters into the weights: what a server computes that has all of them switched on at once."""
    names = [f"adapter_{place}" for place in range(len(chosen))]
    adapted = None
    for name, ref in zip(names, chosen, strict=True):
        directory = Path(ref.path)
        if model_manifest(directory).manifest_sha256 != ref.manifest_sha256:
            raise DigestMismatchError(f"adapter directory {directory.name} does not match its recorded manifest digest")
        _refuse_unfit(directory)
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
    return adapted.merge_and_unload(safe_merge=True, adapter_names=names)


def _loaded(model: Any, directory: Path, name: str) -> PeftModel:
    """Put one more adapter on a model.

    Raises:
        ModelDirectoryError: its tensors are not those of the layers that it names. To peft that is no error.
    """
    with safe_open(directory / _ADAPTER_WEIGHTS, framework="pt") as stored:
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


def _refuse_unfit(directory: Path) -> None:
    for name in (_ADAPTER_CONFIG, _ADAPTER_WEIGHTS):
        if not (directory / name).is_file():
            raise ModelDirectoryError(f"adapter directory {directory.name} has no {name}")
    try:
        config = json.loads((directory / _ADAPTER_CONFIG).read_text(encoding="utf-8"))
    except ValueError as exc:
        raise ModelDirectoryError(f"{_ADAPTER_CONFIG} of {directory.name} is not JSON") from exc
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise ModelDirectoryError(f"adapter directory {directory.name} holds no LoRA adapter")
    if config.get("megatron_config"):
        raise ModelDirectoryError(f"{_ADAPTER_CONFIG} of {directory.name} names a module to import (megatron_config)")
    if config.get("init_lora_weights", True) not in _PLAIN_STARTS:
        raise ModelDirectoryError(
            f"the adapter of {directory.name} starts by changing the model below it (init_lora_weights); convert it to "
            "a plain LoRA adapter"
        )
