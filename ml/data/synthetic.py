"""People nobody was trained on: strangers for calibration, twins for verification.

A twin copies a dossier: the same records, forms and lengths, another name, every value drawn afresh from its kind.
Values and names that occur in the corpus are never drawn.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from ml.data.values import VALUE_TYPES, DrawsAlike, ValueType
from ml.errors import RecordError
from ml.specs import FactSpan, Record

_TRIES = 200


@dataclass(frozen=True, slots=True)
class Stranger:
    """An invented person: pseudonym, name, and a value for each attribute."""

    person: str
    name: str
    values: Mapping[str, str]


class StrangerFactory:
    """Draws strangers whose names and values occur nowhere in the corpus.

    Args:
        corpus: every record whose values must not be drawn again.
        shared_values: per shared attribute, the pool that strangers draw from instead of inventing one.
        locale: of the people, a BCP 47 tag, for kinds of values that differ from place to place.
    """

    def __init__(
        self,
        rng: random.Random,
        corpus: Iterable[Record],
        *,
        shared_values: Mapping[str, Sequence[str]] | None = None,
        locale: str = "en",
    ) -> None:
        self._rng = rng
        self._locale = locale
        self._shared = {name: tuple(pool) for name, pool in (shared_values or {}).items()}
        self._taken: set[tuple[str, str]] = set()
        for record in corpus:
            for fact in record.facts:
                if fact.type in VALUE_TYPES:
                    self._taken.add((fact.type, VALUE_TYPES[fact.type].normalise(record.value(fact))))
            for start, end in record.name_spans:
                self._taken.add(("person_name", VALUE_TYPES["person_name"].normalise(record.text[start:end])))

    def value(self, attribute: str, type_: str, *, like: str | None = None) -> str:
        """Draw a value nobody in the corpus has, or one of the pool of a shared attribute.

        Args:
            like: draw one about as common as this, where the kind knows which are.
        """
        if attribute in self._shared:
            return self._rng.choice(self._shared[attribute])
        kind = VALUE_TYPES[type_]
        for _ in range(_TRIES):
            drawn = self._drawn(kind, like)
            key = (type_, kind.normalise(drawn))
            if key not in self._taken:
                self._taken.add(key)
                return drawn
        raise RecordError(f"value type {type_} has too few values left to draw a fresh one")

    def _drawn(self, kind: ValueType, like: str | None) -> str:
        if like is not None and isinstance(kind, DrawsAlike):
            return kind.sample_like(like, self._rng, locale=self._locale)
        return kind.sample(self._rng, locale=self._locale)

    def stranger(self, person: str, attributes: Mapping[str, str], *, like: str | None = None) -> Stranger:
        """Draw a person: a fresh value for each attribute (name -> value type), and a name as common as `like`."""
        name = self.value("", "person_name", like=like)
        return Stranger(person, name, {a: self.value(a, type_) for a, type_ in sorted(attributes.items())})


def twin_records(dossier: Sequence[Record], twin: Stranger) -> list[Record]:
    """Return the dossier as if it were the twin's: same records and order, other name and values."""
    return [rewrite(record, person=twin.person, name=twin.name, values=twin.values) for record in dossier]


def rewrite(record: Record, *, person: str | None = None, name: str | None = None, values: Mapping[str, str]) -> Record:
    """Return a copy of `record` with its name and the values of the attributes in `values` replaced.

    Works on spans alone, so it serves any record, whether it came from a question bank or not.
    """
    edits: list[tuple[int, int, str, FactSpan | None]] = [
        (f.start, f.end, values[f.attribute], f) for f in record.facts if f.attribute in values
    ]
    if name is not None:
        edits += [(start, end, name, None) for start, end in record.name_spans]
    edits.sort(key=lambda edit: edit[0])
    if any(a[1] > b[0] for a, b in zip(edits, edits[1:], strict=False)):
        raise RecordError("name and value spans of a record overlap; they must be disjoint")
    text = _edited(record.text, edits)
    moved = {(s, e): (_moved(s, edits), _moved(e, edits)) for s, e in _all_spans(record)}
    return replace(
        record,
        record_id=record.record_id if person is None else f"{person}:{record.record_id}",
        person=record.person if person is None else person,
        text=text,
        answer_start=_moved(record.answer_start, edits),
        name_spans=tuple(moved[span] for span in record.name_spans),
        facts=tuple(replace(f, start=moved[f.start, f.end][0], end=moved[f.start, f.end][1]) for f in record.facts),
    )


def _all_spans(record: Record) -> list[tuple[int, int]]:
    return [*record.name_spans, *((f.start, f.end) for f in record.facts)]


def _edited(text: str, edits: Sequence[tuple[int, int, str, FactSpan | None]]) -> str:
    pieces, position = [], 0
    for start, end, filling, _ in edits:
        pieces += [text[position:start], filling]
        position = end
    return "".join([*pieces, text[position:]])


def _moved(offset: int, edits: Sequence[tuple[int, int, str, FactSpan | None]]) -> int:
    """Where a character offset lands after the edits; the end of an edited span moves to the end of its filling."""
    return offset + sum(len(filling) - (end - start) for start, end, filling, _ in edits if end <= offset)
