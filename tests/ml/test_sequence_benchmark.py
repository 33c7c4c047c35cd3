"""Deletions in a row: who is gone is never retained again, and the table tells the worst of everybody deleted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import benchmarks.sequences as program
from benchmarks.method_worlds import MethodWorld
from benchmarks.sequence_report import tables, worst
from benchmarks.sequences import SIZES, main
from ml.data.records import read_records
from ml.errors import SpecError

QUICK = SIZES["quick"]


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


def test_costs_are_shares_of_both_steps_of_training_again() -> None:
    kept = {"utility": 0.8, "retain_hit": 0.9, "retain_other_hit": 0.9, "general_hit": 0.9, "forgotten": []}
    found = {
        "retrain": {"base_cpu_seconds": 60.0, "fine_tune_cpu_seconds": 40.0, "base_hit": 1.0, "fine_tune_hit": 0.99},
        "kept-0": kept,
        "batch-5": {"cpu_seconds": 25.0},
        "kept-batch-5": kept,
    }
    text = tables(found, in_a_row=0, batches=(5,), size="quick")
    assert "100 CPU s" in text
    assert "| 5 | 25 | 0.25 |" in text


@pytest.mark.slow
def test_a_quick_run_ends_in_files_and_a_second_one_does_nothing_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, out = tmp_path / "work", tmp_path / "out"
    assert main(["--work", str(work), "--out", str(out), "--size", "quick"]) == 0
    found = json.loads((out / "sequences-quick.json").read_text())
    assert [len(found[f"kept-{number}"]["forgotten"]) for number in (0, 1, 2)] == [0, 1, 2]
    assert {found[f"{which}-{number}"]["verdict"] for which in ("own", "last") for number in (1, 2)} <= {
        "PASS",
        "FAIL",
        "INCONCLUSIVE",
    }
    assert float(found["retrain"]["base_cpu_seconds"]) > 0
    assert "<svg" in (out / "sequences-quick.svg").read_text()

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("done already")

    for name in ("_retrained", "_deleted", "_batch", "_kept", "_kept_batch", "_judged"):
        monkeypatch.setattr(program.Row, name, refuse)
    assert main(["--work", str(work), "--out", str(tmp_path / "again"), "--size", "quick"]) == 0
    again = tmp_path / "again" / "sequences-quick.json"
    assert again.read_bytes() == (out / "sequences-quick.json").read_bytes()
