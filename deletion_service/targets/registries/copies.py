"""Look for retired weights in the files of a directory tree, by their bytes: names and listings prove nothing."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from deletion_service.errors import RegistryError
from ml.digests import file_sha256

_WEIGHTS: Final = ".safetensors"
# A version that somebody publishes at this moment is listed when it is complete; tidying removes a dead one.
_INCOMING: Final = ".incoming"


def is_kept_below(root: Path, manifest: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a file below `root` has the bytes of any weights in `manifest`, or holds weights that no version lists.

    Only files of the right size are read whole. Links are followed.

    Raises:
        OSError: a directory or file cannot be read, so that nothing can be said.
        RegistryError: a version's listing is broken.
    """
    wanted = {row["sha256"]: row["size"] for row in manifest if row["path"].endswith(_WEIGHTS)}
    files = list(_files(root))
    listed = {path for file in files if file.name == "meta.json" for path in _listed(file)}
    return any(
        _is_unlisted(path, listed) or (_size(path) in wanted.values() and _sha256(path) in wanted) for path in files
    )


def _files(root: Path) -> Iterator[Path]:
    visited: set[str] = set()
    for folder, subfolders, names in os.walk(root, followlinks=True, onerror=_refuse):
        real = os.path.realpath(folder)
        if real in visited:
            subfolders.clear()
            continue
        visited.add(real)
        yield from (Path(folder) / name for name in names)


def _refuse(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def _listed(meta: Path) -> Iterator[Path]:
    try:
        rows = json.loads(meta.read_text(encoding="utf-8"))["manifest"]
    except (ValueError, KeyError, TypeError) as exc:
        raise RegistryError(f"the listing of version {meta.parent.name} cannot be read; restore it") from exc
    return (meta.parent / "model" / row["path"] for row in rows)


def _is_unlisted(path: Path, listed: set[Path]) -> bool:
    return path.suffix == _WEIGHTS and path not in listed and _INCOMING not in path.parts


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # it went while we looked, or its link leads nowhere
        return -1


def _sha256(path: Path) -> str:
    try:
        return file_sha256(path)
    except FileNotFoundError:
        return ""
