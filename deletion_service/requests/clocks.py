"""Legal deadlines: when an answer is due, when a clock may pause or be extended, and what was missed.

Months are calendar months (Regulation 1182/71): the day of receipt does not count, a missing day becomes the last of
the month, and a due date that is no working day moves to the next one. Compliance section 4 has the vectors.
"""

from __future__ import annotations

import calendar
from collections.abc import Container
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Final, Literal

import holidays
from django.conf import settings
from django.db import transaction
from django.utils import timezone

from deletion_service.audit import trail
from deletion_service.errors import GuardError, IllegalTransitionError
from deletion_service.requests.codes import Capacity, Regime
from deletion_service.requests.models import Clock, ClockPause, ErasureRequest

NO_HOLIDAYS: Final[Container[date]] = frozenset()


@dataclass(frozen=True, slots=True)
class ClockRule:
    """How a deadline is counted: base and extended period in months, days or working days; when it may pause."""

    unit: Literal["months", "days", "working_days"]
    base: int
    extended: int | None
    may_pause: bool


RULES: Final[dict[tuple[str, str], ClockRule]] = {
    (Regime.GDPR, "respond"): ClockRule("months", 1, 3, may_pause=True),
    (Regime.CCPA, "ack"): ClockRule("working_days", 10, None, may_pause=False),
    (Regime.CCPA, "respond"): ClockRule("days", 45, 90, may_pause=False),
}


def add_months(day: date, months: int) -> date:
    """Return the same day number `months` later, or the last day of that month if it has no such day."""
    index = day.month - 1 + months
    year, month = day.year + index // 12, index % 12 + 1
    return date(year, month, min(day.day, calendar.monthrange(year, month)[1]))


def next_working_day(day: date, *, public_holidays: Container[date] = NO_HOLIDAYS) -> date:
    """Return `day`, or the next day that is no Saturday, Sunday or public holiday."""
    while day.weekday() >= 5 or day in public_holidays:
        day += timedelta(days=1)
    return day


def add_working_days(day: date, count: int, *, public_holidays: Container[date] = NO_HOLIDAYS) -> date:
    """Return the `count`-th working day after `day`."""
    for _ in range(count):
        day = next_working_day(day + timedelta(days=1), public_holidays=public_holidays)
    return day


def due_on(
    regime: str,
    kind: str,
    received_on: date,
    *,
    extended: bool = False,
    public_holidays: Container[date] = NO_HOLIDAYS,
) -> date:
    """Return when the clock `kind` of `regime` is due; the extension counts from receipt, not from the first date."""
    rule = RULES[regime, kind]
    amount = rule.extended if extended else rule.base
    if amount is None:
        raise GuardError(f"the {kind} clock of {regime} cannot be extended")
    if rule.unit == "months":
        return next_working_day(add_months(received_on, amount), public_holidays=public_holidays)
    if rule.unit == "working_days":
        return add_working_days(received_on, amount, public_holidays=public_holidays)
    return received_on + timedelta(days=amount)


def deployment_holidays() -> Container[date]:
    """Return the public holidays at the controller's seat; none when no country is set."""
    if not settings.HOLIDAY_COUNTRY:
        return NO_HOLIDAYS
    calendar_: Container[date] = holidays.country_holidays(settings.HOLIDAY_COUNTRY)
    return calendar_


def start_clocks(request: ErasureRequest, *, sender_due_on: date | None = None) -> list[Clock]:
    """Start the clocks of a new request. An instruction carries its sender's due date; it is never recomputed."""
    received_on = timezone.localdate(request.received_at)
    if request.capacity == Capacity.PROCESSOR:
        due = {"respond": sender_due_on or received_on + timedelta(days=30)}
    else:
        public_holidays = deployment_holidays()
        kinds = [kind for regime, kind in RULES if regime == request.regime]
        due = {k: due_on(request.regime, k, received_on, public_holidays=public_holidays) for k in kinds}
    return [
        Clock.objects.create(
            request=request,
            kind=kind,
            regime="processor" if request.capacity == Capacity.PROCESSOR else request.regime,
            started_on=received_on,
            base_due_on=day,
            due_on=day,
        )
        for kind, day in sorted(due.items())
    ]


def check_extension(clock: Clock, *, today: date) -> None:
    """Raise `GuardError` where a clock was extended before, is too late for it, or has no extension."""
    if clock.extended_at is not None:
        raise GuardError(f"the {clock.kind} clock of {clock.request_id} was extended before; once is all")
    if today > clock.base_due_on:
        raise GuardError(
            f"the {clock.kind} clock of {clock.request_id} is past its base deadline; it cannot be extended"
        )
    if (clock.regime, clock.kind) not in RULES:
        raise GuardError(f"the due date of {clock.request_id} belongs to its sender; ask the sender for more time")


def extended_due_on(clock: Clock) -> date:
    """Return when a clock is due once it is extended; the extension counts from receipt."""
    return due_on(clock.regime, clock.kind, clock.started_on, extended=True, public_holidays=deployment_holidays())


@transaction.atomic
def extend_clock(clock: Clock, *, reason: str, notice_sent_on: date | None, today: date, actor: str) -> Clock:
    """Extend once, after the notice with reasons was sent and before the base deadline has passed.

    Raises:
        GuardError: already extended, too late, no notice yet, or a clock without an extension.
    """
    check_extension(clock, today=today)
    if notice_sent_on is None or notice_sent_on > clock.base_due_on:
        raise GuardError(f"send the extension notice of {clock.request_id} before its base deadline, then extend")
    clock.due_on = extended_due_on(clock)
    clock.extended_at, clock.extension_reason = timezone.now(), reason
    clock.save(update_fields=["due_on", "extended_at", "extension_reason"])
    trail.record(actor=actor, action="clock.extended", obj=clock, reason=reason, request_id=clock.request_id)
    return clock


@transaction.atomic
def pause_clock(clock: Clock, *, reason: str, today: date, actor: str) -> ClockPause:
    """Stop counting while the data subject's identity is awaited, where regime and settings allow it."""
    rule = RULES.get((clock.regime, clock.kind))
    if rule is None or not rule.may_pause or not settings.GDPR_IDENTITY_PAUSE:
        raise GuardError(f"the {clock.kind} clock of {clock.request_id} never pauses")
    if Clock.objects.filter(pk=clock.pk, state=Clock.State.RUNNING).update(state=Clock.State.PAUSED) != 1:
        raise IllegalTransitionError(f"the {clock.kind} clock of {clock.request_id} is not running")
    trail.record(actor=actor, action="clock.paused", obj=clock, reason=reason, request_id=clock.request_id)
    clock.refresh_from_db()
    return ClockPause.objects.create(clock=clock, started_on=today, reason=reason)


@transaction.atomic
def resume_clock(clock: Clock, *, today: date, actor: str) -> Clock:
    """Count again; the due date moves by the days paused, then to the next working day."""
    pause = clock.pauses.filter(ended_on=None).first()
    if pause is None:
        raise IllegalTransitionError(f"the {clock.kind} clock of {clock.request_id} is not paused")
    pause.ended_on = today
    pause.save(update_fields=["ended_on"])
    days = (today - pause.started_on).days
    clock.due_on = next_working_day(clock.due_on + timedelta(days=days), public_holidays=deployment_holidays())
    clock.state = Clock.State.RUNNING
    clock.save(update_fields=["due_on", "state"])
    trail.record(actor=actor, action="clock.resumed", obj=clock, request_id=clock.request_id)
    return clock


def pause_for_identity(request: ErasureRequest, *, actor: str) -> None:
    """Pause the clocks that pause from a justified identity question to its answer, where the deployer chose that."""
    for clock in request.clocks.filter(state=Clock.State.RUNNING):
        rule = RULES.get((clock.regime, clock.kind))
        if rule is not None and rule.may_pause and settings.GDPR_IDENTITY_PAUSE:
            pause_clock(clock, reason="identity", today=timezone.localdate(), actor=actor)


def resume_after_identity(request: ErasureRequest, *, actor: str) -> None:
    """Let the clocks run on that waited for the answer."""
    for clock in request.clocks.filter(state=Clock.State.PAUSED):
        resume_clock(clock, today=timezone.localdate(), actor=actor)


def overdue(clock: Clock, *, today: date) -> bool:
    """Whether a running clock is past its due date."""
    return clock.state == Clock.State.RUNNING and today > clock.due_on


def elapsed_share(clock: Clock, *, today: date) -> float:
    """Return how much of the time from start to due date has passed: 0 at the start, 1 on the due date."""
    whole = max(1, (clock.due_on - clock.started_on).days)
    return min(1.0, max(0.0, (today - clock.started_on).days / whole))


@transaction.atomic
def record_breaches(*, today: date) -> int:
    """Mark every running clock past its due date; a breach stays visible for ever. Returns how many were found."""
    found = 0
    for clock in Clock.objects.filter(state=Clock.State.RUNNING, due_on__lt=today):
        found += Clock.objects.filter(pk=clock.pk, state=Clock.State.RUNNING).update(
            state=Clock.State.BREACHED, breached_at=timezone.now()
        )
        trail.record(actor="clock", action="clock.breached", obj=clock, request_id=clock.request_id)
    return found


def stop_clocks(request: ErasureRequest, *, kinds: tuple[str, ...] = (), cancelled: bool = False) -> None:
    """Stop the running clocks of a request as met or cancelled; a breached clock stays breached."""
    clocks = Clock.objects.filter(request=request, state__in=[Clock.State.RUNNING, Clock.State.PAUSED])
    if kinds:
        clocks = clocks.filter(kind__in=kinds)
    clocks.update(state=Clock.State.CANCELLED if cancelled else Clock.State.MET, stopped_at=timezone.now())
