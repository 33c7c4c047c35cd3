"""Pictures of energies: right numbers in the right places, safe text, and the same as a table."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from ml.pictures.charts import (
    energy_rows,
    energy_summary,
    energy_svg,
    roc_curve,
    separation_summary,
    shared_axis,
)
from ml.pictures.svg import Axis
from ml.reports import EnergyPicture, Histogram

SVG = "{http://www.w3.org/2000/svg}"
RETAINED = EnergyPicture("retained", "before", Histogram((-8.0, -6.0, -4.0), (30, 10)), -6.5)
DELETED = EnergyPicture("deleted", "before", None, -5.0)


def drawn(*pictures: EnergyPicture) -> ET.Element:
    axis = shared_axis(pictures)
    assert axis is not None
    return ET.fromstring(energy_svg(pictures, axis=axis, title="Before", element_id="e"))


def test_an_energy_has_one_place_on_the_shared_axis() -> None:
    axis = Axis(-10.0, 0.0)
    assert axis.place(-10.0) == 12
    assert axis.place(0.0) == 508
    assert axis.place(-5.0) == 260
    assert axis.place(3.0) == 508


@pytest.mark.parametrize(("low", "high"), [(-10.0, 0.0), (-8.31, -4.02), (0.001, 0.0042), (-250.0, 90.0)])
def test_ticks_are_few_round_and_inside(low: float, high: float) -> None:
    ticks = Axis(low, high).ticks()
    assert 2 <= len(ticks) <= 9
    assert all(low <= tick <= high for tick in ticks)


def test_bars_have_areas_in_proportion_to_their_counts() -> None:
    bars = drawn(RETAINED).findall(f"{SVG}rect")
    areas = [float(bar.attrib["width"]) * float(bar.attrib["height"]) for bar in bars]
    assert areas[0] / areas[1] == pytest.approx(30 / 10, rel=0.02)


def test_a_group_with_too_few_texts_is_shown_by_its_mean_alone() -> None:
    picture = drawn(RETAINED, DELETED)
    assert "too few texts" in " ".join(str(t.text) for t in picture.iter(f"{SVG}text"))
    assert len(picture.findall(f"{SVG}rect")) == 2


def test_a_bar_that_would_hold_fewer_than_five_is_not_drawn_and_not_listed() -> None:
    exposed = EnergyPicture("deleted", "before", Histogram((-8.0, -6.0, -4.0), (24, 4)), -6.5)
    picture = drawn(RETAINED, exposed)
    assert len(picture.findall(f"{SVG}rect")) == 2  # the retained people's
    assert [row[0] for row in energy_rows([exposed])] == []


def test_nothing_to_draw_has_no_axis() -> None:
    assert shared_axis([]) is None


def test_equal_means_without_bars_still_have_a_width() -> None:
    assert drawn(DELETED) is not None


def test_words_are_escaped_and_ids_do_not_collide() -> None:
    hostile = EnergyPicture('<script>"&', "before", None, 1.0)
    picture = drawn(hostile)
    assert picture.find(f"{SVG}script") is None
    ids = [e.attrib["id"] for e in picture.iter() if "id" in e.attrib]
    assert len(ids) == len(set(ids))
    assert all(i.startswith("e-") for i in ids)
    assert set(picture.attrib["aria-labelledby"].split()) <= set(ids)


def test_a_picture_carries_no_style_and_no_script() -> None:
    for element in drawn(RETAINED, DELETED).iter():
        assert element.tag.removeprefix(SVG) not in {"style", "script", "foreignObject"}
        assert not {"style", "onload", "href"} & set(element.attrib)


def test_the_table_says_what_the_picture_shows() -> None:
    assert list(energy_rows([RETAINED, DELETED])) == [
        ("Retained people", "-8.00 to -6.00", 30),
        ("Retained people", "-6.00 to -4.00", 10),
    ]


def test_the_summaries_state_means_and_chances() -> None:
    assert "Retained people -6.50; The deleted person -5.00" in energy_summary([RETAINED, DELETED])
    sentences = separation_summary(
        {"energy_auroc_never_seen_vs_deleted": 0.52, "energy_auroc_never_seen_vs_deleted_before": 0.03}
    )
    assert len(sentences) == 1
    assert "0.52 (before: 0.03)" in sentences[0]


# --- ROC ----------------------------------------------------------------------------------------------------------


def test_a_curve_has_a_point_at_each_edge_that_both_share_and_none_elsewhere() -> None:
    deleted = Histogram((-9.0, -8.0, -7.0, -4.0), (14, 6, 8))
    never_seen = Histogram((-9.0, -8.0, -6.0, -5.0, -4.0), (10, 90, 200, 100))
    # Below -8 lie 14 of 28 texts about the person and 10 of 400 about others; -7, -6 and -5 are not common.
    assert roc_curve(deleted, never_seen) == ((0.0, 0.0), (10 / 400, 14 / 28), (1.0, 1.0))


def test_equal_distributions_lie_on_the_line_of_chance() -> None:
    ours, theirs = (Histogram((0.0, 1.0, 2.0, 3.0), counts) for counts in ((5, 10, 5), (50, 100, 50)))
    curve = roc_curve(ours, theirs)
    assert curve is not None
    assert all(x == pytest.approx(y) for x, y in curve)
    assert len(curve) == 4


@pytest.mark.parametrize(
    ("deleted", "never_seen"),
    [
        (None, Histogram((0.0, 1.0, 2.0), (5, 5))),
        (Histogram((0.0, 1.0, 2.0), (5, 5)), None),
        (Histogram((0.0, 1.0, 2.0), (5, 5)), Histogram((0.0, 0.9, 2.0), (5, 5))),
        (Histogram((0.0, 2.0), (10,)), Histogram((0.0, 1.0, 2.0), (5, 5))),
        (Histogram((0.0, 1.0, 2.0), (24, 4)), Histogram((0.0, 1.0, 2.0), (5, 5))),
        (Histogram((0.0, 1.0, 2.0), (0, 0)), Histogram((0.0, 1.0, 2.0), (5, 5))),
    ],
)
def test_without_a_common_edge_there_is_no_curve(deleted: Histogram | None, never_seen: Histogram | None) -> None:
    assert roc_curve(deleted, never_seen) is None
