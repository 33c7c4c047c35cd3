"""Record an act, seal the acts into a hash chain, and check the chain.

Recording is one INSERT in the caller's transaction, without a lock; one sealer appends batches to the chain
afterwards, so that writers never queue behind a single chain head (service-stack section 2).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from django.db import transaction

from deletion_service.audit.models import AuditEvent, AuditSeal, AuditSealEntry
from ml.digests import document_sha256

_FIRST: Final = "0" * 64
_BATCH: Final = 1000


def record(*, actor: str, action: str, obj: Any, reason: str = "", request_id: str = "") -> AuditEvent:
    """Write one audit event about `obj` (a model instance). Codes and ids only."""
    return AuditEvent.objects.create(
        actor=actor,
        action=action,
        object_type=obj._meta.model_name,
        object_id=str(obj.pk),
        reason=reason,
        request_id=request_id,
    )


@transaction.atomic
def seal_events(*, limit: int = _BATCH) -> AuditSeal | None:
    """Append the events that no seal covers to the chain; `None` when there are none.

    A unique `previous_sha256` makes a second sealer lose its race (IntegrityError) instead of forking the chain.
    """
    events = list(AuditEvent.objects.filter(seal_entry=None).order_by("id")[:limit])
    if not events:
        return None
    seal = AuditSeal(count=len(events), events_sha256=_events_sha256(events), previous_sha256=newest_seal())
    seal.seal_sha256 = _seal_sha256(seal)
    seal.save(force_insert=True)
    AuditSealEntry.objects.bulk_create(AuditSealEntry(seal=seal, event=event) for event in events)
    return seal


def verify_chain(*, noted: str = "") -> list[str]:
    """Return what is wrong with the chain, in words; an empty list means that it holds.

    `noted` is a seal digest that somebody wrote down elsewhere: a chain cut off at its end holds in itself, and only
    such a digest shows that it was longer once.
    """
    problems, previous = [], _FIRST
    if noted and not AuditSeal.objects.filter(seal_sha256=noted).exists():
        problems.append("the seal that was noted is not in the chain; its end was removed or rewritten")
    for seal in AuditSeal.objects.order_by("id").iterator():
        events = list(AuditEvent.objects.filter(seal_entry__seal=seal).order_by("id"))
        if seal.previous_sha256 != previous or seal.seal_sha256 != _seal_sha256(seal):
            problems.append(f"seal {seal.id} does not continue the chain")
        if len(events) != seal.count or seal.events_sha256 != _events_sha256(events):
            problems.append(f"seal {seal.id}: its events were changed, removed or added to")
        previous = seal.seal_sha256
    return problems


def newest_seal() -> str:
    """Return the digest at the end of the chain, for somebody to note elsewhere."""
    last = AuditSeal.objects.order_by("-id").first()
    return last.seal_sha256 if last else _FIRST


def event_document(event: AuditEvent) -> dict[str, str | int]:
    """Return an event as plain JSON, the form that is hashed and exported."""
    return {
        "id": event.id,
        "at": event.at.isoformat(),
        "actor": event.actor,
        "action": event.action,
        "object_type": event.object_type,
        "object_id": event.object_id,
        "reason": event.reason,
        "request_id": event.request_id,
    }


def _events_sha256(events: Iterable[AuditEvent]) -> str:
    return document_sha256([event_document(event) for event in events])


def _seal_sha256(seal: AuditSeal) -> str:
    return document_sha256([seal.count, seal.events_sha256, seal.previous_sha256])
