"""Where a request stands, in plain words. Depends on its status and events only: whatever the search found, the words
are the same until a reviewer has decided."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from typing import Final, Literal

from django.utils import timezone

from deletion_service.requests.models import ErasureRequest
from deletion_service.requests.statuses import RequestStatus

S = RequestStatus
State = Literal["done", "now", "later"]


@dataclass(frozen=True, slots=True)
class Step:
    """One line of the timeline; `reached_on` is known once the step was entered."""

    title: str
    sentence: str
    state: State
    reached_on: date | None


_STEPS: Final[tuple[tuple[tuple[str, ...], str, str], ...]] = (
    (
        (S.RECEIVED, S.AWAITING_VERIFICATION),
        "Received",
        "Open the link in our email, so that we know the mailbox is yours.",
    ),
    ((S.IN_REVIEW, S.AWAITING_SUBJECT), "In review", "A person reads your request and decides on the legal ground."),
    (
        (S.LOCATING,),
        "Search",
        "We look for your data in the texts our models learned from, and a person looks at the result.",
    ),
    ((S.APPROVED,), "Accepted", "A second person checks the case before work starts."),
    (
        (S.WORKING,),
        "Unlearning",
        "A copy of the model is made to forget your data, then attacked to see whether it did.",
    ),
    (
        (S.EVIDENCE_REVIEW,),
        "Judging",
        "People look at the evidence. Nothing is released unless the tests hold.",
    ),
    ((S.RELEASING,), "Release", "The new version takes over, the old weights and the training texts are removed."),
    ((S.NOTIFYING,), "Result", "The signed document is being filed in a public log."),
)
_ENDS: Final[dict[str, tuple[str, str]]] = {
    S.COMPLETED: ("Finished", "The result is on this page, with a signed document."),
    S.REFUSED: ("Refused", "Our letter says why, and where you can complain."),
    S.WITHDRAWN: ("Withdrawn", "You withdrew the request. What you told us is destroyed."),
    S.EXPIRED: ("Expired", "Nobody confirmed the mailbox in time. What you told us is destroyed."),
    S.CLOSED_NO_ACTION: ("Nothing found", "We found none of your data. Our letter says how we searched."),
}


def timeline(request: ErasureRequest) -> list[Step]:
    """Return the steps of a request: those behind it, the one it is in, and those to come."""
    reached: dict[str, date] = {}
    for event in request.events.all():
        reached.setdefault(event.new_status, timezone.localdate(event.at))
    status = request.held_status or request.status
    if status in _ENDS:
        return [*_passed(reached), _end(status, reached)]
    current = next(index for index, (statuses, _, _) in enumerate(_STEPS) if status in statuses)
    return [
        Step(title, sentence, _state(index, current), _first(statuses, reached))
        for index, (statuses, title, sentence) in enumerate(_STEPS)
    ]


def _state(index: int, current: int) -> State:
    if index == current:
        return "now"
    return "done" if index < current else "later"


def _passed(reached: dict[str, date]) -> list[Step]:
    found = [(title, sentence, _first(statuses, reached)) for statuses, title, sentence in _STEPS]
    return [Step(title, sentence, "done", day) for title, sentence, day in found if day is not None]


def _end(status: str, reached: dict[str, date]) -> Step:
    title, sentence = _ENDS[status]
    return Step(title, sentence, "now", reached.get(status))


def _first(statuses: tuple[str, ...], reached: dict[str, date]) -> date | None:
    return min((reached[status] for status in statuses if status in reached), default=None)
