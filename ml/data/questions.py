"""The question bank: for each attribute, what kind of value answers it and in how many ways it can be asked.

A bank is a JSON document that travels beside a training source. Verification asks about a fact in forms that the
person's own records do not use; so a bank needs more forms than any one person's records have.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ml.data.values import VALUE_TYPES
from ml.digests import verify_file
from ml.documents import plain_object, read
from ml.errors import RecordError, SpecError
from ml.specs import FactSpan, FileRef, Record


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
    """All attributes of a training source, by name."""

    attributes: Mapping[str, Attribute]
    schema_version: int = 1


def read_bank(ref: FileRef) -> QuestionBank:
    """Read a bank by digest; raises `SpecError` naming the attribute that does not fit."""
    verify_file(Path(ref.path), ref.sha256)
    try:
        document = json.loads(Path(ref.path).read_text(encoding="utf-8"))
    except ValueError as exc:
        raise SpecError("the question bank is not JSON") from exc
    bank = read(QuestionBank, document, where="question bank")
    for name, attribute in bank.attributes.items():
        if attribute.type not in VALUE_TYPES and not attribute.shared:
            raise SpecError(f"question bank: attribute {name} has unknown value type {attribute.type!r}")
        if any("{value}" not in form.answer or "{name}" not in form.question for form in attribute.forms):
            raise SpecError(f"question bank: a form of attribute {name} lacks its placeholder")
    return bank


def write_bank(path: Path, bank: QuestionBank) -> None:
    """Write a bank as JSON."""
    path.write_text(json.dumps(plain_object(bank), ensure_ascii=False, indent=1, sort_keys=True), encoding="utf-8")


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
