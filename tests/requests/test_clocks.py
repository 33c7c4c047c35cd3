"""Deadlines by the calendar: the published vectors, and what holds for every date."""

from __future__ import annotations

from datetime import date, timedelta

import pytest
from django.db.models import F
from hypothesis import given
from hypothesis import strategies as st

from deletion_service.errors import GuardError
from deletion_service.requests.clocks import (
    add_months,
    add_working_days,
    due_on,
    elapsed_share,
    extend_clock,
    next_working_day,
    overdue,
    pause_clock,
    record_breaches,
    resume_clock,
    start_clocks,
    stop_clocks,
)
from deletion_service.requests.identity import confirm_identity
from deletion_service.requests.intake import open_request
from deletion_service.requests.models import Clock, ClockPause
from tests.cast import application
from tests.requests.test_moving_a_request import request_in

D = date.fromisoformat
DAYS = st.dates(date(2020, 1, 1), date(2080, 12, 31))


@pytest.mark.parametrize(
    ("received", "due"),
    [
        ("2027-03-05", "2027-04-05"),
        ("2026-08-31", "2026-09-30"),
        ("2027-01-31", "2027-03-01"),
        ("2028-01-31", "2028-02-29"),
        ("2026-12-03", "2027-01-04"),
    ],
)
def test_a_month_is_a_calendar_month(received: str, due: str) -> None:
    assert due_on("gdpr", "respond", D(received)) == D(due)


def test_an_extension_counts_from_receipt() -> None:
    assert due_on("gdpr", "respond", D("2027-03-05"), extended=True) == D("2027-06-07")


def test_the_ccpa_counts_calendar_days_from_receipt() -> None:
    assert due_on("ccpa", "respond", D("2026-12-03")) == D("2027-01-17")
    assert due_on("ccpa", "respond", D("2026-12-03"), extended=True) == D("2027-03-03")


def test_the_ccpa_acknowledgement_counts_working_days_and_knows_no_extension() -> None:
    assert due_on("ccpa", "ack", D("2026-12-03")) == D("2026-12-17")
    with pytest.raises(GuardError):
        due_on("ccpa", "ack", D("2026-12-03"), extended=True)


def test_a_public_holiday_moves_the_due_date() -> None:
    assert due_on("gdpr", "respond", D("2027-03-05"), public_holidays={D("2027-04-05")}) == D("2027-04-06")


@given(DAYS)
def test_the_due_date_is_a_working_day_and_never_early(received: date) -> None:
    due = due_on("gdpr", "respond", received)
    assert due.weekday() < 5
    assert add_months(received, 1) <= due <= add_months(received, 1) + timedelta(days=2)


@given(DAYS, st.integers(1, 24))
def test_adding_months_keeps_the_day_number_or_takes_the_last_day(day: date, months: int) -> None:
    later = add_months(day, months)
    last = (later.replace(day=28) + timedelta(days=4)).replace(day=1) - timedelta(days=1)
    assert later.day == day.day or (later == last and later.day < day.day)
    assert (later.year * 12 + later.month) - (day.year * 12 + day.month) == months


@given(DAYS, st.integers(0, 40))
def test_working_days_are_counted_one_by_one(day: date, count: int) -> None:
    end = add_working_days(day, count)
    assert sum((day + timedelta(days=n)).weekday() < 5 for n in range(1, (end - day).days + 1)) == count
    assert next_working_day(end) == end or count == 0


@pytest.mark.django_db
def test_a_request_starts_the_clocks_of_its_regime() -> None:
    assert [c.kind for c in start_clocks(request_in("received"))] == ["respond"]
    assert sorted(c.kind for c in start_clocks(request_in("received", regime="ccpa"))) == ["ack", "respond"]


@pytest.mark.django_db
def test_an_instruction_keeps_its_senders_due_date() -> None:
    request = request_in("received")
    request.capacity = "processor"
    (clock,) = start_clocks(request, sender_due_on=D("2026-11-22"))
    assert clock.due_on == D("2026-11-22")
    with pytest.raises(GuardError, match="sender"):
        extend_clock(clock, reason="complexity", notice_sent_on=D("2026-11-20"), today=D("2026-11-21"), actor="rhea")


def gdpr_clock() -> Clock:
    (clock,) = start_clocks(request_in("received"))
    return clock


@pytest.mark.django_db
def test_extending_needs_a_notice_in_time_and_works_once() -> None:
    clock = gdpr_clock()
    with pytest.raises(GuardError, match="notice"):
        extend_clock(clock, reason="complexity", notice_sent_on=None, today=D("2026-11-10"), actor="rhea")
    with pytest.raises(GuardError, match="past its base deadline"):
        extend_clock(clock, reason="complexity", notice_sent_on=D("2026-11-10"), today=D("2027-01-02"), actor="rhea")
    extend_clock(clock, reason="complexity", notice_sent_on=D("2026-11-10"), today=D("2026-11-10"), actor="rhea")
    assert (clock.base_due_on, clock.due_on) == (D("2026-12-01"), D("2027-02-01"))
    with pytest.raises(GuardError, match="once"):
        extend_clock(clock, reason="complexity", notice_sent_on=D("2026-11-10"), today=D("2026-11-11"), actor="rhea")


@pytest.mark.django_db
def test_a_pause_is_off_by_default_and_moves_the_due_date_when_on(settings) -> None:  # type: ignore[no-untyped-def]
    clock = gdpr_clock()
    with pytest.raises(GuardError, match="never pauses"):
        pause_clock(clock, reason="identity", today=D("2026-11-05"), actor="rhea")
    settings.GDPR_IDENTITY_PAUSE = True
    pause_clock(clock, reason="identity", today=D("2026-11-05"), actor="rhea")
    resume_clock(clock, today=D("2026-11-12"), actor="rhea")
    assert clock.due_on == D("2026-12-08")


@pytest.mark.django_db
@pytest.mark.parametrize("chosen", [True, False])
def test_the_clock_waits_for_the_proof_only_where_the_deployer_chose_that(settings, chosen: bool) -> None:  # type: ignore[no-untyped-def]
    settings.GDPR_IDENTITY_PAUSE = chosen
    request = open_request(application(), actor="subject").request
    clock = request.clocks.get(kind="respond")
    assert clock.state == ("paused" if chosen else "running")
    ClockPause.objects.update(started_on=F("started_on") - timedelta(days=20))
    confirm_identity(request.identity_check)
    due = clock.due_on
    clock.refresh_from_db()
    assert clock.state == "running"
    assert (clock.due_on - due).days in (range(20, 26) if chosen else (0,))


@pytest.mark.django_db
def test_a_ccpa_clock_never_pauses(settings) -> None:  # type: ignore[no-untyped-def]
    settings.GDPR_IDENTITY_PAUSE = True
    for clock in start_clocks(request_in("received", regime="ccpa")):
        with pytest.raises(GuardError, match="never pauses"):
            pause_clock(clock, reason="identity", today=D("2026-11-05"), actor="rhea")


@pytest.mark.django_db
def test_a_breach_is_recorded_once_and_stays_after_the_answer() -> None:
    clock = gdpr_clock()
    assert not overdue(clock, today=clock.due_on)
    assert record_breaches(today=clock.due_on + timedelta(days=1)) == 1
    assert record_breaches(today=clock.due_on + timedelta(days=2)) == 0
    stop_clocks(clock.request)
    clock.refresh_from_db()
    assert (clock.state, clock.breached_at is not None) == ("breached", True)


@pytest.mark.django_db
def test_elapsed_time_runs_from_nothing_to_one() -> None:
    clock = gdpr_clock()
    assert elapsed_share(clock, today=clock.started_on) == 0
    assert elapsed_share(clock, today=clock.due_on) == 1
    assert elapsed_share(clock, today=clock.due_on + timedelta(days=90)) == 1
