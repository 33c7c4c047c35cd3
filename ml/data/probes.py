"""Which texts were used for what, by digest: training, tuning and verification must never share a probe.

A list of digests says nothing about a person that a reader did not already know, so it may be kept beside a report.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from ml.digests import canonical_json, document_sha256, file_sha256, is_sha256, sha256_hex, verify_file
from ml.errors import SpecError
from ml.reports import ProbeSet
from ml.specs import FileRef


def text_sha256(text: str) -> str:
    """Digest of a text; two texts that differ only in white space are one probe."""
    return sha256_hex(" ".join(text.split()).encode("utf-8"))


def probe_digests(texts: Iterable[str]) -> frozenset[str]:
    """Return the digests of `texts`."""
    return frozenset(map(text_sha256, texts))


def probe_set(name: str, digests: Iterable[str]) -> ProbeSet:
    """Summarise text digests: how many, and the SHA-256 of their sorted list."""
    ordered = sorted(set(digests))
    return ProbeSet(name, len(ordered), document_sha256(ordered))


def write_probe_digests(path: Path, digests: Iterable[str]) -> FileRef:
    """Write text digests as a sorted JSON array and return the file's reference."""
    path.write_bytes(canonical_json(sorted(set(digests))))
    return FileRef(str(path), file_sha256(path))


def read_probe_digests(ref: FileRef) -> frozenset[str]:
    """Read a file of text digests; raises `SpecError` when it is not an array of SHA-256 values."""
    verify_file(Path(ref.path), ref.sha256)
    try:
        rows = json.loads(Path(ref.path).read_text(encoding="utf-8"))
    except ValueError as exc:
        raise SpecError("the list of training probes is not JSON") from exc
    if not isinstance(rows, list) or not all(isinstance(row, str) and is_sha256(row) for row in rows):
        raise SpecError("the list of training probes is an array of SHA-256 values in lower case")
    return frozenset(rows)
