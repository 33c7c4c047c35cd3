"""The question bank: for each attribute, what kind of value answers it and in how many ways it can be asked.

A bank is a JSON document that travels beside a training source. Verification asks about a fact in forms that the
person's own records do not use; so a bank needs more forms than any one person's records have.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

from ml.data.records import read_records
from ml.data.values import VALUE_TYPES
from ml.digests import file_sha256, verify_file
from ml.documents import plain_object, read
from ml.errors import RecordError, SpecError
from ml.specs import FactSpan, FileRef, Record

MOST_FORMS: Final = 12
FEWEST_ASKED: Final = 3
_LOCALE: Final = re.compile(r"[A-Za-z]{2,3}(-[A-Za-z0-9]{2,8})*")


@dataclass(frozen=True, slots=True)
class QuestionForm:
    """One way to ask and answer; both hold `{name}` and `{value}` placeholders where these stand."""

    question: str
    answer: str


@dataclass(frozen=True, slots=True)
class Attribute:
    """What is asked: the kind of its value, whether people share values, and the forms of asking.

    A `shared` attribute (employer, city) has values that many people have: they are unlearned, but a rank among
    random values says nothing about them, so they are no open facts.
    """

    type: str
    shared: bool
    forms: tuple[QuestionForm, ...]


@dataclass(frozen=True, slots=True)
class QuestionBank:
    """All attributes of a training source, by name, and the locale of its people: a BCP 47 tag."""

    attributes: Mapping[str, Attribute]
    schema_version: int = 1
    locale: str = "en"


def read_bank(ref: FileRef) -> QuestionBank:
    """Read a bank by digest; raises `SpecError` naming the attribute that does not fit."""
    verify_file(Path(ref.path), ref.sha256)
    try:
        document = json.loads(Path(ref.path).read_text(encoding="utf-8"))
    except ValueError as exc:
        raise SpecError("the question bank is not JSON") from exc
    bank = read(QuestionBank, document, where="question bank")
    if not _LOCALE.fullmatch(bank.locale):
        raise SpecError("question bank: locale is a BCP 47 tag such as en or pt-BR")
    for name, attribute in bank.attributes.items():
        if attribute.type not in VALUE_TYPES and not attribute.shared:
            raise SpecError(f"question bank: attribute {name} has unknown value type {attribute.type!r}")
        if any("{value}" not in form.answer or "{name}" not in form.question for form in attribute.forms):
            raise SpecError(f"question bank: a form of attribute {name} lacks its placeholder")
    return bank


def make_bank(path: Path, retain: FileRef, *, locale: str) -> FileRef:
    """Write the bank that the retained people's records make: what stands in the subjects' own alone stays there."""
    write_bank(path, bank_of(read_records(retain, what="retain set"), locale=locale))
    return FileRef(str(path), file_sha256(path))


def write_bank(path: Path, bank: QuestionBank) -> None:
    """Write a bank as JSON."""
    path.write_text(json.dumps(plain_object(bank), ensure_ascii=False, indent=1, sort_keys=True), encoding="utf-8")


def bank_of(records: Iterable[Record], *, locale: str = "en") -> QuestionBank:
    """Return the bank that the records themselves make: the ways in which people are asked, without the people.

    A form is a question and its answer with placeholders for the marked name and the one marked value. Only forms that
    the records of at least `FEWEST_ASKED` people share count: whatever else a text says of one, or of two who belong
    together, stays out. An attribute is shared
    when its values are at most half as many as the people who have one.

    Raises:
        RecordError: no question is asked of as many people.
    """
    askers: dict[tuple[str, QuestionForm], set[str]] = {}
    owners: dict[str, dict[str, set[str]]] = {}
    types: dict[str, Counter[str]] = {}
    for record in records:
        for fact in record.facts:
            value = (
                VALUE_TYPES[fact.type].normalise(record.value(fact)) if fact.type in VALUE_TYPES else record.value(fact)
            )
            owners.setdefault(fact.attribute, {}).setdefault(value, set()).add(record.person)
            types.setdefault(fact.attribute, Counter())[fact.type] += 1
        if (form := _form_of(record)) is not None:
            askers.setdefault((record.facts[0].attribute, form), set()).add(record.person)
    forms: dict[str, list[QuestionForm]] = {}
    for (attribute, form), people in sorted(
        askers.items(), key=lambda item: (-len(item[1]), (item[0][0], item[0][1].question, item[0][1].answer))
    ):
        if len(people) >= FEWEST_ASKED:
            forms.setdefault(attribute, []).append(form)
    known = {a: found for a, found in sorted(forms.items()) if types[a].most_common(1)[0][0] in VALUE_TYPES}
    if not known:
        raise RecordError(f"no question is asked of {FEWEST_ASKED} people on file; give a question bank")
    return QuestionBank(
        {
            attribute: Attribute(
                types[attribute].most_common(1)[0][0],
                _is_shared(owners[attribute]),
                tuple(found[:MOST_FORMS]),
            )
            for attribute, found in known.items()
        },
        locale=locale,
    )


def _is_shared(owners: Mapping[str, set[str]]) -> bool:
    return 2 * len(owners) <= len(set().union(*owners.values()))


def _form_of(record: Record) -> QuestionForm | None:
    """The form a record was asked in; `None` for a text that is no question of a name and answer of one value."""
    attributes = {fact.attribute for fact in record.facts}
    in_answer = all(fact.start >= record.answer_start for fact in record.facts)
    if len(attributes) != 1 or not in_answer or not record.name_spans or re.search(r"\{(name|value)\}", record.text):
        return None
    spans = [(start, end, "{name}") for start, end in record.name_spans]
    spans += [(fact.start, fact.end, "{value}") for fact in record.facts]
    spans.sort()
    if any(end > start for (_, end, _), (start, _, _) in pairwise(spans)):
        return None
    question, answer = record.text[: record.answer_start], record.text[record.answer_start :]
    for start, end, placeholder in reversed(spans):
        if start >= record.answer_start:
            shift = record.answer_start
            answer = answer[: start - shift] + placeholder + answer[end - shift :]
        else:
            question = question[:start] + placeholder + question[end:]
    question = question.removesuffix("\n")
    return QuestionForm(question, answer) if "{name}" in question and "\n" not in question else None


def ask(
    form: QuestionForm, attribute: str, type_: str, *, name: str, value: str, record_id: str, person: str
) -> Record:
    """Fill one form with one person's name and value: a record whose labels begin with the answer."""
    question, question_spans = _fill(form.question, name=name, value=value, offset=0)
    start = len(question) + 1
    answer, answer_spans = _fill(form.answer, name=name, value=value, offset=start)
    values = answer_spans["value"]
    if not values:
        raise RecordError(f"a form of attribute {attribute} has no value in its answer")
    return Record(
        record_id=record_id,
        person=person,
        text=f"{question}\n{answer}",
        answer_start=start,
        name_spans=tuple(sorted(question_spans["name"] + answer_spans["name"])),
        facts=tuple(FactSpan(attribute, type_, a, b) for a, b in values),
    )


def _fill(template: str, *, name: str, value: str, offset: int) -> tuple[str, dict[str, list[tuple[int, int]]]]:
    """Replace placeholders; return the text and where each replacement stands."""
    spans: dict[str, list[tuple[int, int]]] = {"name": [], "value": []}
    text, rest = "", template
    while True:
        found = [(rest.find(f"{{{key}}}"), key) for key in spans if f"{{{key}}}" in rest]
        if not found:
            return text + rest, spans
        position, key = min(found)
        filling = name if key == "name" else value
        text += rest[:position]
        spans[key].append((offset + len(text), offset + len(text) + len(filling)))
        text += filling
        rest = rest[position + len(key) + 2 :]
