"""Training and serving from the command line; the parser and the deletion, which needs no tensor, are in `__main__`."""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields
from typing import Any, Final

import torch

from ml.command_line import file_ref, print_progress
from ml.data.records import read_records
from ml.errors import SpecError
from ml.exact.orders import cyclic_orders, matched_orders
from ml.exact.plan import Plan, layer_groups, person_slice, separate_plan, slices_by_person
from ml.exact.serving import write_serving_copy
from ml.exact.store import ExactManifest, ExactSettings, has_manifest, read_manifest
from ml.exact.training import ExactSpec, number_of_layers, train_exact
from ml.models.load import model_ref
from ml.specs import Record

_SETTINGS: Final = tuple(field.name for field in fields(ExactSettings))
_PLAN: Final = ("separate", "slices", "orders", "probabilities", "layers_per_slice")
_BEGINNING: Final = (*_PLAN, "seed", "device", *_SETTINGS)
"""Options that only begin a store."""


def train_command(options: argparse.Namespace) -> None:
    """Train what the plan has and the store has not."""
    if options.threads is not None:
        if options.threads < 1:
            raise SpecError("--threads is at least 1; leave it out for the default")
        torch.set_num_threads(options.threads)
    manifest = train_exact(_spec(options), on_progress=print_progress)
    sys.stdout.write(f"{len(manifest.adapters)} adapters on file; manifest sha256 {manifest.sha256}\n")


def serve_command(options: argparse.Namespace) -> None:
    """Write a model directory with the serving adapters folded in."""
    name = None if options.person is None else person_slice(options.person)
    copy = write_serving_copy(options.store, model_ref(options.base), options.out, slice_name=name)
    sys.stdout.write(f"{len(copy.adapters)} adapters on the base; manifest sha256 {copy.manifest_sha256}\n")
    if copy.adapters:
        sys.stdout.write(
            "The weights hold these adapters for good: destroy every copy of them when one of them is deleted.\n"
        )


def _spec(options: argparse.Namespace) -> ExactSpec:
    """What to train: a store that is there goes on as it began.

    Raises:
        SpecError: an option would change what a store was begun with, or none says what kind of store to begin.
    """
    chosen = {name: getattr(options, name) for name in _BEGINNING if getattr(options, name) is not None}
    records = file_ref(options.records)
    read = read_records(records, what="training records")
    store, base = str(options.store), model_ref(options.base)
    if not has_manifest(options.store):
        settings = ExactSettings(**{name: chosen[name] for name in _SETTINGS if name in chosen})
        seed, device = chosen.get("seed", 0), chosen.get("device", "cpu")
        plan = _plan(chosen, read, layers=number_of_layers(base), seed=seed)
        return ExactSpec(store, base, records, plan, settings, seed, device)
    if chosen:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in chosen)
        raise SpecError(f"store {options.store.name} is there and keeps what it began with; leave out {names}")
    begun = read_manifest(options.store)
    plan = _continued(begun, read)
    return ExactSpec(store, base, records, plan, begun.settings, begun.seed, begun.device, begun.dtype)


def _continued(begun: ExactManifest, records: tuple[Record, ...]) -> Plan:
    if begun.plan.kind == "stacked":
        return begun.plan
    return separate_plan(records, layers=len(begun.plan.groups[0]), earlier=begun.plan)


def _plan(chosen: dict[str, Any], records: tuple[Record, ...], *, layers: int, seed: int) -> Plan:
    count = chosen.get("slices")
    if "separate" in chosen:
        if others := len(set(_PLAN) & set(chosen)) - 1:
            raise SpecError(f"--separate makes one slice per person; leave out the {others} other options of the plan")
        return separate_plan(records, layers=layers)
    if count is None:
        raise SpecError("a new store needs --slices N, or --separate for one adapter per person")
    groups = layer_groups(layers, count, per_position=chosen.get("layers_per_slice"))
    slices = slices_by_person(records, count=count, seed=seed)
    wanted = chosen.get("orders", count)
    if "probabilities" not in chosen:
        return Plan("stacked", slices, cyclic_orders(count, wanted), groups)
    if len(chosen["probabilities"]) != count:
        raise SpecError(f"{len(chosen['probabilities'])} deletion probabilities were given for {count} slices")
    return Plan("stacked", slices, matched_orders(chosen["probabilities"], wanted), groups)
