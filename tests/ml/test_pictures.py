"""Pictures of attacks: right numbers in the right places, missing evidence in sight, nobody alone, and a table."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import replace
from typing import Any

import pytest
from bs4 import BeautifulSoup

from ml.decision import judge
from ml.pictures.evidence import Section, bounds_section, sections
from ml.pictures.page import evidence_page
from ml.pictures.score_charts import (
    Bound,
    attack_title,
    bound_rows,
    bounds_svg,
    score_axis,
    score_rows,
    score_summary,
    score_svg,
)
from ml.reports import (
    AttackResult,
    EnergyPicture,
    FactRoc,
    Histogram,
    RelearningCurve,
    TwinSummary,
    VerificationReport,
)
from ml.specs import FamilyRule
from tests.ml.passing import POLICY, edited, passing_report, without

SVG = "{http://www.w3.org/2000/svg}"
TWINS = TwinSummary(239, 0.0, 2.0, Histogram((-6.0, -2.0, 2.0, 6.0), (60, 119, 60)))
SCORED = replace(passing_report().attacks[0], twins_before=TWINS, twins_after=TWINS)


def pictured(**changes: Any) -> VerificationReport:
    return edited(passing_report(), "attacks", 0, twins_before=TWINS, twins_after=TWINS, **changes)


def drawn(svg: str) -> ET.Element:
    return ET.fromstring(svg)


def scored(row: AttackResult = SCORED) -> ET.Element:
    axis = score_axis(row)
    assert axis is not None
    return drawn(score_svg(row, axis=axis, element_id="s"))


def said(picture: ET.Element) -> str:
    return " ".join(str(text.text) for text in picture.iter(f"{SVG}text"))


# --- scores -------------------------------------------------------------------------------------------------------


def test_the_person_stands_where_the_score_is_on_the_axis_of_the_bars() -> None:
    axis = score_axis(SCORED)
    assert axis is not None
    before, after = (polygon.attrib["points"].split()[0].split(",")[0] for polygon in scored().iter(f"{SVG}polygon"))
    assert float(before) == pytest.approx(axis.place(40.0), abs=0.06)
    assert float(after) == pytest.approx(axis.place(0.1), abs=0.06)
    assert axis.place(-6.0) > axis.left
    assert axis.place(40.0) < axis.right


def test_areas_of_bars_stand_for_people() -> None:
    bars = [bar for bar in scored().iter(f"{SVG}rect") if "url(#s-dotted)" in bar.attrib["fill"]]
    areas = [float(bar.attrib["width"]) * float(bar.attrib["height"]) for bar in bars[:3]]
    assert len(bars) == 6
    assert areas[1] / areas[0] == pytest.approx(119 / 60, rel=0.05)
    assert areas[2] == pytest.approx(areas[0], rel=0.05)


@pytest.mark.parametrize("few", [1, 4])
def test_a_bar_of_fewer_than_five_people_is_neither_drawn_nor_listed(few: int) -> None:
    thin = TwinSummary(239, 0.0, 2.0, Histogram((-6.0, 0.0, 6.0), (239 - few, few)))
    row = replace(SCORED, twins_before=thin, twins_after=thin)
    assert not [bar for bar in scored(row).iter(f"{SVG}rect") if "url(" in bar.attrib["fill"]]
    assert "too few for bars" in said(scored(row))
    assert {cells[1] for cells in score_rows(row)} == {"the person", "never seen, mean and spread"}


def test_scores_without_bars_or_of_one_value_can_still_be_drawn() -> None:
    alike = TwinSummary(39, 0.0, 0.0, None)
    row = replace(SCORED, subject_before=0.0, subject_after=0.0, twins_before=alike, twins_after=alike)
    assert len(list(scored(row).iter(f"{SVG}polygon"))) == 2


def test_an_attack_that_was_not_measured_has_no_picture() -> None:
    assert score_axis(AttackResult("F1", "mean_loss", "merged", "error", "ArithmeticError")) is None


def test_the_table_of_scores_says_what_the_picture_shows() -> None:
    assert list(score_rows(SCORED))[:5] == [
        ("before", "the person", "40", "1"),
        ("before", "never seen, mean and spread", "0 ± 2", "239"),
        ("before", "never seen", "-6 to -2", "60"),
        ("before", "never seen", "-2 to 2", "119"),
        ("before", "never seen", "2 to 6", "60"),
    ]
    assert "Before: the person 40, 239 people never seen 0 ± 2, p 0.0042." in score_summary(SCORED)


# --- bounds -------------------------------------------------------------------------------------------------------


def bound(**changes: Any) -> Bound:
    return Bound(replace(SCORED, **changes), 0.2)


def bounded(*bounds: Bound) -> ET.Element:
    return drawn(bounds_svg(bounds, title="Bounds", element_id="b"))


@pytest.mark.parametrize(
    ("upper", "within"), [(0.08, True), (0.2, True), (0.21, False), (1.4, False), (None, False), (-0.3, True)]
)
def test_only_a_bound_up_to_the_limit_is_within_it(upper: float | None, within: bool) -> None:
    row = bound(residual_upper=upper)
    assert row.is_within is within
    assert list(bound_rows([row]))[0][4] == ("yes" if within else "no")
    crosses = [path for path in bounded(row).iter(f"{SVG}path") if float(path.attrib["d"][1:].split()[1]) > 40]
    assert len(crosses) == (0 if within else 1)


def test_a_row_places_estimate_bound_and_limit_on_one_scale() -> None:
    picture = bounded(bound(residual_ratio=0.0, residual_upper=1.0), bound(residual_ratio=0.5))
    dots = [float(dot.attrib["cx"]) for dot in picture.iter(f"{SVG}circle")][1:]  # the first is the legend's
    limits = [float(x.attrib["x1"]) for x in picture.iter(f"{SVG}line") if x.attrib["stroke-width"] == "3"]
    ticks = {
        str(text.text): float(text.attrib["x"])
        for text in picture.iter(f"{SVG}text")
        if text.attrib["text-anchor"] == "middle"
    }
    assert dots == pytest.approx([ticks["0"], (ticks["0"] + ticks["1"]) / 2], abs=0.1)
    assert any(x == pytest.approx(ticks["0.2"], abs=0.1) for x in limits)


def test_numbers_far_beyond_the_paper_stay_on_it_and_are_written_out() -> None:
    picture = bounded(bound(residual_ratio=-9.0, residual_upper=2.0), bound(residual_ratio=30.0, residual_upper=None))
    for element in picture.iter():
        for name in ("x", "x1", "x2", "cx"):
            assert 0 <= float(element.attrib.get(name, 0)) <= 760
    assert "-9.00, at most 2.00" in said(picture)
    assert "30.00, no bound" in said(picture)


def test_every_attack_the_policy_asks_for_has_a_row_measured_or_not() -> None:
    missing = without(edited(passing_report(), "attacks", 1, status="error", reason="out_of_memory"), "attacks", 0)
    (picture,) = bounds_section(missing, POLICY).pictures
    assert [row[0] for row in picture.rows] == [
        "F1 same context difference",
        "F1 same context difference (int8)",
        "F4 hit rate",
    ]
    assert [row[1] for row in picture.rows] == ["missing: not in the evidence", "error: out of memory", "0.01"]
    assert [row[4] for row in picture.rows] == ["no", "no", "yes"]
    assert picture.summary.startswith("1 of 3 bounds at 95 % lie within their limits. Not shown to be within: F1 same")
    assert "missing: not in the evidence" in said(drawn(picture.svg))


def test_an_attack_that_stands_twice_is_not_shown_by_either() -> None:
    report = passing_report()
    twice = replace(report, attacks=(*report.attacks, replace(report.attacks[0], residual_upper=0.01)))
    (picture,) = bounds_section(twice, POLICY).pictures
    assert picture.rows[0][1:3] == ("missing: not in the evidence", "")


def test_gold_is_shown_where_there_is_one_and_nowhere_else() -> None:
    gold = edited(passing_report(), "attacks", 0, residual_ratio=-0.02, residual_upper=0.05)
    (alone,) = bounds_section(passing_report(), POLICY).pictures
    (beside,) = bounds_section(passing_report(), POLICY, gold).pictures
    assert "gold" not in said(drawn(alone.svg))
    assert "gold: never learned from the person" in said(drawn(beside.svg))
    assert (alone.rows[0][-1], beside.rows[0][-1]) == ("", "-0.02, at most 0.05")


# --- sections -----------------------------------------------------------------------------------------------------


def section(report: VerificationReport, id_: str, policy: Any = POLICY) -> Section:
    return next(section for section in sections(report, policy) if section.id == id_)


def test_attacks_that_bound_nothing_are_folded_away_and_none_is_left_out() -> None:
    scores = section(pictured(), "scores")
    assert [p.title for p in scores.pictures] == [
        "F1 same context difference",
        "F1 same context difference (int8)",
        "F4 hit rate",
    ]
    assert len(scores.pictures) + len(scores.further) == len(POLICY.families[0].artefacts) * 3 + 1
    assert "Attacks that look for a leak" in scores.html


def test_relearning_has_its_own_place_and_says_which_budget() -> None:
    rule = FamilyRule("F6", ("relearned_difference",), (), ("merged",), 0.3, None, 239)
    policy = replace(POLICY, families=(*POLICY.families, rule))
    relearning = section(passing_report(policy), "relearning", policy)
    assert [p.title for p in relearning.pictures] == ["F6 relearned difference"]
    assert "50% of the facts again, for 3 epochs" in relearning.notes[0]
    assert "F6 relearned difference" not in section(passing_report(policy), "scores", policy).html
    assert section(passing_report(), "relearning").notes == ("No relearning was measured.",)


def energies(*, edges: tuple[float, ...] = (-9.0, -7.0, -4.0)) -> tuple[EnergyPicture, ...]:
    return tuple(
        EnergyPicture(group, moment, Histogram(edges, counts), -6.0)  # type: ignore[arg-type]
        for moment in ("before", "after")
        for group, counts in (("retained", (30, 12)), ("deleted", (14, 14)), ("never_seen", (200, 200)))
    )


def test_the_curve_states_the_exact_area_and_that_its_lines_are_not() -> None:
    report = replace(pictured(), energies=energies(), separation={"energy_auroc_never_seen_vs_deleted": 0.52})
    roc = section(report, "roc")
    (picture,) = roc.pictures
    assert "Area under the curve: after 0.48." in picture.summary
    assert ("before", "0.500", "0.500") in picture.rows
    assert any("Every mark is exact" in note for note in roc.notes)


def test_a_curve_that_cannot_be_drawn_is_said_to_be_missing() -> None:
    for report in (pictured(), replace(pictured(), energies=energies(edges=(-9.0, -4.0))[:0])):
        roc = section(report, "roc")
        assert roc.pictures == ()
        assert any(note.startswith("No curve of energies") for note in roc.notes)
        assert "This evidence holds no curves of the attacks." in roc.notes
    half = replace(pictured(), energies=energies()[:3])
    assert any("No curve of energies after" in note for note in section(half, "roc").notes)


def test_each_attack_has_a_curve_with_both_moments_and_its_exact_area() -> None:
    rocs = (
        FactRoc("F2", "exposure", "before", (0.0, 0.0, 1.0), (0.0, 1.0, 1.0), 1.0),
        FactRoc("F2", "exposure", "after", (0.0, 0.5, 1.0), (0.0, 0.45, 1.0), 0.47),
    )
    roc = section(replace(pictured(), rocs=rocs), "roc")
    (picture,) = roc.pictures
    assert picture.title == "F2 exposure: telling the person’s facts"
    assert "before 1.00, after 0.47" in picture.summary
    assert [row for row in picture.rows if row[0] == "after"] == [
        ("after", "0.000", "0.000"),
        ("after", "0.500", "0.450"),
        ("after", "1.000", "1.000"),
    ]
    assert picture.svg.count("<polyline") == 2


def test_relearning_is_drawn_over_the_epochs_with_the_people_never_seen_as_a_band() -> None:
    rule = FamilyRule("F6", ("relearned_difference",), (), ("merged",), 0.3, None, 239)
    policy = replace(POLICY, families=(*POLICY.families, rule))
    curves = (
        RelearningCurve("before", (0, 1, 3), (9.0, 9.1, 9.2), (0.0, 0.5, 0.9), (0.3, 0.4, 0.5), 39),
        RelearningCurve("after", (0, 1, 3), (0.1, 0.4, 0.8), (0.0, 0.5, 0.9), (0.3, 0.4, 0.5), 39),
    )
    relearning = section(replace(passing_report(policy), relearning=curves), "relearning", policy)
    picture = relearning.pictures[0]
    assert picture.title == "What teaching the other facts brings back"
    assert (
        "after deletion the person goes from 0.10 to 0.80 nats, people never seen from 0.00 to 0.90" in picture.summary
    )
    assert ("after", "3", "0.800", "0.900", "0.500") in picture.rows
    assert len(picture.rows) == 6
    assert picture.svg.count("<polygon") == 1
    bare = section(passing_report(policy), "relearning", policy)
    assert bare.notes[1:] == tuple(
        f"This evidence holds no curve over the epochs {moment} deletion." for moment in ("before", "after")
    )


def test_a_report_that_measured_nothing_shows_that_everything_is_missing() -> None:
    nothing = replace(passing_report(), attacks=(), energies=(), separation={})
    (picture,) = bounds_section(nothing, POLICY).pictures
    assert {row[1] for row in picture.rows} == {"missing: not in the evidence"}
    assert picture.summary.startswith("0 of 3 bounds")
    looks, *others = sections(replace(nothing, joint=()), POLICY)
    assert all(shown.pictures == () for shown in others)
    assert {row[3] for row in looks.pictures[0].rows} == {"missing, counts as 1"}


def test_a_joint_p_value_that_is_no_number_is_not_drawn() -> None:
    assert section(edited(passing_report(), "joint", 0, p_detect=float("nan")), "multiplicity").pictures == ()


# --- on the page --------------------------------------------------------------------------------------------------


def page(report: VerificationReport) -> BeautifulSoup:
    shown = (bounds_section(report, POLICY), *sections(report, POLICY))
    return BeautifulSoup("".join(one.html for one in shown), "html.parser")


def test_every_picture_has_a_title_a_text_and_a_table_and_ids_do_not_collide() -> None:
    soup = page(replace(pictured(), energies=energies()))
    ids = [element["id"] for element in soup.find_all(id=True)]
    assert len(ids) == len(set(ids))
    figures = soup.find_all("figure")
    assert len(figures) > 8
    for figure in figures:
        svg = figure.find("svg")
        assert svg["role"] == "img"
        assert [soup.find(id=name).name for name in svg["aria-labelledby"].split()] == ["title", "desc"]
        assert all(soup.find(id=name).text for name in svg["aria-labelledby"].split())
        assert figure.find("tbody").find("tr") is not None
    for reference in {value for element in soup.find_all(fill=True) if (value := element["fill"]).startswith("url(")}:
        assert soup.find(id=reference.removeprefix("url(#").removesuffix(")")) is not None


def test_no_picture_carries_style_script_or_a_link() -> None:
    for element in page(replace(pictured(), energies=energies())).find_all(True):
        assert element.name not in {"style", "script", "foreignobject", "a", "image", "use"}
        assert not {name for name in element.attrs if name == "style" or name.startswith("on") or "href" in name}


def test_words_of_a_report_are_escaped() -> None:
    hostile = edited(pictured(), "attacks", 0, family="F1", status="error", reason='<script>alert("x")</script>')
    soup = page(hostile)
    assert soup.find("script") is None
    assert "<script>" in soup.text


def test_an_attack_is_named_with_the_copy_it_ran_on() -> None:
    assert attack_title(replace(SCORED, artefact="int4")) == "F1 same context difference (int4)"


# --- multiplicity -------------------------------------------------------------------------------------------------


def test_every_step_of_holm_stands_in_his_order_with_what_decides() -> None:
    report = without(edited(passing_report(), "joint", 0, p_detect=1 / 240), "joint", 1)
    shown = section(report, "multiplicity")
    (picture,) = shown.pictures
    count = 2 * len(POLICY.families)
    assert [row[0] for row in picture.rows] == [str(n + 1) for n in range(count)]
    assert [row[4] for row in picture.rows] == [str(count - n) for n in range(count)]
    first, missing = POLICY.families[0].id, POLICY.families[1].id
    assert picture.rows[0][1:4] == (first, "stands out", "0.00417")
    assert picture.rows[0][5] == f"{count / 240:.3g}"
    assert {row[3] for row in picture.rows if row[1] == missing} == {"missing, counts as 1"}
    adjusted = [float(row[5]) for row in picture.rows]
    assert adjusted == sorted(adjusted)
    assert [row[6] for row in picture.rows] == ["yes" if p <= POLICY.alpha else "no" for p in adjusted]
    drawn(picture.svg)


# --- the page -----------------------------------------------------------------------------------------------------


def test_a_verdict_is_one_page_that_needs_nothing_else() -> None:
    report = passing_report()
    leak = edited(edited(report, "joint", 0, p_detect=1 / 240), "attacks", 0, p_residual=0.9)
    for shown, result, why in ((report, "PASS", False), (leak, "FAIL", True)):
        html = evidence_page(shown, judge(shown, POLICY), POLICY)
        soup = BeautifulSoup(html, "html.parser")
        assert soup.h1 is not None
        assert soup.h1.text == f"Verdict {result}"
        assert ("Why not PASS" in html) is why
        assert len(soup.find_all("svg")) > 1
        assert not soup.find_all(["script", "link", "img"])
        assert {row.td.text for row in soup.find_all("tr") if row.td} >= {
            gate.gate for gate in judge(shown, POLICY).gates
        }
