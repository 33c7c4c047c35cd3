"""Move a target. No other file assigns its `status`."""

from __future__ import annotations

from typing import Any

from django.db import transaction

from deletion_service.audit import trail
from deletion_service.errors import IllegalTransitionError, StaleStateError
from deletion_service.targets.models import ErasureTarget, TargetEvent
from deletion_service.targets.statuses import TARGET_MOVES, TargetStatus, Verdict


@transaction.atomic
def move(target: ErasureTarget, to: str, *, actor: str, reason: str, **changes: Any) -> None:
    """Move `target` to `to`, with the field `changes` that belong to the move, and record who did it and why.

    Raises:
        IllegalTransitionError: `to` cannot follow the current status.
        StaleStateError: someone else moved the target first; nothing was written.
    """
    old = TargetStatus(target.status)
    if to not in TARGET_MOVES[old]:
        raise IllegalTransitionError(f"erasure target {target.pk} cannot go from {old} to {to}")
    if ErasureTarget.objects.filter(pk=target.pk, status=old).update(status=to, **changes) != 1:
        raise StaleStateError(f"erasure target {target.pk} is no longer {old}; load it again")
    TargetEvent.objects.create(target=target, old_status=old, new_status=to, actor=actor, reason=reason)
    trail.record(actor=actor, action=f"target.{to}", obj=target, reason=reason, request_id=target.request_id)
    target.refresh_from_db()


@transaction.atomic
def lower_verdict(target: ErasureTarget, *, actor: str, reason: str) -> None:
    """Make the verdict of a judged target a FAIL, for what was found since; it is never raised."""
    judged = ErasureTarget.objects.filter(pk=target.pk, status=TargetStatus.JUDGED).exclude(verdict=Verdict.FAIL)
    if judged.update(verdict=Verdict.FAIL):
        trail.record(actor=actor, action="target.failed", obj=target, reason=reason, request_id=target.request_id)
        target.refresh_from_db()


def record_located(target: ErasureTarget, *, actor: str) -> None:
    """Record the first event of a target that was just created."""
    TargetEvent.objects.create(target=target, new_status=TargetStatus.LOCATED, actor=actor, reason="located")
    trail.record(actor=actor, action="target.located", obj=target, request_id=target.request_id)
