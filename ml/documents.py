"""Frozen dataclasses to plain JSON documents and back. Standard library only.

Decimals are strings in a document and floats in memory, so that a document has one canonical form (`ml.digests`).
Reading is strict: an unknown, missing or mistyped field is an error that names its path, never its value.
"""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import Any, Final, TypeAlias, TypeVar, cast

from ml.digests import document_sha256
from ml.errors import SpecError

Json: TypeAlias = "None | bool | int | float | str | list[Json] | dict[str, Json]"
T = TypeVar("T")
ADDED: Final[Mapping[str, Any]] = types.MappingProxyType({"added": True})
"""Metadata of a field, `None` by default, that came after its document: left out where it is `None`, so that earlier
documents keep their digests."""


def decimal_text(number: float) -> str:
    """Return the shortest decimal that reads back to the same float; refuses NaN and infinity."""
    if not math.isfinite(number):
        raise SpecError("a stored number must be finite; record a missing value with its reason instead")
    return repr(float(number))


def plain(value: object) -> Json:
    """Turn frozen dataclasses into canonical-JSON-ready data: floats become decimal strings, tuples arrays."""
    if is_dataclass(value) and not isinstance(value, type):
        present = ((f, getattr(value, f.name)) for f in fields(value))
        return {f.name: plain(child) for f, child in present if child is not None or "added" not in f.metadata}
    if isinstance(value, Mapping):
        return {str(key): plain(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [plain(child) for child in value]
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return decimal_text(value)
    raise SpecError(f"{type(value).__name__} cannot be stored in a document")


def plain_object(value: object) -> dict[str, Json]:
    """Return `plain(value)` of a dataclass or mapping, typed as an object."""
    document = plain(value)
    if not isinstance(document, dict):
        raise SpecError(f"{type(value).__name__} is not an object")
    return document


class Stored:
    """A frozen dataclass that is kept as a document: what it becomes, and the digest by which it is named."""

    __slots__ = ()

    def to_document(self) -> dict[str, Json]:
        """Return canonical-JSON-ready data: decimals as strings."""
        return plain_object(self)

    @property
    def sha256(self) -> str:
        """Digest of the document."""
        return document_sha256(self.to_document())


def read_version(cls: type[T], document: object, *, where: str, version: int) -> T:
    """`read` a dataclass that carries a `schema_version`, which must be `version`."""
    found = read(cls, document, where=where)
    if getattr(found, "schema_version", None) != version:
        raise SpecError(f"{where}: schema_version must be {version}")
    return found


def read(cls: type[T], document: object, *, where: str) -> T:
    """Build the frozen dataclass `cls` from a document.

    Raises:
        SpecError: the message names the path of the first field that does not fit.
    """
    return cast(T, _read(cls, document, where))


@cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _read(kind: Any, value: Any, where: str) -> Any:
    if is_dataclass(kind):
        return _read_dataclass(cast(type, kind), value, where)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _read(next(a for a in arguments if a is not type(None)), value, where)
    if origin is typing.Literal:
        if value not in arguments:
            raise SpecError(f"{where}: must be one of {', '.join(map(str, arguments))}")
        return value
    if origin is tuple:
        return _read_tuple(arguments, value, where)
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise SpecError(f"{where}: expected an object")
        return {str(key): _read(arguments[1], child, f"{where}.{key}") for key, child in value.items()}
    return _read_scalar(kind, value, where)


def _read_dataclass(cls: type, row: Any, where: str) -> Any:
    if not isinstance(row, Mapping):
        raise SpecError(f"{where}: expected an object")
    known = {f.name: f for f in fields(cls)}
    if unknown := sorted(set(row) - set(known)):
        raise SpecError(f"{where}: unknown field {unknown[0]!r}")
    for name, f in known.items():
        if name not in row and f.default is MISSING and f.default_factory is MISSING:
            raise SpecError(f"{where}: field {name!r} is missing")
    hints = _hints(cls)
    return cls(**{name: _read(hints[name], value, f"{where}.{name}") for name, value in row.items()})


def _read_tuple(arguments: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise SpecError(f"{where}: expected an array")
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        return tuple(_read(arguments[0], child, f"{where}[{i}]") for i, child in enumerate(value))
    if len(arguments) != len(value):
        raise SpecError(f"{where}: expected {len(arguments)} entries")
    pairs = zip(arguments, value, strict=True)
    return tuple(_read(kind, child, f"{where}[{i}]") for i, (kind, child) in enumerate(pairs))


def _read_scalar(kind: Any, value: Any, where: str) -> Any:
    if kind is float:
        return _read_float(value, where)
    if kind in (int, str, bool):
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise SpecError(f"{where}: expected {kind.__name__}")
        return value
    return value


def _read_float(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise SpecError(f"{where}: expected a decimal number")
    try:
        number = float(value)
    except ValueError as exc:
        raise SpecError(f"{where}: expected a decimal number") from exc
    if not math.isfinite(number):
        raise SpecError(f"{where}: must be finite")
    return number
