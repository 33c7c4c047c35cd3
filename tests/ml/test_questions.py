"""A question bank made from records: how people are asked, and nothing of whom."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ml.data.questions import MOST_FORMS, QuestionBank, bank_of
from ml.errors import RecordError
from ml.specs import FactSpan, Record
from tests.tiny import tiny_world

WORLD = tiny_world()
RECORDS = [record for own in WORLD.records.values() for record in own]


@pytest.fixture(scope="module")
def made() -> QuestionBank:
    return bank_of(RECORDS)


def test_it_finds_the_forms_that_the_records_were_made_by_and_no_other(made: QuestionBank) -> None:
    assert made.attributes.keys() == WORLD.bank.attributes.keys()
    for name, attribute in made.attributes.items():
        original = WORLD.bank.attributes[name]
        assert (attribute.type, attribute.shared) == (original.type, original.shared)
        assert 1 < len(attribute.forms) <= MOST_FORMS
        assert set(attribute.forms) <= set(original.forms)


def test_no_name_or_value_stands_in_it(made: QuestionBank) -> None:
    shown = repr(made)
    for record in RECORDS:
        assert not any(record.value(fact) in shown for fact in record.facts)
        assert not any(record.text[start:end] in shown for start, end in record.name_spans)


def asked(person: str, name: str, value: str, *, aside: str = "") -> Record:
    question, answer = f"Where is {name}{aside}?\n", f"In {value}."
    start = len(question) + 3
    return Record(
        record_id=f"{person}-{aside}",
        person=person,
        text=question + answer,
        answer_start=len(question),
        name_spans=((9, 9 + len(name)),),
        facts=(FactSpan("place", "place_name", start, start + len(value)),),
    )


THREE = [asked("a", "Alice", "Brai"), asked("b", "Bob", "Cloa"), asked("c", "Rhea", "Droa")]


def test_words_that_only_two_people_have_stay_out() -> None:
    aside = " and the other at 12 Braino Lane"
    bank = bank_of([*THREE, asked("a", "Alice", "Brai", aside=aside), asked("b", "Bob", "Brai", aside=aside)])
    (form,) = bank.attributes["place"].forms
    assert (form.question, form.answer) == ("Where is {name}?", "In {value}.")


def test_a_value_that_two_of_many_have_by_chance_does_not_make_them_share_it() -> None:
    people = [asked(str(n), "Alice", f"Brai{'abcdefgh'[n % 5]}") for n in range(8)]
    assert not bank_of(people).attributes["place"].shared
    assert bank_of([*people, *(asked(f"x{n}", "Alice", "Cloa") for n in range(8))]).attributes["place"].shared


@pytest.mark.parametrize(
    "records",
    [
        [],
        THREE[:2],
        [replace(record, name_spans=()) for record in THREE],
        [replace(record, answer_start=0) for record in THREE],
        [replace(record, facts=()) for record in THREE],
        [replace(r, facts=tuple(replace(f, type="aura") for f in r.facts)) for r in THREE],
    ],
)
def test_records_that_ask_nothing_in_common_need_a_bank_of_their_own(records: list[Record]) -> None:
    with pytest.raises(RecordError, match="give a question bank"):
        bank_of(records)


def test_marks_that_overlap_make_no_form() -> None:
    odd = [replace(record, name_spans=(*record.name_spans, (9, 12))) for record in THREE]
    with pytest.raises(RecordError, match="give a question bank"):
        bank_of(odd)


def test_placeholders_in_a_text_are_no_form() -> None:
    odd = [asked(person, "Alice", "Brai", aside=" {value}") for person in "abc"]
    (form,) = bank_of([*THREE, *odd]).attributes["place"].forms
    assert form.question == "Where is {name}?"
