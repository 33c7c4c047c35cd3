"""Serve the adapters that survive: attached to the base in memory, or folded into a copy of it on disk.

A folded copy cannot be taken apart again. It is therefore on record in the manifest before it exists, a deletion lists
it, and whoever made it must destroy it with the adapters. Attached adapters need no such care.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from safetensors.torch import load
from torch import Tensor

from ml.digests import document_sha256, model_manifest, verify_file
from ml.errors import DigestMismatchError, SpecError
from ml.exact.store import AdapterEntry, ExactManifest, ServedCopy, adapter_path, opened, read_manifest, write_manifest
from ml.models.adapters import attach_adapter, merge_adapter, put_adapter_tensors
from ml.models.load import LoadedModel, load_model
from ml.models.save import partial_directory, publish, save_model
from ml.specs import ModelRef


def read_adapters(store: Path, entries: Sequence[AdapterEntry]) -> dict[str, Tensor]:
    """The weights of `entries` by name; raises `DigestMismatchError` where a file is not the recorded one."""
    tensors: dict[str, Tensor] = {}
    for entry in entries:
        path = adapter_path(store, entry.order, entry.position)
        verify_file(path, entry.sha256)
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
        SpecError: as for `ExactManifest.serving`, or there is no store.
    """
    manifest = read_manifest(store)
    entries = manifest.serving(slice_name)
    loaded = _assembled(store, manifest, entries, base, device=device, dtype=dtype)
    return replace(loaded, model=loaded.model.get_base_model()) if entries else loaded


def write_serving_copy(store: Path, base: ModelRef, directory: Path, *, slice_name: str | None = None) -> ServedCopy:
    """Write what `load_serving` loads as one plain model directory, with the adapters folded into the weights.

    The copy is on record before the directory gets its name; a killed call may leave `NAME.partial` beside it, which
    is not and must be removed. Arguments and errors as for `load_serving`.

    Raises:
        SpecError: something is at `directory` already, or another command is at work in the store.
    """
    if directory.exists():
        raise SpecError(f"{directory.name} exists; name a directory that does not")
    with opened(store) as manifest:
        entries = manifest.serving(slice_name)
        loaded = _assembled(store, manifest, entries, base, device="cpu", dtype=manifest.dtype)
        partial = partial_directory(directory)
        save_model(merge_adapter(loaded.model) if entries else loaded.model, loaded.tokenizer, partial)
        copy = ServedCopy(model_manifest(partial).manifest_sha256, tuple(entry.sha256 for entry in entries))
        if entries and copy not in manifest.copies:
            write_manifest(store, replace(manifest, copies=(*manifest.copies, copy)))
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
