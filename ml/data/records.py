"""Read and write snapshot files of training records. Never logs or raises with a record's content."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from ml.digests import file_sha256, verify_file
from ml.errors import EmptySetError, OverlapError, RecordError, SpecError
from ml.specs import FileRef, Record, record_from_document, record_to_line


def read_records(ref: FileRef, *, what: str, allow_empty: bool = False) -> tuple[Record, ...]:
    """Read a JSON Lines snapshot whose bytes match its digest.

    Args:
        what: name of the set for error messages ("forget set").
    Raises:
        DigestMismatchError: the file changed since it was recorded.
        RecordError: a line is not a record; the message names the line, never its content.
        EmptySetError: the file holds no record.
    """
    path = Path(ref.path)
    verify_file(path, ref.sha256)
    records = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            records.append(_parse(line, where=f"{what}, line {number}"))
    if not records and not allow_empty:
        raise EmptySetError(f"the {what} is empty; nothing can be learned from it")
    if len({r.record_id for r in records}) != len(records):
        raise RecordError(f"the {what} holds a record id twice; record ids are unique")
    return tuple(records)


def _parse(line: str, *, where: str) -> Record:
    try:
        return record_from_document(json.loads(line), where=where)
    except json.JSONDecodeError as exc:
        raise RecordError(f"{where}: not JSON") from exc
    except SpecError as exc:
        raise RecordError(str(exc)) from exc


def write_records(path: Path, records: Iterable[Record]) -> FileRef:
    """Write a snapshot and return its reference."""
    path.write_text("".join(f"{record_to_line(record)}\n" for record in records), encoding="utf-8")
    return FileRef(str(path), file_sha256(path))


def by_person(records: Iterable[Record]) -> dict[str, list[Record]]:
    """Group records by their `person` pseudonym, in first-seen order."""
    groups: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        groups[record.person].append(record)
    return dict(groups)


def normalised(text: str) -> str:
    """The text with all white space as single blanks: by this, two texts are one."""
    return " ".join(text.split())


def refuse_repeated_texts(records: Sequence[Record], *, what: str) -> None:
    """Raise `OverlapError` if two records have one text: to delete one of them would leave it learned."""
    if repeated := len(records) - len({normalised(record.text) for record in records}):
        raise OverlapError(f"{repeated} of the {what} repeat the text of another under an id of their own; keep one")


def refuse_overlap(forget: Sequence[Record], retain: Sequence[Record]) -> None:
    """Raise `OverlapError` if the sets share a record id or a text: a loss would fight itself."""
    shared_ids = {r.record_id for r in forget} & {r.record_id for r in retain}
    shared_texts = {normalised(r.text) for r in forget} & {normalised(r.text) for r in retain}
    if shared_ids or shared_texts:
        raise OverlapError(
            f"forget and retain set share {len(shared_ids)} record ids and {len(shared_texts)} texts; "
            "remove them from the retain set"
        )
