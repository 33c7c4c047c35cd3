"""What is only this person's, in which other words it can be asked, and which texts were used for what."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

from ml.data.dossiers import (
    answered_span,
    contexts,
    normal_value,
    open_facts,
    paraphrases,
    read_dossier,
    shared_values,
)
from ml.data.people import World
from ml.data.probes import probe_digests, probe_set, read_probe_digests, text_sha256, write_probe_digests
from ml.digests import file_sha256
from ml.errors import DigestMismatchError, RecordError, SpecError
from ml.specs import FactSpan, FileRef, Record
from tests.tiny import tiny_world


@pytest.fixture(scope="module")
def world() -> World:
    return tiny_world(3)


def _shared(world: World) -> set[str]:
    return {name for name, attribute in world.bank.attributes.items() if attribute.shared}


def _alice(world: World) -> list[Record]:
    return list(world.records[world.alice.person])


def test_a_dossier_is_one_persons(world: World) -> None:
    dossier = read_dossier(_alice(world))
    assert (dossier.name, dossier.values) == (world.alice.name, world.alice.values)
    with pytest.raises(SpecError):
        read_dossier([*_alice(world), *world.records[world.bob.person]])
    with pytest.raises(RecordError):
        read_dossier([replace(record, name_spans=()) for record in _alice(world)])


def test_shared_facts_and_values_that_others_have_are_not_open(world: World) -> None:
    dossier = read_dossier(_alice(world))
    others = [r for person, records in world.records.items() if person != dossier.person for r in records]
    facts = open_facts(dossier, world.bank, others)
    assert set(facts) == set(dossier.values) - _shared(world)
    boat = next(r for r in _alice(world) if r.facts[0].attribute == "boat")
    somebody = replace(boat, record_id="x", person="other")
    assert set(open_facts(dossier, world.bank, [*others, somebody])) == set(facts) - {"boat"}


def test_a_twins_shared_values_come_from_what_people_have(world: World) -> None:
    pools = shared_values(world.bank, world.corpus([*world.base, *world.customers]))
    assert set(pools) == _shared(world)
    assert world.alice.values["employer"] in pools["employer"]


def test_paraphrases_are_the_forms_not_on_file(world: World) -> None:
    dossier = read_dossier(_alice(world))
    reworded = paraphrases(dossier, world.bank, ["boat", "doctor"])
    on_file = {record.text for record in dossier.records}
    assert len(reworded) == 2 * (8 - 2)
    assert not on_file & {record.text for record in reworded}
    for record in reworded:
        span = answered_span(record, record.facts[0].attribute)
        assert span is not None
        assert record.value(span) == dossier.values[record.facts[0].attribute]


def test_every_other_fact_is_asked_in_other_words(world: World) -> None:
    dossier = read_dossier(_alice(world))
    facts = open_facts(dossier, world.bank, [])
    reworded = paraphrases(dossier, world.bank, facts)
    chosen = contexts(dossier.records, reworded, facts, rng=random.Random(1))
    on_file = {record.text for record in dossier.records}
    assert list(chosen) == list(facts)
    assert sum(record.text in on_file for record in chosen.values()) == -(-len(facts) // 2)
    assert chosen == contexts(dossier.records, reworded, facts, rng=random.Random(1))
    assert contexts(dossier.records, (), facts, rng=random.Random(1)).keys() == chosen.keys()


def test_a_value_that_the_question_shows_is_not_answered() -> None:
    facts = (FactSpan("code", "access_code", 3, 5), FactSpan("code", "access_code", 13, 15))
    record = Record("r", "p", "Is 77 it?\nIt 77.", 10, (), facts)
    assert answered_span(record, "code") is None
    assert answered_span(replace(record, facts=facts[1:]), "code") == facts[1]
    assert answered_span(record, "boat") is None


def test_two_spellings_of_a_value_are_one() -> None:
    assert normal_value("phone", "012 3456 7890") == normal_value("phone", "0123456-7890")
    assert normal_value("place_name", "Braí") == normal_value("place_name", "brai")


# --- probes -------------------------------------------------------------------------------------------------------


def test_white_space_makes_no_new_probe() -> None:
    assert text_sha256("Who is\n Alice?") == text_sha256(" Who is Alice?  ")
    assert text_sha256("Who is Alice?") != text_sha256("who is Alice?")


def test_a_list_of_probes_reads_back_and_is_summarised(tmp_path: Path) -> None:
    digests = probe_digests(["a", "b", "b "])
    ref = write_probe_digests(tmp_path / "probes.json", digests)
    assert read_probe_digests(ref) == digests
    assert probe_set("training", digests).count == 2
    assert probe_set("training", digests) == probe_set("training", sorted(digests, reverse=True))
    assert probe_set("training", probe_digests(["a"])).sha256 != probe_set("training", digests).sha256


@pytest.mark.parametrize("content", ["{}", "[1]", '["abc"]', '["' + "G" * 64 + '"]', "not json"])
def test_a_malformed_list_of_probes_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "probes.json"
    path.write_text(content)
    with pytest.raises(SpecError):
        read_probe_digests(FileRef(str(path), file_sha256(path)))
    path.write_text(json.dumps([]))
    with pytest.raises(DigestMismatchError):
        read_probe_digests(FileRef(str(path), "0" * 64))
