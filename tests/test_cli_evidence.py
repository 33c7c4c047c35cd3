"""`lethe evidence rerun`: the same numbers come out again or the command says which did not; nothing else is a pass."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from deletion_service import cli_evidence
from deletion_service.certificates.evidence_document import evidence_bytes
from deletion_service.cli import main
from deletion_service.terminal import FAILED_CHECK, OK, USAGE
from ml.decision import judge
from ml.digests import canonical_json, file_sha256, model_manifest
from ml.manifest import MODELS, RunManifest, manifest_of
from ml.policies import load_policy
from ml.reports import VerificationReport
from ml.specs import FileRef, ModelRef, VerificationSpec, seed_commitment
from tests.ml import conftest as memorised
from tests.ml.passing import POLICY, edited, passing_report
from tests.tiny import TinyWorld

tiny = memorised.tiny
ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = {"device": "cpu", "dtype": "float32", "threads": "1", "torch": "2", "code_sha256": "e" * 64}
Again = Callable[[VerificationSpec], VerificationReport]


@dataclass
class Case:
    """A recorded run on disk and the verification that answers when it is measured again."""

    folder: Path
    report: VerificationReport
    again: Again
    asked: list[VerificationSpec]

    def rerun(self, *more: str, out: str = "out") -> int:
        named = {"evidence": "report.json", "inputs": "inputs", "out": out}
        words = [word for name, value in named.items() for word in (f"--{name}", str(self.folder / value))]
        return main(["evidence", "rerun", *words, *more])

    def write(self, report: VerificationReport, name: str = "report.json") -> None:
        (self.folder / name).write_text(json.dumps(report.to_document(), indent=1))

    def without(self, role: str) -> None:
        (self.folder / "inputs" / role).unlink()


def spec_free(report: VerificationReport) -> Again:
    return lambda spec: replace(
        report, seeds={"verification": str(spec.seed), "commitment_sha256": spec.seed_commitment_sha256}
    )


@pytest.fixture
def case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Case:
    """A run whose inputs are at hand, and a machine-learning side that reports the same again until told otherwise."""
    inputs = tmp_path / "inputs"
    for role in MODELS:
        (inputs / f"model-{role}").mkdir(parents=True)
        (inputs / f"model-{role}" / "config.json").write_text(f'{{"of": "{role}"}}')
    for role in ("forget", "retain", "question_bank"):
        (inputs / role).write_text(role)
    report = replace(
        passing_report(),
        models={role: model_manifest(inputs / f"model-{role}").manifest_sha256 for role in MODELS},
        seeds={"verification": "5", "commitment_sha256": seed_commitment("run-1", 5)},
        environment=ENVIRONMENT,
    )
    files = {role: file_sha256(inputs / role) for role in ("forget", "retain", "question_bank")}
    made = Case(tmp_path, report, spec_free(report), [])
    made.write(report)
    manifest = manifest_of(report, policy=POLICY, files=files)
    (tmp_path / "manifest.json").write_text(json.dumps(manifest.to_document()))

    def measure(spec: VerificationSpec, out: Path, *, threads: int) -> None:
        made.asked.append(spec)
        assert threads == 1
        made.write(made.again(spec), str(out / "report.json"))

    monkeypatch.setattr(cli_evidence, "_measure", measure)
    return made


# --- what it says -------------------------------------------------------------------------------------------------


def test_the_same_numbers_are_called_reproduced_part_by_part(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    assert case.rerun() == OK

    said = capsys.readouterr().out
    assert "Result: reproduced, every number within the tolerance." in said
    for part in ("identity", "attacks", "joint", "guards", "hard_rules", "utility", "validity", "separation"):
        assert f"\n  {part}" in said
    assert case.asked[0].seed == 5
    assert case.asked[0].forget.path == str(case.folder / "inputs" / "forget")


def test_a_number_that_was_tampered_with_is_named(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    case.write(edited(case.report, "attacks", 0, residual_upper=0.01))

    assert case.rerun() == FAILED_CHECK
    said = capsys.readouterr().out
    assert "attacks[F1 same_context_difference merged].residual_upper: 0.01 recorded, 0.08 now" in said
    assert said.splitlines()[-1] == "Result: not reproduced."


def test_a_row_left_out_of_the_record_is_not_reproduced(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    case.write(replace(case.report, attacks=case.report.attacks[1:]))

    assert case.rerun() == FAILED_CHECK
    assert "absent recorded" in capsys.readouterr().out


def test_last_digits_are_told_and_forgiven(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    case.again = spec_free(edited(case.report, "attacks", 0, subject_after=0.1 + 5e-5))

    assert case.rerun() == OK
    assert "5e-05  attacks[F1 same_context_difference merged].subject_after" in capsys.readouterr().out


def test_a_policy_cannot_forgive_more_than_last_digits(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    lax = replace(POLICY, determinism_tolerance=1000.0)
    case.report = replace(case.report, policy_sha256=lax.sha256)
    manifest = json.loads((case.folder / "manifest.json").read_text()) | {"policy": lax.to_document()}
    (case.folder / "manifest.json").write_text(json.dumps(manifest))
    case.write(edited(case.report, "attacks", 0, residual_upper=0.01))
    case.again = spec_free(case.report)

    assert case.rerun() == FAILED_CHECK
    said = capsys.readouterr().out
    assert "residual_upper: 0.01 recorded, 0.08 now" in said
    assert lax.sha256 in said


def test_another_environment_is_told_and_decides_nothing(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    case.again = spec_free(replace(case.report, environment={**ENVIRONMENT, "torch": "3"}))

    assert case.rerun() == OK
    assert "not as recorded: torch 2, here 3" in capsys.readouterr().out


def test_under_another_seed_the_verdict_decides_and_gates_that_differ_are_named(
    case: Case, capsys: pytest.CaptureFixture[str]
) -> None:
    case.again = spec_free(edited(case.report, "attacks", 0, residual_upper=0.02, p_residual=0.02))
    assert case.rerun("--seed", "9") == OK
    assert case.asked[0].seed == 9
    assert "the recorded verdict again; 0 gates differ" in capsys.readouterr().out

    case.again = spec_free(edited(case.report, "hard_rules", 0, status="breached"))
    assert case.rerun("--seed", "9", out="out2") == FAILED_CHECK
    said = capsys.readouterr().out
    assert "gate unique_identifier: PASS recorded, FAIL now" in said
    assert "not the recorded verdict under this seed" in said


def test_json_says_the_same_and_nothing_else(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    case.write(edited(case.report, "attacks", 0, strength=30.0))

    assert case.rerun("--json") == FAILED_CHECK
    document = json.loads(capsys.readouterr().out)
    assert (document["reproduced"], document["seed"], document["recorded_verdict"]) == (False, "5", "PASS")
    (attacks,) = [group for group in document["groups"] if group["group"] == "attacks"]
    assert attacks["differing"] == [
        {"place": "attacks[F1 same_context_difference merged].strength", "recorded": "30.0", "repeated": "20.0"}
    ]


def test_a_service_s_evidence_is_repeated_as_a_report_is(case: Case) -> None:
    content = evidence_bytes(target="tgt_01", policy=POLICY, report=case.report, unlearning=None)
    (case.folder / "evidence.json").write_bytes(content)

    assert case.rerun("--evidence", str(case.folder / "evidence.json")) == OK


def test_evidence_that_does_not_carry_its_verdict_is_not_measured(
    case: Case, capsys: pytest.CaptureFixture[str]
) -> None:
    document = json.loads(evidence_bytes(target="tgt_01", policy=POLICY, report=case.report, unlearning=None))
    document["verdict"]["flags"] = ["detectable"]
    (case.folder / "evidence.json").write_bytes(canonical_json(document))

    assert case.rerun("--evidence", str(case.folder / "evidence.json")) == FAILED_CHECK
    assert "does not carry the verdict it states" in capsys.readouterr().err
    assert case.asked == []


# --- what it refuses ----------------------------------------------------------------------------------------------


def test_a_missing_input_is_named_and_nothing_is_measured(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    case.without("forget")

    assert case.rerun() == USAGE
    printed = capsys.readouterr()
    assert printed.err.startswith("lethe: inputs_missing: the inputs lack forget (sha256 ")
    assert printed.out == ""
    assert case.asked == []
    assert not (case.folder / "out").exists()


def test_an_output_directory_that_holds_anything_is_refused(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    (case.folder / "out" / "parts").mkdir(parents=True)

    assert case.rerun() == USAGE
    assert "not empty" in capsys.readouterr().err
    assert case.asked == []


def test_a_manifest_of_another_run_is_refused(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    case.write(replace(case.report, seeds={**case.report.seeds, "verification": "6"}))

    assert case.rerun() == USAGE
    assert "manifest_mismatch" in capsys.readouterr().err


def test_without_the_machine_learning_stack_the_command_says_what_to_install(
    case: Case, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli_evidence.importlib.util, "find_spec", lambda name: None)

    assert case.rerun() == USAGE
    assert "pip install 'lethe[worker]'" in capsys.readouterr().err
    assert case.asked == []


@pytest.mark.parametrize("name", ["report.json", "manifest.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 200_000, b'{"attempt": NaN}', b"{}"])
def test_a_file_that_is_none_ends_with_usage_and_is_named(
    case: Case, capsys: pytest.CaptureFixture[str], name: str, content: bytes
) -> None:
    (case.folder / name).write_bytes(content)

    assert case.rerun() == USAGE
    assert name in capsys.readouterr().err


@pytest.mark.parametrize("seed", ["-1", "x", "1.5", "٣", "9" * 30])
def test_a_seed_that_is_none_ends_with_usage(case: Case, seed: str) -> None:
    with pytest.raises(SystemExit) as ended:
        case.rerun(f"--seed={seed}")
    assert ended.value.code == USAGE


def test_a_red_team_that_is_not_repeated_is_named(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    assert case.rerun("--json") == OK
    assert json.loads(capsys.readouterr().out)["red_team"] == "none"
    (case.folder / "red_team.json").write_text("{}")
    assert case.rerun(out="out2") == OK
    assert "They were not measured again; its verdict may be lower." in capsys.readouterr().out
    assert case.rerun("--json", out="out3") == OK
    assert json.loads(capsys.readouterr().out)["red_team"] == "not_repeated"


def test_help_says_when_a_rerun_is_possible(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["evidence", "rerun", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "A person's own records are destroyed when their case closes" in said
    assert "Exit status: 0 reproduced" in said


def test_a_process_that_fails_for_a_known_reason_passes_it_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "python"
    said = "echo 'tokens before: 0 of 1'\necho 'error: record_invalid: line 3'\n"
    script.write_text(f"#!/bin/sh\nread task\n{said}exit 2\n")
    script.chmod(0o700)
    monkeypatch.setattr(cli_evidence.sys, "executable", str(script))

    with pytest.raises(cli_evidence.UsageError, match="could not be run: record_invalid: line 3"):
        cli_evidence._measure(_empty_spec(), tmp_path, threads=1)
    assert "tokens before" in capsys.readouterr().err


def _empty_spec() -> VerificationSpec:
    model, file = ModelRef("m", "0" * 64), FileRef("f", "0" * 64)
    return VerificationSpec("run", 1, POLICY, model, model, model, file, file, None, file, 1, "0" * 64, "parts")


# --- a real run ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recorded(tiny: TinyWorld, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """What `python -m ml.verify` left about the gold model, and a directory with its inputs under other names."""
    out, inputs = tmp_path_factory.mktemp("recorded") / "run", tmp_path_factory.mktemp("inputs")
    (inputs / "probes.json").write_text("[]")
    for name, source in (("after", tiny.gold), ("earlier", tiny.before), ("start", tiny.base)):
        shutil.copytree(source.path, inputs / name)
    for name, ref in (("hers.jsonl", tiny.forget), ("theirs.jsonl", tiny.retain), ("asked.json", tiny.bank)):
        shutil.copy(ref.path, inputs / name)
    command = [sys.executable, "-m", "ml.verify", "--policy", "unit-1", "--out", str(out), "--seed", "5"]
    command += ["--threads", "1", "--model", str(inputs / "after"), "--before", str(inputs / "earlier")]
    command += ["--base", str(inputs / "start"), "--subject", str(inputs / "hers.jsonl")]
    command += ["--retain", str(inputs / "theirs.jsonl"), "--bank", str(inputs / "asked.json")]
    command += ["--training-probes", str(inputs / "probes.json")]
    finished = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=_environment())
    assert finished.returncode == 0, finished.stderr + finished.stdout
    return out, inputs


def _environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"}


def _rerun(evidence: Path, inputs: Path, out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    words: list[Any] = ["--evidence", evidence, "--inputs", inputs, "--out", out, *more]
    command = [sys.executable, "-m", "deletion_service.cli", "evidence", "rerun", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=_environment())


@pytest.mark.slow
def test_what_ml_verify_measured_comes_out_again(recorded: tuple[Path, Path], tmp_path: Path) -> None:
    out, inputs = recorded
    finished = _rerun(out / "report.json", inputs, tmp_path / "again", "--json")

    assert finished.returncode == OK, finished.stdout + finished.stderr
    document = json.loads(finished.stdout)
    assert document["recorded_verdict"] == document["repeated_verdict"] == "PASS"
    assert {float(group["largest"]) for group in document["groups"]} == {0.0}
    assert sum(group["numbers"] for group in document["groups"]) > 500
    assert sorted(path.name for path in (tmp_path / "again").iterdir()) == [
        "manifest.json",
        "report.html",
        "report.json",
        "verdict.json",
    ]
    assert (tmp_path / "again" / "manifest.json").read_bytes() == (out / "manifest.json").read_bytes()


@pytest.mark.slow
def test_a_report_made_to_look_better_is_not_reproduced(recorded: tuple[Path, Path], tmp_path: Path) -> None:
    out, inputs = recorded
    report = VerificationReport.from_document(json.loads((out / "report.json").read_text()))
    better = edited(report, "attacks", 0, residual_upper=0.001)
    (tmp_path / "report.json").write_text(json.dumps(better.to_document()))
    finished = _rerun(tmp_path / "report.json", inputs, tmp_path / "again", "--manifest", str(out / "manifest.json"))

    assert finished.returncode == FAILED_CHECK, finished.stderr
    row = report.attacks[0]
    place = f"attacks[{row.family} {row.attack} {row.artefact}].residual_upper"
    assert f"{place}: 0.001 recorded, {row.residual_upper} now" in finished.stdout


@pytest.mark.slow
def test_the_auditor_s_own_seed_gives_other_numbers_and_the_status_follows_the_verdict(
    recorded: tuple[Path, Path], tmp_path: Path
) -> None:
    out, inputs = recorded
    finished = _rerun(out / "report.json", inputs, tmp_path / "again", "--seed", "6", "--json")

    document = json.loads(finished.stdout)
    ours, theirs = (
        VerificationReport.from_document(json.loads((folder / "report.json").read_text()))
        for folder in (out, tmp_path / "again")
    )
    policy = load_policy("unit-1")
    same = judge(ours, policy).result == judge(theirs, policy).result
    assert theirs.seeds["verification"] == "6"
    assert ours.attacks != theirs.attacks
    assert finished.returncode == (OK if same else FAILED_CHECK)
    assert document["reproduced"] is same
    assert document["groups"] == []


@pytest.mark.slow
def test_without_the_person_s_records_nothing_can_be_measured(recorded: tuple[Path, Path], tmp_path: Path) -> None:
    out, inputs = recorded
    left = tmp_path / "inputs"
    shutil.copytree(inputs, left, ignore=shutil.ignore_patterns("hers.jsonl"))
    finished = _rerun(out / "report.json", left, tmp_path / "again")

    assert finished.returncode == USAGE
    assert finished.stdout == ""
    assert finished.stderr.startswith("lethe: inputs_missing: the inputs lack forget (sha256 ")


@pytest.mark.slow
def test_neither_manifest_nor_output_names_anybody(
    recorded: tuple[Path, Path], tiny: TinyWorld, tmp_path: Path
) -> None:
    out, inputs = recorded
    finished = _rerun(out / "report.json", inputs, tmp_path / "again", "--seed", "5")
    written = finished.stdout + finished.stderr + (out / "manifest.json").read_text()

    assert finished.returncode == OK
    assert RunManifest.from_document(json.loads((out / "manifest.json").read_text())).seed == 5
    alice = tiny.world.alice
    for secret in (*alice.values.values(), *alice.name.split(), alice.person, str(inputs)):
        assert secret not in written
