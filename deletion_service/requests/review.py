"""What a reviewer decides before any search: refuse, ask back, hold. Starting the search is `targets.locate`."""

from __future__ import annotations

from typing import Final

from django.db import transaction

from deletion_service.access.models import StaffMember
from deletion_service.audit import trail
from deletion_service.errors import FourEyesError, GuardError
from deletion_service.requests.clocks import stop_clocks
from deletion_service.requests.codes import SECOND_REVIEWER_REFUSALS, Capacity, Outcome, ReasonCode, Refusal
from deletion_service.requests.lifecycle import lift_hold, move
from deletion_service.requests.models import ErasureRequest
from deletion_service.requests.statuses import MOVES, RequestStatus

REFUSABLE: Final = frozenset(old for old, allowed in MOVES.items() if RequestStatus.REFUSED in allowed)


@transaction.atomic
def refuse_request(
    request: ErasureRequest,
    *,
    refusal: Refusal,
    note: str,
    reviewer: StaffMember,
    second_reviewer: StaffMember | None = None,
) -> None:
    """Refuse with a code and a written note that the person will read; some codes need a second reviewer."""
    move(
        request,
        RequestStatus.REFUSED,
        actor=f"staff:{(second_reviewer or reviewer).handle}",
        reason=ReasonCode.REFUSED,
        refusal=refusal,
        refusal_note=note,
        reviewer=reviewer,
        starter=second_reviewer,
        outcome=Outcome.REFUSED,
    )
    stop_clocks(request)


@transaction.atomic
def propose_refusal(request: ErasureRequest, *, refusal: Refusal, note: str, reviewer: StaffMember) -> None:
    """Write down a refusal that only a second reviewer may carry out; the request does not move.

    Raises:
        GuardError: the code needs no second reviewer, the note is empty, or the request is past refusing.
    """
    if refusal not in SECOND_REVIEWER_REFUSALS:
        raise GuardError(f"{refusal} needs no second reviewer; refuse {request.pk} directly", pointer="/refusal")
    if not note.strip():
        raise GuardError(f"refusing {request.pk} needs a code and a written balancing note", pointer="/refusal_note")
    open_to_refusal = ErasureRequest.objects.filter(pk=request.pk, status__in=REFUSABLE)
    if open_to_refusal.update(refusal=refusal, refusal_note=note, reviewer=reviewer) != 1:
        raise GuardError(f"erasure request {request.pk} can no longer be refused; load it again")
    actor = f"staff:{reviewer.handle}"
    trail.record(actor=actor, action="request.refusal_proposed", obj=request, reason=refusal, request_id=request.pk)
    request.refresh_from_db()


def confirm_refusal(request: ErasureRequest, *, second_reviewer: StaffMember) -> None:
    """Carry out a proposed refusal; by another person than the one who proposed it."""
    check_confirmation(request, second_reviewer)
    first = request.reviewer
    if first is None:
        raise GuardError(f"no refusal of {request.pk} is proposed")
    refuse_request(
        request,
        refusal=Refusal(request.refusal),
        note=request.refusal_note,
        reviewer=first,
        second_reviewer=second_reviewer,
    )


def check_confirmation(request: ErasureRequest, second_reviewer: StaffMember) -> None:
    """Raise unless `second_reviewer` may carry out the refusal that is proposed now."""
    if request.refusal not in SECOND_REVIEWER_REFUSALS or request.reviewer_id is None:
        raise GuardError(f"no refusal of {request.pk} is proposed")
    if request.reviewer_id == second_reviewer.pk:
        raise FourEyesError(f"you proposed the refusal of {request.pk}; a second reviewer must confirm it")


def check_question(request: ErasureRequest) -> None:
    """Raise where nobody here talks to the data subject (compliance section 1)."""
    if request.capacity == Capacity.PROCESSOR:
        raise GuardError(f"{request.pk} came as an instruction; only its sender talks to the person")


def ask_subject(request: ErasureRequest, *, reviewer: StaffMember) -> None:
    """Wait for the data subject's answer to a question sent by letter."""
    check_question(request)
    actor = f"staff:{reviewer.handle}"
    move(request, RequestStatus.AWAITING_SUBJECT, actor=actor, reason=ReasonCode.QUESTION_SENT, reviewer=reviewer)


def record_answer(request: ErasureRequest, *, actor: str) -> None:
    """Go on with the review after the data subject answered."""
    move(request, RequestStatus.IN_REVIEW, actor=actor, reason=ReasonCode.ANSWER_RECEIVED)


def hold_request(request: ErasureRequest, *, reviewer: StaffMember) -> None:
    """Put a request on legal hold; its clocks keep running."""
    move(request, RequestStatus.ON_HOLD, actor=f"staff:{reviewer.handle}", reason=ReasonCode.LEGAL_HOLD)


def end_hold(request: ErasureRequest, *, reviewer: StaffMember) -> None:
    """Return a request to where it was held."""
    lift_hold(request, actor=f"staff:{reviewer.handle}")
