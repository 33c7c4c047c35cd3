"""The move table is the only way: every pair in it works, every pair outside it is refused, rivals are told."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import product

import pytest
from django.db import IntegrityError, connection, transaction
from django.db.utils import DatabaseError

from deletion_service.audit.models import AuditEvent
from deletion_service.errors import GuardError, IllegalTransitionError, StaleStateError
from deletion_service.requests.codes import Ground, Outcome, ReasonCode, Refusal
from deletion_service.requests.lifecycle import lift_hold, move
from deletion_service.requests.models import DataSubject, ErasureRequest, RequestEvent
from deletion_service.requests.statuses import MOVES, TERMINAL_STATUSES, RequestStatus
from tests.cast import rhea, second_reviewer

pytestmark = pytest.mark.django_db
S = RequestStatus
EVERYTHING = {"ground": Ground.VOLUNTARY, "outcome": Outcome.ERASED, "refusal": Refusal.NO_GROUND, "refusal_note": "x"}


def request_in(status: str, **fields: object) -> ErasureRequest:
    """A request that stands in `status`, written past the move table."""
    closed = datetime(2026, 11, 1, tzinfo=UTC) if status in TERMINAL_STATUSES else None
    held = fields.pop("held_status", S.IN_REVIEW if status == S.ON_HOLD else "")
    return ErasureRequest.objects.create(
        subject=DataSubject.objects.create(commitment_sha256="0" * 64),
        status=status,
        held_status=held,
        closed_at=closed,
        received_at=datetime(2026, 11, 1, tzinfo=UTC),
        **{"capacity": "controller", "regime": "gdpr", "outcome": Outcome.ERASED if closed else "", **fields},
    )


@pytest.mark.parametrize(("old", "new"), [p for p in product(S.values, S.values) if p[1] not in MOVES[p[0]]])
def test_a_pair_outside_the_table_is_refused_and_writes_nothing(old: str, new: str) -> None:
    request = request_in(old)
    with pytest.raises(IllegalTransitionError):
        move(request, new, actor="test", reason=ReasonCode.GROUND_SET, **EVERYTHING)
    assert ErasureRequest.objects.get(pk=request.pk).status == old
    assert not RequestEvent.objects.filter(request=request).exists()


@pytest.mark.parametrize(("old", "new"), [(o, n) for o, allowed in MOVES.items() for n in sorted(allowed)])
def test_a_pair_in_the_table_moves_and_leaves_one_event_and_one_audit_row(old: str, new: str) -> None:
    request = (
        request_in(old, held_status=new if new != S.WITHDRAWN else S.IN_REVIEW) if old == S.ON_HOLD else request_in(old)
    )
    changes = dict(EVERYTHING) if new in TERMINAL_STATUSES or new == S.LOCATING else {}
    move(request, new, actor="test", reason=ReasonCode.GROUND_SET, **changes)
    assert request.status == new
    assert (request.closed_at is not None) == (new in TERMINAL_STATUSES)
    assert list(request.events.values_list("old_status", "new_status")) == [(old, new)]
    assert AuditEvent.objects.filter(object_id=request.pk, action=f"request.{new}").count() == 1


def test_the_second_of_two_movers_is_told_and_writes_nothing() -> None:
    first = request_in(S.IN_REVIEW)
    second = ErasureRequest.objects.get(pk=first.pk)
    move(first, S.AWAITING_SUBJECT, actor="rhea", reason=ReasonCode.QUESTION_SENT)
    with pytest.raises(StaleStateError):
        move(second, S.LOCATING, actor="other", reason=ReasonCode.GROUND_SET, ground=Ground.VOLUNTARY)
    assert RequestEvent.objects.filter(request=first).count() == 1


def test_the_search_needs_a_ground() -> None:
    request = request_in(S.IN_REVIEW)
    with pytest.raises(GuardError, match="ground"):
        move(request, S.LOCATING, actor="rhea", reason=ReasonCode.GROUND_SET)


@pytest.mark.parametrize("missing", ["refusal", "refusal_note"])
def test_refusing_needs_a_code_and_a_note(missing: str) -> None:
    request = request_in(S.IN_REVIEW)
    changes = {**EVERYTHING, missing: ""}
    with pytest.raises(GuardError):
        move(request, S.REFUSED, actor="rhea", reason=ReasonCode.REFUSED, **changes)


def test_refusing_as_excessive_needs_a_second_reviewer() -> None:
    request = request_in(S.IN_REVIEW)
    changes = {**EVERYTHING, "refusal": Refusal.EXCESSIVE, "reviewer": rhea()}
    with pytest.raises(GuardError, match="second reviewer"):
        move(request, S.REFUSED, actor="rhea", reason=ReasonCode.REFUSED, **changes)
    move(request, S.REFUSED, actor="rhea", reason=ReasonCode.REFUSED, **changes, starter=second_reviewer())
    assert request.status == S.REFUSED


def test_a_processor_instruction_cannot_be_refused_on_the_merits() -> None:
    request = request_in(S.IN_REVIEW)
    ErasureRequest.objects.filter(pk=request.pk).update(capacity="processor")
    request.refresh_from_db()
    with pytest.raises(GuardError, match="technical reasons"):
        move(request, S.REFUSED, actor="rhea", reason=ReasonCode.REFUSED, **EVERYTHING)


def test_a_hold_returns_to_where_it_was_and_nowhere_else() -> None:
    request = request_in(S.APPROVED)
    move(request, S.ON_HOLD, actor="rhea", reason=ReasonCode.LEGAL_HOLD)
    with pytest.raises(IllegalTransitionError):
        move(request, S.WORKING, actor="rhea", reason=ReasonCode.HOLD_LIFTED)
    lift_hold(request, actor="rhea")
    assert (request.status, request.held_status) == (S.APPROVED, "")


def test_a_hold_during_release_cannot_become_a_withdrawal() -> None:
    request = request_in(S.ON_HOLD, held_status=S.RELEASING)
    with pytest.raises(IllegalTransitionError):
        move(request, S.WITHDRAWN, actor="subject", reason=ReasonCode.WITHDRAWN_BY_SUBJECT, outcome=Outcome.WITHDRAWN)


@pytest.mark.parametrize("statement", ["UPDATE {t} SET actor = 'mallory'", "DELETE FROM {t}"])
@pytest.mark.parametrize("table", ["requests_requestevent", "audit_auditevent"])
def test_what_happened_cannot_be_rewritten_with_sql(table: str, statement: str) -> None:
    request = request_in(S.IN_REVIEW)
    move(request, S.AWAITING_SUBJECT, actor="rhea", reason=ReasonCode.QUESTION_SENT)
    with pytest.raises(DatabaseError), transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(statement.format(t=table))
    assert RequestEvent.objects.get(request=request).actor == "rhea"


def test_the_database_refuses_an_event_for_a_pair_outside_the_table() -> None:
    request = request_in(S.IN_REVIEW)
    with pytest.raises(IntegrityError), transaction.atomic():
        RequestEvent.objects.create(
            request=request, old_status=S.IN_REVIEW, new_status=S.COMPLETED, actor="mallory", reason="refused"
        )


@pytest.mark.parametrize(
    "changes",
    [
        {"status": "forgotten"},
        {"status": S.COMPLETED},
        {"closed_at": datetime(2026, 1, 1, tzinfo=UTC)},
        {"held_status": S.IN_REVIEW},
        {"outcome_plan": "retrain_at_next_cycle"},
    ],
)
def test_the_database_refuses_a_request_that_contradicts_itself(changes: dict[str, object]) -> None:
    request = request_in(S.IN_REVIEW)
    with pytest.raises(IntegrityError), transaction.atomic():
        ErasureRequest.objects.filter(pk=request.pk).update(**changes)


def test_the_database_refuses_that_reviewer_and_starter_are_one_person() -> None:
    request = request_in(S.APPROVED, reviewer=rhea())
    with pytest.raises(IntegrityError), transaction.atomic():
        ErasureRequest.objects.filter(pk=request.pk).update(starter=rhea())
