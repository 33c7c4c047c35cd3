"""Training sources: where the texts a model learned from live. One Protocol, one connector a file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, Protocol

from deletion_service.errors import InvalidInputError
from deletion_service.requests.intake import Identifier
from ml.specs import Record

ErasureAction = Literal["deleted", "tombstoned"]
Keys = frozenset[tuple[str, str]]


SPIKE_IN_DOMAIN: Final = "spike-in.invalid"
"""Where synthetic people have their mailboxes: a reserved domain, so that nobody can ever prove to own one."""


@dataclass(frozen=True, slots=True)
class SourceRecord:
    """One training text and the identifiers it carries; `spike_in` marks the synthetic person it was planted for."""

    record: Record
    identifiers: tuple[Identifier, ...]
    spike_in: str = ""

    def matches(self, wanted: Keys) -> bool:
        """Whether any identifier is among `wanted` (type, normalised value); a synthetic person is nobody's."""
        return not self.spike_in and any((i.type, i.normalised) in wanted for i in self.identifiers)


class TrainingSource(Protocol):
    """What Lethe needs of a place that holds training texts. Writes are idempotent."""

    name: str

    def records(self) -> Iterator[SourceRecord]:
        """Yield every live record, in a stable order."""
        ...

    def question_bank(self) -> Path:
        """Return the file that says how facts of this source can be asked."""
        ...

    def erase(self, record_ids: Sequence[str]) -> ErasureAction:
        """Delete or tombstone records, so that no later training run can learn them."""
        ...

    def still_present(self, record_ids: Sequence[str], wanted: Keys) -> int:
        """Return how many records can be read that have one of the ids or carry an identifier among `wanted`.

        Rows come and go: whoever looks for ids alone overlooks what was written since they were noted.
        """
        ...


def open_source(settings: Mapping[str, Any]) -> TrainingSource:
    """Return the connector that one entry of a model's `sources` names.

    Raises:
        InvalidInputError: an unknown kind, or a name that is no name.
    """
    from deletion_service.targets.sources.jsonl_directory import JsonlDirectorySource  # noqa: PLC0415 - as above

    kinds = {"jsonl_directory": JsonlDirectorySource.from_settings}
    kind = settings.get("kind")
    if kind not in kinds:
        raise InvalidInputError(f"training source kinds are {', '.join(sorted(kinds))}", pointer="/sources/kind")
    return kinds[kind](settings)


def wanted_keys(identifiers: Sequence[Identifier]) -> Keys:
    """Return identifiers in the form that records are compared with."""
    return frozenset((i.type, i.normalised) for i in identifiers)
