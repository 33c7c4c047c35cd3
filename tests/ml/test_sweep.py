"""`run_sweep`: who came back is found and named by request only, who could not be tested is never a pass."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

import ml.sweep as sweep_module
import ml.verification.bench as bench_module
from ml.data.collate import encode_record
from ml.data.people import newcomers
from ml.data.records import write_records
from ml.decision import Result
from ml.digests import file_sha256
from ml.errors import DigestMismatchError, RunStoppedError, SpecError, TokenizerMismatchError
from ml.finetune import finetune
from ml.loop import LoopSettings, ignore_progress, never_stop
from ml.models.load import load_model, model_ref
from ml.models.save import publish_model
from ml.policies import load_policy
from ml.specs import DeletionLedger, FileRef, LedgerEntry, ModelRef, Record, RecordedScores, SweepSpec, seed_commitment
from ml.sweep import entry_table, main, record_scores, run_sweep
from ml.sweep_decision import SweepVerdict, judge_sweep
from ml.sweep_reports import SweepReport
from tests.tiny import TinyWorld, tiny_model

POLICY = replace(load_policy("unit-1"), swaps=9)
FEW = ("bank_account", "boat", "dog", "door_code", "phone_number")
ALICE = "R-41c7"


@dataclass(frozen=True)
class Registry:
    """A ledger of earlier deletions beside the models of the tiny world, and one store of parts for all sweeps."""

    world: TinyWorld
    root: Path
    ledger: DeletionLedger

    def spec(self, candidate: ModelRef, ledger: DeletionLedger | None = None, **changes: Any) -> SweepSpec:
        spec = SweepSpec(
            run_id="sweep-1",
            policy=POLICY,
            candidate=candidate,
            base=self.world.base,
            ledger=self.written(self.ledger if ledger is None else ledger),
            retain=self.world.retain,
            question_bank=self.world.bank,
            seed=5,
            seed_commitment_sha256="0" * 64,
            as_of="2026-05-01",
            parts_dir=str(self.root / "parts"),
        )
        spec = replace(spec, **changes)
        return replace(spec, seed_commitment_sha256=seed_commitment(spec.run_id, spec.seed))

    def written(self, ledger: DeletionLedger) -> FileRef:
        document = json.dumps(ledger.to_document(), sort_keys=True)
        path = self.root / f"ledger-{abs(hash(document))}.json"
        path.write_text(document, encoding="utf-8")
        return FileRef(str(path), file_sha256(path))

    def sweep(
        self, candidate: ModelRef, ledger: DeletionLedger | None = None, **changes: Any
    ) -> tuple[SweepReport, SweepVerdict]:
        spec = self.spec(candidate, ledger, **changes)
        report = run_sweep(spec, on_progress=ignore_progress, should_stop=never_stop)
        return report, judge_sweep(report, spec.policy)


def _about(records: Sequence[Record]) -> list[Record]:
    """Records of few attributes, so that a sweep takes little time."""
    return [record for record in records if record.facts[0].attribute in FEW]


@pytest.fixture(scope="module")
def registry(tiny: TinyWorld, tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """Alice was deleted from `before`, where she is on record; two strangers stand for others, never learned."""
    root = tmp_path_factory.mktemp("sweep")
    own = write_records(root / "alice.jsonl", _about(tiny.world.records[tiny.world.alice.person]))
    alice = LedgerEntry(ALICE, "vault", 1, own, expires_on="2026-06-30")
    empty = Registry(tiny, root, DeletionLedger((alice,)))
    recorded = record_scores(empty.spec(tiny.before), on_progress=ignore_progress, should_stop=never_stop)
    return replace(empty, ledger=recorded)


@pytest.fixture(scope="module")
def clean(registry: Registry) -> tuple[SweepReport, SweepVerdict]:
    return registry.sweep(registry.world.gold)


def _codes(verdict: SweepVerdict) -> set[str]:
    return {finding.code for finding in verdict.findings}


# --- what it says -------------------------------------------------------------------------------------------------


def test_a_version_in_which_nobody_came_back_passes(
    registry: Registry, clean: tuple[SweepReport, SweepVerdict]
) -> None:
    report, verdict = clean
    assert verdict.result is Result.PASS, entry_table(report, verdict)
    (entry,) = report.entries
    assert (entry.id, entry.kind, entry.status, entry.flagged) == (ALICE, "vault", "measured", False)
    assert entry.items == len(FEW)
    assert all(abs(ratio) < 0.6 for ratio in entry.residual_ratios.values())
    assert {row.certificate.persons for row in report.cohort} == {1}
    assert {check.status for check in report.validity} == {"ok"}
    assert report.spike_ins is None  # none was tested: no rate is claimed
    assert SweepReport.from_document(report.to_document()) == report


def test_a_deletion_that_came_back_is_flagged_confirmed_and_fails(registry: Registry) -> None:
    report, verdict = registry.sweep(registry.world.before)
    assert verdict.result is Result.FAIL
    assert [(f.code, f.gate) for f in verdict.findings if f.result is Result.FAIL] == [("resurfaced", ALICE)]
    (entry,) = report.entries
    assert entry.draws is not None
    assert (entry.draws.exceedances, entry.flagged) == (0, True)
    assert entry.confirmation is not None
    assert entry.confirmation.residual_bounded is False
    assert all(ratio == pytest.approx(1.0, abs=0.1) for ratio in entry.residual_ratios.values())
    written = json.dumps([report.to_document(), verdict.to_document(), entry_table(report, verdict)])
    alice = registry.world.world.alice
    assert ALICE in written
    for secret in (*alice.values.values(), *alice.name.split(), alice.person, str(registry.root)):
        assert secret not in written


def test_without_scores_from_the_deletion_a_sweep_detects_and_bounds_nothing(registry: Registry) -> None:
    bare = DeletionLedger((replace(registry.ledger.entries[0], before={}),))
    report, verdict = registry.sweep(registry.world.gold, bare)
    assert (verdict.result, _codes(verdict)) == (Result.INCONCLUSIVE, {"coverage"})
    assert report.cohort == ()
    assert report.entries[0].residual_ratios == {}
    assert registry.sweep(registry.world.before, bare)[1].result is Result.FAIL


# --- what could not be tested -------------------------------------------------------------------------------------


@pytest.mark.parametrize("as_of", ["2026-06-30", "2027-01-01"])
def test_a_vault_past_its_date_is_not_opened_and_never_a_pass(
    registry: Registry, as_of: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    real = sweep_module.read_records

    def watched(ref: FileRef, **options: Any) -> Any:
        opened.append(Path(ref.path).name)
        return real(ref, **options)

    monkeypatch.setattr(sweep_module, "read_records", watched)
    report, verdict = registry.sweep(registry.world.gold, as_of=as_of)
    spec = registry.spec(registry.world.before, as_of=as_of)
    with pytest.raises(SpecError, match="vault_expired"):
        record_scores(spec, on_progress=ignore_progress, should_stop=never_stop)
    assert set(opened) == {"retain.jsonl"}
    assert (report.entries[0].kind, report.entries[0].reason) == ("expired", "vault_expired")
    assert verdict.result is Result.INCONCLUSIVE
    assert ("vault_expired", ALICE) in [(f.code, f.gate) for f in verdict.findings]


def test_an_entry_that_cannot_be_tested_stops_no_other(
    registry: Registry, clean: tuple[SweepReport, SweepVerdict]
) -> None:
    alice = registry.ledger.entries[0]
    assert alice.probes is not None
    changed = replace(alice, id="R-changed", probes=replace(alice.probes, sha256="0" * 64))
    gone = LedgerEntry("R-gone", "spike_in", 2, None)
    kept = LedgerEntry("R-kept", "spike_in", 3, registry.world.neighbours)
    report, verdict = registry.sweep(registry.world.gold, DeletionLedger((alice, changed, gone, kept)))
    reasons = {entry.id: entry.reason for entry in report.entries}
    assert reasons == {
        ALICE: None,
        "R-changed": "digest_mismatch",
        "R-gone": "coverage",
        "R-kept": "sets_overlap",  # somebody who stays is no deletion
    }
    assert verdict.result is Result.INCONCLUSIVE
    nameless = [
        replace(record, name_spans=())
        for record in _about(registry.world.world.records[registry.world.world.alice.person])
    ]
    unmarked = LedgerEntry("R-unmarked", "spike_in", 1, write_records(registry.root / "unmarked.jsonl", nameless))
    report, _ = registry.sweep(registry.world.gold, DeletionLedger((unmarked,)))
    assert report.entries[0].reason == "record_invalid"
    thin = replace(POLICY, minimum_facts=28)
    assert registry.sweep(registry.world.gold, policy=thin)[0].entries[0].reason == "insufficient_facts"


def test_a_crash_is_reported_by_its_type_and_says_nothing_about_anybody(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object, **__: object) -> None:
        raise ArithmeticError("Alice's number is 012")

    monkeypatch.setattr(bench_module, "value_log_probs", crash)
    report, verdict = registry.sweep(registry.world.gold, parts_dir=str(tmp_path / "parts"))
    assert report.entries[0].reason == "ArithmeticError"
    assert verdict.result is Result.INCONCLUSIVE
    assert "Alice" not in json.dumps([report.to_document(), verdict.to_document()])


# --- inputs -------------------------------------------------------------------------------------------------------


def test_inputs_that_do_not_fit_are_refused(registry: Registry, tmp_path: Path) -> None:
    spec = registry.spec(registry.world.gold)
    wrong = (
        (replace(spec, seed=6), SpecError),
        (replace(spec, artefacts=("gguf",)), SpecError),
        (replace(spec, artefacts=()), SpecError),
        (replace(spec, window=0), SpecError),
        (replace(spec, as_of="today"), SpecError),
        (replace(spec, ledger=replace(spec.ledger, sha256="0" * 64)), DigestMismatchError),
        (replace(spec, candidate=replace(spec.candidate, manifest_sha256="0" * 64)), DigestMismatchError),
        (replace(spec, base=tiny_model(tmp_path / "other", seed=99)), TokenizerMismatchError),
    )
    for other, error in wrong:
        with pytest.raises(error):
            run_sweep(other, on_progress=ignore_progress, should_stop=never_stop)


def test_a_ledger_names_requests_and_gives_every_vault_a_date(registry: Registry) -> None:
    alice = registry.ledger.entries[0]
    for entries in (
        (),
        (alice, alice),
        (replace(alice, id="Alice Adams"),),
        (replace(alice, id=""),),
        (replace(alice, expires_on=None),),
        (replace(alice, expires_on="soon"),),
        (replace(alice, kind="spike_in"),),
        (replace(alice, deletions_so_far=0),),
        (replace(alice, before={"exposure": RecordedScores(1.0, (0.0,) * 18)}),),
    ):
        with pytest.raises(SpecError) as refused:
            DeletionLedger.from_document(DeletionLedger(entries).to_document())
        assert "Adams" not in str(refused.value)
    assert DeletionLedger.from_document(registry.ledger.to_document()) == registry.ledger


# --- interruptions ------------------------------------------------------------------------------------------------


def _parts(directory: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in directory.glob("*.safetensors")}


def test_a_sweep_that_was_stopped_continues_and_repeats_no_finished_part(
    registry: Registry,
    clean: tuple[SweepReport, SweepVerdict],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parts = tmp_path / "parts"
    spec = registry.spec(registry.world.gold, parts_dir=str(parts))
    with pytest.raises(RunStoppedError):
        run_sweep(spec, on_progress=ignore_progress, should_stop=lambda: len(_parts(parts)) >= 1)
    first = _parts(parts)
    with pytest.raises(RunStoppedError):
        run_sweep(spec, on_progress=ignore_progress, should_stop=lambda: len(_parts(parts)) >= 3)
    kept = _parts(parts)
    assert (len(first), len(kept)) == (1, 3)
    assert first.items() <= kept.items()
    report = run_sweep(spec, on_progress=ignore_progress, should_stop=never_stop)
    assert kept.items() <= _parts(parts).items()
    assert replace(report, cpu_seconds={}) == replace(clean[0], cpu_seconds={})
    everything = _parts(parts)
    for name in ("fused_pass", "value_log_probs"):
        monkeypatch.setattr(bench_module, name, None)
    again = run_sweep(spec, on_progress=ignore_progress, should_stop=never_stop)
    assert _parts(parts) == everything
    assert again.entries == report.entries


@pytest.mark.slow
def test_killed_at_any_time_and_run_again_it_ends_in_the_same_report(registry: Registry, tmp_path: Path) -> None:
    out = tmp_path / "out"
    named = {
        "--model": registry.world.gold.path,
        "--base": registry.world.base.path,
        "--ledger": registry.written(registry.ledger).path,
        "--bank": registry.world.bank.path,
        "--retain": registry.world.retain.path,
        "--out": str(out),
        "--policy": "unit-1",
        "--date": "2026-05-01",
        "--seed": "5",
        "--threads": "1",
    }
    command = [sys.executable, "-m", "ml.sweep", *(word for pair in named.items() for word in pair)]
    for finished in (1, 3):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # noqa: S603 - our own module
        while len(_parts(out / "parts")) < finished and process.poll() is None:
            time.sleep(0.05)
        kept = _parts(out / "parts")
        process.send_signal(signal.SIGKILL)
        process.wait()
    last = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ), check=False)  # noqa: S603
    assert last.returncode in (0, 3), last.stdout + last.stderr
    assert kept.items() <= _parts(out / "parts").items()
    document = json.loads((out / "report.json").read_text(encoding="utf-8"))
    whole, _ = registry.sweep(
        registry.world.gold, policy=load_policy("unit-1"), parts_dir=str(tmp_path / "parts"), run_id="out"
    )
    assert SweepReport.from_document(document).entries == whole.entries


def test_the_command_line_says_what_is_wrong_with_its_inputs(
    registry: Registry, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gold, base = registry.world.gold.path, registry.world.base.path
    files = [registry.world.bank.path, registry.world.retain.path]
    words = ["--model", gold, "--base", base, "--bank", files[0], "--retain", files[1], "--out", str(tmp_path / "out")]
    assert main([*words, "--ledger", str(tmp_path / "absent.json"), "--threads", "1"]) == 2
    assert "absent.json" in capsys.readouterr().err


# --- a ledger of ten ----------------------------------------------------------------------------------------------


def _taught(start: ModelRef, records: Sequence[Record], directory: Path, *, epochs: int) -> ModelRef:
    loaded = load_model(start)
    rows = [encode_record(loaded.tokenizer, record, context=loaded.context) for record in records]
    steps = epochs * -(-len(rows) // 32)
    settings = LoopSettings(steps=steps, learning_rate=1e-2, warmup_steps=20, report_every=steps)
    with torch.random.fork_rng(devices=[]):
        finetune(loaded.model, rows, settings, pad_id=loaded.pad_id, batch_rows=32, seed=1)
    publish_model(loaded.model, loaded.tokenizer, directory)
    return model_ref(directory)


@pytest.fixture(scope="module")
def ten(registry: Registry) -> tuple[Registry, list[Record], list[list[Record]]]:
    """Ten spike-ins that a model before knew and `gold` does not; what is on file about everybody else."""
    world = registry.world.world
    drawn = newcomers(world, seed=3, people=10, forms_per_fact=2)
    spike_ins = [_about(records) for _, records in drawn]
    others = [r for p in (*world.base, *world.customers) if p != world.alice for r in world.records[p.person]]
    known = [record for records in spike_ins for record in records]
    before = _taught(registry.world.gold, others + known, registry.root / "knew-ten", epochs=28)
    entries = tuple(
        LedgerEntry(f"R-{i:02d}", "spike_in", i + 1, write_records(registry.root / f"spike-{i}.jsonl", records))
        for i, records in enumerate(spike_ins)
    )
    spec = registry.spec(before, DeletionLedger(entries), seed=77)
    ledger = record_scores(spec, on_progress=ignore_progress, should_stop=never_stop)
    return replace(registry, ledger=ledger), others, spike_ins


@pytest.mark.slow
def test_where_nothing_came_back_nobody_is_flagged_whatever_the_seed(
    ten: tuple[Registry, list[Record], list[list[Record]]],
) -> None:
    registry, _, _ = ten
    # The placebo calls sound controls broken once in a hundred draws; the first seed is such a one, and says so.
    for seed, result in ((1, Result.INCONCLUSIVE), (2, Result.PASS), (3, Result.PASS)):
        report, verdict = registry.sweep(registry.world.gold, seed=seed)
        assert not any(entry.flagged for entry in report.entries)
        assert verdict.result is result, entry_table(report, verdict)
        assert _codes(verdict) <= {"controls_not_exchangeable"}
        assert report.spike_ins is not None
        assert (report.spike_ins.failures, report.spike_ins.trials) == (0, 10)
        assert report.spike_ins.upper == pytest.approx(0.2589, abs=1e-4)  # 1 - 0.05^(1/10)
        assert all(row.certificate.issued for row in report.cohort)


@pytest.mark.slow
def test_one_of_ten_that_came_back_is_flagged_alone(
    ten: tuple[Registry, list[Record], list[list[Record]]], tmp_path: Path
) -> None:
    registry, others, spike_ins = ten
    version = _taught(registry.world.gold, others + spike_ins[4], tmp_path / "version", epochs=14)
    report, verdict = registry.sweep(version, seed=2)
    assert [entry.id for entry in report.entries if entry.flagged] == ["R-04"]
    assert verdict.result is Result.FAIL
    assert [(f.code, f.gate) for f in verdict.findings if f.result is Result.FAIL] == [("resurfaced", "R-04")]
    assert {row.certificate.reason for row in report.cohort} == {"detected"}  # the average alone would have passed
    assert all(row.certificate.p_residual <= 0.05 for row in report.cohort)
    assert report.spike_ins is not None
    assert report.spike_ins.failures == 1
    written = json.dumps([report.to_document(), verdict.to_document()])
    for record in spike_ins[4]:
        assert not any(record.value(fact) in written for fact in record.facts)
        assert not any(record.text[a:b] in written for a, b in record.name_spans)
