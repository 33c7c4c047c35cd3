"""Finished pieces of a verification on disk: an interrupted run repeats none of them.

A part is found by the digest of everything it depends on, so a part of another model, seed or code version is never
used by mistake. Parts hold scores and token ids of one person's dossier: they belong to the worker's directory alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ml.checkpoints import Checkpoint, read_checkpoint, write_checkpoint
from ml.digests import computing_code_sha256, document_sha256
from ml.documents import Json
from ml.errors import CheckpointError, RunStoppedError


@dataclass(frozen=True, slots=True)
class Part:
    """A finished measurement and the processor seconds it took when it was made."""

    tensors: Mapping[str, Tensor]
    cpu_seconds: float


@dataclass(frozen=True, slots=True)
class Failure:
    """A measurement that crashed; `reason` is the type of the exception, never its message."""

    reason: str


class PartStore:
    """Parts of one verification below `directory`; `inputs` are the digests and settings that all of them share."""

    def __init__(self, directory: Path, inputs: Mapping[str, Json]) -> None:
        self._directory = directory
        self._inputs = {"code": computing_code_sha256(), **inputs}

    def part(self, name: str, depends: Mapping[str, Json], measure: Callable[[], Mapping[str, Tensor]]) -> Part:
        """Return the stored part, or measure it and store it."""
        key = document_sha256({"part": name, "depends": depends, "inputs": self._inputs})
        path = self._directory / f"{name}-{key[:16]}.safetensors"
        stored = self._read(path, key)
        if stored is not None:
            return stored
        started = time.process_time()
        tensors = measure()
        seconds = time.process_time() - started
        write_checkpoint(path, Checkpoint(0, key, tensors, {"cpu_seconds": seconds}))
        return Part(tensors, seconds)

    def try_part(
        self, name: str, depends: Mapping[str, Json], measure: Callable[[], Mapping[str, Tensor]]
    ) -> Part | Failure:
        """As `part`, but a crash becomes a `Failure`, so that one broken attack cannot take the others' results."""
        try:
            return self.part(name, depends, measure)
        except RunStoppedError:
            raise
        except Exception as exc:  # noqa: BLE001 - the boundary between attacks: the type is reported as the reason
            return Failure(type(exc).__name__)

    def _read(self, path: Path, key: str) -> Part | None:
        try:
            stored = read_checkpoint(path, config_sha256=key)
        except CheckpointError:
            # Half a file after a disk fault is measured again; its name carries the key, so it is no other run's.
            path.unlink()
            return None
        return None if stored is None else Part(stored.tensors, float(stored.scalars["cpu_seconds"]))
