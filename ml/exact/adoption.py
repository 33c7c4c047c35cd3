"""Make a store what a released trial of it became, or drop from it whoever was deleted by another method.

Standard library only, and safe to repeat: each step leaves a store that can be read, and a later call goes on.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from ml.digests import verify_file
from ml.exact.deletion import delete_records
from ml.exact.results import DeletionResult
from ml.exact.store import (
    ExactManifest,
    adapter_path,
    has_manifest,
    opened,
    read_manifest,
    refuse_remains,
    write_manifest,
)
from ml.files import write_atomically


def drop_records(store: Path, record_ids: Collection[str]) -> DeletionResult | None:
    """Delete what of `record_ids` the store holds, if anything, and finish a deletion that was killed.

    An empty directory is a store that was destroyed, and holds nothing.

    Returns:
        What the deletion did, `None` where nothing was held.
    Raises:
        SpecError: `store` is no store, or another command is at work in it.
        DeletionIncompleteError: a file could not be removed.
    """
    if not has_manifest(store):
        refuse_remains(store)
        return None
    with opened(store) as manifest:
        held = {record for part in manifest.plan.slices for record in part.records} & set(record_ids)
    return delete_records(store, held) if held else None


def take_over(store: Path, trial: Path) -> bool:
    """Give a store the adapters and copies of its trial, from which the same records were dropped.

    Returns:
        False where the store has meanwhile become another than the one that the trial was copied from: its adapters
        stay as they are, and the released model is no copy of it.
    Raises:
        DigestMismatchError: an adapter of the trial is not the recorded one.
        SpecError: as for `drop_records`.
    """
    wanted = read_manifest(trial)
    with opened(store) as manifest:
        known = all(entry in wanted.adapters for entry in manifest.adapters)
        if _core(manifest) != _core(wanted) or not known:
            return False
        for entry in wanted.adapters:
            if entry in manifest.adapters:
                continue
            source = adapter_path(trial, entry.order, entry.position)
            verify_file(source, entry.sha256)
            target = adapter_path(store, entry.order, entry.position)
            target.parent.mkdir(exist_ok=True)
            write_atomically(target, source.read_bytes())
            manifest = replace(manifest, adapters=(*manifest.adapters, entry))
            write_manifest(store, manifest)
        copies = [copy for copy in wanted.copies if copy not in manifest.copies]
        write_manifest(store, replace(manifest, copies=(*manifest.copies, *copies)))
    return True


def _core(manifest: ExactManifest) -> ExactManifest:
    """All but what a training adds."""
    return replace(manifest, adapters=(), copies=())
