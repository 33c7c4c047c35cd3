"""Files that a reader, or a restart after a crash, sees whole or not at all. Standard library only."""

from __future__ import annotations

import os
from pathlib import Path


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` to `path` so that a reader, or a restart after a crash, sees all of it or none of it."""
    temporary = path.with_name(f"{path.name}.tmp")
    with temporary.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)
    sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    """Flush a directory's entries, so that a rename inside it survives a power cut."""
    _sync(directory)


def sync_file(path: Path) -> None:
    """Flush a file that somebody else wrote."""
    _sync(path)


def flush(directory: Path) -> None:
    """Flush everything in a directory to disk."""
    for path in sorted(directory.rglob("*")):
        if path.is_file():
            sync_file(path)
    sync_directory(directory)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
