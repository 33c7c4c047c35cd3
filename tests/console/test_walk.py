"""The console's own path: every page of a case that passes, taken by the people who may take it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from django.test import Client

from deletion_service.certificates.models import Certificate, Evidence
from deletion_service.requests.identity import confirm_identity
from deletion_service.requests.intake import open_request
from deletion_service.requests.models import ErasureRequest
from ml.reports import EnergyPicture, Histogram, VerificationReport
from tests.cast import application, rhea, second_reviewer
from tests.doors import signed_in
from tests.flow.conftest import run_all_jobs
from tests.simulator import Simulator
from tests.world import make_model

pytestmark = pytest.mark.django_db


def with_energies(report: VerificationReport) -> VerificationReport:
    """Energies as after a good run: the deleted person among people never seen."""
    shapes = {
        ("retained", "before"): ((-9.0, -8.0, -7.0), (30, 12), -8.3),
        ("deleted", "before"): ((-9.0, -8.0, -7.0), (14, 6), -8.2),
        ("never_seen", "before"): ((-6.0, -5.0, -4.0), (400, 380), -5.0),
        ("retained", "after"): ((-9.0, -8.0, -7.0), (29, 13), -8.2),
        ("deleted", "after"): ((-6.0, -5.0, -4.0), (9, 11), -4.9),
        ("never_seen", "after"): ((-6.0, -5.0, -4.0), (390, 390), -5.0),
    }
    pictures = tuple(
        EnergyPicture(group, moment, Histogram(edges, counts), mean)  # type: ignore[arg-type]
        for (group, moment), (edges, counts, mean) in shapes.items()
    )
    return replace(report, energies=pictures)


def post(browser: Client, path: str, **fields: str) -> Any:
    """Open a form page, then send it with the hidden state it came with."""
    page = browser.get(path)
    assert page.status_code == 200, page.content.decode()[-1500:]
    return browser.post(path, {"seen": page.context["form"].initial["seen"], **fields})


def test_a_case_goes_from_review_to_certificate_by_two_people(simulator: Simulator) -> None:
    simulator.alter = with_energies
    make_model()
    request = open_request(application(), actor="subject").request
    confirm_identity(request.identity_check)
    first, second = signed_in(rhea()), signed_in(second_reviewer())
    home = f"/console/cases/{request.pk}"
    assert request.receipt in first.get("/console/").content.decode()
    assert post(first, f"{home}/do/search", ground="consent_withdrawn").status_code == 302
    run_all_jobs()
    assert "2 records by proven identifiers" in first.get(home).content.decode()
    assert post(first, f"{home}/do/accept-targets").status_code == 302
    assert post(second, f"{home}/do/start").status_code == 302
    run_all_jobs()
    evidence = Evidence.objects.get()
    page = first.get(f"/console/evidence/{evidence.pk}").content.decode()
    assert "People never seen" in page
    assert "<svg" in page
    assert post(first, f"{home}/decide", choice="release", reason="all_gates_passed").status_code == 302
    run_all_jobs()
    certificate = Certificate.objects.get()
    sheet = f"/console/certificates/{certificate.pk}"
    assert "you approved the evidence" in first.get(sheet).content.decode()
    assert second.post(f"{sheet}/issue").status_code == 302
    run_all_jobs()
    request = ErasureRequest.objects.get()
    assert (request.status, request.outcome) == ("completed", "erased")
    for browser, path in ((first, sheet), (first, home), (second, f"{home}/audit"), (second, "/console/models")):
        assert browser.get(path).status_code == 200
    assert first.get(f"{sheet}/log.json").status_code == 200


def test_the_evidence_page_shows_every_gate_and_the_same_numbers_as_a_table(
    case: Callable[..., ErasureRequest], simulator: Simulator
) -> None:
    simulator.alter = with_energies
    case()
    page = signed_in(rhea()).get(f"/console/evidence/{Evidence.objects.get().pk}").content.decode()
    for words in (
        "same context difference",
        "determinism",
        "Run manifest",
        "400",
        "-6.00 to -5.00",
        "at least 5 to a bar",
    ):
        assert words in page
