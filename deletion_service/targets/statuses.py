"""Statuses and moves of targets, versions and jobs; which request status owes which stage."""

from __future__ import annotations

from typing import Final

from django.db import models

from deletion_service.requests.statuses import RequestStatus


class TargetStatus(models.TextChoices):
    """Where one request x one trained model stands."""

    LOCATED = "located", "found"
    APPROVED = "approved", "accepted"
    WORKING = "working", "unlearning and verifying"
    JUDGED = "judged", "verdict reached"
    RELEASING = "releasing", "releasing"
    RELEASED = "released", "released"
    NOT_RELEASED = "not_released", "not released"
    CANCELLED = "cancelled", "cancelled"


T = TargetStatus

TARGET_MOVES: Final[dict[str, frozenset[str]]] = {
    T.LOCATED: frozenset({T.APPROVED, T.CANCELLED}),
    T.APPROVED: frozenset({T.WORKING, T.CANCELLED}),
    T.WORKING: frozenset({T.JUDGED, T.CANCELLED}),
    T.JUDGED: frozenset({T.WORKING, T.RELEASING, T.NOT_RELEASED, T.CANCELLED}),
    T.RELEASING: frozenset({T.RELEASED, T.JUDGED}),
    T.RELEASED: frozenset(),
    T.NOT_RELEASED: frozenset(),
    T.CANCELLED: frozenset(),
}


class Verdict(models.TextChoices):
    """The verdict of a target."""

    PASS = "PASS", "PASS"  # noqa: S105 - a verdict, not a password
    FAIL = "FAIL", "FAIL"
    INCONCLUSIVE = "INCONCLUSIVE", "INCONCLUSIVE"
    NOT_RUN = "NOT_RUN", "not run"


class VersionStatus(models.TextChoices):
    """Where a model version stands."""

    REGISTERED = "registered", "registered"
    CANDIDATE = "candidate", "candidate"
    SERVING = "serving", "serving"
    SUPERSEDED = "superseded", "superseded"
    RETIRED = "retired", "retired"


class JobKind(models.TextChoices):
    """The stages of the pipeline that a worker runs."""

    LOCATE = "locate", "locate"
    UNLEARN = "unlearn", "unlearn"
    VERIFY = "verify", "verify"
    SWEEP = "sweep", "test earlier deletions again"
    PROMOTE = "promote", "promote"
    RETIRE = "retire", "retire"
    DISPOSE = "dispose", "dispose"
    CERTIFY = "certify", "certify"
    NOTIFY = "notify", "notify"


class JobState(models.TextChoices):
    """The states of a job; an expired lease is claimable again."""

    READY = "ready", "ready"
    LEASED = "leased", "leased"
    DONE = "done", "done"
    FAILED = "failed", "failed"
    CANCELLED = "cancelled", "cancelled"


R = RequestStatus

# A job runs only while its request owes it. A hold suspends jobs, a withdrawal cancels them. A sweep that failed may be
# tried again while people decide; one of a version from outside has no request and is always owed.
OF_AN_ATTEMPT: Final = frozenset({JobKind.UNLEARN, JobKind.VERIFY, JobKind.SWEEP})
"""Their round is the attempt they belong to; one of an earlier attempt has nothing to do any more."""

OWED_IN: Final[dict[str, frozenset[str]]] = {
    JobKind.LOCATE: frozenset({R.LOCATING}),
    JobKind.UNLEARN: frozenset({R.WORKING}),
    JobKind.VERIFY: frozenset({R.WORKING}),
    JobKind.SWEEP: frozenset({R.WORKING, R.EVIDENCE_REVIEW}),
    JobKind.PROMOTE: frozenset({R.RELEASING}),
    JobKind.RETIRE: frozenset({R.RELEASING, R.EVIDENCE_REVIEW}),
    JobKind.DISPOSE: frozenset({R.RELEASING, R.EVIDENCE_REVIEW}),
    JobKind.CERTIFY: frozenset({R.RELEASING, R.EVIDENCE_REVIEW}),
    JobKind.NOTIFY: frozenset({R.NOTIFYING}),
}
