"""Move a certificate. No other file assigns its `status`."""

from __future__ import annotations

from typing import Final

from deletion_service.audit import trail
from deletion_service.certificates.models import Certificate, CertificateEvent
from deletion_service.errors import IllegalTransitionError, StaleStateError

Status = Certificate.Status

CERTIFICATE_MOVES: Final[dict[str, frozenset[str]]] = {
    Status.DRAFTED: frozenset({Status.ISSUED, Status.DISCARDED}),
    Status.ISSUED: frozenset({Status.PUBLISHED}),
    Status.PUBLISHED: frozenset({Status.REVOKED}),
    Status.DISCARDED: frozenset(),
    Status.REVOKED: frozenset(),
}


def move(certificate: Certificate, to: str, *, actor: str, reason: str = "", **changes: object) -> None:
    """Move `certificate` to `to`, with the field `changes` that belong to the move; the caller holds a transaction.

    Raises:
        IllegalTransitionError: `to` cannot follow the current status.
        StaleStateError: someone else moved it first; nothing was written.
    """
    old = certificate.status
    if to not in CERTIFICATE_MOVES[old]:
        raise IllegalTransitionError(f"certificate {certificate.pk} is {old}; it cannot become {to}")
    if Certificate.objects.filter(pk=certificate.pk, status=old).update(status=to, **changes) != 1:
        raise StaleStateError(f"certificate {certificate.pk} is no longer {old}; load it again")
    CertificateEvent.objects.create(certificate=certificate, old_status=old, new_status=to, actor=actor, reason=reason)
    trail.record(
        actor=actor,
        action=f"certificate.{to}",
        obj=certificate,
        reason=reason or certificate.verdict,
        request_id=certificate.target.request_id,
    )
    certificate.refresh_from_db()
