"""Serve the adapters that survive: attached to the base in memory, or folded into a copy of it on disk.

A folded copy cannot be taken apart again. It is therefore on record in the manifest before it leaves the store, a
deletion lists it, and whoever made it must destroy it with the adapters. Attached adapters need no such care.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from safetensors.torch import load
from torch import Tensor

from ml.digests import document_sha256, model_manifest, verify_file
from ml.errors import DigestMismatchError, SpecError
from ml.exact.store import (
    AdapterEntry,
    ExactManifest,
    ServedCopy,
    adapter_path,
    opened,
    read_manifest,
    refuse_rollback,
    serving_path,
    write_manifest,
)
from ml.files import flush
from ml.models.adapters import attach_adapter, merge_adapter, put_adapter_tensors
from ml.models.load import LoadedModel, load_model
from ml.models.save import partial_directory, publish, save_model
from ml.specs import ModelRef


def read_adapters(store: Path, entries: Sequence[AdapterEntry]) -> dict[str, Tensor]:
    """The weights of `entries` by name; raises `DigestMismatchError` where a file is not the recorded one."""
    tensors: dict[str, Tensor] = {}
    for entry in entries:
        path = adapter_path(store, entry.order, entry.position)
        try:
            verify_file(path, entry.sha256)
        except DigestMismatchError as exc:
            raise DigestMismatchError(
                f"adapter {path.name} is missing or does not match its recorded sha256; it may have been deleted, so "
                "put nothing back from a copy: run this again, and if it stays so, train a new store"
            ) from exc
        tensors |= load(path.read_bytes())
    return tensors


def load_serving(
    store: Path, base: ModelRef, *, slice_name: str | None = None, device: str = "cpu", dtype: str = "float32"
) -> LoadedModel:
    """Load the base with the serving adapters attached and frozen; the base alone where none survives.

    Args:
        slice_name: whose adapter, where they are separate.
    Returns:
        The base's own kind of model, with the adapters in its layers and a digest that names both; nothing is merged.
    Raises:
        DigestMismatchError: an adapter is not the recorded one, or `base` not the base of the store.
        SpecError: as for `ExactManifest.serving` and `refuse_rollback`, or there is no store.
    """
    manifest = read_manifest(store)
    refuse_rollback(store, manifest)
    entries = manifest.serving(slice_name)
    loaded = _assembled(store, manifest, entries, base, device=device, dtype=dtype)
    return replace(loaded, model=loaded.model.get_base_model()) if entries else loaded


def write_serving_copy(store: Path, base: ModelRef, directory: Path, *, slice_name: str | None = None) -> ServedCopy:
    """Write what `load_serving` loads as one plain model directory, with the adapters folded into the weights.

    It is made inside the store, where the next command clears what a killed one left, and moved out once it is on
    record; a call killed while moving may leave `NAME.partial`, which is a copy on record like the finished one.
    Arguments and errors as for `load_serving`.

    Raises:
        SpecError: something is at `directory` already, it lies in the store, or another command is at work there.
    """
    if directory.exists() or directory.is_symlink():
        raise SpecError(f"{directory.name} exists; name a directory that does not")
    if directory.resolve().is_relative_to(store.resolve()):
        raise SpecError(f"{directory.name} would lie in the store; name a directory outside of it")
    with opened(store) as manifest:
        entries = manifest.serving(slice_name)
        loaded = _assembled(store, manifest, entries, base, device="cpu", dtype=manifest.dtype)
        built = serving_path(store)
        save_model(merge_adapter(loaded.model) if entries else loaded.model, loaded.tokenizer, built)
        copy = ServedCopy(model_manifest(built).manifest_sha256, tuple(entry.sha256 for entry in entries))
        if entries and copy not in manifest.copies:
            write_manifest(store, replace(manifest, copies=(*manifest.copies, copy)))
        partial = partial_directory(directory)
        partial.rmdir()
        shutil.move(built, partial)  # `directory` may be on another file system
        flush(partial)
        publish(partial, directory)
    return copy


def _assembled(
    store: Path, manifest: ExactManifest, entries: Sequence[AdapterEntry], base: ModelRef, *, device: str, dtype: str
) -> LoadedModel:
    if base.manifest_sha256 != manifest.base_manifest_sha256:
        raise DigestMismatchError("the base is not the one that the adapters were trained on; give that one")
    loaded = load_model(base, device=device, dtype=dtype)
    if not entries:
        return loaded
    layers = [layer for entry in entries for layer in entry.layers]
    settings = manifest.settings
    model = attach_adapter(loaded.model, rank=settings.rank, alpha=settings.alpha, seed=0, blocks=layers)
    put_adapter_tensors(model, read_adapters(store, entries))
    digest = document_sha256([base.manifest_sha256, [entry.sha256 for entry in entries]])
    return replace(loaded, model=model.to(device).eval(), manifest_sha256=digest)
