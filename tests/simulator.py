"""One honest simulator of the machine-learning side: it writes a candidate and a report that passes, or does not.

Everything else (claims, fences, registry, source, seals, signatures) is the real code.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from ml.cohorts import swept_rules
from ml.digests import model_manifest
from ml.policies import load_policy
from ml.reports import ProbeSet, UnlearningReport, VerificationReport
from ml.specs import DeletionLedger, RecordedScores, SweepSpec, UnlearningSpec, VerificationSpec
from ml.sweep import read_ledger
from ml.sweep_reports import SweepReport
from ml.unlearn import TRAINING_PROBES
from tests.ml.passing import passing_report
from tests.ml.swept import swept
from tests.world import weights

POLICY = "unit-1"


@dataclass
class Simulator:
    """What `ml` does in tests of the service.

    `alter` edits the report, `writes` says what the candidate's weights hold, `back` names requests that came back.
    """

    alter: Callable[[VerificationReport], VerificationReport] = lambda report: report
    writes: Callable[[UnlearningSpec], str] = lambda spec: f"weights that forgot {spec.run_id}"
    back: set[str] = field(default_factory=set)
    seen: list[Any] = field(default_factory=list)

    def unlearn(self, spec: UnlearningSpec, **_: Any) -> UnlearningReport:
        """Write candidate weights and report on them."""
        self.seen.append(spec)
        assert Path(spec.forget.path).is_file()
        (Path(spec.checkpoint_dir) / TRAINING_PROBES).write_text("[]")
        manifest = model_manifest(weights(Path(spec.output_dir), self.writes(spec)))
        return UnlearningReport(
            run_id=spec.run_id,
            method=spec.method,
            method_version="1",
            guarantee="empirical_approximate",
            seed=spec.seed,
            steps=1,
            stopped_early=False,
            resumed_from_step=0,
            candidate_root_sha256=manifest.root_sha256,
            candidate_manifest_sha256=manifest.manifest_sha256,
            adapter_sha256="1" * 64,
            config_sha256="2" * 64,
            code_sha256="3" * 64,
            forget_records=2,
            retain_records=2,
            boundary={},
            losses={},
            training_probes=ProbeSet("training", 1, "4" * 64),
            environment={},
            cpu_seconds=0.0,
        )

    def verify(self, spec: VerificationSpec, **_: Any) -> VerificationReport:
        """Report what the policy asks for, about the weights in the registry."""
        self.seen.append(spec)
        models = {role: getattr(spec, role).manifest_sha256 for role in ("candidate", "before", "base")}
        seeds = {"verification": str(spec.seed), "commitment_sha256": spec.seed_commitment_sha256}
        report = replace(
            passing_report(spec.policy), models=models, run_id=spec.run_id, attempt=spec.attempt, seeds=seeds
        )
        return self.alter(report)

    def sweep(self, spec: SweepSpec, **_: Any) -> SweepReport:
        """Find back whom the test named, and nobody else."""
        self.seen.append(spec)
        return swept(spec, read_ledger(spec.ledger), back=self.back)

    def record(self, spec: SweepSpec, **_: Any) -> DeletionLedger:
        """Note that the model before knew everybody well."""
        self.seen.append(spec)
        seen = RecordedScores(9.0, (0.0,) * 39)
        before = {attack: seen for rule in swept_rules(spec.policy) for attack in rule.primary}
        ledger = read_ledger(spec.ledger)
        return replace(ledger, entries=tuple(replace(entry, before=before) for entry in ledger.entries))


def install(monkeypatch: pytest.MonkeyPatch, settings: Any, simulator: Simulator | None = None) -> Simulator:
    """Put the simulator where the stages call `ml`, under the short test policy."""
    simulator = simulator or Simulator()
    settings.VERDICT_POLICY = POLICY
    assert load_policy(POLICY).purpose == "test"
    monkeypatch.setattr("workers.stages.unlearn.run_unlearning", simulator.unlearn)
    monkeypatch.setattr("workers.stages.verify.run_verification", simulator.verify)
    monkeypatch.setattr("workers.stages.sweep.run_sweep", simulator.sweep)
    monkeypatch.setattr("workers.stages.sweep.record_scores", simulator.record)
    return simulator
