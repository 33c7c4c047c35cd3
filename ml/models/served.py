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
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any, Final

import torch
from transformers import BitsAndBytesConfig

from ml.documents import Json
from ml.errors import LoaderMissingError, ModelDirectoryError, SpecError
from ml.models.adapter_files import with_adapters
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
_FOUR_BITS: Final = "Linear4bit"
_BY_PROCESSOR: Final = "support_avx512bf16_for_cpu"
_WITH: Final = re.compile(r"with(_[1-9])+")


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
        compute_alike(loaded.model)
        _refuse_unquantised(loaded.model, role)
        return loaded
    if role not in combinations_of(len(adapters)):
        raise SpecError(f"a candidate is not served as {role!r}")
    chosen = [adapters[number - 1] for number in _numbers(role)]
    return replace(candidate, model=with_adapters(copy.deepcopy(candidate.model), chosen).eval())


def compute_alike(model: Any) -> None:
    """Keep 4-bit layers from another way of computing that the library takes on some processors only: it rounds once
    more, so evidence would not repeat elsewhere, and it fails on layers of some sizes."""
    for name, layer in model.named_modules():
        if type(layer).__name__ != _FOUR_BITS:
            continue
        if not hasattr(layer, _BY_PROCESSOR):
            raise ModelDirectoryError(
                f"layer {name} of {_LIBRARY} does not say how it computes ({_BY_PROCESSOR}); use the version that "
                "lethe[quantised] installs"
            )
        setattr(layer, _BY_PROCESSOR, False)


def _refuse_unquantised(model: Any, role: str) -> None:
    """A loader that passes a layer over would have it attacked as if it had been rounded."""
    layers = linear_layers(model)
    kept = [name for name, layer in layers.items() if not type(layer).__module__.startswith(_LIBRARY)]
    if not layers:
        raise ModelDirectoryError(f"the model has no linear layer that {_LIBRARY} could round; leave {role} out")
    if kept:
        raise ModelDirectoryError(f"{len(kept)} layers of artefact {role} were left as they are, {kept[0]} first")


def _numbers(role: str) -> list[int]:
    if not _WITH.fullmatch(role):
        raise SpecError(f"a candidate is not served as {role!r}")
    return [int(number) for number in role.split("_")[1:]]
