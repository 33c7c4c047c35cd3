"""The gate table: every gate of the verdict, with the numbers of the report and none of its own."""

from __future__ import annotations

from dataclasses import replace

import pytest

from deletion_service.certificates.evaluation import Evaluation, GateRow, evaluation_of
from deletion_service.errors import EvidenceMissingError
from ml.decision import judge
from ml.reports import VerificationReport
from tests.certificates import forge
from tests.ml.passing import edited, without

POLICY = forge.policy()
CANDIDATE = "c" * 64
REPORT = forge.report(POLICY, candidate=CANDIDATE)


def evaluated(report: VerificationReport, *, candidate: str = CANDIDATE) -> Evaluation:
    return evaluation_of(
        judge(report, POLICY),
        report=report,
        policy=POLICY,
        candidate_manifest_sha256=candidate,
        evidence_sha256="e" * 64,
    )


def row(evaluation: Evaluation, name: str) -> GateRow:
    (found,) = [row for row in evaluation.gates if row.id == name]
    return found


def test_every_gate_of_the_verdict_stands_in_the_table_in_its_order_with_its_result() -> None:
    verdict = judge(REPORT, POLICY)
    gates = [row for row in evaluated(REPORT).gates if row.id == row.gate]

    assert [(row.id, row.kind, row.result) for row in gates] == [
        (g.gate, g.kind, g.result.value) for g in verdict.gates
    ]


def test_an_attack_row_gives_the_numbers_of_the_report_and_what_the_policy_accepts() -> None:
    assert row(evaluated(REPORT), "F1.same_context_difference.int8") == GateRow(
        id="F1.same_context_difference.int8",
        gate="F1",
        kind="attack",
        result="PASS",
        reference="holdout_reference",
        before="40",
        after="0.1",
        reference_value="0",
        measure="residual_share",
        value="0.01",
        interval=("-0.3", "0.2"),
        ci95=(None, "0.08"),
        n="28",
        controls="239",
    )


def test_an_attack_that_bounds_nothing_has_no_accepted_interval() -> None:
    found = row(evaluated(REPORT), "F1.mean_loss.merged")

    assert (found.kind, found.interval) == ("detection", None)


def test_bounds_and_scores_give_their_value_interval_and_limits() -> None:
    evaluation = evaluated(edited(REPORT, "guards", 0, lower=0.45, upper=0.55))

    bound, score = row(evaluation, "F1.pooled_auc"), row(evaluation, "U1.probability")
    assert (bound.value, bound.interval, bound.ci95) == ("0.5", ("0.4", "0.6"), ("0.45", "0.55"))
    assert (score.before, score.after, score.value) == ("0.99", "0.989", "-0.001")
    assert (score.interval, score.ci95, score.n) == (("-0.02", None), ("-0.002", "0"), "300")


def test_a_missing_attack_is_a_row_without_numbers_that_did_not_pass() -> None:
    evaluation = evaluated(without(REPORT, "attacks", 0))

    found = row(evaluation, "F1.same_context_difference.merged")
    assert found.result == "INCONCLUSIVE"
    assert {found.before, found.after, found.value, found.ci95, found.n, found.controls} == {None}
    assert row(evaluation, "F1.same_context_difference.int8").result == "PASS"
    assert row(evaluation, "F1").result == "INCONCLUSIVE"


def test_of_two_results_for_one_attack_neither_is_shown() -> None:
    twice = replace(REPORT, attacks=(*REPORT.attacks, replace(REPORT.attacks[0], residual_ratio=0.0)))

    found = row(evaluated(twice), "F1.same_context_difference.merged")
    assert (found.result, found.value) == ("INCONCLUSIVE", None)


def test_findings_say_why_a_verdict_is_no_pass() -> None:
    evaluation = evaluated(forge.leaking_report(POLICY, candidate=CANDIDATE))

    assert [(f.code, f.gate, f.attack, f.artefact, f.result) for f in evaluation.unmet] == [
        ("residual", "F1", "same_context_difference", "merged", "FAIL")
    ]
    assert row(evaluation, "F1.same_context_difference.merged").result == "FAIL"
    assert row(evaluation, "F1").result == "FAIL"
    assert "detectable" in evaluation.flags


def test_a_bound_that_is_exceeded_is_a_row_that_did_not_pass() -> None:
    evaluation = evaluated(edited(REPORT, "guards", 0, value=0.9, lower=0.8, upper=0.95))

    assert row(evaluation, "F1.pooled_auc").result == "INCONCLUSIVE"
    assert row(evaluation, "F1.same_context_difference.merged").result == "PASS"


def test_a_failed_score_is_a_row_that_failed() -> None:
    evaluation = evaluated(edited(REPORT, "utility", 0, mean_change=-0.1, lower=-0.12, upper=-0.08))

    assert row(evaluation, "U1.probability").result == "FAIL"


def test_evidence_about_another_model_is_not_called_loaded_by_digest() -> None:
    assert evaluated(REPORT).artifact_loaded_by_digest
    assert not evaluated(REPORT, candidate="d" * 64).artifact_loaded_by_digest


def test_confidence_policy_and_what_was_not_tested_come_from_the_policy() -> None:
    evaluation = evaluated(REPORT)

    assert evaluation.confidence == "0.95"
    assert evaluation.policy.digest.sha256 == POLICY.sha256
    assert evaluation.not_tested == POLICY.not_tested


@pytest.mark.parametrize("changes", [{"status": "error"}, {"status": "missing"}, {"twins": 0}])
def test_no_broken_attack_leaves_a_passed_row(changes: dict[str, object]) -> None:
    evaluation = evaluated(edited(REPORT, "attacks", 0, **changes))

    assert evaluation.unmet
    assert not [r for r in evaluation.gates if r.id.startswith("F1.same_context_difference.m") if r.result == "PASS"]


def test_the_verdict_of_a_fast_tier_is_never_stated() -> None:
    provisional = replace(POLICY, purpose="provisional")
    report = forge.report(provisional, candidate=CANDIDATE)
    with pytest.raises(EvidenceMissingError, match="fast tier"):
        evaluation_of(
            judge(report, provisional),
            report=report,
            policy=provisional,
            candidate_manifest_sha256=CANDIDATE,
            evidence_sha256="0" * 64,
        )
