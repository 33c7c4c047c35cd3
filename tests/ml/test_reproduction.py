"""Comparing two reports: equal ones agree everywhere, and no number, row or word can differ unseen."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

from ml.decision import judge
from ml.reports import EnergyPicture, Histogram, TwinSummary, VerificationReport
from ml.reproduction import GROUPS, IDENTITY, UNCOMPARED, compare_reports, environment_differences, gate_differences
from tests.ml.passing import POLICY, edited, passing_report, without

TOLERANCE = 1e-4
REPORT = replace(
    passing_report(),
    energies=(EnergyPicture("deleted", "after", Histogram((-6.0, -5.0, -4.0), (9, 11)), -4.9),),
    notes=("28 facts were measured.",),
)


def differing(repeated: VerificationReport, recorded: VerificationReport = REPORT) -> list[str]:
    groups = compare_reports(recorded, repeated, tolerance=TOLERANCE)
    return [row.place for group in groups for row in group.differing]


def test_a_report_agrees_with_itself_in_every_number() -> None:
    groups = compare_reports(REPORT, REPORT, tolerance=TOLERANCE)
    assert [group.group for group in groups] == ["identity", *GROUPS]
    assert {group.largest for group in groups} == {0.0}
    assert not any(group.differing for group in groups)
    numbers = {group.group: group.numbers for group in groups}
    # 13 numbers of each row, 3 of each of its two summaries of twins, and how many rows there are.
    assert numbers["attacks"] == len(REPORT.attacks) * (13 + 2 * 3) + 1
    assert numbers["energies"] == 1 + 1 + 2 + 3 + 2


def test_every_field_of_a_report_is_compared_or_is_a_cost_or_surroundings() -> None:
    assert sorted((*IDENTITY, *GROUPS, *UNCOMPARED)) == sorted(f.name for f in fields(VerificationReport))


def test_a_difference_within_the_tolerance_is_the_same_and_is_still_told() -> None:
    close = edited(REPORT, "attacks", 0, subject_after=REPORT.attacks[0].subject_after + 9e-5)  # type: ignore[operator]
    (attacks,) = [g for g in compare_reports(REPORT, close, tolerance=TOLERANCE) if g.group == "attacks"]
    assert attacks.differing == ()
    assert attacks.largest == pytest.approx(9e-5)
    assert attacks.place == "attacks[F1 same_context_difference merged].subject_after"


def test_a_large_number_may_differ_by_as_large_a_share() -> None:
    assert differing(edited(REPORT, "attacks", 0, subject_before=40.0 + 0.0039)) == []
    assert differing(edited(REPORT, "attacks", 0, subject_before=40.0 + 0.0041)) != []


@pytest.mark.parametrize(
    ("repeated", "place"),
    [
        (edited(REPORT, "attacks", 2, p_residual=0.05), "attacks[F1 mean_loss merged].p_residual"),
        (edited(REPORT, "attacks", 2, residual_upper=None), "attacks[F1 mean_loss merged].residual_upper"),
        (edited(REPORT, "attacks", 0, status="error"), "attacks[F1 same_context_difference merged].status"),
        (
            edited(REPORT, "attacks", 0, twins_after=TwinSummary(239, 0.0, 2.1, None)),
            "attacks[F1 same_context_difference merged].twins_after.sd",
        ),
        (without(REPORT, "attacks", 0), "attacks.length"),
        (edited(REPORT, "hard_rules", 0, status="breached"), "hard_rules[unique_identifier].status"),
        (edited(REPORT, "utility", 0, lower=-0.01), "utility[U1].lower"),
        (
            edited(REPORT, "energies", 0, shape=Histogram((-6.0, -5.0, -4.0), (10, 10))),
            "energies[deleted after].shape.counts[0]",
        ),
        (replace(REPORT, separation={}), "separation.energy_auroc_retained_vs_deleted"),
        (replace(REPORT, notes=("27 facts were measured.",)), "notes[0]"),
        (replace(REPORT, attempt=2), "attempt"),
        (replace(REPORT, models={**REPORT.models, "candidate": "0" * 64}), "models.candidate"),
    ],
)
def test_one_thing_changed_is_found_and_named(repeated: VerificationReport, place: str) -> None:
    assert place in differing(repeated)
    assert place in differing(REPORT, repeated)


def test_a_row_that_stands_twice_is_not_taken_for_one() -> None:
    twice = replace(REPORT, attacks=(*REPORT.attacks, REPORT.attacks[0]))
    assert any(place.startswith("attacks[F1 same_context_difference merged #2]") for place in differing(twice))


def test_costs_and_surroundings_decide_nothing_and_surroundings_are_told() -> None:
    elsewhere = replace(REPORT, cpu_seconds={"total": 9.0}, environment={"torch": "3", "device": "cuda"})
    assert differing(elsewhere) == []
    rows = environment_differences(REPORT.environment, elsewhere.environment)
    assert [(row.place, row.recorded, row.repeated) for row in rows] == [("device", None, "cuda"), ("torch", "2", "3")]


def test_gates_that_differ_are_named_with_both_results() -> None:
    leak = edited(REPORT, "hard_rules", 0, status="breached")
    rows = gate_differences(judge(REPORT, POLICY), judge(leak, POLICY))
    assert [(row.place, row.recorded, row.repeated) for row in rows] == [("unique_identifier", "PASS", "FAIL")]
    assert gate_differences(judge(REPORT, POLICY), judge(REPORT, POLICY)) == ()
