"""Revoke a certificate that must no longer be relied on, and keep the signed list of all that were revoked.

Runs on a worker's host, which alone holds the issuer key. What was issued stays on record and in the log.
"""

from __future__ import annotations

from django.db import transaction
from django.utils import timezone

from deletion_service.certificates.canonical import time_text
from deletion_service.certificates.custody import issuer_document
from deletion_service.certificates.lifecycle import move
from deletion_service.certificates.log import append_revocation
from deletion_service.certificates.models import Certificate, CertificateEvent, SignedRevocations
from deletion_service.certificates.revocation import RevocationList, RevokedCertificate, sign_revocations
from deletion_service.certificates.signing import Signer
from deletion_service.errors import InvalidInputError

Reason = CertificateEvent.Reason


@transaction.atomic
def revoke_certificate(certificate: Certificate, *, reason: str, actor: str, signer: Signer) -> bytes:
    """Revoke a published certificate: its status, one leaf in the log, and a fresh signed list, which is returned.

    Raises:
        InvalidInputError: the reason is not one of the known codes.
        IllegalTransitionError: it is not published, or revoked already.
    """
    if reason not in Reason.values:
        raise InvalidInputError(f"reasons to revoke are {', '.join(sorted(Reason.values))}", pointer="/reason")
    move(certificate, Certificate.Status.REVOKED, actor=actor, reason=reason)
    append_revocation(certificate, reason=reason)
    return publish_revocations(signer)


def publish_revocations(signer: Signer) -> bytes:
    """Sign the list as it is now, and keep it for whoever asks; an empty list says something too."""
    events = CertificateEvent.objects.filter(new_status=Certificate.Status.REVOKED).order_by("id")
    listed = RevocationList(
        issuer=issuer_document().issuer,
        issued_at=time_text(timezone.now()),
        revoked=tuple(RevokedCertificate(e.certificate_id, e.reason, time_text(e.at)) for e in events),
    )
    document = sign_revocations(listed, signer=signer)
    SignedRevocations.objects.create(document=document)
    return document


def latest_revocations() -> bytes | None:
    """Return the newest signed list; `None` before the first certificate was published."""
    newest = SignedRevocations.objects.order_by("-id").first()
    return None if newest is None else bytes(newest.document)
