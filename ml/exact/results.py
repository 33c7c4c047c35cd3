"""What a deletion says that it did. Standard library only: it is written where no tensor can be loaded."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from ml.digests import sha256_hex
from ml.documents import Stored, read_version
from ml.reports import Guarantee

GUARANTEE: Final[Guarantee] = "exact_sharded"
METHOD_VERSION: Final = "1"
SCHEMA_VERSION: Final = 2
OF_ADAPTERS: Final = (
    "Exact with respect to the adapters only: base, tokenizer, settings and the plan were fixed before and are kept; "
    "if the base learned from the records, it still knows them."
)
OF_COPIES: Final = (
    "Listed copies hold dropped adapters in their weights and must be destroyed, and processes that serve must load "
    "again; copies and backups made by other means are not known here."
)
OF_IDS: Final = (
    "Training refuses the deleted records by their ids; a deleted text that comes back under a new id is not noticed."
)


def id_digests(record_ids: Iterable[str]) -> frozenset[str]:
    """SHA-256 of each id, as training manifests name records."""
    return frozenset(sha256_hex(record_id.encode()) for record_id in record_ids)


@dataclass(frozen=True, slots=True)
class AdapterName:
    """One adapter by order, position, slice and the digest of its file."""

    order: int
    position: int
    slice: str
    sha256: str


@dataclass(frozen=True, slots=True)
class DeletionResult(Stored):
    """What one deletion did, by digests: it outlives the records.

    `record_sha256` are of the ids of the deleted records. `hit` names the slices that held one. `dropped` are the
    adapters whose files are gone. `serves` are those that serve now: of stacked slices the longest prefix, and none
    means the base alone; of separate adapters all that remain, each by itself. `may_add` names for every order the
    slices, less the deleted records, that training it further would add. `copies_to_destroy` are manifest digests of
    model directories that hold dropped adapters.
    """

    guarantee: Guarantee
    number: int
    base_manifest_sha256: str
    record_sha256: tuple[str, ...]
    hit: tuple[str, ...]
    dropped: tuple[AdapterName, ...]
    serves: tuple[AdapterName, ...]
    may_add: tuple[tuple[str, ...], ...]
    copies_to_destroy: tuple[str, ...]
    manifest_before_sha256: str
    manifest_after_sha256: str
    notes: tuple[str, ...] = (OF_ADAPTERS, OF_COPIES, OF_IDS)
    schema_version: int = SCHEMA_VERSION

    @classmethod
    def from_document(cls, document: object) -> DeletionResult:
        """Read a result; raises `SpecError` naming the field that does not fit."""
        return read_version(cls, document, where="deletion result", version=SCHEMA_VERSION)
