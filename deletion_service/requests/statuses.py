"""The statuses of an erasure request and the one table of moves between them (compliance section 3.1)."""

from __future__ import annotations

from typing import Final

from django.db import models


class RequestStatus(models.TextChoices):
    """Where a request stands."""

    RECEIVED = "received", "received"
    AWAITING_VERIFICATION = "awaiting_verification", "waiting for the identity check"
    IN_REVIEW = "in_review", "in review"
    AWAITING_SUBJECT = "awaiting_subject", "waiting for an answer"
    LOCATING = "locating", "searching the models"
    APPROVED = "approved", "accepted"
    WORKING = "working", "unlearning and verifying"
    EVIDENCE_REVIEW = "evidence_review", "evidence in review"
    RELEASING = "releasing", "releasing the new version"
    NOTIFYING = "notifying", "notifying"
    ON_HOLD = "on_hold", "on hold"
    COMPLETED = "completed", "completed"
    REFUSED = "refused", "refused"
    WITHDRAWN = "withdrawn", "withdrawn"
    EXPIRED = "expired", "expired"
    CLOSED_NO_ACTION = "closed_no_action", "closed: nothing found"


S = RequestStatus

# Withdrawal is possible until release begins; a hold remembers the status it left.
MOVES: Final[dict[str, frozenset[str]]] = {
    S.RECEIVED: frozenset({S.AWAITING_VERIFICATION, S.IN_REVIEW, S.WITHDRAWN, S.ON_HOLD}),
    S.AWAITING_VERIFICATION: frozenset({S.IN_REVIEW, S.EXPIRED, S.WITHDRAWN, S.ON_HOLD}),
    S.IN_REVIEW: frozenset({S.AWAITING_SUBJECT, S.LOCATING, S.REFUSED, S.WITHDRAWN, S.ON_HOLD}),
    S.AWAITING_SUBJECT: frozenset({S.IN_REVIEW, S.EXPIRED, S.WITHDRAWN, S.ON_HOLD}),
    S.LOCATING: frozenset({S.APPROVED, S.REFUSED, S.CLOSED_NO_ACTION, S.WITHDRAWN, S.ON_HOLD}),
    S.APPROVED: frozenset({S.WORKING, S.WITHDRAWN, S.ON_HOLD}),
    S.WORKING: frozenset({S.EVIDENCE_REVIEW, S.WITHDRAWN, S.ON_HOLD}),
    S.EVIDENCE_REVIEW: frozenset({S.WORKING, S.RELEASING, S.NOTIFYING, S.WITHDRAWN, S.ON_HOLD}),
    S.RELEASING: frozenset({S.EVIDENCE_REVIEW, S.NOTIFYING, S.ON_HOLD}),
    S.NOTIFYING: frozenset({S.COMPLETED, S.ON_HOLD}),
    S.ON_HOLD: frozenset(
        {
            S.RECEIVED,
            S.AWAITING_VERIFICATION,
            S.IN_REVIEW,
            S.AWAITING_SUBJECT,
            S.LOCATING,
            S.APPROVED,
            S.WORKING,
            S.EVIDENCE_REVIEW,
            S.RELEASING,
            S.NOTIFYING,
            S.WITHDRAWN,
        }
    ),
    S.COMPLETED: frozenset(),
    S.REFUSED: frozenset(),
    S.WITHDRAWN: frozenset(),
    S.EXPIRED: frozenset(),
    S.CLOSED_NO_ACTION: frozenset(),
}
TERMINAL_STATUSES: Final = tuple(status for status, allowed in MOVES.items() if not allowed)
WITHDRAWABLE: Final = frozenset(status for status, allowed in MOVES.items() if S.WITHDRAWN in allowed)
