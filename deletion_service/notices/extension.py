"""More time: first the notice with its reason goes to the person, only then the clock is extended (O-03, COM-04)."""

from __future__ import annotations

from datetime import date

from django.db import transaction
from django.utils import timezone

from deletion_service.errors import GuardError
from deletion_service.notices.letters import owe_letter
from deletion_service.notices.models import Letter
from deletion_service.requests.clocks import check_extension, extend_clock, extended_due_on
from deletion_service.requests.codes import Capacity, ExtensionReason
from deletion_service.requests.models import Clock, ErasureRequest

_NOTICE = "COM-04"


@transaction.atomic
def announce_extension(request: ErasureRequest, *, reason: ExtensionReason, today: date) -> Letter:
    """Owe the notice that names the reason and the new date; once per request.

    Raises:
        GuardError: the clock cannot be extended, or the notice is owed already.
    """
    clock = check_announcement(request, today=today)
    facts = {"extension_reason": reason.label, "extended_due_on": extended_due_on(clock).isoformat()}
    return owe_letter(request, _NOTICE, occasion=f"extension-{reason}", facts=facts)


def check_announcement(request: ErasureRequest, *, today: date) -> Clock:
    """Return the clock that an extension would be about; raise `GuardError` where there can be none."""
    if request.capacity == Capacity.PROCESSOR:
        raise GuardError(f"the due date of {request.pk} belongs to its sender; ask the sender for more time")
    clock = _clock(request)
    check_extension(clock, today=today)
    if extension_notice(request) is not None:
        raise GuardError(f"the extension notice of {request.pk} was written already; extend once it is sent")
    return clock


def extend_after_notice(request: ErasureRequest, *, today: date, actor: str) -> Clock:
    """Extend the clock, now that the notice has been sent.

    Raises:
        GuardError: no notice, not sent yet, or too late.
    """
    notice = check_notice_sent(request, today=today)
    reason = notice.occasion.removeprefix("extension-")
    sent_on = timezone.localdate(notice.sent_at)
    return extend_clock(_clock(request), reason=reason, notice_sent_on=sent_on, today=today, actor=actor)


def check_notice_sent(request: ErasureRequest, *, today: date) -> Letter:
    """Return the notice, or raise `GuardError` while it has not been sent or the clock cannot be extended."""
    check_extension(_clock(request), today=today)
    notice = extension_notice(request)
    if notice is None:
        raise GuardError(f"no extension of {request.pk} was announced; write the notice first")
    if notice.sent_at is None:
        raise GuardError(f"the extension notice of {request.pk} has not been sent yet; it goes out with the next sweep")
    return notice


def extension_notice(request: ErasureRequest) -> Letter | None:
    """Return the extension notice of a request, if one was written."""
    return request.letters.filter(kind=_NOTICE).first()


def _clock(request: ErasureRequest) -> Clock:
    clock = request.clocks.filter(kind="respond", state__in=[Clock.State.RUNNING, Clock.State.PAUSED]).first()
    if clock is None:
        raise GuardError(f"no clock of {request.pk} is running")
    return clock
