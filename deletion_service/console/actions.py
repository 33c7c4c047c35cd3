"""What a reviewer may do with a case now: one table for the buttons, the pages behind them, and the sentences on those
that are closed. The rules are the domain's own checks; none is written twice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from django.utils import timezone

from deletion_service.access.models import StaffMember
from deletion_service.access.permissions import Action, staff_principal
from deletion_service.certificates.policies import current_plan
from deletion_service.console.forms import DecisionForm, ExtensionForm, GroundForm, RefusalForm
from deletion_service.errors import DomainError
from deletion_service.notices.extension import (
    announce_extension,
    check_announcement,
    check_notice_sent,
    extend_after_notice,
    extension_notice,
)
from deletion_service.requests import review
from deletion_service.requests.codes import SECOND_REVIEWER_REFUSALS, ExtensionReason, Ground, Refusal
from deletion_service.requests.models import ErasureRequest
from deletion_service.requests.statuses import MOVES, RequestStatus
from deletion_service.targets.batching import check_another_attempt, check_start, plan_another_attempt, start_work
from deletion_service.targets.locate import (
    check_found,
    check_nothing_found,
    close_nothing_found,
    fix_targets,
    start_search,
)

S = RequestStatus
Check = Callable[[ErasureRequest, StaffMember], object]
Act = Callable[[ErasureRequest, StaffMember, dict[str, Any]], str]


def _nothing_to_check(case: ErasureRequest, member: StaffMember) -> None:
    """The move table alone decides."""


def _always(case: ErasureRequest) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class CaseAction:
    """A decision about a case: where it leads, who may take it, what must hold, and what it does.

    `act` returns the sentence that tells what happened. `to` is the status it moves to, `None` for decisions that move
    nothing; `only_in` narrows the statuses it is offered in, `when` the cases.
    """

    name: str
    title: str
    explanation: str
    needs: Action
    act: Act
    to: RequestStatus | None = None
    only_in: frozenset[str] = frozenset()
    when: Callable[[ErasureRequest], bool] = _always
    check: Check = _nothing_to_check
    form: type[DecisionForm] = DecisionForm
    grave: bool = False

    def fits(self, case: ErasureRequest) -> bool:
        """Whether the move table offers this now."""
        if case.status not in self.only_in and (self.only_in or case.status == S.ON_HOLD):
            return False
        return (self.to is None or self.to in MOVES[case.status]) and self.when(case)


@dataclass(frozen=True, slots=True)
class Offer:
    """An action as the case page shows it; `closed_because` is empty when it is open."""

    action: CaseAction
    closed_because: str


def offers(case: ErasureRequest, member: StaffMember) -> list[Offer]:
    """Return what the move table offers now, each with the reason why it is closed to this member, if it is."""
    return [Offer(action, closed_because(action, case, member)) for action in ACTIONS if action.fits(case)]


def closed_because(action: CaseAction, case: ErasureRequest, member: StaffMember) -> str:
    """Return why `member` cannot take `action` now, in a sentence; empty when they can."""
    if not staff_principal(member).may(action.needs):
        return "your role does not allow this"
    try:
        action.check(case, member)
    except DomainError as exc:
        return exc.message.replace(case.pk, "this case")
    return ""


def find_action(name: str) -> CaseAction | None:
    """Return the action called `name`."""
    return next((action for action in ACTIONS if action.name == name), None)


def actor_of(member: StaffMember) -> str:
    """Return how audit rows call a member of staff."""
    return f"staff:{member.handle}"


# --- what each one does -------------------------------------------------------------------------------------------


def _search(case: ErasureRequest, member: StaffMember, chosen: dict[str, Any]) -> str:
    start_search(case, ground=Ground(chosen["ground"]), reviewer=member, actor=actor_of(member))
    return "The ground is set and the search has started."


def _accept_targets(case: ErasureRequest, member: StaffMember, chosen: dict[str, Any]) -> str:
    fix_targets(case, actor=actor_of(member))
    return "The targets are accepted. A second person can start the work."


def _close(case: ErasureRequest, member: StaffMember, chosen: dict[str, Any]) -> str:
    close_nothing_found(case, actor=actor_of(member))
    return "The case is closed; the letter that says how we searched is on its way."


def _start(case: ErasureRequest, member: StaffMember, chosen: dict[str, Any]) -> str:
    start_work(case, starter=member, plan=current_plan(), actor=actor_of(member))
    return "The work has started."


def _again(case: ErasureRequest, member: StaffMember, chosen: dict[str, Any]) -> str:
    plan_another_attempt(case, plan=current_plan(), actor=actor_of(member))
    return "Another attempt has started."


def _refuse(case: ErasureRequest, member: StaffMember, chosen: dict[str, Any]) -> str:
    refusal, note = Refusal(chosen["refusal"]), chosen["note"]
    if refusal in SECOND_REVIEWER_REFUSALS:
        review.propose_refusal(case, refusal=refusal, note=note, reviewer=member)
        return "The refusal is proposed. A second reviewer must confirm it."
    review.refuse_request(case, refusal=refusal, note=note, reviewer=member)
    return "The request is refused; the letter is on its way."


def _confirm_refusal(case: ErasureRequest, member: StaffMember, chosen: dict[str, Any]) -> str:
    review.confirm_refusal(case, second_reviewer=member)
    return "The request is refused; the letter is on its way."


def _ask(case: ErasureRequest, member: StaffMember, chosen: dict[str, Any]) -> str:
    review.ask_subject(case, reviewer=member)
    return "The question is on its way to the person."


def _answered(case: ErasureRequest, member: StaffMember, chosen: dict[str, Any]) -> str:
    review.record_answer(case, actor=actor_of(member))
    return "The answer is recorded; the review goes on."


def _announce(case: ErasureRequest, member: StaffMember, chosen: dict[str, Any]) -> str:
    announce_extension(case, reason=ExtensionReason(chosen["reason"]), today=timezone.localdate())
    return "The notice is written. Extend the clock once it has been sent."


def _extend(case: ErasureRequest, member: StaffMember, chosen: dict[str, Any]) -> str:
    clock = extend_after_notice(case, today=timezone.localdate(), actor=actor_of(member))
    return f"The answer is now due on {clock.due_on.isoformat()}."


def _hold(case: ErasureRequest, member: StaffMember, chosen: dict[str, Any]) -> str:
    review.hold_request(case, reviewer=member)
    return "The case is on hold. Its clocks keep running."


def _lift(case: ErasureRequest, member: StaffMember, chosen: dict[str, Any]) -> str:
    review.end_hold(case, reviewer=member)
    return "The hold is lifted."


_OPEN: Final = frozenset(status for status, allowed in MOVES.items() if allowed)

ACTIONS: Final[tuple[CaseAction, ...]] = (
    CaseAction(
        "search",
        "Set the ground and search",
        "The search looks for the identifiers that were proven. It changes nothing.",
        Action.REVIEW,
        _search,
        to=S.LOCATING,
        form=GroundForm,
    ),
    CaseAction(
        "accept-targets",
        "Accept the targets",
        "Targets with records that count are accepted, the others are dropped.",
        Action.REVIEW,
        _accept_targets,
        to=S.APPROVED,
        check=lambda case, member: check_found(case),
    ),
    CaseAction(
        "close",
        "Close: nothing found",
        "The person gets a letter that says how we searched and what else they may send.",
        Action.REVIEW,
        _close,
        to=S.CLOSED_NO_ACTION,
        check=lambda case, member: check_nothing_found(case),
        grave=True,
    ),
    CaseAction(
        "start",
        "Start the work",
        "A copy of the model is unlearned and attacked. Nothing is released by this.",
        Action.APPROVE_START,
        _start,
        to=S.WORKING,
        only_in=frozenset({S.APPROVED}),
        check=check_start,
    ),
    CaseAction(
        "again",
        "Send back for another attempt",
        "Targets that did not pass are tried again; earlier evidence stays on record.",
        Action.REVIEW,
        _again,
        to=S.WORKING,
        only_in=frozenset({S.EVIDENCE_REVIEW}),
        check=lambda case, member: check_another_attempt(case, current_plan()),
    ),
    CaseAction(
        "ask",
        "Ask the person a question",
        "They get a letter that asks for more information.",
        Action.REVIEW,
        _ask,
        to=S.AWAITING_SUBJECT,
        check=lambda case, member: review.check_question(case),
    ),
    CaseAction(
        "answered",
        "Record the answer",
        "Use this when the answer has arrived.",
        Action.REVIEW,
        _answered,
        to=S.IN_REVIEW,
        only_in=frozenset({S.AWAITING_SUBJECT}),
    ),
    CaseAction(
        "confirm-refusal",
        "Confirm the proposed refusal",
        "You agree with the reason and the note that another reviewer wrote.",
        Action.REVIEW,
        _confirm_refusal,
        to=S.REFUSED,
        when=lambda case: case.refusal in SECOND_REVIEWER_REFUSALS,
        check=review.check_confirmation,
        grave=True,
    ),
    CaseAction(
        "refuse",
        "Refuse",
        "Manifestly unfounded and excessive requests need a second reviewer: for these you only propose.",
        Action.REVIEW,
        _refuse,
        to=S.REFUSED,
        form=RefusalForm,
        grave=True,
    ),
    CaseAction(
        "announce-extension",
        "Announce an extension",
        "The person gets the reason and the new date. Only then can the clock be extended.",
        Action.REVIEW,
        _announce,
        only_in=_OPEN,
        check=lambda case, member: check_announcement(case, today=timezone.localdate()),
        form=ExtensionForm,
    ),
    CaseAction(
        "extend",
        "Extend the clock",
        "The notice has been sent; the new date counts from now on.",
        Action.REVIEW,
        _extend,
        only_in=_OPEN,
        when=lambda case: extension_notice(case) is not None,
        check=lambda case, member: check_notice_sent(case, today=timezone.localdate()),
    ),
    CaseAction(
        "hold",
        "Put on hold",
        "For a legal hold. Work stops; the clocks keep running.",
        Action.REVIEW,
        _hold,
        to=S.ON_HOLD,
    ),
    CaseAction(
        "lift",
        "Lift the hold",
        "The case returns to where it was.",
        Action.REVIEW,
        _lift,
        only_in=frozenset({S.ON_HOLD}),
    ),
)
