"""Model registries: one Protocol, one connector a file. `open_registry` picks by the model's settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, Protocol

from deletion_service.errors import InvalidInputError

Probe = Literal["gone", "still_readable", "unknown"]
# Says in the registry which run published a version.
RUN_TAG: Final = "erasure.run"


@dataclass(frozen=True, slots=True)
class RegisteredVersion:
    """A version as its registry knows it."""

    number: int
    parent: int | None
    root_sha256: str
    manifest_sha256: str
    tags: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class AliasPointer:
    """Where an alias points, and the epoch of the promotion that put it there."""

    number: int
    epoch: int


class ModelRegistry(Protocol):
    """What Lethe needs of a registry (compliance section 10.6). Every write is idempotent."""

    def list_versions(self) -> Sequence[RegisteredVersion]:
        """Return all versions that were ever published, oldest first."""
        ...

    def resolve(self, alias: str) -> AliasPointer | None:
        """Return where `alias` points, or `None`."""
        ...

    def lineage(self, number: int) -> Sequence[int]:
        """Return the versions that descend from `number`, by recorded parents."""
        ...

    def publish(self, directory: Path, *, parent: int | None, tags: Mapping[str, str]) -> RegisteredVersion:
        """Copy a model directory in as a new version; the same bytes give the same version again."""
        ...

    def path(self, number: int) -> Path:
        """Return a local directory with the version's files."""
        ...

    def tag(self, number: int, tags: Mapping[str, str]) -> None:
        """Add tags to a version."""
        ...

    def attach(self, number: int, name: str, content: bytes) -> None:
        """Store a file beside a version's weights."""
        ...

    def move_alias(self, alias: str, *, expected: int | None, to: int, epoch: int) -> AliasPointer:
        """Point `alias` from version `expected` to `to`, unless a later epoch was there; return what is read back."""
        ...

    def retire(self, number: int) -> None:
        """Delete the weights of a version."""
        ...

    def probe_gone(self, number: int) -> Probe:
        """Try to read every file of a version, and look for its weights wherever the registries keep files."""
        ...

    def tidy(self) -> int:
        """Remove what killed writers left half written; return how much. Does nothing while somebody writes."""
        ...

    def watch(self, retired: Sequence[str]) -> Sequence[str]:
        """Return in words where a retired manifest digest can be resolved again."""
        ...


def open_registry(settings: Mapping[str, Any]) -> ModelRegistry:
    """Return the connector that a model's `registry` settings name.

    Raises:
        InvalidInputError: an unknown kind, or a name that is no name.
    """
    from deletion_service.targets.registries.directory import DirectoryRegistry  # noqa: PLC0415 - a connector a file

    kinds = {"directory": DirectoryRegistry.from_settings}
    kind = settings.get("kind")
    if kind not in kinds:
        raise InvalidInputError(f"registry kinds are {', '.join(sorted(kinds))}", pointer="/registry/kind")
    return kinds[kind](settings)
