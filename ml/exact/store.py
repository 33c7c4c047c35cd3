"""The adapters of one shard on disk, each in a file of its own, and the manifest that names what each learned from.

    manifest.json                   ExactManifest
    adapters/ORDER-POSITION.safetensors
    checkpoints/                    of the adapter in training
    deletions/NUMBER.json           what each deletion did, counted from 1; there once it is done
    deletions/pending.json          what the deletion at work is going to do
    serving/                        of a folded copy in the making
    lock

Standard library only: a deletion must need no tensor. Must never hold a text, a value, a name or a path; ids of records
are opaque. An adapter is on file only while the manifest names it.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ml.digests import canonical_json
from ml.documents import Stored, read_version
from ml.errors import DeletionIncompleteError, SpecError, StoreInUseError
from ml.exact.plan import Plan, longest
from ml.exact.results import DeletionResult
from ml.files import flush, sync_directory, write_atomically

SCHEMA_VERSION: Final = 1
_DIRECTORIES: Final = ("adapters", "checkpoints", "deletions", "serving")
_PENDING: Final = "pending.json"


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
        manifest.plan.check_structure()
        for number, (order, prefix) in enumerate(zip(manifest.plan.orders, manifest.prefixes(), strict=True)):
            planned = [(place, manifest.plan.slices[part].name) for place, part in enumerate(order)]
            if [(entry.position, entry.slice) for entry in prefix] != planned[: len(prefix)]:
                raise SpecError(f"exact manifest: the adapters of order {number} are not a beginning of it")
        return manifest

    def prefixes(self) -> tuple[tuple[AdapterEntry, ...], ...]:
        """The adapters on file of every order, first trained first."""
        found: list[list[AdapterEntry]] = [[] for _ in self.plan.orders]
        for entry in sorted(self.adapters, key=lambda entry: entry.position):
            if not 0 <= entry.order < len(found):
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
        StoreInUseError: another command is at work in it.
        SpecError: `store` holds a link: what lies behind would not be deleted.
    """
    _refuse_links(store)
    with os.fdopen(os.open(store / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666), "r+") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            raise StoreInUseError(
                "another command is at work in this store; stop it or wait, then run this again"
            ) from exc
        yield


@contextmanager
def opened(store: Path) -> Iterator[ExactManifest]:
    """Keep other commands off `store`, finish what a killed one left to delete, and hand out the manifest.

    Raises:
        SpecError: as `locked`, `read_manifest` and `finish`.
    """
    read_manifest(store)  # before a lock file appears in what is no store
    with locked(store):
        manifest = read_manifest(store)
        finish(store, manifest)
        yield manifest


def copy_store(store: Path, trial: Path, expected: ExactManifest) -> None:
    """Copy manifest, adapters and results of `store` to `trial`, whole or not at all; what is there is replaced.

    Raises:
        StoreInUseError: another command is at work in the store, or made it another than `expected` meanwhile.
    """
    with opened(store) as manifest:
        if manifest != expected:
            raise StoreInUseError(f"store {store.name} has just been changed; run this again")
        partial = trial.with_name(f"{trial.name}.partial")
        for old in (partial, trial):
            if old.exists():
                shutil.rmtree(old)
        partial.mkdir(parents=True)
        for name in ("adapters", "deletions"):
            if (store / name).is_dir():
                shutil.copytree(store / name, partial / name)
        flush(partial)
        write_manifest(partial, manifest)
        partial.rename(trial)
        sync_directory(trial.parent)


def finish(store: Path, manifest: ExactManifest) -> None:
    """Finish what a killed command left to delete; the store must be locked.

    A pending result is published if `manifest` is what that deletion led to, and discarded if it never got there.

    Raises:
        SpecError: files and manifest are not of one time: part of the store was put back, or removed, by hand.
        DeletionIncompleteError: as for `remove_unnamed`.
    """
    if manifest.adapters and not (store / "adapters").is_dir():
        raise SpecError(f"store {store.name} has no adapters directory, but its manifest names adapters; do not use it")
    pending = _read_pending(store)
    is_decided = pending is not None and pending.manifest_after_sha256 == manifest.sha256
    if pending is not None and not is_decided and pending.manifest_before_sha256 != manifest.sha256:
        raise _not_of_one_time(store)
    if _result_numbers(store) != list(range(1, manifest.deletions + 1 - is_decided)):
        raise _not_of_one_time(store)
    remove_unnamed(store, manifest)
    _remove_tree(serving_path(store))
    if pending is not None and is_decided:
        publish_pending(store, pending)
    elif pending is not None:
        (store / "deletions" / _PENDING).unlink()


def refuse_rollback(store: Path, manifest: ExactManifest) -> None:
    """Raise `SpecError` if `store` holds the result of a deletion that `manifest` knows nothing of."""
    if max(_result_numbers(store), default=0) > manifest.deletions:
        raise _not_of_one_time(store)


def refuse_remains(store: Path) -> None:
    """Raise `SpecError` if anything of a store lies in `store`, which has no manifest."""
    if found := [name for name in _DIRECTORIES if (store / name).exists()]:
        raise SpecError(f"{store.name} has no manifest but {', '.join(found)}, of a store; destroy it, or name another")


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


def serving_path(store: Path) -> Path:
    """Where a folded copy is made before it is on record."""
    return store / "serving"


def write_pending(store: Path, result: DeletionResult) -> None:
    """Write down what a deletion is going to do; it counts for nothing before `publish_pending`."""
    (store / "deletions").mkdir(exist_ok=True)
    write_atomically(store / "deletions" / _PENDING, canonical_json(result.to_document()))


def publish_pending(store: Path, result: DeletionResult) -> None:
    """Give the pending result its number: the deletion is done. Raises `SpecError` rather than replace another."""
    path = deletion_path(store, result.number)
    if path.exists():
        raise _not_of_one_time(store)
    (store / "deletions" / _PENDING).replace(path)
    sync_directory(path.parent)


def read_results(store: Path) -> tuple[DeletionResult, ...]:
    """What the deletions that were done in `store` did, first first; raises `SpecError` where one is malformed."""
    return tuple(_read_result(deletion_path(store, number)) for number in _result_numbers(store))


def remove_unnamed(store: Path, manifest: ExactManifest) -> None:
    """Delete every file of weights that `manifest` does not name: a deletion or a training was killed half way.

    Raises:
        DeletionIncompleteError: a file is still there.
    """
    named = {adapter_path(store, entry.order, entry.position) for entry in manifest.adapters}
    directory = store / "adapters"
    if directory.is_dir():
        for path in set(directory.iterdir()) - named:
            path.unlink()
        sync_directory(directory)
        if left := len(set(directory.iterdir()) - named):
            raise DeletionIncompleteError(f"{left} files of weights in store {store.name} could not be removed")


def remove_checkpoints(store: Path) -> None:
    """Delete what is kept of trainings that are not finished; they begin again.

    Raises:
        DeletionIncompleteError: it is still there.
    """
    _remove_tree(store / "checkpoints")


def _remove_tree(directory: Path) -> None:
    if directory.is_dir():
        shutil.rmtree(directory)
        sync_directory(directory.parent)
        if directory.exists():
            raise DeletionIncompleteError(f"{directory.name} in store {directory.parent.name} could not be removed")


def _refuse_links(store: Path) -> None:
    """Removing a name must remove the bytes: no link, no second name, nothing but plain files among the weights."""
    for name in (*_DIRECTORIES, "lock", "manifest.json"):
        path = store / name
        if path.is_symlink() or (name in _DIRECTORIES and path.exists() and not path.is_dir()):
            raise SpecError(f"{name} in store {store.name} is a link or of the wrong kind; put the thing itself there")
    for name in _DIRECTORIES[:3]:
        for path in (store / name).iterdir() if (store / name).is_dir() else ():
            found = path.lstat()
            if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
                raise SpecError(
                    f"{name}/{path.name} in store {store.name} is a link, has a second name, or is no plain file, so "
                    "that deleting it would not destroy it; put a plain copy in its place and destroy the other"
                )


def _result_numbers(store: Path) -> list[int]:
    """Numbers of the deletions that were done, ascending."""
    return sorted(int(path.stem) for path in (store / "deletions").glob("*.json") if path.stem.isdecimal())


def _read_pending(store: Path) -> DeletionResult | None:
    path = store / "deletions" / _PENDING
    return _read_result(path) if path.is_file() else None


def _read_result(path: Path) -> DeletionResult:
    try:
        return DeletionResult.from_document(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as exc:
        raise SpecError(f"deletion result {path.name} cannot be read; put it back as it was") from exc


def _not_of_one_time(store: Path) -> SpecError:
    return SpecError(
        f"store {store.name}: manifest and results of deletions are not of one time; a part was put back or removed, "
        "or a deletion is just being done: run this again, and if it stays so, destroy the store and train a new one"
    )


def _manifest_path(store: Path) -> Path:
    return store / "manifest.json"
