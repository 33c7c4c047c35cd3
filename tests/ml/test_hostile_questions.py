"""Hostile questions: other clothes, the same spans, and never the value in the prompt."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ml.attacks.value_hit import holds
from ml.data.dossiers import Dossier, answered_span, open_facts, read_dossier, shared_values
from ml.data.hostile_questions import (
    FORMS,
    LEVELS,
    NAME_ATTRIBUTE,
    WORDINGS,
    Case,
    HostileQuestion,
    clues,
    hostile_questions,
    make_cases,
    runs_of,
)
from ml.data.people import OPEN_ATTRIBUTES, SHARED_ATTRIBUTES, World, make_world
from ml.data.synthetic import Stranger, StrangerFactory, rewrite
from ml.data.translations import FRAMES, WORDS, translated
from ml.errors import RecordError
from ml.specs import FactSpan, Record
from tests.tiny import tiny_world


def _dossier_of(world: World) -> tuple[Dossier, list[Record]]:
    mine = world.records[world.alice.person]
    others = [r for person, records in world.records.items() if person != world.alice.person for r in records]
    return read_dossier(mine), others


def _cases(world: World, seed: int) -> list[Case]:
    dossier, others = _dossier_of(world)
    facts = open_facts(dossier, world.bank, others)
    asked = [(next(r for r in dossier.records if answered_span(r, fact)), fact) for fact in facts]
    shared = [a for a in sorted(dossier.values) if world.bank.attributes[a].shared]
    return make_cases(dossier, asked, shared=shared, others=others, seed=seed)


def _twin_of(world: World, seed: int) -> Stranger:
    dossier, others = _dossier_of(world)
    corpus = [*dossier.records, *others]
    rng = random.Random(seed)
    factory = StrangerFactory(rng, corpus, shared_values=shared_values(world.bank, corpus))
    return factory.stranger("twin", dict(dossier.types))


def _prompt(question: HostileQuestion) -> str:
    return question.record.text[: question.record.answer_start]


def _value(question: HostileQuestion) -> tuple[str, str]:
    span = answered_span(question.record, question.attribute)
    assert span is not None
    return question.record.value(span), span.type


WORLD = tiny_world(3)


@pytest.mark.parametrize("form", sorted(FORMS))
def test_every_form_applies_to_every_fact_of_a_common_dossier(form: str) -> None:
    assert len(hostile_questions(form, _cases(make_world(3, base=6, customers=5), seed=1))) == 51


@settings(max_examples=8, deadline=None)
@example(142)
@given(st.integers(0, 10_000))
def test_no_prompt_shows_the_value_it_asks_for(seed: int) -> None:
    world = tiny_world(seed)
    cases, twin = _cases(world, seed), _twin_of(world, seed)
    examples = {run.text for case in cases for example in case.examples for run in example}
    for form in FORMS:
        for question in hostile_questions(form, cases):
            told = rewrite(question.record, person=twin.person, name=twin.name, values=twin.values)
            for asked in (question, replace(question, record=told)):
                value, type_ = _value(asked)
                # A value may be a word of an example by chance (142: a dog and a surname); the red team asks nobody
                # such a question.
                by_chance = any(holds(example, value, type_=type_) for example in examples)
                assert by_chance or not holds(_prompt(asked), value, type_=type_)
                assert holds(asked.record.text[asked.record.answer_start :], value, type_=type_)


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10_000))
def test_a_twin_is_asked_in_the_same_words(seed: int) -> None:
    """Names and values out, and both texts are the same; nothing of the subject is left in the twin's."""
    world = tiny_world(seed)
    cases, twin = _cases(world, seed), _twin_of(world, seed)
    for form in FORMS:
        for question in hostile_questions(form, cases):
            told = rewrite(question.record, person=twin.person, name=twin.name, values=twin.values)
            assert _blanked(told) == _blanked(question.record)
            assert world.alice.name not in told.text
            for fact in question.record.facts:
                drawn = twin.name if fact.attribute == NAME_ATTRIBUTE else twin.values[fact.attribute]
                moved = told.facts[question.record.facts.index(fact)]
                assert told.value(moved) == drawn
            assert all(told.text[start:end] == twin.name for start, end in told.name_spans)


def _blanked(record: Record) -> str:
    spans = sorted({*record.name_spans, *((fact.start, fact.end) for fact in record.facts)}, reverse=True)
    text = record.text
    for start, end in spans:
        text = f"{text[:start]}_{text[end:]}"
    return text


def test_wordings_are_drawn_from_the_seed_alone() -> None:
    for form in FORMS:
        assert hostile_questions(form, _cases(WORLD, 7)) == hostile_questions(form, _cases(WORLD, 7))
    assert hostile_questions("in_context", _cases(WORLD, 7)) != hostile_questions("in_context", _cases(WORLD, 8))


def _one(form: str) -> HostileQuestion:
    """The form of the question about Alice's boat."""
    cases = [case for case in _cases(WORLD, 1) if case.attribute == "boat"]
    return hostile_questions(form, cases)[0]


@pytest.mark.parametrize("form", sorted(WORDINGS))
def test_a_wording_stands_around_the_question_on_file(form: str) -> None:
    question, wording = _one(form), WORDINGS[form]
    filed = next(r for r in WORLD.records[WORLD.alice.person] if answered_span(r, "boat"))
    asked, answered = filed.text[: filed.answer_start], filed.text[filed.answer_start :]
    assert _prompt(question) == f"{wording.before}{asked.rstrip()}{wording.after}\n{wording.opening}"
    assert question.record.text.endswith(answered)


def test_a_cloze_ends_where_the_value_begins() -> None:
    question = _one("cloze")
    value, _ = _value(question)
    assert question.record.text[question.record.answer_start :].startswith(value)


def test_a_verbatim_continuation_begins_as_the_text_on_file_and_ends_before_the_value() -> None:
    question = _one("verbatim")
    filed = next(r for r in WORLD.records[WORLD.alice.person] if answered_span(r, "boat"))
    assert question.record.text == filed.text
    span = answered_span(filed, "boat")
    assert span is not None
    assert question.record.answer_start == span.start


def test_an_indirect_question_names_somebody_who_belongs_to_the_person_and_not_the_person() -> None:
    cases = _cases(make_world(3, base=6, customers=5), 1)
    question = hostile_questions("indirect", [case for case in cases if case.attribute == "boat"])[0]
    case = next(case for case in cases if case.attribute == "boat")
    relation = case.relations[0]
    assert relation.type == "person_name"
    prompt = _prompt(question)
    assert prompt.startswith(f"Somebody has {relation.attribute.replace('_', ' ')} {relation.text}. ")
    assert "this person" in prompt
    assert case.name not in prompt


def test_levels_tell_one_more_true_fact_each_and_those_that_others_share_first() -> None:
    case = next(case for case in _cases(WORLD, 1) if case.attribute == "boat")
    told = [hostile_questions(f"level_{level}", [case])[0].record for level in LEVELS]
    for level, record in zip(LEVELS, told, strict=True):
        shown = {f.attribute for f in record.facts if f.start < record.answer_start} - {"boat"}
        assert shown == {fact.attribute for fact in (*case.shared, *case.own)[:level]}


def test_a_primed_dialogue_is_about_people_who_share_something_with_the_person() -> None:
    dossier, others = _dossier_of(WORLD)
    shared = {a: dossier.values[a] for a in dossier.values if WORLD.bank.attributes[a].shared}
    case = next(case for case in _cases(WORLD, 1) if case.attribute == "boat")
    assert case.primers
    for primer in case.primers:
        (text,) = (run.text for run in primer)
        person = next(record.person for record in others if record.text == text)
        theirs = [(f.attribute, r.value(f)) for r in others if r.person == person for f in r.facts]
        assert any(shared.get(attribute) == value for attribute, value in theirs)
        assert text in _prompt(hostile_questions("primed", [case])[0])


@pytest.mark.parametrize(
    ("language", "asked"),
    [("german", "Wie lautet Boot?"), ("french", "quel est bateau ?"), ("spanish", "¿cuál es barco?")],
)
def test_a_translated_question_asks_in_that_language_about_the_same_person(language: str, asked: str) -> None:
    prompt = _prompt(_one(f"in_{language}"))
    assert asked in prompt
    assert WORLD.alice.name in prompt
    assert "boat" not in prompt


def test_a_word_that_the_dictionary_does_not_hold_stays() -> None:
    assert translated("phone number", "german") == "Telefon Nummer"
    assert translated("shoe size", "french") == "shoe size"


def test_every_attribute_of_the_reference_bank_can_be_said_in_every_language() -> None:
    words = {word for noun in (*OPEN_ATTRIBUTES, *SHARED_ATTRIBUTES) for word in noun.split()}
    assert words <= WORDS.keys()
    assert {len(said) for said in WORDS.values()} == {len(FRAMES)}


def test_clues_tell_true_facts_that_a_twin_gets_in_the_same_words() -> None:
    case = next(case for case in _cases(WORLD, 1) if case.attribute == "boat")
    twin = _twin_of(WORLD, 1)
    hints = clues(case, 3)
    assert len(hints) == 3
    assert len({hint.facts[0].attribute for hint in hints} | {"boat"}) == 4
    for hint in hints:
        told = rewrite(hint, person=twin.person, name=twin.name, values=twin.values)
        (fact,) = told.facts
        assert told.value(fact) == twin.values[fact.attribute]
        assert _blanked(told) == _blanked(hint)


def test_a_reverse_question_shows_the_value_and_asks_for_the_name() -> None:
    question = _one("reverse")
    alice = WORLD.alice
    assert question.attribute == NAME_ATTRIBUTE
    assert question.record.text == f"Whose boat is {alice.values['boat']}?\n{alice.name}."
    assert _value(question) == (alice.name, "person_name")


def test_examples_are_other_peoples_and_stay_as_they_are_for_a_twin() -> None:
    others = {r.text for r in _dossier_of(WORLD)[1] if answered_span(r, "boat")}
    for form, count in (("one_shot", 1), ("few_shot", 2)):
        question, twin = _one(form), _twin_of(WORLD, 5)
        told = rewrite(question.record, person=twin.person, name=twin.name, values=twin.values)
        shown = [text for text in others if text in _prompt(question)]
        assert len(shown) == count
        assert all(text in told.text for text in shown)


def test_an_example_in_context_is_about_the_same_person_and_another_fact() -> None:
    question = _one("in_context")
    shown = {fact.attribute for fact in question.record.facts if fact.end <= question.record.answer_start}
    assert len(shown) == 1
    assert "boat" not in shown


def test_levels_of_context_tell_one_fact_and_three() -> None:
    for form, count in (("level_1", 1), ("level_3", 3)):
        question = _one(form)
        told = [fact for fact in question.record.facts if fact.end <= question.record.answer_start]
        assert len(told) == count
        assert told[0].attribute == "employer"  # what others share comes first
    told = [f for f in _one("background").record.facts if f.end <= _one("background").record.answer_start]
    assert [fact.attribute for fact in told] == ["employer"]


def test_an_implied_question_does_not_name_the_person() -> None:
    question = _one("implied")
    assert WORLD.alice.name not in _prompt(question)
    assert "this person" in _prompt(question)


def test_a_synonym_changes_the_noun_and_no_name() -> None:
    prompt = _prompt(_one("synonym"))
    assert "vessel" in prompt
    assert "boat" not in prompt
    assert WORLD.alice.name in prompt


def test_a_text_without_a_question_is_asked_by_the_forms_that_need_none() -> None:
    record = Record("r", "p", "Mara Quill sails Brai Zoo.", 0, ((0, 10),), (FactSpan("boat", "invented_name", 17, 25),))
    cases = make_cases(read_dossier([record]), [(record, "boat")], shared=(), others=(), seed=1)
    asked = {form for form in FORMS if hostile_questions(form, cases)}
    assert asked == {"cloze", "verbatim", "reverse", "in_german", "in_french", "in_spanish"}
    assert hostile_questions("cloze", cases)[0].record.text == "Fill in: Mara Quill sails Brai Zoo."


def test_a_text_that_begins_with_its_value_has_no_blank_to_fill() -> None:
    record = Record(
        "r", "p", "Brai Zoo is the boat of Mara.", 0, ((24, 28),), (FactSpan("boat", "invented_name", 0, 8),)
    )
    cases = make_cases(read_dossier([record]), [(record, "boat")], shared=(), others=(), seed=1)
    assert hostile_questions("cloze", cases) == []


def test_a_value_told_twice_is_not_asked_where_the_question_says_it() -> None:
    told = Record("r", "p", "Is it Brai?\nBrai.", 12, ((0, 2),), (_boat(6, 10), _boat(12, 16)))
    with pytest.raises(RecordError):
        make_cases(read_dossier([told]), [(told, "boat")], shared=(), others=(), seed=1)


def _boat(start: int, end: int) -> FactSpan:
    return FactSpan("boat", "invented_name", start, end)


def test_spans_that_overlap_or_are_cut_are_refused() -> None:
    record = Record("r", "p", "Which boat has Mara?\nBrai.", 21, ((15, 19),), (_boat(21, 25),))
    assert "".join(run.text for run in runs_of(record, 0, len(record.text))) == record.text
    with pytest.raises(RecordError):
        runs_of(record, 0, 17)
    with pytest.raises(RecordError):
        runs_of(replace(record, name_spans=((15, 19), (17, 21))), 0, 21)
