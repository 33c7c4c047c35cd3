"""The adapters of one shard on disk, each in a file of its own, and the manifest that names what each learned from.

    manifest.json                   ExactManifest
    adapters/ORDER-POSITION.safetensors
    checkpoints/                    of the adapter in training
    deletions/NUMBER.json           what each deletion did

Standard library only: a deletion must need no tensor. Must never hold a text, a value, a name or a path; ids of records
are opaque. An adapter is on file only while the manifest names it.
"""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ml.digests import canonical_json
from ml.documents import Stored, read_version
from ml.errors import SpecError
from ml.exact.plan import Plan, longest
from ml.files import sync_directory, write_atomically

SCHEMA_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class ExactSettings:
    """How each adapter is trained. Nothing here may depend on what the records say: no early stopping, no search."""

    rank: int = 8
    alpha: float = 16.0
    epochs: int = 10
    batch_rows: int = 16
    learning_rate: float = 1e-3
    warmup_steps: int = 0

    def check(self) -> None:
        """Raise `SpecError` unless something can be trained with these."""
        if min(self.rank, self.epochs, self.batch_rows) < 1 or self.warmup_steps < 0 or self.learning_rate <= 0:
            raise SpecError(
                "rank, epochs and rows per batch are at least 1, a learning rate above 0, a warm-up not below"
            )


@dataclass(frozen=True, slots=True)
class AdapterEntry:
    """One adapter on file: where it stands, what it learned from, and its bytes by digest.

    `lineage_sha256` covers everything that decides the bytes on one machine: base, the lineages before it in its
    order, its own records by `records_sha256`, layers, settings and the store's seed. `seed` is drawn from it alone.
    """

    order: int
    position: int
    slice: str
    layers: tuple[int, ...]
    records: int
    records_sha256: str
    lineage_sha256: str
    seed: int
    steps: int
    sha256: str
    environment: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class ServedCopy:
    """A model directory with adapters folded into its weights: it must be destroyed with any of its adapters."""

    manifest_sha256: str
    adapters: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ExactManifest(Stored):
    """What is in a store: the plan without deleted records, the settings, and every adapter by order and position."""

    base_manifest_sha256: str
    plan: Plan
    settings: ExactSettings
    seed: int
    device: str
    dtype: str
    adapters: tuple[AdapterEntry, ...] = ()
    copies: tuple[ServedCopy, ...] = ()
    deletions: int = 0
    schema_version: int = SCHEMA_VERSION

    @classmethod
    def from_document(cls, document: object) -> ExactManifest:
        """Read a manifest; raises `SpecError` naming the field that does not fit."""
        manifest = read_version(cls, document, where="exact manifest", version=SCHEMA_VERSION)
        for number, (order, prefix) in enumerate(zip(manifest.plan.orders, manifest.prefixes(), strict=True)):
            planned = [(place, manifest.plan.slices[part].name) for place, part in enumerate(order)]
            if [(entry.position, entry.slice) for entry in prefix] != planned[: len(prefix)]:
                raise SpecError(f"exact manifest: the adapters of order {number} are not a beginning of it")
        return manifest

    def prefixes(self) -> tuple[tuple[AdapterEntry, ...], ...]:
        """The adapters on file of every order, first trained first."""
        found: list[list[AdapterEntry]] = [[] for _ in self.plan.orders]
        for entry in sorted(self.adapters, key=lambda entry: entry.position):
            if entry.order >= len(found):
                raise SpecError("exact manifest: an adapter is of an order that the plan does not have")
            found[entry.order].append(entry)
        return tuple(tuple(prefix) for prefix in found)

    def serving(self, slice_name: str | None = None) -> tuple[AdapterEntry, ...]:
        """The adapters that serve, first trained first; none of them is the base itself.

        Args:
            slice_name: of a plan of separate adapters, the one to serve with; left out for stacked slices, of which
                the longest prefix on file serves, the first order's if several are as long.
        Raises:
            SpecError: a name for stacked slices, none for separate ones, or one that the plan does not have.
        """
        if self.plan.kind == "stacked":
            if slice_name is not None:
                raise SpecError("stacked slices serve together; name no slice")
            prefixes = self.prefixes()
            return prefixes[longest(prefixes)] if prefixes else ()
        if slice_name not in {part.name for part in self.plan.slices}:
            raise SpecError("separate adapters serve one at a time; name a slice that the plan has")
        return tuple(entry for entry in self.adapters if entry.slice == slice_name)


@contextmanager
def locked(store: Path) -> Iterator[None]:
    """Keep other commands off `store` until the block of code ends; a crash lets go of it.

    Raises:
        SpecError: another command is at work in it.
    """
    with (store / "lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            raise SpecError("another command is at work in this store; stop it or wait, then run this again") from exc
        yield


@contextmanager
def opened(store: Path) -> Iterator[ExactManifest]:
    """Keep other commands off `store`, finish what a killed one left to delete, and hand out the manifest.

    Raises:
        SpecError: as `locked` and `read_manifest`.
    """
    read_manifest(store)  # before a lock file appears in what is no store
    with locked(store):
        manifest = read_manifest(store)
        remove_unnamed(store, manifest)
        yield manifest


def has_manifest(store: Path) -> bool:
    """True if something was trained, or begun, in `store`."""
    return _manifest_path(store).is_file()


def read_manifest(store: Path) -> ExactManifest:
    """Read the manifest of `store`; raises `SpecError` where there is none or it is malformed."""
    if not has_manifest(store):
        raise SpecError(f"store {store.name} has no manifest; train it first")
    try:
        document = json.loads(_manifest_path(store).read_text(encoding="utf-8"))
    except ValueError as exc:
        raise SpecError(f"the manifest of store {store.name} is not JSON") from exc
    return ExactManifest.from_document(document)


def write_manifest(store: Path, manifest: ExactManifest) -> None:
    """Replace the manifest of `store`."""
    write_atomically(_manifest_path(store), canonical_json(manifest.to_document()))


def adapter_path(store: Path, order: int, position: int) -> Path:
    """Where the weights of one adapter lie."""
    return store / "adapters" / f"{order:04d}-{position:04d}.safetensors"


def checkpoint_path(store: Path, order: int, position: int) -> Path:
    """Where the training of one adapter is kept until it is finished."""
    return store / "checkpoints" / adapter_path(store, order, position).name


def deletion_path(store: Path, number: int) -> Path:
    """Where the result of the deletion of that number lies, counted from 1."""
    return store / "deletions" / f"{number:04d}.json"


def remove_unnamed(store: Path, manifest: ExactManifest) -> None:
    """Delete every file of weights that `manifest` does not name: a deletion or a training was killed half way."""
    named = {adapter_path(store, entry.order, entry.position) for entry in manifest.adapters}
    directory = store / "adapters"
    if directory.is_dir():
        for path in set(directory.iterdir()) - named:
            path.unlink()
        sync_directory(directory)


def remove_checkpoints(store: Path) -> None:
    """Delete what is kept of trainings that are not finished; they begin again."""
    if (store / "checkpoints").is_dir():
        shutil.rmtree(store / "checkpoints")
        sync_directory(store)


def _manifest_path(store: Path) -> Path:
    return store / "manifest.json"
