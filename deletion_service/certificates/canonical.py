"""The one spelling of everything that is signed: JSON bytes, key names, base64, times. Standard library only.

Must never repair: what is not exactly in the expected spelling is refused, and no message repeats content.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final, NoReturn, TypeVar

from deletion_service.errors import DomainError
from ml.digests import canonical_json
from ml.documents import plain_object, read
from ml.errors import SpecError

LARGEST_DEPTH: Final = 24
_TIME_FORMAT: Final = "%Y-%m-%dT%H:%M:%SZ"
# Spelled the same in every document of the project, also where the other keys are in camel case.
_SAME_IN_BOTH: Final = frozenset({"schema_version"})
T = TypeVar("T")


class DocumentFormError(DomainError):
    """A document is not spelled in the one form that is accepted; it may have been altered."""

    code = "document_form"


# --- JSON ---------------------------------------------------------------------------------------------------------


def read_json(data: bytes, *, what: str, largest: int) -> Any:
    """Parse JSON from a stranger: bounded size and depth, no duplicate keys, no fractions, NaN or infinity.

    Args:
        what: how messages name the document.
        largest: most bytes accepted.
    Raises:
        DocumentFormError: any of these rules is broken, or the bytes are not JSON in UTF-8.
    """
    if len(data) > largest:
        raise DocumentFormError(f"{what} is larger than {largest} bytes")
    try:
        document = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_object_without_duplicates,
            parse_float=_refuse_number,
            parse_constant=_refuse_number,
        )
    except (ValueError, RecursionError) as exc:
        reason = exc.args[0] if isinstance(exc, _RefusedError) else "it is not JSON in UTF-8"
        raise DocumentFormError(f"{what} cannot be read: {reason}") from None
    if _depth(document) > LARGEST_DEPTH:
        raise DocumentFormError(f"{what} is nested deeper than {LARGEST_DEPTH} levels")
    return document


def read_canonical(data: bytes, *, what: str, largest: int) -> Any:
    """Parse JSON that must be, byte for byte, the RFC 8785 form of what it says.

    Raises:
        DocumentFormError: not strict JSON (`read_json`), or another spelling of the same document.
    """
    document = read_json(data, what=what, largest=largest)
    try:
        same = canonical_json(document) == data
    except SpecError as exc:
        raise DocumentFormError(f"{what} has no canonical form: {exc}") from None
    if not same:
        raise DocumentFormError(f"{what} is not in canonical form; its bytes may have been altered")
    return document


class _RefusedError(ValueError):
    """A rule of `read_json` was broken inside the parser."""


def _object_without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise _RefusedError("an object has the same key twice")
    return members


def _refuse_number(_: str) -> NoReturn:
    raise _RefusedError("it holds a fraction, NaN or infinity; such numbers travel as decimal strings")


def _depth(document: object) -> int:
    depth, level = 0, [document]
    while level:
        depth += 1
        level = [child for node in level for child in _children(node)]
    return depth


def _children(node: object) -> Iterable[object]:
    if isinstance(node, dict):
        return node.values()
    return node if isinstance(node, list) else ()


# --- documents in camel case --------------------------------------------------------------------------------------


def camel_document(value: object) -> dict[str, Any]:
    """Return a frozen dataclass as plain data with camelCase keys; the inverse of `read_camel`."""
    document: dict[str, Any] = _renamed(plain_object(value), _camel)
    return document


def read_camel(cls: type[T], document: object, *, where: str) -> T:
    """Build the frozen dataclass `cls` from data with camelCase keys.

    Raises:
        DocumentFormError: a key in another spelling, or a field that is unknown, missing or mistyped.
    """
    try:
        return read(cls, _renamed(document, _snake), where=where)
    except SpecError as exc:
        raise DocumentFormError(str(exc)) from None


def _renamed(node: Any, rename: Callable[[str], str]) -> Any:
    if isinstance(node, Mapping):
        return {rename(key): _renamed(child, rename) for key, child in node.items()}
    if isinstance(node, list | tuple):
        return [_renamed(child, rename) for child in node]
    return node


@lru_cache(maxsize=1024)
def _camel(key: str) -> str:
    if key in _SAME_IN_BOTH:
        return key
    return re.sub(r"_([a-z])", lambda match: match[1].upper(), key)


@lru_cache(maxsize=1024)
def _snake(key: str) -> str:
    if key in _SAME_IN_BOTH:
        return key
    if "_" in key:
        raise DocumentFormError("a key is not in camel case")
    return re.sub(r"[A-Z]", lambda match: f"_{match[0].lower()}", key)


# --- base64 and times ---------------------------------------------------------------------------------------------


def base64_text(data: bytes) -> str:
    """Return the padded standard base64 of `data`."""
    return base64.b64encode(data).decode("ascii")


def base64_bytes(text: str, *, what: str) -> bytes:
    """Decode padded standard base64; refuses every second spelling of the same bytes (`DocumentFormError`)."""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise DocumentFormError(f"{what} is not base64") from None
    if base64_text(data) != text:
        raise DocumentFormError(f"{what} is not canonical base64; its text may have been altered")
    return data


def time_text(moment: datetime) -> str:
    """Return an aware time as UTC to the second, `2026-11-20T09:30:00Z`."""
    if moment.tzinfo is None:
        raise DocumentFormError("a time without a zone cannot be signed; use an aware one")
    return moment.astimezone(UTC).strftime(_TIME_FORMAT)


def time_from_text(text: str) -> datetime:
    """Read `2026-11-20T09:30:00Z`; any other spelling is a `DocumentFormError`."""
    try:
        moment = datetime.strptime(text, _TIME_FORMAT).replace(tzinfo=UTC)
    except ValueError:
        raise DocumentFormError("a time is not of the form 2026-11-20T09:30:00Z") from None
    if time_text(moment) != text:
        raise DocumentFormError("a time is not of the form 2026-11-20T09:30:00Z")
    return moment
