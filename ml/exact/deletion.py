"""Delete records exactly: drop every adapter that learned from them, or on top of one that did; nothing is trained.

Must never load a tensor: a deletion is bookkeeping and unlinking. What remains has the bytes it would have had if the
dropped slices had never been trained, because no other adapter depends on them. That says nothing about copies made
earlier: model directories with adapters folded in are listed for destruction, backups are not known here.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

from ml.errors import DeletionIncompleteError, EmptySetError
from ml.exact.plan import surviving_prefix
from ml.exact.results import GUARANTEE, AdapterName, DeletionResult, id_digests
from ml.exact.store import (
    AdapterEntry,
    ExactManifest,
    opened,
    publish_pending,
    read_results,
    remove_checkpoints,
    remove_unnamed,
    write_manifest,
    write_pending,
)


def delete_records(store: Path, record_ids: Collection[str]) -> DeletionResult:
    """Delete `record_ids` from everything in `store`.

    1. Finish a deletion that was killed. If an earlier one deleted all of these records, its result is the answer.
    2. Decide what goes and what serves; write the result down as pending; delete all checkpoints.
    3. Replace the manifest by one that names neither the records nor the dropped adapters.
    4. Delete the files of the dropped adapters, see that they are gone, and give the result its number.

    Killed before step 3 it deleted nothing but checkpoints and can be called again; killed later, the next deletion,
    training or folding that takes up this store finishes step 4 first. A result with a number is a deletion that was
    done.

    Raises:
        EmptySetError: there is no record to delete.
        UnknownRecordError: a record is in no slice; nothing was changed.
        SpecError: there is no store, another command is at work in it, or it is not as its last command left it.
        DeletionIncompleteError: a file could not be removed.
    """
    if not record_ids:
        raise EmptySetError("no record to delete was named")
    try:
        with opened(store) as before:
            for earlier in read_results(store):
                if id_digests(record_ids) <= set(earlier.record_sha256):
                    return earlier
            after, result = decide(before, record_ids)
            write_pending(store, result)
            remove_checkpoints(store)
            write_manifest(store, after)
            remove_unnamed(store, after)
            publish_pending(store, result)
    except OSError as exc:
        raise DeletionIncompleteError(
            f"the deletion in store {store.name} is not complete ({type(exc).__name__}); mend the directory's access "
            "or space and delete again"
        ) from exc
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
        record_sha256=tuple(sorted(id_digests(record_ids))),
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
