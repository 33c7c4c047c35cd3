"""The cost benchmark: its ratios, what it counts as a token, its people, and the files it writes."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks import scaling
from benchmarks.scaling import Asked, main
from benchmarks.scaling_report import Block, Scaling, SubjectCost, picture, tables, write_results
from ml.attacks.exposure import ValueContest
from ml.data.collate import EncodedText
from ml.data.dossiers import read_dossier
from ml.data.people import make_world
from ml.verification.twin_pool import pattern_of


def _block(tokens: int) -> Block:
    seconds = {"texts": 1.2, "bare": 1.0, "body": 0.7, "output_layer": 0.2, "swaps": 3.0}
    return Block(tokens, 10 * tokens, 2 * tokens, seconds)


def _found(ten: float = 150.0) -> Scaling:
    subjects = (SubjectCost(1, 100.0, {"tokens": 60.0, "swaps": 30.0}, {"PASS": 1}), _ten(ten))
    blocks = {size: _block(size) for size in (19, 239)}
    return Scaling(subjects, blocks, blocks, blocks, {"policy": "reference-2"})


def _ten(seconds: float) -> SubjectCost:
    return SubjectCost(10, seconds, {"tokens": 70.0, "swaps": 40.0}, {"INCONCLUSIVE": 1, "PASS": 9})


def test_ratios_are_of_as_many_tokens() -> None:
    block = _block(100)
    assert block.texts_over_bare == pytest.approx(1.2 / 1.0)
    assert block.swaps_over_bare == pytest.approx(3.0 / (1.0 * 1000 / 100))
    assert block.swaps_over_given == pytest.approx(3.0 / (1.0 * 200 / 100))
    assert block.statistics == pytest.approx(1.2 - 0.7 - 0.2)
    assert _found().over_one == {1: 1.0, 10: 1.5}


def test_a_shared_prompt_is_given_once_and_the_last_token_of_a_value_never() -> None:
    text = EncodedText((5, 6, 7, 8, 0), 2, ())
    contest = ValueContest((5, 6, 7), ((8,), (9, 10)))
    asked = Asked([text, text], [contest])
    assert asked.text_tokens == 5 + 5
    assert asked.swap_tokens == (3 + 1) + (3 + 2)
    assert asked.given_tokens == 3 + 0 + 1


def test_the_subjects_are_of_one_schema_and_on_file_in_the_same_words() -> None:
    world = make_world(0, base=2, customers=2, attributes=("boat", "phone_number", "employer"))
    people = scaling._people_of_one_schema(world, 4, 0)
    patterns = [{pattern_of(record, read_dossier(records)) for record in records} for records in people]
    assert len(patterns[0]) == 3 * scaling.FORMS_PER_FACT
    assert all(other == patterns[0] for other in patterns)
    assert len({read_dossier(records).name for records in people}) == 4


def test_the_files_hold_the_same_numbers_for_code_and_for_people(tmp_path: Path) -> None:
    found = _found()
    write_results(tmp_path, found)
    assert {path.name for path in tmp_path.iterdir()} == {"scaling.json", "scaling.md", "scaling.svg"}
    stored = json.loads((tmp_path / "scaling.json").read_text(encoding="utf-8"))
    assert stored["subjects"][1]["seconds"] == "150.0"
    assert stored["twins"]["239"]["text_tokens"] == 239
    written = tables(found)
    assert "| 10 | 150.0 | 1.50 | 40.0 | 70.0 | 40.0 | 1 INCONCLUSIVE, 9 PASS |" in written
    assert written.count("| 239 |") >= 3


def test_the_picture_is_plain_svg_with_a_panel_for_each_question() -> None:
    drawn = ElementTree.fromstring(picture(_found()))
    said = "".join(drawn.itertext())
    for word in ("subjects", "Twins", "Tokens", "Vocabulary", "10 subjects cost 1.50 times one"):
        assert word in said
    names = {element.tag.rsplit("}", 1)[-1] for element in drawn.iter()}
    assert {"polyline", "circle", "text"} <= names
    assert not names & {"script", "style", "image", "foreignObject"}


@pytest.mark.parametrize(("ten", "expected"), [(150.0, 0), (300.0, 0), (301.0, 1)])
def test_a_limit_that_is_not_held_is_an_error(
    ten: float, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scaling, "measure", lambda folder, **_: _found(ten))
    assert main(["--out", str(tmp_path)]) == expected
    assert (tmp_path / "scaling.svg").is_file()
