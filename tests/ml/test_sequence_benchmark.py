"""Deletions in a row: who is gone is never retained again, and the table tells the worst of everybody deleted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import benchmarks.sequences as program
from benchmarks.method_worlds import MethodWorld
from benchmarks.sequence_report import picture, shares, tables, worst
from benchmarks.sequences import SIZES, main
from ml.data.records import read_records
from ml.errors import SpecError

QUICK = SIZES["quick"]
NAME = "sequences-quick.json"


def test_whoever_was_deleted_before_is_neither_forgotten_again_nor_retained(tmp_path: Path) -> None:
    first = MethodWorld(tmp_path, QUICK.world, seed=1, forgotten=1)
    second = MethodWorld(tmp_path, QUICK.world, seed=1, forgotten=1, earlier=1)
    both = MethodWorld(tmp_path, QUICK.world, seed=1, forgotten=2)
    assert (*first.forgotten, *second.forgotten) == both.forgotten
    assert second.kept == both.kept
    retained = {record.person for record in read_records(second.retain, what="retain set")}
    assert not retained & {person.person for person in both.forgotten}
    assert retained == {record.person for record in read_records(both.retain, what="retain set")}
    assert second.forget.path != first.forget.path


def test_nobody_is_left_when_too_many_went_before(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="keeps at least one"):
        MethodWorld(tmp_path, QUICK.world, seed=1, forgotten=1, earlier=QUICK.world.customers - 1)


def test_the_worst_known_of_anybody_deleted_is_told_and_not_the_mean() -> None:
    state = {"forgotten": [{"hit": 0.0}, {"hit": 0.75}]}
    assert worst(state, "hit") == 0.75
    assert worst({"forgotten": []}, "hit") == 0.0


def found_of(shares: dict[int, float], *, people: int = 5) -> dict[str, Any]:
    """Batches of some people beside so many base people, at such shares of the cost of training again."""
    known = {"utility": 0.8, "retain_hit": 0.9, "utility_before": 1.0, "retain_hit_before": 0.9, "forgotten": []}
    again = {"base_cpu_seconds": 60.0, "fine_tune_cpu_seconds": 40.0, "base_hit": 1.0, "fine_tune_hit": 0.99}
    found: dict[str, Any] = {}
    for base_people, share in shares.items():
        name = f"{people}-of-{base_people}"
        found |= {f"retrain-{name}": again, f"batch-{name}": {"cpu_seconds": 100 * share}}
        found |= {f"batch_kept-{name}": known, f"batch_judged-{name}": {"verdict": "PASS", "reasons": []}}
    return found


def test_costs_are_shares_of_both_steps_of_training_again() -> None:
    found = found_of({24: 0.5, 216: 0.125})
    text = tables(found, size="quick")
    assert "| 5 | 24 | 50 | 100 (1.000, 0.990) | 0.50 | 1.000 → 0.800 | 0.900 → 0.900 |" in text
    assert "| 5 | 216 | 12 | 100 (1.000, 0.990) | 0.12 |" in text
    assert shares(found) == [(5, 24, 0.5), (5, 216, 0.125)]
    # A batch that nobody trained again for has no share, and is no zero.
    del found["retrain-5-of-24"]
    assert "| 5 | 24 | 50 | - | - |" in tables(found, size="quick")
    assert shares(found) == [(5, 216, 0.125)]


def test_the_picture_tells_every_share_and_draws_only_what_was_found() -> None:
    # One large batch beside the smallest world belongs to no curve.
    drawn = picture(found_of({24: 0.5, 216: 0.125}) | found_of({24: 0.9}, people=20))
    assert "Deleting 5 people at once" in drawn
    assert "0.50 beside 24 base people, 0.12 beside 216 base people" in drawn
    assert "Deletions one after another" not in drawn
    assert drawn.count("<circle") == 2


@pytest.mark.slow
def test_a_quick_run_ends_in_files_and_a_second_one_does_nothing_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, out = tmp_path / "work", tmp_path / "out"
    beside = tmp_path / "beside"
    assert main(["--work", str(work), "--out", str(beside), "--size", "quick", "--parts", "row"]) == 0
    assert not any(name.startswith(("batch", "retrain")) for name in json.loads((beside / NAME).read_text()))
    assert main(["--work", str(work), "--out", str(out), "--size", "quick"]) == 0
    found = json.loads((out / NAME).read_text())
    for name in ("1-of-6", "2-of-6", "2-of-4"):
        assert {f"batch-{name}", f"batch_kept-{name}", f"batch_judged-{name}", f"retrain-{name}"} <= set(found)
    assert len(found["batch_kept-2-of-4"]["forgotten"]) == 2
    assert [len(found[f"kept-{number}"]["forgotten"]) for number in (0, 1, 2)] == [0, 1, 2]
    assert {found[f"{which}-{number}"]["verdict"] for which in ("own", "last") for number in (1, 2)} <= {
        "PASS",
        "FAIL",
        "INCONCLUSIVE",
    }
    assert float(found["retrain-2-of-4"]["base_cpu_seconds"]) > 0
    assert "<svg" in (out / "sequences-quick.svg").read_text()

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("done already")

    for name in ("_retrained", "_deleted", "_batch", "_kept", "_batch_kept", "_judged", "_batch_judged"):
        monkeypatch.setattr(program.Row, name, refuse)
    assert main(["--work", str(work), "--out", str(tmp_path / "again"), "--size", "quick"]) == 0
    assert (tmp_path / "again" / NAME).read_bytes() == (out / NAME).read_bytes()
