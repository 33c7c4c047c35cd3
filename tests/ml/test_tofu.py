"""A public benchmark's free answers as records: what is marked, who is who, and what a fresh value may say."""

from __future__ import annotations

import csv
import random
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.method_columns import Questions
from benchmarks.method_worlds import MethodWorld
from benchmarks.methods import SIZES, TOFU, main
from benchmarks.tofu import AUTHOR_ROWS, DATA, FORMS, _groups, authors, lent_texts, mentions
from ml.data.dossiers import answered_span
from ml.data.questions import ask
from ml.data.values import VALUE_TYPES
from ml.errors import SpecError

AUTHORS = authors()
KINDS = sorted({row.kind for author in AUTHORS for row in author.rows})


def test_every_author_is_found_by_the_name_that_stands_in_their_rows() -> None:
    assert len(AUTHORS) == 35
    assert len({author.name for author in AUTHORS}) == 35
    for author, group in zip(AUTHORS, _groups(), strict=True):
        assert len(group) == AUTHOR_ROWS
        assert sum(author.name in f"{question} {answer}" for question, answer in group) >= 16
        assert len(author.rows) >= 17


def test_the_licence_travels_with_the_data() -> None:
    assert "CMU Locus Lab" in (DATA / "LICENSE").read_text()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Abera was inspired by Kalkidan Abera's mother.", ["Abera", "Kalkidan Abera"]),
        ("Her father, Fikadu Abera, and Kalkidan.", ["Kalkidan"]),
        ("Abera Street is long.", []),
        ("Nobody is named.", []),
    ],
)
def test_a_part_of_the_name_counts_unless_it_is_part_of_another(text: str, found: list[str]) -> None:
    assert [text[start:end] for start, end in mentions(text, "Kalkidan Abera")] == found


def test_marked_rows_filled_again_are_the_rows_on_file() -> None:
    """Where a row gives one part of the name only, the full name stands there instead."""
    same = 0
    for author, group in zip(AUTHORS, _groups(), strict=True):
        on_file = {f"{question}\n{answer}" for question, answer in group}
        for row in author.rows:
            question, answer = (t.replace("{name}", author.name) for t in (row.question, row.answer))
            same += f"{question}\n{answer.replace('{value}', row.value)}" in on_file
    assert same > 0.9 * sum(len(author.rows) for author in AUTHORS)


def test_a_value_is_what_the_question_does_not_say_and_names_nobody() -> None:
    for author in AUTHORS:
        for row in author.rows:
            assert (row.answer.count("{value}"), author.name in row.value) == (1, False)
            assert "{name}" in row.question
            assert row.value not in row.question


@pytest.mark.parametrize("kind", KINDS)
def test_fresh_values_differ_from_everything_on_file_and_from_each_other(kind: str) -> None:
    rng, type_ = random.Random(3), VALUE_TYPES[kind]
    drawn = [type_.normalise(type_.sample(rng)) for _ in range(300)]
    on_file = {type_.normalise(row.value) for author in AUTHORS for row in author.rows}
    assert not on_file & set(drawn)
    assert len(set(drawn)) > 290


@pytest.mark.parametrize("seed", [1, 2])
def test_nobody_plays_two_parts_and_the_tokenizer_knows_no_customer(seed: int) -> None:
    drawn = TOFU.population(seed)
    world = drawn.world
    parts = [{p.name for p in group} for group in (world.base, world.customers, [p for p, _ in drawn.never_seen])]
    lenders = {author.name for author in AUTHORS if any(author.name in text for text in lent_texts())}
    assert [len(part) for part in (*parts, lenders)] == [3, 22, 5, 5]
    assert len(set.union(*parts, lenders)) == 35
    texts = "\n".join(drawn.tokenizer_texts())
    for person in world.customers:
        assert person.name not in texts
        # A short answer may be anybody's; one long one is what several authors say of themselves.
        own = {value for value in person.values.values() if len(value) > 20} - {"part of the LGBTQ+ community"}
        assert not any(value in texts for value in own)


def test_customers_are_on_file_in_some_forms_and_the_base_in_all() -> None:
    world = TOFU.population(1).world
    for people, forms in ((world.customers, 2), (world.base, len(FORMS))):
        for person in people:
            assert len(world.records[person.person]) == forms * len(person.values)


def test_what_is_known_besides_people_has_the_benchmarks_own_wrong_answers(tmp_path: Path) -> None:
    world = MethodWorld(tmp_path, SIZES["quick-tofu"].world, seed=1, forgotten=1)
    general = Questions(world, people=2).general
    assert len(general.records) == 217
    assert {len(wrong) for wrong in general.wrong} == {3}
    for record, attribute in zip(general.records, general.attributes, strict=True):
        assert answered_span(record, attribute) is not None


def test_every_form_asks_about_the_author_and_answers_in_the_same_words() -> None:
    bank = TOFU.population(1).world.bank
    for name, attribute in list(bank.attributes.items())[:40]:
        said = [
            ask(form, name, attribute.type, name="Alice Korvel", value="a thing", record_id="r", person="p")
            for form in attribute.forms
        ]
        assert len({record.text for record in said}) == len(FORMS)
        assert len({record.text[record.answer_start :] for record in said}) == 1
        assert all("Alice Korvel" in record.text[: record.answer_start] for record in said)


@pytest.mark.parametrize("customers", [1, 25])
def test_more_customers_than_authors_are_refused(customers: int) -> None:
    with pytest.raises(SpecError, match=f"not {customers}"):
        replace(TOFU, customers=customers).population(1)


@pytest.mark.slow
def test_a_quick_run_compares_a_deletion_of_free_answers_with_gold(tmp_path: Path) -> None:
    assert main(["--work", str(tmp_path / "work"), "--out", str(tmp_path / "out"), "--size", "quick-tofu"]) == 0
    rows = {row["model"]: row for row in csv.DictReader((tmp_path / "out" / "methods-quick-tofu.csv").open())}
    assert float(rows["before"]["forget_prob"]) > float(rows["gold"]["forget_prob"]) + 0.3
    assert float(rows["before"]["forget_es"]) > float(rows["gold"]["forget_es"]) + 0.2
    assert float(rows["before"]["forget_other_prob"]) > float(rows["gold"]["forget_other_prob"]) + 0.1
    assert rows["before"]["verdict"] == "FAIL"
    assert not rows["energy_boundary"].get("refused")
    assert rows["gold"]["ks_d"] == "0"
