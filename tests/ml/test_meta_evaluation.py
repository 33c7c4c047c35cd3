"""The meta-evaluation: who learned whom is balanced, no job is done twice, and a quick run ends in usable documents."""

from __future__ import annotations

import csv
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import benchmarks.meta_evaluation as program
from benchmarks.jobs import Jobs
from benchmarks.meta_evaluation import FULL, QUICK, claim, main
from benchmarks.meta_report import faithfulness_svg, results_table, scores_csv
from benchmarks.meta_trial import Trial, cell_policy, statistical_part
from benchmarks.pool import Pool
from ml.attacks import ATTACKS
from ml.errors import SpecError
from ml.loop import ignore_progress
from ml.policies import load_policy
from ml.trust import FEWEST_PAIRS, AttackTrust, KindVerdicts, MetaEvaluation, demote


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    return Pool(Path(tmp_path_factory.mktemp("pool")), FULL.pool, seed=1, on_progress=ignore_progress)


# --- the design ---------------------------------------------------------------------------------------------------


def test_the_full_pool_has_the_models_and_pairs_that_the_specification_asks_for(pool: Pool) -> None:
    learned = [(tune.number, person.person) for tune in pool.fine_tunes for person in tune.scored]
    left_out = [(tune.number, person.person) for tune in pool.fine_tunes for person in tune.left_out]
    assert len(pool.fine_tunes) >= 30
    assert min(len(set(learned)), len(set(left_out))) >= FEWEST_PAIRS
    assert not set(learned) & set(left_out)


def test_everybody_scored_is_learned_by_one_model_and_left_out_by_its_twin_of_the_same_recipe(pool: Pool) -> None:
    for first, second in zip(pool.fine_tunes[::2], pool.fine_tunes[1::2], strict=True):
        assert first.recipe == second.recipe
        assert first.seed != second.seed
        assert len(first.learned) == len(second.learned)
        assert not {p.person for p in first.learned} & {p.person for p in second.learned}
        assert (first.scored, first.left_out) == (second.left_out, second.scored)
        assert {p.person for p in first.scored} <= {p.person for p in first.learned}
    counted = Counter(person.person for tune in pool.fine_tunes for person in tune.scored)
    assert set(counted.values()) == {1}


def test_a_pool_with_too_few_people_for_its_pairs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="four people"):
        Pool(tmp_path, replace(QUICK.pool, pairs=5), seed=1, on_progress=ignore_progress)


def test_every_attack_is_scored_as_the_policy_scores_it() -> None:
    policy = load_policy("reference-1")
    asked = cell_policy(policy, twins=39, swaps=39, prompts=96)
    primaries = {attack for rule in policy.families for attack in rule.primary}
    assert {rule.id for rule in asked.families} == set(ATTACKS)
    assert {rule.id for rule in asked.families if rule.primary} == primaries


def test_pretenders_are_judged_under_the_limits_of_the_policy_itself() -> None:
    policy = load_policy("reference-1")
    statistics = statistical_part(policy)
    assert [rule.id for rule in statistics.families] == ["F1", "F2", "F3", "F6"]
    assert all(rule in policy.families for rule in statistics.families)
    assert set(statistics.hard_rules) < set(policy.hard_rules)
    assert statistics.purpose == "provisional"


# --- jobs ---------------------------------------------------------------------------------------------------------


def test_a_finished_job_is_read_and_one_that_died_is_done_again(tmp_path: Path) -> None:
    jobs, calls = Jobs(tmp_path), []

    def dies() -> None:
        calls.append("died")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        jobs.run("cell-a", dies)
    first = jobs.run("cell-a", lambda: calls.append("done") or {"mean_loss": {"raw": -1.5}})
    again = Jobs(tmp_path).run("cell-a", lambda: calls.append("twice"))
    assert calls == ["died", "done"]
    assert again == first


def test_a_job_that_another_run_is_doing_is_left_to_it(tmp_path: Path) -> None:
    beside: list[Any] = []

    def work() -> str:
        beside.append(Jobs(tmp_path).run("cell-a", lambda: "twice"))
        return "once"

    done = Jobs(tmp_path).run("cell-a", work)
    assert beside == [None]
    assert done is not None
    assert done.result == "once"


def test_a_directory_of_another_size_or_seed_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    claim(tmp_path, QUICK, 1)
    claim(tmp_path, QUICK, 1)
    for sizes, seed in ((QUICK, 2), (FULL, 1), (replace(QUICK, twins=20), 1)):
        with pytest.raises(SpecError, match="another meta-evaluation"):
            claim(tmp_path, sizes, seed)
    assert main(["--work", str(tmp_path), "--out", str(tmp_path / "out"), "--seed", "3", "--quick"]) == 2
    assert "empty directory" in capsys.readouterr().err


def test_names_of_jobs_are_unique_and_every_later_job_finds_what_it_needs(tmp_path: Path) -> None:
    trial = Trial(tmp_path, FULL, seed=1)
    names = list(trial.jobs())
    assert names[0] == "base"
    assert len([name for name in names if name.startswith("train-")]) == 30
    cells = [name for name in names if name.startswith("cell-") and name.count("-") == 2]
    assert len(cells) == 120
    for cell in cells:
        assert names.index(f"train-{cell.split('-')[1]}") < names.index(cell)


# --- documents ----------------------------------------------------------------------------------------------------

WEAK = AttackTrust(
    "entropy", 48, 48, 24, 0.6, 0.5, numbers=dict.fromkeys(("rank_mean", "rank_lower", "raw_mean", "raw_lower"), 0.5)
)
ABSENT = AttackTrust("hit_rate", 0, 0, 24, None, None, reason="NonFiniteError")
RESULTS = MetaEvaluation(
    pool={"models": "24", "policy_sha256": "0" * 64},
    attacks=(replace(WEAK, attack="exposure", faithfulness=0.99, lower=0.95), WEAK, ABSENT),
    kinds=(KindVerdicts("nothing done", 2, {"FAIL": 2}, {"FAIL": 2}, ("residual in F1",), {"exposure": 20.0}),),
    environment={},
    cpu_seconds=60.0,
)


def test_the_table_says_what_was_counted_and_names_what_may_not_gate() -> None:
    table = results_table(RESULTS)
    assert "48 (person, model) pairs" in table
    assert "24 distinct models" in table
    rows = {line.split("|")[1].strip(): line for line in table.splitlines() if line.startswith("| ")}
    assert rows["entropy"].endswith("| **no** |")
    assert "not measured: NonFiniteError" in rows["hit_rate"]
    assert rows["nothing done"].count("2 FAIL") == 2


def test_a_robustness_that_is_undefined_is_a_dash_not_a_number() -> None:
    line = next(line for line in results_table(RESULTS).splitlines() if line.startswith("| exposure"))
    assert line.count("- / -") == 3


def test_the_picture_shows_measured_attacks_and_the_bound() -> None:
    picture = faithfulness_svg(RESULTS.attacks)
    assert picture.count("<circle") == 2
    assert "hit_rate" not in picture
    assert "needed to gate" in picture


def test_a_missing_score_is_an_empty_cell_with_its_reason() -> None:
    rows = list(csv.DictReader(scores_csv([{"job": "j", "attack": "a", "reason": "X"}]).splitlines()))
    assert rows[0]["position"] == ""
    assert rows[0]["reason"] == "X"


# --- the whole, small ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_quick_run_scores_every_attack_and_lets_nothing_gate(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--quick", "--work", str(tmp_path / "work"), "--out", str(tmp_path / "out")]
    assert main(arguments) == 0
    results = MetaEvaluation.from_document(json.loads((tmp_path / "out" / "meta_evaluation.json").read_text()))
    rows = {row.attack: row for row in results.attacks}
    assert set(rows) == set(ATTACKS)
    assert {(row.learned, row.not_learned, row.models) for row in results.attacks} == {(12, 12, 6)}
    for attack in ("same_context_difference", "exposure", "extraction_strength", "mean_loss"):
        assert rows[attack].faithfulness == pytest.approx(1.0, abs=0.05)
        assert rows[attack].numbers["quantisation"] > 0.5
    kinds = {row.kind: row for row in results.kinds}
    pretenders = ("nothing done", "output filtered", "adapter hidden")
    assert not any("PASS" in kinds[kind].results for kind in pretenders)
    assert kinds["output filtered"].positions["hit_rate"] <= 0 < kinds["nothing done"].positions["hit_rate"]
    assert kinds["output filtered"].positions["exposure"] == kinds["nothing done"].positions["exposure"] > 3
    assert abs(kinds["never learned (gold)"].positions["exposure"]) < 3
    # Twelve pairs of each kind are too few to let anything gate.
    policy = load_policy("reference-1")
    assert demote(policy, results).uncovered == tuple(rule.id for rule in policy.families)
    scored = list(csv.DictReader((tmp_path / "out" / "meta_evaluation.csv").read_text().splitlines()))
    assert {row["learned"] for row in scored if row["job"].startswith("cell-")} == {"yes", "no"}
    _runs_again_without_work(arguments, tmp_path / "out", monkeypatch)
    assert "left 0.0 CPU minutes" in capsys.readouterr().out


def _runs_again_without_work(arguments: list[str], out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is on disk: the same documents come out although nothing can be measured any more."""
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a finished job was done again")

    monkeypatch.setattr(program.Trial, "_scored", refuse)
    assert main(arguments) == 0
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
