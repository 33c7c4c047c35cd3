"""Move an erasure request. No other file assigns its `status`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from django.db import transaction
from django.utils import timezone

from deletion_service.audit import trail
from deletion_service.errors import GuardError, IllegalTransitionError, StaleStateError
from deletion_service.requests.codes import (
    PROCESSOR_REFUSALS,
    SECOND_REVIEWER_REFUSALS,
    Capacity,
    ReasonCode,
    Refusal,
)
from deletion_service.requests.models import ErasureRequest, RequestEvent
from deletion_service.requests.statuses import MOVES, TERMINAL_STATUSES, WITHDRAWABLE, RequestStatus

S = RequestStatus


@transaction.atomic
def move(request: ErasureRequest, to: str, *, actor: str, reason: ReasonCode, **changes: Any) -> None:
    """Move `request` to `to`, with the field `changes` that belong to the move, and record who did it and why.

    1. The pair stands in `MOVES`.  2. The guard of the pair holds, with `changes` applied.
    3. One UPDATE takes the row lock and notices a rival.  4. One event and one audit row.

    Raises:
        IllegalTransitionError: `to` cannot follow the current status.
        GuardError: a condition of this move is not met.
        StaleStateError: someone else moved the request first; nothing was written.
    """
    old = S(request.status)
    if to not in MOVES[old] or (old == S.ON_HOLD and not _leaves_hold_to(request, to)):
        raise IllegalTransitionError(f"erasure request {request.pk} cannot go from {old} to {to}")
    _check_guards(request, to, changes)
    changes["held_status"] = old if to == S.ON_HOLD else ""
    changes["closed_at"] = timezone.now() if to in TERMINAL_STATUSES else None
    if ErasureRequest.objects.filter(pk=request.pk, status=old).update(status=to, **changes) != 1:
        raise StaleStateError(f"erasure request {request.pk} is no longer {old}; load it again")
    RequestEvent.objects.create(request=request, old_status=old, new_status=to, actor=actor, reason=reason)
    trail.record(actor=actor, action=f"request.{to}", obj=request, reason=reason, request_id=request.pk)
    request.refresh_from_db()


def record_receipt(request: ErasureRequest, *, actor: str) -> None:
    """Record the first event of a request that was just created."""
    reason = ReasonCode.REQUEST_RECEIVED
    RequestEvent.objects.create(request=request, new_status=S.RECEIVED, actor=actor, reason=reason)
    trail.record(actor=actor, action="request.received", obj=request, reason=reason, request_id=request.pk)


def lift_hold(request: ErasureRequest, *, actor: str) -> None:
    """Return a request to the status it was held in."""
    if request.status != S.ON_HOLD:
        raise IllegalTransitionError(f"erasure request {request.pk} is not on hold")
    move(request, request.held_status, actor=actor, reason=ReasonCode.HOLD_LIFTED)


def _leaves_hold_to(request: ErasureRequest, to: str) -> bool:
    return to == request.held_status or (to == S.WITHDRAWN and request.held_status in WITHDRAWABLE)


def _check_guards(request: ErasureRequest, to: str, changes: dict[str, Any]) -> None:
    def value(name: str) -> Any:
        return changes.get(name, getattr(request, name))

    for guard in _GUARDS.get(to, ()):
        guard(request, value)


_Value = Callable[[str], Any]


def _ground_is_set(request: ErasureRequest, value: _Value) -> None:
    if not value("ground"):
        raise GuardError(f"erasure request {request.pk} needs a ground before the search starts", pointer="/ground")


def _refusal_is_explained(request: ErasureRequest, value: _Value) -> None:
    code = value("refusal")
    if not code or not str(value("refusal_note")).strip():
        raise GuardError(f"refusing {request.pk} needs a code and a written balancing note", pointer="/refusal_note")
    if request.capacity == Capacity.PROCESSOR and code not in PROCESSOR_REFUSALS:
        raise GuardError(f"{request.pk} came as an instruction; it may be rejected for technical reasons only")


def _second_reviewer_agreed(request: ErasureRequest, value: _Value) -> None:
    if Refusal(value("refusal")) not in SECOND_REVIEWER_REFUSALS:
        return
    first, second = value("reviewer"), value("starter")
    if first is None or second is None or first == second:
        raise GuardError(f"refusing {request.pk} as {value('refusal')} needs a second reviewer", pointer="/refusal")


def _outcome_is_set(request: ErasureRequest, value: _Value) -> None:
    if not value("outcome"):
        raise GuardError(f"erasure request {request.pk} cannot close without an outcome")


_GUARDS: Final[dict[str, tuple[Callable[[ErasureRequest, _Value], None], ...]]] = {
    S.LOCATING: (_ground_is_set,),
    S.REFUSED: (_refusal_is_explained, _second_reviewer_agreed, _outcome_is_set),
    S.COMPLETED: (_outcome_is_set,),
    S.WITHDRAWN: (_outcome_is_set,),
    S.EXPIRED: (_outcome_is_set,),
    S.CLOSED_NO_ACTION: (_outcome_is_set,),
}
