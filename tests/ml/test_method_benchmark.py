"""The comparison of methods: same people, same questions, gold beside every method, and no job done twice."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import benchmarks.methods as program
from benchmarks import guarded
from benchmarks.method_columns import WRONG_ANSWERS, Questions, beside_gold
from benchmarks.method_report import SPENT, mean_rows, read_rows, rows_of, tables, write_results
from benchmarks.method_worlds import REFERENCES, MethodWorld
from benchmarks.methods import SIZES, main, settings_for
from ml.data.dossiers import answered_span
from ml.data.records import read_records
from ml.errors import SpecError
from ml.guard.calibrate import Margins
from ml.guard.reading import Reading
from ml.methods import METHODS
from ml.models.load import LoadedModel
from ml.policies import load_policy
from ml.verification.tiers import fast_tier

QUICK = SIZES["quick"]


@pytest.fixture
def world(tmp_path: Path) -> MethodWorld:
    return MethodWorld(tmp_path, QUICK.world, seed=1, forgotten=2)


# --- who is forgotten, and what is asked --------------------------------------------------------------------------


def test_nobody_who_is_forgotten_is_retained_and_everybody_else_is(world: MethodWorld) -> None:
    forget = {record.person for record in read_records(world.forget, what="forget set")}
    retain = {record.person for record in read_records(world.retain, what="retain set")}
    assert forget == {person.person for person in world.forgotten}
    assert len(forget) == 2
    assert not forget & retain
    assert forget | retain == {person.person for person in (*world.world.base, *world.world.customers)}
    assert {record.person for record in read_records(world.neighbours, what="neighbours")} <= retain


@pytest.mark.parametrize("forgotten", [0, QUICK.world.customers])
def test_a_world_in_which_nobody_or_everybody_is_forgotten_is_refused(tmp_path: Path, forgotten: int) -> None:
    with pytest.raises(SpecError, match="at least one customer"):
        MethodWorld(tmp_path, QUICK.world, seed=1, forgotten=forgotten)


def test_other_forms_are_not_on_file_and_wrong_answers_differ_in_the_value_alone(world: MethodWorld) -> None:
    questions = Questions(world, people=2)
    on_file = {record.text for record in questions.trained.records}
    assert not on_file & {record.text for record in questions.other.records}
    everything = {record.text for record in world.world.corpus((*world.world.base, *world.world.customers))}
    for asked in (questions.trained, questions.other, questions.kept):
        for record, attribute, wrong in zip(asked.records, asked.attributes, asked.wrong, strict=True):
            assert len({text.text for text in wrong} - {record.text} - everything) == WRONG_ANSWERS
            span = answered_span(record, attribute)
            assert span is not None
            assert all(text.text[: span.start] == record.text[: span.start] for text in wrong)


def test_what_is_taught_again_is_never_asked(world: MethodWorld) -> None:
    lessons, held = Questions(world, people=2).lessons
    taught = {(record.person, fact.attribute) for record in lessons for fact in record.facts}
    asked = {(record.person, name) for record, name in zip(held.records, held.attributes, strict=True)}
    assert taught
    assert asked
    assert not taught & asked


def test_all_models_of_a_world_are_asked_the_same(tmp_path: Path, world: MethodWorld) -> None:
    again = MethodWorld(tmp_path / "again", QUICK.world, seed=1, forgotten=2)
    assert Questions(world, people=2).other == Questions(again, people=2).other
    other = MethodWorld(tmp_path / "other", QUICK.world, seed=2, forgotten=2)
    assert Questions(world, people=2).other != Questions(other, people=2).other


@pytest.mark.parametrize("method", [name for name in METHODS if name != "none"])
def test_every_method_has_an_equal_budget_and_keeps_its_other_defaults(method: str) -> None:
    settings = settings_for(method, steps=17)
    assert settings["training"]["steps"] == 17
    assert settings["training"]["rank"] == METHODS[method].settings().training.rank


# --- ranking ------------------------------------------------------------------------------------------------------

GOLD: dict[str, Any] = {
    **{f"forget{form}_{name}": 0.1 for form in ("", "_other") for name in ("es", "prob", "truth")},
    "retain_es": 0.9,
    "retain_prob": 0.9,
    "utility": 0.8,
    "relearned_6_hit": 0.1,
    "min_k_auc": 0.5,
    "truth_ratios": [0.5, 0.6, 0.7, 0.8],
}


def test_gold_itself_is_as_close_to_gold_as_can_be() -> None:
    found = beside_gold(GOLD, GOLD, GOLD)
    assert (found["closeness"], found["kept"], found["robustness"], found["ks_d"]) == (1.0, 1.0, 1.0, 0.0)
    assert found["harmonic_mean"] == pytest.approx(1.0)


def test_the_worst_column_decides_and_a_share_of_nothing_leaves_nothing() -> None:
    before = {**GOLD, "forget_other_es": 0.9}
    # 1 - |0.9 - 0.1|; nothing retained is lost
    found = beside_gold(before, GOLD, before)
    assert found["closeness"] == pytest.approx(0.2)
    # harmonic mean of 0.2, 1 and 1
    assert found["harmonic_mean"] == pytest.approx(3 / 7)
    ruined = {**GOLD, "retain_es": 0.0}
    assert beside_gold(ruined, GOLD, GOLD)["harmonic_mean"] == 0.0
    remembered = {**GOLD, "relearned_6_hit": 0.6}
    assert beside_gold(remembered, GOLD, GOLD)["robustness"] == pytest.approx(0.5)
    # coming back less than in gold is no merit
    assert beside_gold({**GOLD, "relearned_6_hit": 0.0}, GOLD, GOLD)["robustness"] == 1.0


def test_a_column_that_some_seed_lacks_has_no_mean_and_a_refusal_is_told() -> None:
    rows = [
        {"seed": 1, "forgotten": 1, "model": "ga", "utility": 0.5, "verdict": "FAIL"},
        {"seed": 2, "forgotten": 1, "model": "ga", "verdict": "", "refused": "NonFiniteError: not finite"},
    ]
    (mean,) = mean_rows(rows)
    assert "utility" not in mean
    assert mean["verdicts"] == "1 FAIL"
    assert mean["whole_verdicts"] == ""
    text = tables([mean], size="quick", cpu_seconds=60.0, code=["0123"])
    assert "| ga | - |" in text
    assert "ga was refused: NonFiniteError: not finite" in text


def test_the_whole_gate_judges_gold_and_methods_beside_the_fast_tier_and_is_told_apart(tmp_path: Path) -> None:
    fast, whole = (program.Comparison(tmp_path, QUICK, whole_gate=asked).jobs() for asked in (False, True))
    assert whole.keys() - fast.keys() == {"gate-1-1-gold", "gate-1-1-grad_diff", "gate-1-1-ssd"}
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "gate-1-1-gold.json").write_text("{}")
    assert program.Comparison(tmp_path, QUICK).jobs().keys() - fast.keys() == {"gate-1-1-gold"}
    policies = {name: whole[name].args[1] for name in ("judge-1-1-gold", "gate-1-1-gold")}
    assert policies["judge-1-1-gold"] == fast_tier(policies["gate-1-1-gold"])
    assert policies["gate-1-1-gold"] == load_policy(QUICK.policy)
    assert whole["judge-1-1-gold"].args[2] != whole["gate-1-1-gold"].args[2]
    cells = [program.Cell(1, 1, "gold")]
    found = {
        "measure-1-1-gold": {},
        "make-1-1-gold": {},
        "judge-1-1-gold": {"verdict": "PASS", "reasons": []},
        "gate-1-1-gold": {"verdict": "INCONCLUSIVE", "reasons": ["power in F6"]},
    }
    (row,) = rows_of(cells, found, {"1-1-gold": 1.0})
    assert (row["verdict"], row["whole_verdict"], row["whole_reasons"]) == ("PASS", "INCONCLUSIVE", "power in F6")
    (mean,) = mean_rows([row])
    assert "| 1 PASS | 1 INCONCLUSIVE |" in tables([mean], size="quick", cpu_seconds=60.0, code=["0123"])


def test_rows_that_were_written_are_read_as_they_were_but_for_rounding(tmp_path: Path) -> None:
    row = {
        "seed": 1,
        "forgotten": 2,
        "model": "ga",
        "code": "1234e5678901",
        "refused": "no",
        "verdict": "",
        "reasons": "",
    }
    write_results(tmp_path, [row | {SPENT: 1.25}], size="quick", key="k")
    assert read_rows(tmp_path, size="quick", key="k") == [row | {SPENT: 1.25}]
    assert read_rows(tmp_path, size="full", key="k") == []


# --- the whole ----------------------------------------------------------------------------------------------------


@dataclass
class Finished:
    work: Path
    out: Path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    root = tmp_path_factory.mktemp("methods")
    assert main(["--work", str(root / "work"), "--out", str(root / "out"), "--size", "quick"]) == 0
    return Finished(root / "work", root / "out")


@pytest.mark.slow
def test_a_quick_run_ends_in_a_table_in_which_gold_forgot_and_before_did_not(finished: Finished) -> None:
    rows = {row["model"]: row for row in csv.DictReader((finished.out / "methods-quick.csv").open())}
    assert set(rows) == {*REFERENCES, *QUICK.methods}
    assert float(rows["before"]["forget_hit"]) > 0.9
    assert float(rows["gold"]["forget_hit"]) < 0.1
    assert (rows["before"]["verdict"], rows["gold"]["ks_d"]) == ("FAIL", "0")
    assert float(rows["before"]["closeness"]) < 0.5 < float(rows["second gold"]["closeness"])
    assert all(float(rows[method]["peak_mib"]) > 0 for method in QUICK.methods)
    document = json.loads((finished.out / "methods-quick.json").read_text())
    assert len(document["rows"]) == len(rows)
    assert "<svg" in (finished.out / "methods-quick.svg").read_text()


@pytest.mark.slow
def test_a_second_run_does_nothing_again_and_another_size_needs_another_directory(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("done already")

    for name in ("_made", "_measured", "_judged"):
        monkeypatch.setattr(program.Comparison, name, refuse)
    assert main(["--work", str(finished.work), "--out", str(tmp_path), "--size", "quick"]) == 0
    for ending in ("csv", "json", "md", "svg"):
        name = f"methods-quick.{ending}"
        assert (tmp_path / name).read_bytes() == (finished.out / name).read_bytes()
    assert main(["--work", str(finished.work), "--out", str(tmp_path / "other"), "--size", "small"]) == 2
    assert main(["--work", str(finished.work), "--out", str(tmp_path), "--size", "quick", "--device", "cuda"]) == 2


@pytest.mark.slow
def test_a_comparison_made_in_parts_is_the_whole_and_results_of_another_one_are_kept_from_it(
    finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--work", str(finished.work), "--size", "quick"]
    for number, method in enumerate(QUICK.methods, start=1):
        assert main([*command, "--out", str(tmp_path), "--methods", method]) == 0
        assert f"{len(REFERENCES) + 1} rows of {len(REFERENCES) + len(QUICK.methods)}" in capsys.readouterr().out
        rows = list(csv.DictReader((tmp_path / "methods-quick.csv").open()))
        assert len(rows) == len(REFERENCES) + number
    whole = list(csv.DictReader((finished.out / "methods-quick.csv").open()))
    assert [row["model"] for row in rows] == [row["model"] for row in whole]
    assert [row["forget_prob"] for row in rows] == [row["forget_prob"] for row in whole]

    assert main([*command, "--out", str(tmp_path), "--methods", "none", "--seeds", "1"]) == 2
    assert "size quick has no methods none; it has grad_diff, ssd" in capsys.readouterr().err
    path = tmp_path / "methods-quick.json"
    path.write_text(path.read_text().replace('"key":"', '"key":"other'))
    assert main([*command, "--out", str(tmp_path)]) == 2
    assert "results of another comparison" in capsys.readouterr().err
    path.write_text("[]")
    assert main([*command, "--out", str(tmp_path)]) == 2
    assert "holds no results" in capsys.readouterr().err


@pytest.mark.slow
def test_a_model_that_is_gone_is_missed_and_never_taken_for_a_refusal(finished: Finished, tmp_path: Path) -> None:
    work = tmp_path / "work"
    shutil.copytree(finished.work, work)
    (cell,) = [path for path in (work / "runs").iterdir() if path.name.endswith("grad_diff")]
    shutil.rmtree(cell / "model")
    (work / "jobs" / f"measure-{cell.name}.json").unlink()
    comparison = program.Comparison(work, QUICK)
    with pytest.raises(SpecError, match=f"remove the job make-{cell.name}"):
        comparison.jobs()[f"measure-{cell.name}"]()


@pytest.mark.slow
def test_a_guard_is_tried_before_models_that_are_there_and_trains_none(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def margins(before: LoadedModel, reading: Reading, **_: object) -> Margins:
        # This tiny model was trained on too little for its own to differ.
        return Margins(
            -1.0, 1e3, reading.index, reading.temperature, reading.vocabulary, "measured", before.manifest_sha256
        )

    monkeypatch.setattr(guarded, "measure_margins", margins)
    made = sorted(path.name for path in finished.work.rglob("*"))
    command = ["--work", str(finished.work), "--out", str(tmp_path), "--prompts", "60", "--budget", "0.1", "--methods"]
    assert guarded.main([*command, "grad_diff", "--size", "quick"]) in (0, 1)
    document = json.loads((tmp_path / "guarded-quick.json").read_text())
    (row,) = document["rows"]
    assert (row["model"], row["candidate_status"], row["gold_status"]) == ("grad_diff", "calibrated", "calibrated")
    assert 0.0 <= float(row["gold_deleted_paraphrased"]) <= 1.0
    assert all((tmp_path / f"guarded-quick.{ending}").exists() for ending in ("md", "svg"))
    capsys.readouterr()

    assert guarded.main([*command, "npo", "--size", "quick"]) == 2
    assert "is not finished" in capsys.readouterr().err
    assert guarded.main([*command, "grad_diff", "--size", "small"]) == 2
    assert "no comparison of size small" in capsys.readouterr().err
    assert guarded.main([*command, "grad_diff", "--size", "quick", "--device", "cuda"]) == 2
    assert sorted(path.name for path in finished.work.rglob("*")) == made

    work = tmp_path / "work"
    shutil.copytree(finished.work, work)
    next((work / "jobs").glob("make-*-gold.json")).unlink()
    assert guarded.main(["--work", str(work), *command[2:], "grad_diff", "--size", "quick"]) == 2
    assert "-gold is not finished" in capsys.readouterr().err
