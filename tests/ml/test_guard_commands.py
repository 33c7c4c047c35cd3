"""The guard from the command line, and its benchmark at a tiny size."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.guard import (
    Asking,
    Tried,
    asking_of,
    overhead,
    refusal_table,
    refusing_nobody,
    shortcomings,
    tried,
    untrained,
)
from benchmarks.guarded import Guarded, picture, row_of, table
from benchmarks.methods import Cell
from ml.data.dossiers import paraphrases, read_dossier
from ml.data.people import newcomers
from ml.data.probes import probe_digests, write_probe_digests
from ml.data.questions import write_bank
from ml.data.records import write_records
from ml.guard.__main__ import main
from ml.guard.calibrate import Asked, Group, GuardCalibration, Margins, RefusalRate, measure_margins
from ml.guard.prompts import PromptSet
from ml.guard.reading import left_padded, make_reading, prompt_ids
from ml.guard.refusal import WORDING
from ml.models.load import LoadedModel, load_model
from ml.models.save import publish_model
from ml.models.scratch import untrained_llama
from ml.reference import ReferencePaths
from ml.reports import ProbeSet, UnlearningReport
from tests.tiny import TINY, TinyWorld, tiny_model, tiny_world

WORLD = tiny_world()
WORDINGS: tuple[Asked, ...] = ("direct", "paraphrased")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained model, retained and deleted records, a question bank, and a run's report with wide margins."""
    root = tmp_path_factory.mktemp("guard-commands")
    loaded = load_model(tiny_model(root / "model"))
    others = [p for p in (*WORLD.base, *WORLD.customers) if p.person != WORLD.alice.person]
    write_records(root / "retain.jsonl", WORLD.corpus(others))
    write_records(root / "deleted.jsonl", WORLD.corpus([WORLD.alice]))
    write_bank(root / "bank.json", WORLD.bank)
    publish_model(untrained_llama(TINY, loaded.tokenizer, seed=1), loaded.tokenizer, root / "before")
    write_report(root / "report.json", -1000.0, 0.0, loaded)
    write_report(root / "other.json", -1000.0, 0.0, replace(loaded, manifest_sha256="0" * 64))
    return root


def write_report(path: Path, retained: float, never_seen: float, made: LoadedModel) -> None:
    edges = {"retained_margin": retained, "never_seen_margin": never_seen, "auroc": 0.9, "pooled_sd": 1.0}
    report = UnlearningReport(
        run_id="run",
        method="energy_boundary",
        method_version="1",
        guarantee="empirical_approximate",
        seed=0,
        steps=1,
        stopped_early=False,
        resumed_from_step=0,
        candidate_root_sha256="0" * 64,
        candidate_manifest_sha256=made.manifest_sha256,
        adapter_sha256="0" * 64,
        config_sha256="0" * 64,
        code_sha256="0" * 64,
        forget_records=1,
        retain_records=1,
        boundary={**edges, "temperature": 1.0, "vocabulary": float(len(made.tokenizer))},
        losses={},
        training_probes=ProbeSet("training", 0, "0" * 64),
        environment={},
        cpu_seconds=0.0,
    )
    path.write_text(json.dumps(report.to_document()), encoding="utf-8")


def calibrated(folder: Path, out: Path, *more: str) -> int:
    files = [f"--{name}={folder / file}" for name, file in (("retain", "retain.jsonl"), ("bank", "bank.json"))]
    command = ["calibrate", f"--model={folder / 'model'}", f"--out={out}", "--read-at=prefill", *files, *more]
    return main([*command, "--threads=1"])


def test_calibrating_writes_rates_and_digests_and_no_word_about_anybody(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "guard.json"
    more = (f"--report={folder / 'report.json'}", "--prompts=80")
    assert calibrated(folder, out, *more) == 0
    found = GuardCalibration.from_document(json.loads(out.read_text()))
    assert {(row.group, row.asked) for row in found.rates} == {
        (group, asked) for group in ("retained", "never_seen") for asked in ("direct", "paraphrased")
    }
    written = out.read_text() + capsys.readouterr().out
    assert "calibrated" in written
    assert not any(person.name in written for person in (*WORLD.base, *WORLD.customers))


def test_rates_of_deleted_people_go_to_a_file_of_their_own(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, apart = tmp_path / "guard.json", tmp_path / "deleted.json"
    more = (f"--report={folder / 'report.json'}", "--prompts=80", f"--deleted={folder / 'deleted.jsonl'}")
    assert calibrated(folder, out, *more, f"--deleted-out={apart}") == 0
    assert "deleted" not in out.read_text() + capsys.readouterr().out
    trial = json.loads(apart.read_text())
    assert {row["group"] for row in trial["rates"]} == {"deleted"}
    assert WORLD.alice.name not in apart.read_text()


def test_the_same_seed_calibrates_the_same_and_another_draws_other_prompts(folder: Path, tmp_path: Path) -> None:
    report = f"--report={folder / 'report.json'}"
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert calibrated(folder, tmp_path / name, report, "--prompts=60", f"--seed={seed}") == 0
    first, again, other = (json.loads((tmp_path / name).read_text()) for name in "abc")
    assert first == again
    assert first["sets"] != other["sets"]


def test_questions_that_the_deletion_made_up_are_not_asked_again(folder: Path, tmp_path: Path) -> None:
    dossier = read_dossier(WORLD.records[WORLD.bob.person])
    used = probe_digests(record.text for record in paraphrases(dossier, WORLD.bank, list(dossier.values)))
    ref = write_probe_digests(tmp_path / "used.json", used)
    counts = []
    for name, more in (("all", ()), ("fresh", (f"--training-probes={ref.path}",))):
        out = tmp_path / name
        assert calibrated(folder, out, f"--report={folder / 'report.json'}", "--prompts=9999", *more) == 0
        counts.append(GuardCalibration.from_document(json.loads(out.read_text())).sets[0].count)
    assert counts[0] - counts[1] == len(used) - 6  # six forms of the shared employer are never asked


def test_margins_that_the_threshold_misses_leave_the_guard_off(folder: Path, tmp_path: Path) -> None:
    write_report(tmp_path / "report.json", -1000.0, -999.0, load_model(tiny_model(folder / "model")))
    out = tmp_path / "guard.json"
    assert calibrated(folder, out, f"--report={tmp_path / 'report.json'}") == 1
    assert json.loads(out.read_text())["reason"] == "above_never_seen_margin"
    assert main(["try", f"--model={folder / 'model'}", f"--calibration={out}", "--threads=1"]) == 2


@pytest.mark.parametrize(
    ("more", "code"),
    [
        (("--report=missing.json",), "invalid_spec"),
        (("--report={folder}/other.json",), "digest_mismatch"),
        (("--before={folder}/model",), "digest_mismatch"),
        (("--before={folder}/before",), "energy_does_not_separate"),
        (("--report={folder}/report.json", "--prompts=10"), "alpha_unattainable"),
        (("--report={folder}/report.json", "--pooling=highest"), "invalid_spec"),
        (("--report={folder}/report.json", "--index=relative"), "invalid_spec"),
        (("--report={folder}/report.json", "--deleted={folder}/retain.jsonl", "--deleted-out=apart"), "sets_overlap"),
        (("--report={folder}/report.json", "--deleted={folder}/deleted.jsonl"), "invalid_spec"),
        (("--report={folder}/report.json", "--strangers=0"), "invalid_spec"),
    ],
)
def test_requests_that_cannot_be_met_are_told_by_their_code(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...], code: str
) -> None:
    assert calibrated(folder, tmp_path / "guard.json", *(text.format(folder=folder) for text in more)) == 2
    assert capsys.readouterr().err.startswith(f"{code}: ")
    assert not (tmp_path / "guard.json").exists()


def test_prompts_are_tried_behind_the_guard(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "guard.json"
    assert calibrated(folder, out, f"--report={folder / 'report.json'}") == 0
    document = json.loads(out.read_text())
    rows: list[dict[str, Any]] = []
    for threshold in ("-1e3", "-1.0"):  # refuse everybody, refuse nobody
        margins = document["margins"] | {"retained": "-1e3"}
        out.write_text(json.dumps(document | {"threshold": threshold, "margins": margins}))
        capsys.readouterr()
        monkeypatch.setattr("sys.stdin", io.StringIO("Who is Bob?\\n\n\nWho is Mallory?\\n\n"))
        command = ["try", f"--model={folder / 'model'}", f"--calibration={out}", "--new-tokens=3", "--threads=1"]
        assert main(command) == 0
        rows += [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["prompt"], row["refused"]) for row in rows] == [(1, True), (2, True), (1, False), (2, False)]
    assert [row["answer"] == WORDING for row in rows] == [True, True, False, False]


# --- the benchmark --------------------------------------------------------------------------------------------------


def test_the_cost_is_measured_in_pairs_with_an_interval(tmp_path: Path) -> None:
    loaded, prompts = untrained(tmp_path, TINY)
    for index in ("relative", "centred", "raw"):
        reading = make_reading(len(loaded.tokenizer), index=index)
        found = overhead(loaded, prompts, reading, pairs=3, new_tokens=12)
        assert found.lower < found.mean < found.upper
        # Whoever is refused is answered in fewer tokens, and would cost less than nobody's guard.
        given = left_padded(prompt_ids(loaded.tokenizer, prompts[:4]), pad_id=loaded.pad_id, device=torch.device("cpu"))
        answers = refusing_nobody(loaded, reading).generate(**given, max_new_tokens=12, do_sample=False)
        assert not any(answers.refused)


def tried_as(rate: float, separation: float, status: str = "calibrated") -> Tried:
    margins = Margins(-1.0, 1.0, "centred", 1.0, 4, "measured", "")
    found = GuardCalibration("", "", make_reading(4), 0.0, 0.01, 1, margins, "calibrated", None, (), ())
    if status != "calibrated":
        found = replace(found, status=status, reason="above_never_seen_margin")
    rates = (
        RefusalRate("retained", "direct", 0, 1, 0.0, 0.0, 1.0),
        RefusalRate("deleted", "direct", 0, 1, rate, 0.0, 1.0),
    )
    return Tried(found, rates, {"direct": separation})


@pytest.mark.parametrize(
    ("candidate", "gold", "lacking"),
    [
        (tried_as(0.90, 0.60), tried_as(0.0, 0.50), 0),
        (tried_as(0.89, 0.60), tried_as(0.0, 0.50), 1),
        (tried_as(0.90, 0.39), tried_as(0.0, 0.50), 1),
        (tried_as(0.90, 0.50, "not_calibrated"), tried_as(0.0, 0.50), 1),
        (tried_as(0.90, 0.50), tried_as(0.0, 0.50, "not_calibrated"), 1),
    ],
)
def test_each_limit_of_the_benchmark_can_be_missed(candidate: Tried, gold: Tried, lacking: int) -> None:
    assert len(shortcomings([(candidate, gold)])) == lacking


def test_limits_hold_for_the_mean_and_calibration_for_each() -> None:
    pairs = [(tried_as(rate, area), tried_as(0.0, 0.50)) for rate, area in ((0.86, 0.36), (0.96, 0.46))]
    opposite = [(tried_as(1.0, area), tried_as(0.0, 0.50)) for area in (0.30, 0.70)]
    assert shortcomings(pairs) == []
    assert len(shortcomings(opposite)) == 1
    assert len(shortcomings([*pairs, (tried_as(0.90, 0.50, "not_calibrated"), tried_as(0.0, 0.50))])) == 1
    assert len(shortcomings([*pairs, (tried_as(0.80, 0.10), tried_as(0.0, 0.50))])) == 2


def guarded_as(seed: int, rate: float) -> Guarded:
    groups: tuple[tuple[Group, Asked], ...] = tuple(product(("retained", "never_seen", "deleted"), WORDINGS))
    found = tried_as(rate, 0.5)
    rates = tuple(RefusalRate(*place, 0, 1, 0.01 if place[0] == "retained" else rate, 0.0, 1.0) for place in groups)
    side = replace(found, rates=rates, separation=dict.fromkeys(WORDINGS, 0.5))
    return Guarded(Cell(seed, 1, "energy_boundary"), side, side)


def test_a_table_of_guards_has_each_cell_their_mean_and_what_is_lacking() -> None:
    cells = [guarded_as(1, 0.97), guarded_as(2, 0.88)]
    text = table(cells)
    assert [line.split(" | ")[1] for line in text.splitlines() if "energy_boundary" in line] == ["1", "2", "mean"]
    assert "0.925 (0.925)" in text
    assert "2 of 2" in text
    assert "Short of the limit" not in text
    lacking = table([*cells, guarded_as(3, 0.70)])
    assert "refuses 0.850 of paraphrased prompts about deleted people" in lacking
    drawn = picture([row_of(cell) for cell in cells])
    assert drawn.count("<circle") == 2 * 2 * 6
    assert "deleted direct: 0.93, gold 0.93" in drawn


@pytest.mark.slow
def test_the_benchmark_shows_the_candidate_beside_gold(tiny: TinyWorld, tmp_path: Path) -> None:
    """Gold against itself, in words on file: in other words this small model knows too little of what it keeps."""
    paths = ReferencePaths(tmp_path)
    paths.snapshots.mkdir()
    shutil.copy(tiny.bank.path, paths.bank)
    for name in ("forget", "retain"):
        shutil.copy(getattr(tiny, name).path, paths.snapshots / f"{name}.jsonl")
    drawn = newcomers(tiny.world, seed=0, people=6, forms_per_fact=2)
    write_records(paths.snapshots / "bystanders.jsonl", [record for _, records in drawn for record in records])
    drawn_asking = asking_of(paths, prompts=75, seed=0)
    sides = (drawn_asking.calibration, drawn_asking.trial)
    assert not set(sides[0]["retained"].texts) & set(sides[1]["retained"].texts)
    assert not set(sides[0]["never_seen"].texts) & set(sides[1]["never_seen"].texts)
    asking = Asking(*({group: PromptSet(p.direct, ()) for group, p in side.items()} for side in sides))
    before, gold = load_model(tiny.before), load_model(tiny.gold)
    reading = make_reading(len(gold.tokenizer))
    margins = measure_margins(before, reading, **asking.calibration)
    found = tried(gold, reading, margins, asking, budget=0.05)
    rates = {row.group: row.rate for row in found.rates}
    assert found.calibration.status == "calibrated"
    # Wide limits: rounding of another processor trains other models, and 18 questions about Alice are few.
    assert rates["retained"] <= 0.2
    assert min(rates["never_seen"], rates["deleted"]) >= 0.5
    assert found.separation["direct"] == pytest.approx(0.5, abs=0.2)
    table = refusal_table(found, found)
    assert f"{found.separation['direct']:.3f}" in table
    assert not any(person.name in table for person in (*tiny.world.base, *tiny.world.customers))
