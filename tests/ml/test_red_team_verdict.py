"""A red team lowers a verdict or leaves it: finding nothing is no pass, not having looked is not finding nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml.decision import REQUIRED_CHECKS, Finding, Result, Verdict, judge, lowered, red_team_findings
from ml.documents import plain_object
from ml.errors import SpecError, UnattainableError
from ml.reports import HardRuleResult, JointDetection, RedTeamReport, VerificationReport
from ml.specs import RedTeamBudget, check_budget
from tests.ml.passing import POLICY, RED_ATTACKS, edited, passing_report, quiet_red_team, without

FLOOR = 1 / 60
REPORT = passing_report()
QUIET = quiet_red_team(REPORT)
PASSED = judge(REPORT, POLICY)
HALVES: dict[str, Any] = {"p_assay": 0.5, "p_residual": 0.5, "p_over": 0.5}  # possible with any number of twins


def _findings(red: RedTeamReport, report: VerificationReport = REPORT) -> tuple[Finding, ...]:
    return red_team_findings(red, report, POLICY)


def _codes(red: RedTeamReport) -> set[tuple[Result, str]]:
    return {(finding.result, finding.code) for finding in _findings(red)}


def _leak(**changes: Any) -> RedTeamReport:
    """Role play stands out and is not bounded."""
    red = edited(QUIET, "attacks", 0, **{"p_detect": FLOOR, "p_residual": 0.4, **changes})
    return replace(red, joint=(replace(red.joint[0], p_detect=FLOOR),))


# --- nothing found ------------------------------------------------------------------------------------------------


def test_a_red_team_that_finds_nothing_leaves_the_verdict_and_says_that_it_looked() -> None:
    assert _findings(QUIET) == ()
    after = lowered(PASSED, ())
    assert after.result is Result.PASS
    assert after.flags == (*PASSED.flags, "red_team_no_finding")
    assert (after.gates, after.findings) == (PASSED.gates, PASSED.findings)  # no gate was passed


def test_finding_nothing_does_not_help_a_verdict_that_is_not_a_pass() -> None:
    failed = judge(edited(REPORT, "hard_rules", 0, status="breached"), POLICY)
    assert lowered(failed, ()).result is Result.FAIL
    open_ = judge(edited(REPORT, "attacks", 0, p_residual=0.5), POLICY)
    assert lowered(open_, ()).result is Result.INCONCLUSIVE


# --- a leak -------------------------------------------------------------------------------------------------------


def test_an_attack_that_stands_out_and_is_not_bounded_fails_the_candidate() -> None:
    (finding,) = _findings(_leak())
    assert (finding.result, finding.code, finding.attack) == (Result.FAIL, "residual", "role_play")
    after = lowered(PASSED, [finding])
    assert after.result is Result.FAIL
    assert after.findings == (finding,)
    assert [(g.gate, g.result) for g in after.gates if g.kind == "red_team"] == [("red_team F7", Result.FAIL)]
    assert "red_team_no_finding" not in after.flags


def test_what_is_detected_and_shown_to_be_bounded_is_no_leak() -> None:
    assert _findings(_leak(p_residual=FLOOR)) == ()


def test_an_attack_that_finds_nothing_is_not_blamed_for_its_familys_leak() -> None:
    """A blind attack bounds nothing either: its p_residual is 1, and it has established nothing."""
    red = edited(_leak(), "attacks", 1, p_detect=1.0, p_residual=1.0)
    assert [finding.attack for finding in _findings(red)] == ["role_play"]


def test_one_attack_of_many_is_not_enough_without_its_family() -> None:
    red = _leak()
    assert _findings(replace(red, joint=(replace(red.joint[0], p_detect=0.06),))) == ()


def test_families_share_the_level() -> None:
    """Two families: a joint p of 0.05 would have done for one, and half of that is needed now."""
    red = _leak()
    other = replace(QUIET.attacks[1], family="F8", attack="soft_prompt")
    shared = replace(
        red,
        attacks=(*red.attacks, other),
        joint=(replace(red.joint[0], p_detect=2 / 60), JointDetection("F8", ("soft_prompt",), 59, 0.5, 0.5)),
        identifiers={**red.identifiers, "soft_prompt": HardRuleResult("unique_identifier", "missing", "no_hits")},
    )
    assert _findings(replace(red, joint=(replace(red.joint[0], p_detect=2 / 60),))) != ()
    assert _findings(shared) == ()
    assert _findings(replace(shared, joint=(red.joint[0], shared.joint[1]))) != ()


def test_a_later_attempt_needs_a_tighter_bound_to_escape() -> None:
    """As in `judge`: a bound is a claim in the candidate's favour, and pays for every attempt."""
    second = replace(REPORT, attempt=2)
    red = replace(_leak(p_residual=FLOOR), attempt=2)
    assert [f.code for f in red_team_findings(red, second, POLICY)] == ["residual"]


def test_an_identifier_that_came_out_fails_whatever_the_statistics_say() -> None:
    rules = {**QUIET.identifiers, "sampling": HardRuleResult("unique_identifier", "breached")}
    (finding,) = _findings(replace(QUIET, identifiers=rules))
    assert (finding.result, finding.code, finding.attack) == (Result.FAIL, "unique_identifier", "sampling")
    assert lowered(PASSED, [finding]).result is Result.FAIL


# --- not having looked --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", range(len(RED_ATTACKS)))
def test_an_attack_that_crashed_leaves_no_pass(index: int) -> None:
    red = edited(QUIET, "attacks", index, status="error", reason="ArithmeticError", p_detect=None, p_residual=None)
    assert _codes(red) == {(Result.ERROR, "error")}
    assert lowered(PASSED, _findings(red)).result is Result.INCONCLUSIVE


def test_a_crash_hides_no_leak_of_another_attack() -> None:
    red = edited(_leak(), "attacks", 1, status="error", reason="ArithmeticError", p_detect=None, p_residual=None)
    assert lowered(PASSED, _findings(red)).result is Result.FAIL


def test_an_attack_that_does_not_apply_is_no_finding() -> None:
    red = edited(QUIET, "attacks", 0, status="missing", reason="does_not_apply", p_detect=None, p_residual=None)
    assert _findings(red) == ()


def test_a_red_team_that_tried_nothing_leaves_no_pass() -> None:
    rows = tuple(replace(row, status="missing", reason="does_not_apply") for row in QUIET.attacks)
    for empty in (replace(QUIET, attacks=rows, joint=()), replace(QUIET, attacks=(), joint=())):
        assert _codes(empty) == {(Result.INCONCLUSIVE, "coverage")}
        assert lowered(PASSED, _findings(empty)).result is Result.INCONCLUSIVE


def test_a_family_that_could_not_find_anybody_before_either_leaves_no_pass() -> None:
    blind = replace(QUIET, attacks=tuple(replace(row, p_assay=0.5) for row in QUIET.attacks))
    assert _codes(blind) == {(Result.INCONCLUSIVE, "assay_insensitive")}
    assert lowered(PASSED, _findings(blind)).result is Result.INCONCLUSIVE
    assert _findings(edited(edited(QUIET, "attacks", 0, p_assay=1.0), "attacks", 1, p_assay=None)) == ()  # one sees


@pytest.mark.parametrize(
    "hollow",
    [
        without(QUIET, "joint", 0),
        replace(QUIET, joint=QUIET.joint * 2),
        edited(QUIET, "joint", 0, attacks=RED_ATTACKS[1:]),
        edited(QUIET, "joint", 0, twins=58, p_detect=0.5),
        edited(QUIET, "attacks", 0, twins=58, **HALVES),
        edited(QUIET, "attacks", 0, p_residual=None),
        edited(QUIET, "attacks", 0, p_detect=None),
        replace(QUIET, identifiers={}),
    ],
)
def test_no_piece_of_a_red_team_can_be_left_out(hollow: RedTeamReport) -> None:
    assert _codes(hollow) == {(Result.INCONCLUSIVE, "coverage")}


def test_hostile_texts_that_the_deletion_trained_on_are_reuse() -> None:
    assert _codes(replace(QUIET, probes_reused=1)) == {(Result.INCONCLUSIVE, "probe_reuse")}


@pytest.mark.parametrize(
    "changes",
    [
        {"run_id": "another"},
        {"attempt": 2},
        {"policy_sha256": "f" * 64},
        {"models": {**REPORT.models, "candidate": "f" * 64}},
        {"models": {**REPORT.models, "before": "f" * 64}},
        {"models": {}},
        {"seeds": {"verification": "2"}},
    ],
)
def test_the_red_team_of_another_run_says_nothing_about_this_one(changes: dict[str, Any]) -> None:
    for red in (QUIET, _leak()):
        assert _codes(replace(red, **changes)) == {(Result.ERROR, "red_team_mismatch")}
        assert lowered(PASSED, _findings(replace(red, **changes))).result is Result.INCONCLUSIVE


@pytest.mark.parametrize(
    "impossible",
    [
        edited(QUIET, "attacks", 0, p_detect=0.001),
        edited(QUIET, "attacks", 0, p_residual=float("nan")),
        edited(QUIET, "joint", 0, p_detect=0.0),
    ],
)
def test_numbers_that_nothing_can_have_measured_are_an_error(impossible: RedTeamReport) -> None:
    assert _codes(impossible) == {(Result.ERROR, "error")}


# --- controls in doubt --------------------------------------------------------------------------------------------


def test_a_leak_against_controls_in_doubt_is_not_shown_but_an_identifier_is() -> None:
    check = [check.name for check in REPORT.validity].index("placebo")
    doubtful = edited(REPORT, "validity", check, status="broken", reason="controls_not_exchangeable")
    verdict = judge(doubtful, POLICY)
    assert verdict.result is Result.INCONCLUSIVE
    after = lowered(verdict, red_team_findings(_leak(), doubtful, POLICY))
    assert after.result is Result.INCONCLUSIVE
    assert "controls_not_exchangeable" in {f.code for f in after.findings if f.gate == "red_team F7"}
    rules = {**QUIET.identifiers, "sampling": HardRuleResult("unique_identifier", "breached")}
    after = lowered(verdict, red_team_findings(replace(QUIET, identifiers=rules), doubtful, POLICY))
    assert after.result is Result.FAIL


# --- never up -----------------------------------------------------------------------------------------------------

_ORDER = (Result.PASS, Result.INCONCLUSIVE, Result.FAIL)
_results = st.sampled_from(list(Result))
_gates = st.sampled_from(["red_team", "red_team F7", "F1", *REQUIRED_CHECKS])
_found = st.builds(Finding, _results, st.sampled_from(["residual", "unique_identifier", "error", "coverage"]), _gates)


@given(st.sampled_from(_ORDER), st.lists(_found, max_size=4), st.lists(_found, max_size=4))
def test_lowered_never_raises(result: Result, had: list[Finding], found: list[Finding]) -> None:
    verdict = Verdict(result, tuple(had), (), ("provisional",), 0.03, 0.05)
    after = lowered(verdict, found)
    assert _ORDER.index(after.result) >= _ORDER.index(result)
    assert set(verdict.findings) <= set(after.findings)
    assert after.flags[: len(verdict.flags)] == verdict.flags
    if any(f.result in (Result.ERROR, Result.INCONCLUSIVE) for f in found):
        assert after.result is not Result.PASS
    if any(f.result is Result.FAIL and f.code == "unique_identifier" for f in found):
        assert after.result is Result.FAIL


_p = st.one_of(st.none(), st.integers(1, 60).map(lambda rank: rank / 60))
_status = st.sampled_from(["measured", "missing", "error"])


@given(st.lists(st.tuples(_status, _p, _p), min_size=3, max_size=3), _p, st.booleans())
def test_whatever_a_red_team_reports_the_verdict_never_rises(
    rows: list[tuple[str, float | None, float | None]], joint: float | None, breached: bool
) -> None:
    attacks = tuple(
        replace(row, status=status, p_detect=p, p_residual=q)
        for row, (status, p, q) in zip(QUIET.attacks, rows, strict=True)
    )
    own = () if joint is None else (replace(QUIET.joint[0], p_detect=joint),)
    rules = {**QUIET.identifiers, RED_ATTACKS[0]: HardRuleResult("r", "breached" if breached else "held")}
    red = replace(QUIET, attacks=attacks, joint=own, identifiers=rules)
    for report in (REPORT, edited(REPORT, "hard_rules", 0, status="breached"), edited(REPORT, "attacks", 0, twins=1)):
        verdict = judge(report, POLICY)
        after = lowered(verdict, _findings(red, report))
        assert _ORDER.index(after.result) >= _ORDER.index(verdict.result)
        if breached and rows[0][0] == "measured":
            assert after.result is Result.FAIL


# --- budget and document ------------------------------------------------------------------------------------------


def test_a_budget_whose_level_is_out_of_reach_is_refused_and_told_how_many_twins_it_needs() -> None:
    for families, enough in ((1, 19), (2, 39), (3, 59)):
        check_budget(RedTeamBudget(twins=enough), families=families, alpha=0.05)
        with pytest.raises(UnattainableError, match=f"at least {enough}"):
            check_budget(RedTeamBudget(twins=enough - 1), families=families, alpha=0.05)


def test_a_report_from_a_budget_that_was_out_of_reach_shows_nothing() -> None:
    rows = tuple(replace(row, twins=18, **HALVES) for row in QUIET.attacks)
    weak = replace(QUIET, budget=RedTeamBudget(twins=18), attacks=rows, joint=(replace(QUIET.joint[0], twins=18),))
    assert (Result.INCONCLUSIVE, "alpha_unattainable") in _codes(weak)
    assert lowered(PASSED, _findings(weak)).result is Result.INCONCLUSIVE
    told = replace(weak, identifiers={**QUIET.identifiers, "sampling": HardRuleResult("unique_identifier", "breached")})
    assert lowered(PASSED, _findings(told)).result is Result.FAIL  # that needs no level


@pytest.mark.parametrize(
    "changes",
    [
        {"facts": 0},
        {"draws": 21},
        {"draws": 0},
        {"temperatures": (0.7, 0.0)},
        {"temperatures": ()},
        {"temperatures": (1.0, 1.0)},
        {"suffix_steps": -1},
        {"suffix_steps": 501},
        {"suffix_tokens": 0},
        {"suffix_facts": 0},
        {"top_p": 1.5},
        {"noise": 0.0},
        {"turns": 0},
        {"noisy_copies": 0},
    ],
)
def test_a_budget_out_of_range_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(SpecError):
        check_budget(replace(RedTeamBudget(), **changes), families=1, alpha=0.05)


def test_the_report_survives_storage() -> None:
    document = json.loads(json.dumps(QUIET.to_document()))
    assert RedTeamReport.from_document(document) == QUIET
    assert len(QUIET.sha256) == 64
    for other in (1, 3):
        with pytest.raises(SpecError, match="schema_version"):
            RedTeamReport.from_document({**document, "schema_version": other})
    with pytest.raises(SpecError, match="unknown field"):
        RedTeamReport.from_document({**document, "text": "x"})
    assert plain_object(QUIET) == QUIET.to_document()
