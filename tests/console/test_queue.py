"""The queue: by due date, with filters and flags."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from bs4 import BeautifulSoup
from django.utils import timezone

from deletion_service.requests.intake import open_request, withdraw_request
from deletion_service.requests.models import Clock, ErasureRequest
from deletion_service.targets.jobs import owe
from deletion_service.targets.models import Job
from deletion_service.targets.statuses import JobKind, JobState
from tests.cast import ALICE, BOB, application, rhea
from tests.doors import Machine, signed_in

pytestmark = pytest.mark.django_db


def open_case(*, due_in: int = 30, **clock: Any) -> ErasureRequest:
    request = open_request(application(), actor="subject").request
    due_on = timezone.localdate() + timedelta(days=due_in)
    request.clocks.update(due_on=due_on, base_due_on=due_on - timedelta(days=1), **clock)
    return request


def shown(query: str = "") -> list[str]:
    """The receipts in the queue, from top to bottom."""
    page = BeautifulSoup(signed_in(rhea()).get(f"/console/{query}").content, "html.parser")
    return [th.get_text(strip=True) for th in page.select("tbody th")]


def test_cases_stand_by_due_date_and_closed_ones_are_not_shown() -> None:
    late, early, closed = open_case(due_in=20), open_case(due_in=3), open_case(due_in=1)
    withdraw_request(closed, actor="subject")
    assert shown() == [early.receipt, late.receipt]
    assert shown("?status=withdrawn") == [closed.receipt]
    assert shown("?status=all") == [closed.receipt, early.receipt, late.receipt]


def test_flags_single_out_what_needs_attention() -> None:
    open_case(due_in=20)
    overdue = open_case(due_in=-2)
    breached = open_case(due_in=-9, state=Clock.State.BREACHED, breached_at=timezone.now())
    paused = open_case(due_in=15, state=Clock.State.PAUSED)
    assert shown("?flag=overdue") == [breached.receipt, overdue.receipt]
    assert shown("?flag=paused") == [paused.receipt]
    page = signed_in(rhea()).get("/console/").content.decode()
    for flag in ("breached", "overdue", "clock paused"):
        assert f">{flag}</span>" in page


def test_a_job_that_failed_for_good_is_seen_from_the_queue_and_an_earlier_attempts_is_not() -> None:
    open_case()
    stuck, overtaken, closed = open_case(), open_case(), open_case()
    for case, kind in ((stuck, JobKind.NOTIFY), (overtaken, JobKind.UNLEARN), (closed, JobKind.LOCATE)):
        job = owe(kind, case)
        Job.objects.filter(pk=job.pk).update(state=JobState.FAILED)
    ErasureRequest.objects.filter(pk=overtaken.pk).update(attempt=2)
    withdraw_request(closed, actor="subject")
    assert shown("?flag=failed") == [stuck.receipt]
    assert signed_in(rhea()).get("/console/").content.decode().count(">job failed</span>") == 1


def test_an_instruction_from_a_machine_is_told_apart() -> None:
    open_case()
    Machine("requests:write").post("/v1/requests", {"identifiers": [{"type": "email", "value": ALICE.value}]})
    sent = ErasureRequest.objects.get(capacity="processor")
    assert shown("?flag=sender") == [sent.receipt]
    assert shown("?regime=ccpa") == []


def test_an_unknown_filter_shows_the_open_cases() -> None:
    case = open_case()
    assert shown("?status=martian&flag=x&page=zzz") == [case.receipt]


def test_a_long_queue_has_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deletion_service.console.views.PAGE_LENGTH", 2)
    cases = [open_case(due_in=n) for n in range(1, 6)]
    assert shown("?page=2&regime=gdpr") == [c.receipt for c in cases[2:4]]
    page = signed_in(rhea()).get("/console/?page=2&regime=gdpr").content.decode()
    assert "regime=gdpr&amp;page=3" in page


def test_nothing_that_was_said_is_in_the_queue_or_on_the_case_page() -> None:
    case = open_request(application(ALICE, also=(BOB,), statement="I lived at 48 Brackenfell Lane"), actor="s").request
    browser = signed_in(rhea())
    for path in ("/console/", f"/console/cases/{case.pk}", f"/console/cases/{case.pk}/audit"):
        page = browser.get(path).content.decode()
        for told in ("Brackenfell", ALICE.value, BOB.value):
            assert told not in page
