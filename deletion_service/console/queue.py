"""The queue: cases by due date, with what a reviewer filters by."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from typing import Any

from django.db.models import Exists, F, OuterRef, Q, QuerySet, Subquery

from deletion_service.requests.codes import Capacity
from deletion_service.requests.models import Clock, ErasureRequest
from deletion_service.requests.statuses import TERMINAL_STATUSES
from deletion_service.targets.models import Job
from deletion_service.targets.statuses import OF_AN_ATTEMPT, JobState


@dataclass(frozen=True, slots=True)
class QueueRow:
    """One case in the queue; `days_left` is negative once the due date has passed, `None` without a clock, and `stuck`
    says that a job failed and waits for a person."""

    case: ErasureRequest
    due_on: date | None
    clock_state: str
    days_left: int | None
    age_days: int
    stuck: bool

    @property
    def flags(self) -> list[str]:
        """What needs attention, in words."""
        found = []
        if self.stuck and not self.case.is_terminal:
            found.append("job failed")
        if self.clock_state == Clock.State.BREACHED:
            found.append("breached")
        elif self.days_left is not None and self.days_left < 0 and not self.case.is_terminal:
            found.append("overdue")
        elif self.days_left is not None and self.days_left <= 7 and not self.case.is_terminal:
            found.append("due soon")
        if self.clock_state == Clock.State.PAUSED:
            found.append("clock paused")
        if self.case.capacity == Capacity.PROCESSOR:
            found.append("from a sender")
        return found


def filtered_cases(chosen: dict[str, Any], *, today: date) -> QuerySet[ErasureRequest]:
    """Return cases by due date, narrowed by the filters chosen."""
    respond = Clock.objects.filter(request=OuterRef("pk"), kind="respond")
    cases = ErasureRequest.objects.annotate(
        due_on=Subquery(respond.values("due_on")[:1]),
        clock_state=Subquery(respond.values("state")[:1]),
        stuck=Exists(_failed_jobs()),
    ).order_by(F("due_on").asc(nulls_last=True), "received_at", "pk")
    status = chosen.get("status", "")
    if not status:
        cases = cases.exclude(status__in=TERMINAL_STATUSES)
    elif status != "all":
        cases = cases.filter(status=status)
    if regime := chosen.get("regime"):
        cases = cases.filter(regime=regime)
    return _flagged(cases, chosen.get("flag", ""), today)


def _failed_jobs() -> QuerySet[Job]:
    """Jobs of a case that failed for good. What an earlier attempt left, a later one has overtaken."""
    failed = Job.objects.filter(request=OuterRef("pk"), state=JobState.FAILED)
    return failed.exclude(Q(kind__in=OF_AN_ATTEMPT) & ~Q(round=OuterRef("attempt")))


def _flagged(cases: QuerySet[ErasureRequest], flag: str, today: date) -> QuerySet[ErasureRequest]:
    respond = Q(clocks__kind="respond")
    if flag == "overdue":
        late = Q(clocks__due_on__lt=today, clocks__state=Clock.State.RUNNING)
        return cases.filter(respond & (late | Q(clocks__state=Clock.State.BREACHED)))
    if flag == "failed":
        return cases.filter(Exists(_failed_jobs()))
    if flag == "paused":
        return cases.filter(respond & Q(clocks__state=Clock.State.PAUSED))
    if flag == "sender":
        return cases.filter(capacity=Capacity.PROCESSOR)
    return cases


def queue_row(case: Any, *, today: date) -> QueueRow:
    """Return a case of `filtered_cases` as a row."""
    left = None if case.due_on is None else (case.due_on - today).days
    age_days = (today - case.received_at.date()).days
    return QueueRow(case, case.due_on, case.clock_state or "", left, age_days, case.stuck)
