"""The decision rule, attacked: evidence is removed, forged, doubled and turned, and must never become a pass."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ml.decision import REMEDIES, REQUIRED_CHECKS, Result, Verdict, judge, unattainable
from ml.rank_tests import attempt_alpha, detection_p, low_p, over_forgetting_p, residual_p, smallest_p
from ml.reports import GuardResult, HardRuleResult, JointDetection, VerificationReport
from ml.specs import VerdictPolicy
from tests.ml.passing import MEMBERSHIP, POLICY, edited, passing_report, without

FLOOR = smallest_p(239)


def _codes(verdict: Verdict) -> set[str]:
    return {finding.code for finding in verdict.findings}


def _primary_rows(report: VerificationReport) -> list[int]:
    primaries = {(rule.id, attack) for rule in POLICY.families for attack in rule.primary}
    return [i for i, row in enumerate(report.attacks) if (row.family, row.attack) in primaries]


def test_complete_evidence_passes_every_gate() -> None:
    verdict = judge(passing_report(), POLICY)
    assert verdict.result is Result.PASS
    assert verdict.findings == ()
    assert {gate.result for gate in verdict.gates} == {Result.PASS}
    assert verdict.alpha_pass == pytest.approx(0.0303963, abs=1e-6)
    assert verdict.alpha_fail == 0.05


def test_judging_is_the_same_after_a_round_trip_through_a_document() -> None:
    report = edited(passing_report(), "attacks", 0, p_residual=0.2)
    again = VerificationReport.from_document(report.to_document())
    policy = VerdictPolicy.from_document(POLICY.to_document())
    assert policy.sha256 == POLICY.sha256
    assert judge(again, policy) == judge(report, POLICY)


# --- missing evidence ---------------------------------------------------------------------------------------------

_PIECES = ("attacks", "joint", "guards", "hard_rules", "utility", "validity")


@pytest.mark.parametrize(
    ("field", "index"),
    [(field, i) for field in _PIECES for i in range(len(getattr(passing_report(), field)))],
)
def test_no_piece_of_evidence_can_be_left_out(field: str, index: int) -> None:
    verdict = judge(without(passing_report(), field, index), POLICY)
    assert verdict.result is Result.INCONCLUSIVE
    assert _codes(verdict) <= {"coverage"}


@pytest.mark.parametrize("role", ["before", "base", "candidate"])
@pytest.mark.parametrize("digest", [None, ""])
def test_a_model_without_a_digest_is_a_missing_baseline(role: str, digest: str | None) -> None:
    models = {k: v for k, v in passing_report().models.items() if k != role}
    if digest is not None:
        models[role] = digest
    verdict = judge(replace(passing_report(), models=models), POLICY)
    assert verdict.result is Result.INCONCLUSIVE
    assert "baseline_missing" in _codes(verdict)


@pytest.mark.parametrize("status", ["missing", "error"])
def test_an_attack_that_was_not_measured_cannot_pass_even_when_it_only_detects(status: str) -> None:
    report = passing_report()
    for index in range(len(report.attacks)):
        verdict = judge(edited(report, "attacks", index, status=status, reason="RuntimeError"), POLICY)
        assert verdict.result is Result.INCONCLUSIVE


@pytest.mark.parametrize("field", ["p_residual", "p_over", "p_assay"])
def test_a_primary_needs_every_p_value_of_its_claim(field: str) -> None:
    verdict = judge(edited(passing_report(), "attacks", 0, **{field: None}), POLICY)
    assert verdict.result is Result.INCONCLUSIVE


def test_too_few_twins_do_not_support_a_claim_in_a_row_or_in_the_joint_test() -> None:
    report = passing_report()
    for index in range(len(report.attacks)):
        fewer = report.attacks[index].twins - 1
        changed = edited(report, "attacks", index, twins=fewer, p_assay=0.5, p_residual=0.026, p_over=0.026)
        assert judge(changed, POLICY).result is not Result.PASS
    for index in range(len(report.joint)):
        changed = edited(report, "joint", index, twins=report.joint[index].twins - 1)
        assert judge(changed, POLICY).result is Result.INCONCLUSIVE


def test_a_joint_test_must_cover_every_attack_the_policy_names() -> None:
    narrowed = edited(passing_report(), "joint", 0, attacks=("same_context_difference", "mean_loss"))
    verdict = judge(narrowed, POLICY)
    assert verdict.result is Result.INCONCLUSIVE
    assert _codes(verdict) == {"coverage"}


def test_a_second_joint_test_cannot_outshout_the_first() -> None:
    report = passing_report()
    leak = edited(edited(report, "joint", 0, p_detect=FLOOR), "attacks", 0, p_residual=1.0)
    assert judge(leak, POLICY).result is Result.FAIL
    quiet = JointDetection("F1", report.joint[0].attacks, 239, 1.0, 1.0)
    assert judge(replace(leak, joint=(*leak.joint, quiet)), POLICY).result is not Result.PASS


def test_a_row_that_stands_twice_is_no_evidence() -> None:
    report = passing_report()
    for field in ("attacks", "utility"):
        rows = getattr(report, field)
        for row in rows:
            assert judge(replace(report, **{field: (*rows, row)}), POLICY).result is Result.INCONCLUSIVE


def test_a_second_hard_rule_row_or_guard_cannot_hide_the_first() -> None:
    report = passing_report()
    held = HardRuleResult("lineage", "held")
    breached = edited(report, "hard_rules", 2, status="breached")
    assert judge(replace(breached, hard_rules=(*breached.hard_rules, held)), POLICY).result is Result.FAIL
    high = edited(report, "guards", 1, value=0.5)
    fine = GuardResult("F4", "hit_rate_upper", 0.01)
    assert judge(replace(high, guards=(*high.guards, fine)), POLICY).result is Result.INCONCLUSIVE


def test_an_empty_report_passes_nothing() -> None:
    empty = replace(passing_report(), attacks=(), joint=(), guards=(), hard_rules=(), utility=(), validity=())
    verdict = judge(empty, POLICY)
    assert verdict.result is Result.INCONCLUSIVE
    assert Result.PASS not in {gate.result for gate in verdict.gates if gate.kind != "integrity"}


# --- forged evidence ----------------------------------------------------------------------------------------------


def test_evidence_made_under_another_policy_is_refused() -> None:
    softer = replace(POLICY, families=(replace(MEMBERSHIP, rho=0.9), POLICY.families[1]))
    verdict = judge(passing_report(softer), POLICY)
    assert verdict.result is Result.INCONCLUSIVE
    assert "policy_mismatch" in _codes(verdict)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("field", "name"),
    [("attacks", "p_residual"), ("attacks", "subject_after"), ("joint", "p_low"), ("guards", "value")]
    + [("utility", "lower"), ("utility", "mean_change"), ("validity", "value")],
)
def test_one_number_that_is_not_finite_makes_the_whole_report_an_error(field: str, name: str, bad: float) -> None:
    verdict = judge(edited(passing_report(), field, 0, **{name: bad}), POLICY)
    assert verdict.result is Result.INCONCLUSIVE
    assert _codes(verdict) == {"error"}


def test_not_a_number_is_found_inside_mappings_too() -> None:
    for field in ("cpu_seconds", "separation"):
        assert judge(replace(passing_report(), **{field: {"x": math.nan}}), POLICY).result is Result.INCONCLUSIVE


@pytest.mark.parametrize("impossible", [0.0, -1.0, 1e-9, 1.5])
@pytest.mark.parametrize("name", ["p_residual", "p_over", "p_assay", "p_detect"])
def test_a_p_value_that_no_number_of_twins_could_give_is_refused(name: str, impossible: float) -> None:
    verdict = judge(edited(passing_report(), "attacks", 0, **{name: impossible}), POLICY)
    assert verdict.result is Result.INCONCLUSIVE
    assert _codes(verdict) == {"error"}


def test_an_interval_that_is_upside_down_is_refused() -> None:
    assert _codes(judge(edited(passing_report(), "utility", 0, lower=0.5, upper=-0.5), POLICY)) == {"error"}
    assert _codes(judge(edited(passing_report(), "guards", 0, lower=0.7, upper=0.3), POLICY)) == {"error"}


# --- what the numbers say -----------------------------------------------------------------------------------------


def test_an_established_leak_fails_and_names_the_attack() -> None:
    leak = edited(edited(passing_report(), "joint", 0, p_detect=FLOOR), "attacks", 0, p_residual=0.9, p_detect=FLOOR)
    verdict = judge(leak, POLICY)
    assert verdict.result is Result.FAIL
    assert verdict.findings[0].code == "residual"
    assert (verdict.findings[0].attack, verdict.findings[0].artefact) == ("same_context_difference", "merged")
    assert verdict.findings[0].remedy == REMEDIES["residual"]


def test_an_island_fails_as_over_forgetting() -> None:
    island = edited(edited(passing_report(), "joint", 0, p_low=FLOOR), "attacks", 0, p_over=0.9, p_low=FLOOR)
    verdict = judge(island, POLICY)
    assert verdict.result is Result.FAIL
    assert "over_forgetting" in _codes(verdict)
    assert "below_twins" in verdict.flags


def test_detection_alone_is_a_flag_when_both_bounds_hold() -> None:
    seen = edited(edited(passing_report(), "joint", 0, p_detect=FLOOR), "attacks", 0, p_detect=FLOOR)
    verdict = judge(seen, POLICY)
    assert verdict.result is Result.PASS
    assert verdict.flags == ("detectable",)


def test_a_high_p_value_of_detection_is_never_a_pass() -> None:
    verdict = judge(edited(passing_report(), "attacks", 0, p_residual=0.06, p_detect=0.9), POLICY)
    assert verdict.result is Result.INCONCLUSIVE
    assert _codes(verdict) == {"power"}


def test_an_attack_that_never_saw_the_person_is_not_evidence_of_erasure() -> None:
    verdict = judge(edited(passing_report(), "attacks", 0, p_assay=0.2), POLICY)
    assert _codes(verdict) == {"assay_insensitive"}


def test_every_artefact_must_pass_on_its_own() -> None:
    report = passing_report()
    int8 = next(i for i, row in enumerate(report.attacks) if row.artefact == "int8")
    verdict = judge(edited(report, "attacks", int8, p_residual=0.5), POLICY)
    assert verdict.result is Result.INCONCLUSIVE
    assert verdict.findings[0].artefact == "int8"


def test_a_guard_turns_a_pass_into_inconclusive_and_an_interval_blocks_only_as_a_whole() -> None:
    report = passing_report()
    assert _codes(judge(edited(report, "guards", 0, value=0.7), POLICY)) == {"guard"}
    assert judge(edited(report, "guards", 0, value=0.7, lower=0.55, upper=0.85), POLICY).result is Result.PASS
    assert _codes(judge(edited(report, "guards", 0, value=0.7, lower=0.61, upper=0.85), POLICY)) == {"guard"}
    assert _codes(judge(edited(report, "guards", 0, value=0.3, lower=0.2, upper=0.39), POLICY)) == {"guard"}


@pytest.mark.parametrize("rule", POLICY.hard_rules)
def test_a_hard_rule_fails_whatever_the_statistics_say(rule: str) -> None:
    index = POLICY.hard_rules.index(rule)
    verdict = judge(edited(passing_report(), "hard_rules", index, status="breached"), POLICY)
    assert verdict.result is Result.FAIL
    assert _codes(verdict) == {rule}


def test_utility_fails_straddles_or_passes_by_its_interval() -> None:
    report = passing_report()
    assert _codes(judge(edited(report, "utility", 0, lower=-0.4, upper=-0.03), POLICY)) == {"utility_loss"}
    assert _codes(judge(edited(report, "utility", 0, lower=-0.03, upper=0.0), POLICY)) == {"utility_straddles_margin"}
    assert judge(edited(report, "utility", 0, lower=-0.0199, upper=0.0), POLICY).result is Result.PASS
    assert _codes(judge(edited(report, "utility", 0, items=299), POLICY)) == {"coverage"}


@pytest.mark.parametrize("name", REQUIRED_CHECKS)
def test_a_broken_validity_check_keeps_its_own_reason(name: str) -> None:
    index = REQUIRED_CHECKS.index(name)
    verdict = judge(edited(passing_report(), "validity", index, status="broken", reason="probe_reuse"), POLICY)
    assert verdict.result is Result.INCONCLUSIVE
    assert _codes(verdict) == {"probe_reuse"}


@pytest.mark.parametrize("name", ["determinism", "placebo", "blind_baseline"])
def test_controls_in_doubt_show_no_leak_either(name: str) -> None:
    leak = edited(edited(passing_report(), "joint", 0, p_detect=FLOOR), "attacks", 0, p_residual=0.9)
    index = REQUIRED_CHECKS.index(name)
    doubtful = edited(leak, "validity", index, status="broken", reason="controls_not_exchangeable")
    verdict = judge(doubtful, POLICY)
    assert verdict.result is Result.INCONCLUSIVE
    assert _codes(verdict) == {"controls_not_exchangeable"}
    copied = edited(doubtful, "hard_rules", 2, status="breached")
    assert judge(copied, POLICY).result is Result.FAIL


@pytest.mark.parametrize("name", ["collisions", "probe_disjointness", "facts"])
def test_no_other_broken_check_excuses_a_leak(name: str) -> None:
    leak = edited(edited(passing_report(), "joint", 0, p_detect=FLOOR), "attacks", 0, p_residual=0.9)
    broken = edited(leak, "validity", REQUIRED_CHECKS.index(name), status="broken", reason="its_reason")
    verdict = judge(broken, POLICY)
    assert verdict.result is Result.FAIL
    assert _codes(verdict) == {"residual", "its_reason"}


@pytest.mark.parametrize(("name", "excused"), [("collisions", True), ("probe_disjointness", True), ("facts", False)])
def test_what_makes_an_island_easier_to_show_excuses_one(name: str, excused: bool) -> None:
    island = edited(edited(passing_report(), "joint", 0, p_low=FLOOR), "attacks", 0, p_over=0.9)
    assert _codes(judge(island, POLICY)) == {"over_forgetting"}
    broken = edited(island, "validity", REQUIRED_CHECKS.index(name), status="broken", reason="its_reason")
    assert judge(broken, POLICY).result is (Result.INCONCLUSIVE if excused else Result.FAIL)


# --- attempts -----------------------------------------------------------------------------------------------------


def test_a_second_attempt_must_meet_a_stricter_level() -> None:
    report = edited(passing_report(), "attacks", 0, p_residual=5 / 240, p_over=5 / 240)
    assert judge(report, POLICY).result is Result.PASS
    second = judge(replace(report, attempt=2), POLICY)
    assert second.result is Result.INCONCLUSIVE
    assert second.alpha_pass == pytest.approx(attempt_alpha(2))
    assert second.alpha_fail == 0.05


def test_a_family_that_cannot_reach_its_level_says_so_before_any_compute() -> None:
    assert unattainable(POLICY, 1) == ()
    assert unattainable(POLICY, 2) == ("F4",)
    assert unattainable(POLICY, 3) == ("F1", "F4")
    assert "alpha_unattainable" in _codes(judge(replace(passing_report(), attempt=2), POLICY))


# --- properties ---------------------------------------------------------------------------------------------------

_EDITS = st.lists(
    st.tuples(st.sampled_from(_PIECES), st.integers(0, 40), st.sampled_from(["drop", "double", "nan", "error"])),
    min_size=1,
    max_size=4,
)
_NUMBER = {"attacks": "p_residual", "joint": "p_detect", "guards": "value", "utility": "lower", "validity": "value"}


def _damaged(report: VerificationReport, field: str, place: int, how: str) -> VerificationReport:
    rows = getattr(report, field)
    if not rows:
        return report
    index = place % len(rows)
    if how == "nan" and field in _NUMBER:
        return edited(report, field, index, **{_NUMBER[field]: math.nan})
    if how == "error" and field in ("attacks", "utility"):
        return edited(report, field, index, status="error")
    if how == "double" and field in ("attacks", "joint", "utility"):
        return replace(report, **{field: (*rows, rows[index])})
    return without(report, field, index)


def _rows(report: VerificationReport) -> dict[str, list[str]]:
    """What a report says, whatever the order of its rows."""
    return {field: sorted(map(repr, getattr(report, field))) for field in _PIECES}


@settings(max_examples=200, deadline=None)
@given(_EDITS)
def test_damaged_evidence_never_passes(edits: list[tuple[str, int, str]]) -> None:
    report = passing_report()
    for field, place, how in edits:
        report = _damaged(report, field, place, how)
    # A row that was doubled and then dropped once is where it was.
    assume(_rows(report) != _rows(passing_report()))
    assert judge(report, POLICY).result is not Result.PASS


@settings(max_examples=200, deadline=None)
@given(st.floats(FLOOR, 1), st.floats(FLOOR, 1), st.floats(FLOOR, 1), st.floats(FLOOR, 1), st.floats(FLOOR, 1))
def test_a_pass_needs_all_three_claims_of_every_primary(
    residual: float, over: float, assay: float, detect: float, low: float
) -> None:
    report = edited(passing_report(), "attacks", 0, p_residual=residual, p_over=over, p_assay=assay)
    verdict = judge(edited(report, "joint", 0, p_detect=detect, p_low=low), POLICY)
    level = attempt_alpha(1)
    assert (verdict.result is Result.PASS) == (residual <= level and over <= level and assay <= 0.05)
    assert (verdict.result is Result.FAIL) <= (4 * min(detect, low) <= 0.05 + 1e-9)


ONE_FAMILY = replace(POLICY, families=(replace(MEMBERSHIP, detection=(), artefacts=("merged",)),))


def _evidence(before: list[float], after: list[float]) -> VerificationReport:
    """A report that passes but for its one family, which rests on these scores."""
    report = edited(
        passing_report(ONE_FAMILY),
        "attacks",
        0,
        p_assay=detection_p(before),
        p_detect=detection_p(after),
        p_low=low_p(after),
        p_residual=residual_p(before, after, 0.2),
        p_over=over_forgetting_p(before, after, 0.3),
    )
    return edited(report, "joint", 0, p_detect=detection_p(after), p_low=low_p(after))


def _judged(before: list[float], after: list[float]) -> Result:
    return judge(_evidence(before, after), ONE_FAMILY).result


def test_an_unchanged_model_fails_although_the_attack_is_weak() -> None:
    rng = np.random.default_rng(6)
    verdicts = []
    for _ in range(400):
        scores = rng.normal(size=240)
        scores[0] += 6.0
        verdicts.append(_judged(scores.tolist(), scores.tolist()))
    assert verdicts.count(Result.FAIL) >= 396
    assert Result.PASS not in verdicts


def test_a_person_never_trained_on_is_not_certified_as_erased() -> None:
    rng = np.random.default_rng(7)
    verdicts = []
    for _ in range(400):
        common = rng.normal(size=240)
        before, after = (((common + rng.normal(size=240)) / math.sqrt(2)).tolist() for _ in range(2))
        verdicts.append(_judged(before, after))
    assert verdicts.count(Result.PASS) <= 4


def test_a_model_that_answers_everything_alike_is_stopped_by_utility() -> None:
    # It knows nothing about anybody: its attack family passes, and only utility fails it.
    before = [20.0, *np.random.default_rng(1).normal(size=239).tolist()]
    flat = [0.0] * 240
    assert _judged(before, flat) is Result.PASS
    collapsed = _evidence(before, flat)
    collapsed = edited(collapsed, "utility", 0, mean_after=0.001, mean_change=-0.98, lower=-0.99, upper=-0.97)
    verdict = judge(collapsed, ONE_FAMILY)
    assert (verdict.result, _codes(verdict)) == (Result.FAIL, {"utility_loss"})
    assert {gate.gate: gate.result for gate in verdict.gates}["F1"] is Result.PASS
