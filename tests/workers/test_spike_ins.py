"""Spike-ins: synthetic people in the words of a source, the same for the same seed, marked, and nobody's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.core.management import CommandError, call_command

from deletion_service.errors import SourceError
from deletion_service.requests.intake import Identifier
from deletion_service.targets.sources import wanted_keys
from deletion_service.targets.sources.jsonl_directory import JsonlDirectorySource
from ml.data.dossiers import known_values
from tests.flow.trained import write_bank
from tests.tiny import tiny_world
from tests.world import make_source

FILE = "records-spike-ins-7.jsonl"


@pytest.fixture(autouse=True)
def _sources_of_its_own(settings: Any, tmp_path: Path) -> None:
    settings.SOURCE_ROOT = tmp_path


def planted(**options: int) -> JsonlDirectorySource:
    """The small source of three people, asked about in the words of the tiny world."""
    make_source()
    folder = Path(settings.SOURCE_ROOT) / "customers"
    (folder / FILE).unlink(missing_ok=True)
    write_bank(folder / "question_bank.json", tiny_world().bank)
    call_command("plant_spike_ins", "customers", **{"seed": 7, "people": 3, **options}, verbosity=0)
    return JsonlDirectorySource(folder, name="customers", tombstones=False)


def rows() -> bytes:
    return (Path(settings.SOURCE_ROOT) / "customers" / FILE).read_bytes()


def test_they_are_marked_and_have_records_of_every_attribute_like_people_on_file() -> None:
    source = planted(forms=2)
    found = [row for row in source.records() if row.spike_in]
    assert {row.spike_in for row in found} == {"spike-7-0000", "spike-7-0001", "spike-7-0002"}
    attributes = set(tiny_world().bank.attributes)
    for mark in {row.spike_in for row in found}:
        theirs = [row.record for row in found if row.spike_in == mark]
        assert {fact.attribute for record in theirs for fact in record.facts} == attributes
        assert len({record.person for record in theirs}) == 1
        assert len(theirs) == 2 * len(attributes)


def test_the_same_seed_makes_the_same_people_and_another_one_others() -> None:
    planted()
    first = rows()
    planted()
    assert rows() == first
    call_command("plant_spike_ins", "customers", seed=8, people=3, verbosity=0)
    other = (Path(settings.SOURCE_ROOT) / "customers" / "records-spike-ins-8.jsonl").read_bytes()
    assert other.replace(b"spike-8", b"spike-7") != first


def test_nobody_on_file_shares_a_value_with_them_that_is_not_shared_by_many() -> None:
    source = planted()
    real = known_values(row.record for row in source.records() if not row.spike_in)
    made = known_values(row.record for row in source.records() if row.spike_in)
    assert not real & made


def test_rows_that_were_learned_are_never_exchanged() -> None:
    planted()
    first = rows()
    with pytest.raises(CommandError, match="already"):
        call_command("plant_spike_ins", "customers", seed=7, people=5, verbosity=0)
    assert rows() == first


@pytest.mark.parametrize("options", [{"people": 0}, {"people": 1001}, {"forms": 0}, {"seed": -1}])
def test_numbers_out_of_range_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(CommandError):
        planted(**options)


def test_no_identifier_finds_a_synthetic_person() -> None:
    source = planted()
    theirs = next(row.identifiers for row in source.records() if row.spike_in)
    keys = wanted_keys([*theirs, Identifier("name", "anybody")])
    assert not [row for row in source.records() if row.matches(keys)]
    assert source.still_present([], keys) == 0


@pytest.mark.parametrize("mark", [7, "", None, "Alice Korvel", "x" * 65])
def test_a_mark_is_an_opaque_word(mark: object) -> None:
    source = planted()
    path = Path(settings.SOURCE_ROOT) / "customers" / FILE
    row = {**json.loads(path.read_text().splitlines()[0]), "spike_in": mark}
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(SourceError, match="spike-in"):
        list(source.records())


@pytest.mark.parametrize(
    "identifiers",
    [
        [{"type": "email", "value": "alice@example.org"}],
        [{"type": "email", "value": "spike@spike-in.invalid"}, {"type": "name", "value": "Alice Korvel"}],
        [{"type": "email", "value": "alice@notspike-in.invalid"}],
    ],
)
def test_a_mark_on_a_persons_row_is_refused_since_it_would_hide_them(identifiers: list[dict[str, str]]) -> None:
    path = Path(settings.SOURCE_ROOT) / "customers" / "records-0.jsonl"
    make_source()
    first, *others = path.read_text().splitlines()
    marked = json.dumps({**json.loads(first), "identifiers": identifiers, "spike_in": "spike-7-0001"})
    path.write_text("\n".join([marked, *others]) + "\n")
    source = JsonlDirectorySource(path.parent, name="customers", tombstones=False)
    with pytest.raises(SourceError, match="remove it") as refused:
        list(source.records())
    assert "Korvel" not in str(refused.value)
    assert "alice" not in str(refused.value)
