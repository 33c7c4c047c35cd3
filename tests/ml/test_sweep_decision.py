"""The rule for sweeps, attacked: flags are hidden, bounds forged, entries left untested, and none of it may pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from ml.cohort_reports import CohortBound
from ml.cohorts import CohortCertificate, Draws, SlopeAlarm, swept_rules
from ml.decision import REMEDIES, Result
from ml.metrics.intervals import clopper_pearson_upper
from ml.policies import load_policy
from ml.reports import ValidityCheck
from ml.sweep_decision import REQUIRED_CHECKS, SweepVerdict, flags, judge_sweep, spike_in_certificate
from ml.sweep_reports import Confirmation, SweepEntry, SweepReport

POLICY = load_policy("reference-2")
PRIMARIES = [attack for rule in swept_rules(POLICY) for attack in rule.primary]
FOUND, AGAIN = Draws(0, 200), Draws(0, 239)


def _entry(number: int, **changes: Any) -> SweepEntry:
    kind = "spike_in" if number % 2 else "vault"
    ratios = dict.fromkeys(PRIMARIES, 0.02)
    entry = SweepEntry(
        f"R-{number}", kind, number + 1, "measured", items=28, draws=Draws(10, 21), residual_ratios=ratios
    )
    return replace(entry, **changes)


def _report(entries: list[SweepEntry] | None = None, **changes: Any) -> SweepReport:
    """A sweep of ten entries that passes; flags and the spike-ins' rate follow from the entries."""
    rows = entries or [_entry(i) for i in range(10)]
    flagged = flags(rows, q=0.05)
    rows = [replace(row, flagged=flag) for row, flag in zip(rows, flagged, strict=True)]
    tested = sum(row.draws is not None for row in rows)
    shown = CohortCertificate(tested, 49, 0.2, 0.02, 0.02, 0.01, 0.05, 40.0, (), None)
    report = SweepReport(
        run_id="sweep-1",
        as_of="2026-05-01",
        policy_sha256=POLICY.sha256,
        ledger_sha256="a" * 64,
        models={"candidate": "b" * 64, "base": "c" * 64},
        artefacts=("merged",),
        q=0.05,
        window=1,
        entries=tuple(rows),
        cohort=tuple(CohortBound(rule.id, a, "merged", shown) for rule in swept_rules(POLICY) for a in rule.primary),
        spike_ins=spike_in_certificate(rows, POLICY, clopper_pearson_upper),
        slope=SlopeAlarm(10, 0.001, 0.3),
        validity=tuple(ValidityCheck(name, "ok", "controls_not_exchangeable", 0.5, 0.01) for name in REQUIRED_CHECKS),
        seeds={"sweep": "1"},
        environment={},
        cpu_seconds={},
    )
    return replace(report, **changes)


def _with(number: int, **changes: Any) -> SweepReport:
    return _report([_entry(i, **(changes if i == number else {})) for i in range(10)])


def _codes(verdict: SweepVerdict) -> set[str]:
    return {finding.code for finding in verdict.findings}


def test_complete_evidence_passes_also_after_a_round_trip_through_a_document() -> None:
    verdict = judge_sweep(_report(), POLICY)
    assert (verdict.result, verdict.findings, verdict.owed, verdict.alarms) == (Result.PASS, (), (), ())
    again = SweepReport.from_document(_report().to_document())
    assert again == _report()
    assert judge_sweep(again, POLICY) == verdict


# --- flags --------------------------------------------------------------------------------------------------------


def test_a_confirmed_flag_fails_the_version_and_names_the_request_only() -> None:
    verdict = judge_sweep(_with(3, draws=FOUND, confirmation=Confirmation(AGAIN, 0.5, False)), POLICY)
    assert verdict.result is Result.FAIL
    assert [(f.code, f.gate) for f in verdict.findings if f.result is Result.FAIL] == [("resurfaced", "R-3")]
    assert verdict.owed == ("R-3",)
    assert verdict.findings[0].remedy == REMEDIES["resurfaced"]


@pytest.mark.parametrize("known", [False, None])
def test_a_flag_fails_also_where_nothing_was_recorded_to_bound_it(known: bool | None) -> None:
    confirmation = Confirmation(AGAIN, 0.5, known)
    assert judge_sweep(_with(2, draws=FOUND, confirmation=confirmation), POLICY).result is Result.FAIL


@pytest.mark.parametrize(
    ("confirmation", "code"),
    [
        (None, "flag_unconfirmed"),
        (Confirmation(Draws(5, 239), 0.5, False), "flag_unconfirmed"),
        (Confirmation(AGAIN, 0.001, False), "controls_not_exchangeable"),
        (Confirmation(AGAIN, 0.5, True), "detectable_within_bound"),
    ],
)
def test_a_flag_that_was_not_confirmed_neither_passes_nor_fails(confirmation: Confirmation | None, code: str) -> None:
    verdict = judge_sweep(_with(2, draws=FOUND, confirmation=confirmation), POLICY)
    assert verdict.result is Result.INCONCLUSIVE
    assert code in _codes(verdict)
    assert verdict.owed == ("R-2",)


def test_a_level_shared_by_the_flagged_alone_confirms_nothing() -> None:
    # 2 / 240 is below 0.05 / 1, and below 0.05 / 5, but not below 0.05 / 10.
    once = Confirmation(Draws(1, 239), 0.5, False)
    assert judge_sweep(_with(2, draws=FOUND, confirmation=once), POLICY).result is Result.INCONCLUSIVE


def test_a_broken_control_lets_no_leak_be_shown() -> None:
    report = _with(3, draws=FOUND, confirmation=Confirmation(AGAIN, 0.5, False))
    for index in range(len(REQUIRED_CHECKS)):
        checks = list(report.validity)
        checks[index] = replace(checks[index], status="broken")
        verdict = judge_sweep(replace(report, validity=tuple(checks)), POLICY)
        assert verdict.result is Result.INCONCLUSIVE


# --- what was not tested, or not bounded --------------------------------------------------------------------------


@pytest.mark.parametrize("reason", ["vault_expired", "coverage", "digest_mismatch", "insufficient_facts"])
def test_an_entry_that_was_not_tested_is_never_a_pass(reason: str) -> None:
    kind = "expired" if reason == "vault_expired" else "vault"
    row = {"kind": kind, "status": "untested", "reason": reason, "draws": None, "items": 0, "residual_ratios": {}}
    verdict = judge_sweep(_with(4, **row), POLICY)
    assert verdict.result is Result.INCONCLUSIVE
    assert [(f.code, f.gate) for f in verdict.findings] == [(reason, "R-4")]


def test_too_few_twins_to_be_found_are_no_absence() -> None:
    assert _codes(judge_sweep(_with(4, draws=Draws(2, 39)), POLICY)) == {"alpha_unattainable"}
    assert judge_sweep(_with(4, draws=Draws(9, 39)), POLICY).result is Result.PASS


def test_a_spike_in_must_be_inside_its_bound_on_every_primary() -> None:
    outside = dict.fromkeys(PRIMARIES, 0.02) | {PRIMARIES[-1]: 0.21}
    verdict = judge_sweep(_with(3, residual_ratios=outside), POLICY)
    assert (verdict.result, _codes(verdict)) == (Result.INCONCLUSIVE, {"spike_in_outside"})
    unknown = dict.fromkeys(PRIMARIES[1:], 0.02)
    assert _codes(judge_sweep(_with(3, residual_ratios=unknown), POLICY)) == {"baseline_missing"}


@pytest.mark.parametrize("index", range(len(PRIMARIES)))
def test_every_primary_must_bound_the_whole_cohort(index: int) -> None:
    def judged(change: Callable[[CohortCertificate], CohortCertificate]) -> set[str]:
        rows = list(_report().cohort)
        rows[index] = replace(rows[index], certificate=change(rows[index].certificate))
        verdict = judge_sweep(_report(cohort=tuple(rows)), POLICY)
        assert verdict.result is Result.INCONCLUSIVE
        return _codes(verdict)

    assert judged(lambda c: replace(c, reason="power")) == {"power"}
    assert judged(lambda c: replace(c, p_residual=0.06)) == {"power"}
    assert judged(lambda c: replace(c, persons=9)) == {"baseline_missing"}
    assert judged(lambda c: replace(c, rho=0.9)) == {"baseline_missing"}
    assert judged(lambda c: replace(c, p_residual=0.001)) == {"error"}
    rows = _report().cohort
    for forged in (rows[:index] + rows[index + 1 :], (*rows, rows[index])):
        assert _codes(judge_sweep(_report(cohort=forged), POLICY)) == {"coverage"}


def test_a_family_without_a_primary_bounds_nothing() -> None:
    bare = POLICY.families[1]
    families = tuple(
        replace(rule, primary=(), detection=(*rule.primary, *rule.detection)) if rule is bare else rule
        for rule in POLICY.families
    )
    policy = replace(POLICY, families=families)
    gone = set(bare.primary)
    rows = [_entry(i, residual_ratios=dict.fromkeys(set(PRIMARIES) - gone, 0.02)) for i in range(10)]
    report = _report(rows, policy_sha256=policy.sha256)
    report = replace(
        report,
        cohort=tuple(row for row in report.cohort if row.attack not in gone),
        spike_ins=spike_in_certificate(report.entries, policy, clopper_pearson_upper),
    )
    verdict = judge_sweep(report, policy)
    assert verdict.result is Result.INCONCLUSIVE
    assert [(finding.code, finding.gate) for finding in verdict.findings] == [("coverage", bare.id)]


def test_an_alarm_is_said_and_changes_nothing() -> None:
    verdict = judge_sweep(_report(slope=SlopeAlarm(10, 0.01, 0.01)), POLICY)
    assert (verdict.result, verdict.alarms) == (Result.PASS, ("slope",))


# --- forged evidence ----------------------------------------------------------------------------------------------


def test_evidence_that_contradicts_itself_is_refused() -> None:
    report = _with(3, draws=FOUND, confirmation=Confirmation(AGAIN, 0.5, False))
    hidden = tuple(replace(entry, flagged=False) for entry in report.entries)
    bound = report.spike_ins
    assert bound is not None
    forged = [
        replace(report, entries=hidden),
        replace(report, q=0.01),
        replace(report, window=12),
        replace(report, entries=()),
        replace(report, artefacts=()),
        replace(report, entries=(*report.entries, report.entries[0])),
        replace(report, spike_ins=replace(bound, failures=0)),
        replace(report, spike_ins=replace(bound, upper=0.01)),
        replace(report, spike_ins=None),
        replace(report, q=float("nan")),
        replace(report, entries=(replace(report.entries[0], draws=Draws(5, 4)), *report.entries[1:])),
        _with(2, draws=Draws(20, 39)),
        _with(2, status="untested", reason="coverage"),
        _with(2, kind="expired"),
    ]
    for other in forged:
        verdict = judge_sweep(other, POLICY)
        assert (verdict.result, _codes(verdict)) == (Result.INCONCLUSIVE, {"error"})


def test_evidence_under_another_policy_or_without_its_models_is_refused() -> None:
    assert _codes(judge_sweep(_report(), load_policy("unit-1"))) == {"policy_mismatch"}
    for role in ("candidate", "base"):
        assert "baseline_missing" in _codes(judge_sweep(_report(models={role: "b" * 64}), POLICY))


def test_every_check_is_needed() -> None:
    for index, name in enumerate(REQUIRED_CHECKS):
        rows = list(_report().validity)
        del rows[index]
        verdict = judge_sweep(_report(validity=tuple(rows)), POLICY)
        assert [(f.code, f.gate) for f in verdict.findings] == [("coverage", name)]
