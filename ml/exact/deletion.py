"""Delete records exactly: drop every adapter that learned from them, or on top of one that did; nothing is trained.

Must never load a tensor: a deletion is bookkeeping and unlinking. What remains has the bytes it would have had if the
dropped slices had never been trained, because no other adapter depends on them. That says nothing about copies made
earlier: model directories with adapters folded in are listed for destruction, backups are not known here.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from ml.digests import canonical_json
from ml.documents import Stored, read_version
from ml.errors import EmptySetError
from ml.exact.plan import surviving_prefix
from ml.exact.store import (
    AdapterEntry,
    ExactManifest,
    deletion_path,
    opened,
    remove_checkpoints,
    remove_unnamed,
    write_manifest,
)
from ml.files import write_atomically
from ml.reports import Guarantee

GUARANTEE: Final[Guarantee] = "exact_sharded"
SCHEMA_VERSION: Final = 1
_NOTES: Final = (
    "Exact with respect to the adapters only: base, tokenizer, settings and the plan were fixed before and are kept; "
    "if the base learned from the records, it still knows them.",
    "Listed copies hold dropped adapters in their weights and must be destroyed, and processes that serve must load "
    "again; copies and backups made by other means are not known here.",
)


@dataclass(frozen=True, slots=True)
class AdapterName:
    """One adapter by order, position, slice and the digest of its file."""

    order: int
    position: int
    slice: str
    sha256: str


@dataclass(frozen=True, slots=True)
class DeletionResult(Stored):
    """What one deletion did, by opaque ids and digests.

    `hit` names the slices that held a deleted record. `dropped` are the adapters whose files are gone. `serves` are
    those that serve now: of stacked slices the longest prefix, and none means the base alone; of separate adapters all
    that remain, each by itself. `may_add` names for every order the slices, less the deleted records, that training it
    further would add. `copies_to_destroy` are manifest digests of model directories that hold dropped adapters.
    """

    guarantee: Guarantee
    number: int
    base_manifest_sha256: str
    records: tuple[str, ...]
    hit: tuple[str, ...]
    dropped: tuple[AdapterName, ...]
    serves: tuple[AdapterName, ...]
    may_add: tuple[tuple[str, ...], ...]
    copies_to_destroy: tuple[str, ...]
    manifest_before_sha256: str
    manifest_after_sha256: str
    notes: tuple[str, ...] = _NOTES
    schema_version: int = SCHEMA_VERSION

    @classmethod
    def from_document(cls, document: object) -> DeletionResult:
        """Read a result; raises `SpecError` naming the field that does not fit."""
        return read_version(cls, document, where="deletion result", version=SCHEMA_VERSION)


def delete_records(store: Path, record_ids: Collection[str]) -> DeletionResult:
    """Delete `record_ids` from everything in `store`.

    1. Finish a deletion that was killed.
    2. Decide what goes and what serves; write the result down; delete all checkpoints.
    3. Replace the manifest by one that names neither the records nor the dropped adapters.
    4. Delete the files of the dropped adapters.

    Killed before step 3 it deleted nothing but checkpoints and can be called again; killed later, every command on
    the store finishes step 4 first.

    Raises:
        EmptySetError: there is no record to delete.
        UnknownRecordError: a record is in no slice; nothing was changed.
        SpecError: there is no store, or another command is at work in it.
    """
    if not record_ids:
        raise EmptySetError("no record to delete was named")
    with opened(store) as before:
        after, result = decide(before, record_ids)
        path = deletion_path(store, result.number)
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, canonical_json(result.to_document()))
        remove_checkpoints(store)
        write_manifest(store, after)
        remove_unnamed(store, after)
    return result


def decide(manifest: ExactManifest, record_ids: Collection[str]) -> tuple[ExactManifest, DeletionResult]:
    """What a deletion leaves, and what it will say: pure; errors as for `delete_records`."""
    plan = manifest.plan
    hit = plan.slices_of(record_ids)
    prefixes = [surviving_prefix(order, hit) for order in plan.orders]
    kept = tuple(entry for entry in manifest.adapters if entry.position < len(prefixes[entry.order]))
    dropped = tuple(entry for entry in manifest.adapters if entry not in kept)
    gone = {entry.sha256 for entry in dropped}
    stale = tuple(copy for copy in manifest.copies if gone & set(copy.adapters))
    after = replace(
        manifest,
        plan=plan.without(record_ids),
        adapters=kept,
        copies=tuple(copy for copy in manifest.copies if copy not in stale),
        deletions=manifest.deletions + 1,
    )
    result = DeletionResult(
        guarantee=GUARANTEE,
        number=after.deletions,
        base_manifest_sha256=manifest.base_manifest_sha256,
        records=tuple(sorted(set(record_ids))),
        hit=tuple(plan.slices[number].name for number in sorted(hit)),
        dropped=_names(dropped),
        serves=_names(after.serving() if plan.kind == "stacked" else kept),
        may_add=_may_add(after),
        copies_to_destroy=tuple(copy.manifest_sha256 for copy in stale),
        manifest_before_sha256=manifest.sha256,
        manifest_after_sha256=after.sha256,
    )
    return after, result


def _names(entries: Sequence[AdapterEntry]) -> tuple[AdapterName, ...]:
    return tuple(AdapterName(entry.order, entry.position, entry.slice, entry.sha256) for entry in entries)


def _may_add(manifest: ExactManifest) -> tuple[tuple[str, ...], ...]:
    plan = manifest.plan
    return tuple(
        tuple(plan.slices[number].name for number in order[len(prefix) :])
        for order, prefix in zip(plan.orders, manifest.prefixes(), strict=True)
    )
