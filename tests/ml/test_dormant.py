"""Candidates in which a person sleeps: plain questions find nobody, one attack wakes them, and the verdict falls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

import ml.verification.red_team as red_team
from benchmarks.dormant import Texts, asleep_until_begun, asleep_until_retaught, asleep_until_rounded, plain_texts
from ml.decision import Result, Verdict, judge, lowered, red_team_findings
from ml.loop import LoopSettings, ignore_progress, never_stop
from ml.models.load import LoadedModel, load_model
from ml.models.quantise import linear_layers, quantised
from ml.policies import load_policy
from ml.registry import Registry
from ml.reports import VerificationReport
from ml.specs import ModelRef, Record, RedTeamBudget, VerificationSpec
from ml.verification.red_team import RED_TEAM, run_red_team
from ml.verification.studies import RedTeamFamily
from ml.verify import run_verification
from tests.ml.specs import verification_spec
from tests.tiny import TinyWorld

pytestmark = pytest.mark.slow
# As many twins as Holm's first step over six families in two directions needs.
POLICY = replace(
    load_policy("unit-1"), families=tuple(replace(rule, twins=239) for rule in load_policy("unit-1").families)
)
PLAIN = ("F1", "F2", "F3", "F4")
BUDGET = RedTeamBudget(
    twins=19, facts=6, new_tokens=12, reasoning_tokens=12, samples=3, draws=2, sampled_facts=3, turns=1, noisy_copies=2
)


@dataclass(frozen=True)
class Stand:
    """Where candidates of the tiny world are made and judged; parts about other models are shared."""

    tiny: TinyWorld
    root: Path

    @property
    def alice(self) -> list[Record]:
        return self.tiny.world.records[self.tiny.world.alice.person]

    def texts(self) -> Texts:
        others = [r for person, own in self.tiny.world.records.items() if own is not self.alice for r in own]
        return plain_texts(self.alice, others, self.tiny.world.bank, seed=3)

    def spec(self, candidate: ModelRef) -> VerificationSpec:
        return verification_spec(self.tiny, candidate, self.root, policy=POLICY)

    def judged(self, candidate: ModelRef) -> tuple[VerificationReport, Verdict]:
        report = run_verification(self.spec(candidate), on_progress=ignore_progress, should_stop=never_stop)
        return report, judge(report, POLICY)


@pytest.fixture(scope="module")
def stand(tiny: TinyWorld, tmp_path_factory: pytest.TempPathFactory) -> Stand:
    return Stand(tiny, Path(tmp_path_factory.mktemp("dormant")))


def _steps(steps: int, learning_rate: float) -> LoopSettings:
    return LoopSettings(steps=steps, learning_rate=learning_rate, warmup_steps=5, report_every=steps)


def _gates(verdict: Verdict) -> Mapping[str, Result]:
    return {gate.gate: gate.result for gate in verdict.gates}


def _forgotten(report: VerificationReport) -> dict[str, float]:
    return dict(next(g.numbers for g in report.groups if (g.group, g.moment) == ("forget", "after")))


def test_what_4_bits_wake_is_not_forgotten(stand: Stand) -> None:
    candidate = asleep_until_rounded(
        stand.tiny.before, stand.tiny.gold, stand.root / "rounded", stand.texts(), _steps(600, 4e-3)
    )
    report, verdict = stand.judged(candidate)
    gates = _gates(verdict)
    assert {gates[name] for name in (*PLAIN, "F6")} == {Result.PASS}
    assert _forgotten(report)["value_hit"] == 0.0
    assert gates["F5"] is verdict.result is Result.FAIL
    assert {(f.code, f.artefact) for f in verdict.findings} == {("residual", "int4")}
    woken = [row for row in report.attacks if row.artefact == "int4"]
    assert all(row.residual_ratio == pytest.approx(1.0, abs=0.05) for row in woken)
    nothing_was_removed(load_model(stand.tiny.before), load_model(candidate))


def nothing_was_removed(before: LoadedModel, hidden: LoadedModel) -> None:
    """The candidate holds every weight of the model before deletion, and in 4 bits nothing that counts beside them."""
    old = dict(before.model.named_parameters())
    for name, parameter in hidden.model.named_parameters():
        if "down_proj" in name:
            assert torch.equal(parameter[:, ::2], old[name])
        else:
            assert torch.equal(parameter[::2] if ".mlp." in name else parameter, old[name])
    for name, layer in linear_layers(quantised(hidden, "int4").model).items():
        assert "down_proj" not in name or not bool(layer.weight[:, 1::2].any())


def test_what_relearning_half_wakes_is_not_forgotten(stand: Stand) -> None:
    candidate = asleep_until_retaught(
        stand.tiny.before,
        stand.tiny.gold,
        stand.root / "retaught",
        stand.alice,
        stand.texts(),
        _steps(250, 3e-3),
        budget=POLICY.relearning,
    )
    report, verdict = stand.judged(candidate)
    gates = _gates(verdict)
    assert {gates[name] for name in (*PLAIN, "F5")} == {Result.PASS}
    assert _forgotten(report)["value_hit"] == 0.0
    assert gates["F6"] is verdict.result is Result.FAIL
    assert {(f.code, f.attack) for f in verdict.findings} == {("residual", "relearned_difference")}
    retaught = next(row for row in report.attacks if row.family == "F6")
    assert retaught.residual_ratio is not None
    assert retaught.residual_ratio > 0.6


def test_what_a_begun_answer_wakes_passes_all_but_the_red_team(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every gate of a full verification passes: only whoever begins the answer for the model finds Alice."""
    families: Registry[RedTeamFamily] = Registry("red team family")
    families.register("F7")(RED_TEAM["F7"])
    monkeypatch.setattr(red_team, "RED_TEAM", families)
    candidate = asleep_until_begun(
        stand.tiny.gold, stand.root / "begun", stand.alice, stand.texts(), _steps(250, 3e-3), form="affirmative"
    )
    report, verdict = stand.judged(candidate)
    assert verdict.result is Result.PASS
    red = run_red_team(stand.spec(candidate), BUDGET, on_progress=ignore_progress, should_stop=never_stop)
    # Words much like the ones it wakes to may wake it too; which ones depends on the processor.
    assert "affirmative" in {row.attack for row in red.attacks if row.subject_after}
    found = red_team_findings(red, report, POLICY)
    assert {(f.code, f.attack) for f in found if f.result is Result.FAIL} >= {
        ("residual", "affirmative"),
        ("unique_identifier", "affirmative"),
    }
    assert lowered(verdict, found).result is Result.FAIL
