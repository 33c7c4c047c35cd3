"""The ledger page: deletions by request, what remains over versions, and alarms that nobody overlooks."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Callable

import pytest

from deletion_service.console.ledger_charts import LEDGER_HEAD, Retested, remains_rows, remains_summary, remains_svg
from deletion_service.requests.models import ErasureRequest
from deletion_service.targets.models import TrainedModel
from tests.cast import BOB, rhea
from tests.doors import signed_in
from tests.flow.conftest import release
from tests.simulator import Simulator
from tests.world import ALICE_SECRET, make_model

SVG = "{http://www.w3.org/2000/svg}"
POINTS = (
    Retested(1, "req_a", 3, "spike_in", 0.02, 0.4, "not back"),
    Retested(1, "req_a", 4, "spike_in", 0.31, 0.0005, "back"),
    Retested(2, "req_b", 4, "vault", -0.01, 0.7, "not back"),
    Retested(3, "req_c", 4, "spike_in", None, None, "not tested: coverage"),
)


def drawn(*points: Retested) -> ET.Element:
    return ET.fromstring(remains_svg(points, limit=0.2, title="What remains", element_id="e"))


def test_more_remains_higher_up_and_later_versions_stand_to_the_right() -> None:
    discs = drawn(POINTS[0], Retested(1, "req_a", 4, "spike_in", 0.1, 0.4, "not back")).findall(f"{SVG}circle")
    assert float(discs[0].attrib["cx"]) < float(discs[1].attrib["cx"])
    assert float(discs[0].attrib["cy"]) > float(discs[1].attrib["cy"])


def test_what_lies_beyond_the_limit_is_a_cross_and_probes_are_squares() -> None:
    picture = drawn(*POINTS)
    assert len(picture.findall(f"{SVG}circle")) == len(picture.findall(f"{SVG}rect")) == 1
    assert len(picture.findall(f"{SVG}path")) == 1
    assert remains_summary(POINTS, limit=0.2).endswith(
        "More than 0.2 of the influence remains of deletion 1 on version 4."
    )


def test_the_table_holds_every_point_also_those_without_a_number() -> None:
    rows = list(remains_rows(POINTS))
    assert len(rows) == len(POINTS)
    assert {len(row) for row in rows} == {len(LEDGER_HEAD)}
    assert rows[-1] == ("3", "req_c", "4", "spike_in", "", "", "not tested: coverage")


def test_a_picture_reads_aloud_and_names_requests_in_its_table_alone() -> None:
    picture = drawn(*POINTS)
    assert picture.attrib["role"] == "img"
    assert "req_a" not in ET.tostring(picture, encoding="unicode")


@pytest.fixture
def bobs(case: Callable[..., ErasureRequest], simulator: Simulator) -> tuple[ErasureRequest, ErasureRequest]:
    """Alice was deleted; Bob's candidate brings her back."""
    make_model(spike_ins=1)
    alice = release(case(model=False))
    simulator.back.add(alice.pk)
    return alice, case(BOB, model=False)


@pytest.mark.django_db
def test_pages_name_the_request_that_came_back_and_what_to_do(bobs: tuple[ErasureRequest, ErasureRequest]) -> None:
    alice, bob = bobs
    client, model = signed_in(rhea()), TrainedModel.objects.get()
    pages = {
        name: client.get(path).content.decode()
        for name, path in (
            ("queue", "/console/"),
            ("case", f"/console/cases/{bob.pk}"),
            ("decide", f"/console/cases/{bob.pk}/decide"),
            ("ledger", f"/console/models/{model.pk}/ledger"),
            ("models", "/console/models"),
        )
    }
    for name in ("queue", "case", "decide", "ledger"):
        assert alice.pk in pages[name], name
    for name in ("case", "decide", "ledger"):
        assert "resurfaced" in pages[name], name
    assert "brings back what was deleted for" in pages["queue"]
    assert "spike-in spike-0" in pages["ledger"]
    assert "<svg" in pages["ledger"]
    assert f"/console/models/{model.pk}/ledger" in pages["models"]
    assert not [name for name, page in pages.items() if ALICE_SECRET in page or "Korvel" in page]
    sweep = bob.targets.get().sweeps.get()
    assert client.get(f"/console/sweeps/{sweep.pk}/sweep.json").content == bytes(sweep.document or b"")


@pytest.mark.django_db
def test_without_deletions_the_page_says_so() -> None:
    model = make_model()
    page = signed_in(rhea()).get(f"/console/models/{model.pk}/ledger").content.decode()
    assert "Nothing was deleted from this model yet." in page
    assert "No version was tested" in page


@pytest.mark.django_db
def test_a_deletion_that_nothing_stands_for_does_not_look_like_a_pass(case: Callable[..., ErasureRequest]) -> None:
    release(case())
    bob = case(BOB, model=False)
    page = signed_in(rhea()).get(f"/console/cases/{bob.pk}/decide").content.decode()
    assert "INCONCLUSIVE" in page
    assert "1 could not be" in page
    ledger = signed_in(rhea()).get(f"/console/models/{TrainedModel.objects.get().pk}/ledger").content.decode()
    assert "nothing: it cannot be tested again" in ledger
    assert "not tested: coverage" in ledger
