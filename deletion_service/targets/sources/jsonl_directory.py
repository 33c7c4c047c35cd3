"""A training source in a directory of JSON Lines: `records-*.jsonl` and `question_bank.json`.

A line has the fields of `ml.specs.Record` except `person`, plus `identifiers`; `spike_in` marks one of a synthetic
person (`manage.py plant_spike_ins`). A tombstone is a line with a record id and `"erased": true`. Files are rewritten
beside themselves and renamed, so that a crash leaves the old or the new one. Erasures and probes take one lock file:
two erasures at once would each write back the rows that the other removed.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from django.conf import settings as django_settings

from deletion_service.errors import InvalidInputError, SourceError, SourceUnavailableError
from deletion_service.requests.intake import Identifier
from deletion_service.targets.registries.directory import NAME
from deletion_service.targets.sources import SPIKE_IN_DOMAIN, ErasureAction, Keys, SourceRecord
from ml.errors import SpecError
from ml.specs import record_from_document

_PARTIAL: Final = (".records-", ".part")
_MARK: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")


class JsonlDirectorySource:
    """Records of one training source, one JSON object a line."""

    def __init__(self, directory: Path, *, name: str, tombstones: bool) -> None:
        self.name = name
        self._directory = directory
        self._tombstones = tombstones

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> JsonlDirectorySource:
        """Open `name` below the source root of this deployment; a name is never a path."""
        name = settings.get("name")
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise InvalidInputError("a source name has letters, digits, _ and -", pointer="/sources/name")
        return cls(django_settings.SOURCE_ROOT / name, name=name, tombstones=settings.get("erase_by") == "tombstone")

    def records(self) -> Iterator[SourceRecord]:
        """Yield every live record in file and line order.

        Raises:
            SourceError: a line is malformed, or a record id stands twice; the message names file and line, never
                content.
            SourceUnavailableError: a file cannot be read.
        """
        seen: set[str] = set()
        for path in self._files():
            for _, document, where in _documents(path):
                if document.get("erased"):
                    continue
                found = _source_record(document, where)
                if found.record.record_id in seen:
                    # Two people's records under one id: forgetting the one would delete the other's.
                    raise SourceError(f"{where}: this record id stands above already; give each record its own")
                seen.add(found.record.record_id)
                yield found

    def question_bank(self) -> Path:
        """Return the bank's path."""
        path = self._directory / "question_bank.json"
        if not path.is_file():
            raise SourceError(f"training source {self.name} has no question_bank.json")
        return path

    def erase(self, record_ids: Sequence[str]) -> ErasureAction:
        """Remove the records' lines, or leave tombstones where the source is set to."""
        doomed = set(record_ids)
        with self._lock():
            for path in self._files():
                self._rewrite(path, doomed)
        return "tombstoned" if self._tombstones else "deleted"

    def still_present(self, record_ids: Sequence[str], wanted: Keys = frozenset()) -> int:
        """Return how many records have one of the ids or identifiers, tombstones not counted."""
        erased = set(record_ids)
        with self._lock():
            return sum(1 for found in self.records() if found.record.record_id in erased or found.matches(wanted))

    def plant(self, file_name: str, lines: Sequence[str]) -> Path:
        """Write rows of synthetic people as a file of their own, before anything is trained on this source.

        Raises:
            InvalidInputError: the file is there already; rows that were learned must not be exchanged.
        """
        path = self._directory / file_name
        with self._lock():
            if path.exists():
                raise InvalidInputError(f"{file_name} is in training source {self.name} already; take another seed")
            _replace(path, "".join(f"{line}\n" for line in lines))
        return path

    def _files(self) -> list[Path]:
        files = sorted(self._directory.glob("records-*.jsonl"))
        if not files:
            raise SourceError(f"training source {self.name} has no records-*.jsonl")
        return files

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """Keep other erasures and probes out, and remove what a killed one left half written."""
        with _readable(self._directory / ".lock"):
            lock = (self._directory / ".lock").open("w")
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            prefix, suffix = _PARTIAL
            for path in self._directory.glob(f"{prefix}*{suffix}"):
                path.unlink()
            yield

    def _rewrite(self, path: Path, doomed: set[str]) -> None:
        kept, changed = [], False
        for line, document, _ in _documents(path):
            if document.get("record_id") not in doomed or document.get("erased"):
                kept.append(line if line.endswith("\n") else f"{line}\n")
                continue
            changed = True
            if self._tombstones:
                kept.append(json.dumps({"record_id": document["record_id"], "erased": True}) + "\n")
        if changed:
            _replace(path, "".join(kept))


def _documents(path: Path) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Yield each line of a file, what it says, and how to name it in a message."""
    number = 0
    with _readable(path):
        stream = path.open("rb")
    with stream:
        while True:
            with _readable(path):
                line = stream.readline()
            if not line:
                return
            number += 1
            where = f"{path.name}, line {number}"
            text, document = _parse(line, where)
            yield text, document, where


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        problem = type(exc).__name__
        raise SourceUnavailableError(f"{path.name} cannot be read or written ({problem}); check its disk") from exc


def _replace(path: Path, text: str) -> None:
    prefix, suffix = _PARTIAL
    with _readable(path):
        descriptor, name = tempfile.mkstemp(prefix=prefix, suffix=suffix, dir=path.parent)
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        if path.exists():
            shutil.copymode(path, name)
        Path(name).replace(path)


def _parse(line: bytes, where: str) -> tuple[str, dict[str, Any]]:
    try:
        text = line.decode("utf-8")
        document = json.loads(text)
        if "\\u" in text:
            # Half of a surrogate pair is JSON and yet no text: nothing could write it down again.
            json.dumps(document, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as exc:
        raise SourceError(f"{where}: not JSON in UTF-8; repair the line") from exc
    if not isinstance(document, dict):
        raise SourceError(f"{where}: a record is a JSON object")
    return text, document


def _source_record(document: dict[str, Any], where: str) -> SourceRecord:
    identifiers = _identifiers(document.pop("identifiers", None), where)
    mark = _mark(document, where)
    if mark and not _is_synthetic(identifiers):
        raise SourceError(
            f"{where}: a row marked as a spike-in carries an address below {SPIKE_IN_DOMAIN} and no other identifier; "
            "a mark would hide a person's row from their own request, so remove it"
        )
    try:
        record = record_from_document({**document, "person": _person_key(identifiers)}, where=where)
    except SpecError as exc:
        raise SourceError(str(exc)) from exc
    return SourceRecord(record, identifiers, mark)


def _is_synthetic(identifiers: Sequence[Identifier]) -> bool:
    return bool(identifiers) and all(
        i.type == "email" and i.normalised.endswith(f"@{SPIKE_IN_DOMAIN}") for i in identifiers
    )


def _mark(document: dict[str, Any], where: str) -> str:
    """Take the mark of a synthetic person's row; an unmarked row is somebody's."""
    if "spike_in" not in document:
        return ""
    mark = document.pop("spike_in")
    if not isinstance(mark, str) or not _MARK.fullmatch(mark):
        raise SourceError(f"{where}: a spike-in is marked by 1 to 64 letters, digits, hyphens and underscores")
    return mark


def _identifiers(rows: object, where: str) -> tuple[Identifier, ...]:
    """Return what names the person of a record; a value without content, as a telephone number "n/a", names nobody."""
    try:
        given = [(row["type"], row["value"]) for row in rows]  # type: ignore[attr-defined]  # or it raises
    except (KeyError, TypeError) as exc:
        raise SourceError(f"{where}: identifiers are objects with type and value") from exc
    if not all(isinstance(type_, str) and isinstance(value, str) for type_, value in given):
        raise SourceError(f"{where}: type and value of an identifier are text")
    identifiers = tuple(i for i in (Identifier(type_, value) for type_, value in given) if i.normalised)
    if not identifiers:
        raise SourceError(f"{where}: a record without identifiers can never be found for its person")
    return identifiers


def _person_key(identifiers: Sequence[Identifier]) -> str:
    """What groups the records of one person: an e-mail address if there is one, else the first identifier."""
    chosen = next((i for i in identifiers if i.type == "email"), identifiers[0])
    return f"{chosen.type}:{chosen.normalised}"
