"""The forms that text in a signed statement may have, and the check that it has them. Standard library only.

A form is an annotation of a dataclass field (`Annotated[str, Form(...)]`), so that the field list is the only list.
Must never name a value in a message, only the field.
"""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from datetime import date
from decimal import Decimal
from functools import cache
from pathlib import PurePosixPath
from typing import Annotated, Any, Final, TypeAlias

from deletion_service.certificates.canonical import DocumentFormError, time_from_text
from ml.errors import SpecError

_LONGEST_SENTENCE: Final = 2000
_DECIMAL_PLACES: Final = 6
_LARGEST_DECIMAL: Final = 1e15
_LAST_POWER: Final = 9
_BUCKETS: Final = (
    "0",
    "1-10",
    *(f"{10**k + 1}-{10 ** (k + 1)}" for k in range(1, _LAST_POWER)),
    "more than 1000000000",
)


@dataclass(frozen=True, slots=True)
class Form:
    """A named form of text and its test."""

    name: str
    holds: Callable[[str], bool]


def _pattern(expression: str) -> Callable[[str], bool]:
    compiled = re.compile(expression)
    return lambda text: compiled.fullmatch(text) is not None


def _is_time(text: str) -> bool:
    try:
        time_from_text(text)
    except DocumentFormError:
        return False
    return True


def _is_day(text: str) -> bool:
    try:
        return date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False


def _is_audit_kit(text: str) -> bool:
    kind, _, until = text.partition(":")
    return text == "none" or (kind == "sealed_until" and _is_day(until))


def _is_sentence(text: str) -> bool:
    """Printable and trimmed: nothing that could move a terminal's cursor or hide a word."""
    return 0 < len(text) <= _LONGEST_SENTENCE and text.isprintable() and text == text.strip()


def _is_file_path(text: str) -> bool:
    parts = PurePosixPath(text).parts
    plain = text.isprintable() and "\\" not in text and text == "/".join(parts)
    return plain and len(parts) > 0 and not text.startswith("/") and ".." not in parts


Identifier: TypeAlias = Annotated[str, Form("an identifier", _pattern(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,127}"))]
Uri: TypeAlias = Annotated[str, Form("a URI in plain ASCII", _pattern(r"[A-Za-z][A-Za-z0-9+.-]*:[!-~]{1,500}"))]
Code: TypeAlias = Annotated[str, Form("a code", _pattern(r"[a-z0-9][a-z0-9_]{0,63}"))]
Sha256: TypeAlias = Annotated[str, Form("a sha256 in lower-case hexadecimal", _pattern(r"[0-9a-f]{64}"))]
PrefixedSha256: TypeAlias = Annotated[str, Form("sha256: and 64 digits", _pattern(r"sha256:[0-9a-f]{64}"))]
WholeNumber: TypeAlias = Annotated[str, Form("a whole number", _pattern(r"0|[1-9][0-9]{0,17}"))]
DecimalNumber: TypeAlias = Annotated[
    str, Form("a decimal number", _pattern(r"0|-?(0\.[0-9]*[1-9]|[1-9][0-9]{0,17}(\.[0-9]*[1-9])?)"))
]
Bucket: TypeAlias = Annotated[str, Form("a count bucket", _BUCKETS.__contains__)]
Time: TypeAlias = Annotated[str, Form("a UTC time to the second", _is_time)]
Day: TypeAlias = Annotated[str, Form("a day", _is_day)]
Sentence: TypeAlias = Annotated[str, Form("one line of plain text", _is_sentence)]
FilePath: TypeAlias = Annotated[str, Form("a relative file path", _is_file_path)]
AuditKit: TypeAlias = Annotated[str, Form("none, or sealed_until: and a day", _is_audit_kit)]


def check_forms(value: object, *, where: str) -> None:
    """Raise `DocumentFormError` naming the first field of a dataclass whose text does not have its form."""
    fault = next(_faults(type(value), value, where), None)
    if fault is not None:
        raise DocumentFormError(fault)


def decimal_number(number: float) -> str:
    """Write a number as a `DecimalNumber`, rounded half to even at six places.

    Raises:
        SpecError: NaN, infinity or too large; a missing number is absent, not written.
    """
    if not abs(number) < _LARGEST_DECIMAL:
        raise SpecError("a stored number must be finite and below 1e15; leave a missing one out")
    text = f"{Decimal(repr(float(number))):.{_DECIMAL_PLACES}f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def count_bucket(count: int) -> str:
    """Return the bucket of a count, `1-10`, `11-100`, ...: exact counts of a person's records can single them out."""
    if count < 0:
        raise SpecError("a count is at least 0")
    if count == 0:
        return _BUCKETS[0]
    return _BUCKETS[min(len(str(count - 1)), len(_BUCKETS) - 1)]


@cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls, include_extras=True)


def _faults(hint: Any, value: Any, where: str) -> Iterator[str]:
    if value is None:
        return
    if is_dataclass(hint):
        hints = _hints(typing.cast(type, hint))
        for field in fields(hint):
            yield from _faults(hints[field.name], getattr(value, field.name), f"{where}.{field.name}")
        return
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        if not arguments[1].holds(value):
            yield f"{where}: expected {arguments[1].name}"
    elif origin in (typing.Union, types.UnionType):
        yield from _faults(next(a for a in arguments if a is not type(None)), value, where)
    elif origin is tuple:
        kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else arguments
        for index, (kind, child) in enumerate(zip(kinds, value, strict=True)):
            yield from _faults(kind, child, f"{where}[{index}]")
