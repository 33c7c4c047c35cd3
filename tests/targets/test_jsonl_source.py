"""A training source of JSON Lines: read strictly, erased for good or left as tombstones, never half written."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
from django.conf import settings

from deletion_service.errors import InvalidInputError, SourceError
from deletion_service.targets.sources import jsonl_directory, open_source, wanted_keys
from deletion_service.targets.sources.jsonl_directory import JsonlDirectorySource
from tests.cast import ALICE, ALICE_NAME, Identifier
from tests.world import ALICE_SECRET, make_source


@pytest.fixture
def source() -> JsonlDirectorySource:
    make_source()
    return JsonlDirectorySource(Path(settings.SOURCE_ROOT) / "customers", name="customers", tombstones=False)


def lines() -> list[dict[str, object]]:
    path = Path(settings.SOURCE_ROOT) / "customers" / "records-0.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_records_carry_text_identifiers_and_fact_spans(source: JsonlDirectorySource) -> None:
    first = next(iter(source.records()))
    assert first.identifiers == (ALICE, ALICE_NAME)
    (fact,) = first.record.facts
    assert first.record.value(fact) == ALICE_SECRET


@pytest.mark.parametrize("spelling", ["ALICE.KORVEL@mail.example", "  alice.korvel@mail.example "])
def test_an_identifier_matches_in_any_spelling(source: JsonlDirectorySource, spelling: str) -> None:
    wanted = wanted_keys([Identifier("email", spelling)])
    assert [r.record.record_id for r in source.records() if r.matches(wanted)] == ["alice-1", "alice-2"]


def test_an_identifier_of_another_type_never_matches(source: JsonlDirectorySource) -> None:
    assert not any(r.matches(wanted_keys([Identifier("name", ALICE.value)])) for r in source.records())


def test_erased_rows_are_gone_and_erasing_again_is_harmless(source: JsonlDirectorySource) -> None:
    assert source.erase(["alice-1", "alice-2"]) == "deleted"
    assert source.erase(["alice-1", "alice-2"]) == "deleted"
    assert source.still_present(["alice-1", "alice-2"]) == 0
    assert [row["record_id"] for row in lines()] == ["bob-1", "carol-1"]


def test_a_row_of_the_person_is_present_under_any_record_id(source: JsonlDirectorySource) -> None:
    source.erase(["alice-1"])
    assert source.still_present(["alice-1"]) == 0
    assert source.still_present(["alice-1"], wanted_keys([ALICE])) == 1


def test_of_two_erasures_at_once_neither_brings_back_what_the_other_removed(
    source: JsonlDirectorySource, monkeypatch: pytest.MonkeyPatch
) -> None:
    rewriting, real = threading.Event(), jsonl_directory._replace
    other = threading.Thread(target=lambda: source.erase(["bob-1"]))

    def slowly(path: Path, text: str) -> None:
        if not rewriting.is_set():
            rewriting.set()
            other.start()
            other.join(timeout=0.5)
        real(path, text)

    monkeypatch.setattr(jsonl_directory, "_replace", slowly)
    source.erase(["alice-1", "alice-2"])
    other.join()
    assert [row["record_id"] for row in lines()] == ["carol-1"]


def test_what_a_killed_erasure_left_half_written_goes_with_the_next(
    source: JsonlDirectorySource, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise SystemExit("killed")

    folder = Path(settings.SOURCE_ROOT) / "customers"
    with monkeypatch.context() as dying:
        dying.setattr("os.fsync", killed)
        with pytest.raises(SystemExit):
            source.erase(["bob-1"])
    assert any(ALICE_SECRET in path.read_text() for path in folder.glob(".records-*"))
    source.erase(["alice-1"])
    assert not any(ALICE_SECRET in path.read_text() for path in folder.iterdir())


def test_a_rewritten_file_keeps_its_mode(source: JsonlDirectorySource) -> None:
    path = Path(settings.SOURCE_ROOT) / "customers" / "records-0.jsonl"
    path.chmod(0o640)
    source.erase(["alice-1"])
    assert path.stat().st_mode & 0o777 == 0o640


def test_tombstones_keep_the_id_and_nothing_else() -> None:
    make_source()
    source = open_source({"kind": "jsonl_directory", "name": "customers", "erase_by": "tombstone"})
    assert source.erase(["alice-1"]) == "tombstoned"
    assert source.still_present(["alice-1"]) == 0
    assert {"record_id": "alice-1", "erased": True} in lines()
    assert ALICE_SECRET not in json.dumps(lines())


@pytest.mark.parametrize(
    "line",
    [
        "not json",
        "[]",
        '{"record_id": "x"}',
        '{"record_id": "x", "text": "abc", "answer_start": 9, "name_spans": [], "facts": [], '
        '"identifiers": [{"type": "email", "value": "a@b.example"}]}',
        '{"record_id": "x", "text": "abc", "answer_start": 1, "name_spans": [], "facts": [], "identifiers": []}',
        '{"record_id": "x", "text": "abc", "answer_start": true, "name_spans": [], "facts": [], '
        '"identifiers": [{"type": "email", "value": "a@b.example"}]}',
    ],
)
def test_a_malformed_line_is_named_by_file_and_line_and_never_quoted(source: JsonlDirectorySource, line: str) -> None:
    path = Path(settings.SOURCE_ROOT) / "customers" / "records-0.jsonl"
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(SourceError, match=r"records-0\.jsonl, line 5") as error:
        list(source.records())
    assert "abc" not in str(error.value)


def test_a_source_without_records_is_an_error_not_an_empty_answer(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no records-\*\.jsonl"):
        list(JsonlDirectorySource(tmp_path, name="empty", tombstones=False).records())


@pytest.mark.parametrize("name", ["../..", "/etc/passwd", "a b"])
def test_a_source_name_is_never_a_path(name: str) -> None:
    with pytest.raises(InvalidInputError):
        open_source({"kind": "jsonl_directory", "name": name})
