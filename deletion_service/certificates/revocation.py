"""Signed lists of withdrawn certificates, so that a check without a network can still know of them.

Must never name more than certificate ids and reason codes. A list says what was withdrawn when it was made; it does
not say that nothing was withdrawn since.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from deletion_service.certificates.canonical import (
    DocumentFormError,
    camel_document,
    read_camel,
    read_canonical,
    time_from_text,
)
from deletion_service.certificates.envelope import (
    LARGEST_ENVELOPE,
    EnvelopeError,
    read_envelope,
    sign_envelope,
    signers_of,
)
from deletion_service.certificates.forms import Code, Identifier, Sentence, Time, check_forms
from deletion_service.certificates.signing import IssuerDocument, Signer
from ml.digests import canonical_json

REVOCATION_PAYLOAD_TYPE: Final = "application/vnd.lethe.revocation-list+json"


@dataclass(frozen=True, slots=True)
class RevokedCertificate:
    """One certificate that must no longer be relied on."""

    certificate_id: Identifier
    reason: Code
    revoked_at: Time


@dataclass(frozen=True, slots=True)
class RevocationList:
    """Everything one issuer had withdrawn at one moment."""

    issuer: Sentence
    issued_at: Time
    revoked: tuple[RevokedCertificate, ...]
    schema_version: int = 1

    def entry(self, certificate_id: str) -> RevokedCertificate | None:
        """Return the entry of a certificate, if it is listed."""
        return next((row for row in self.revoked if row.certificate_id == certificate_id), None)


def sign_revocations(listed: RevocationList, *, signer: Signer) -> bytes:
    """Return the bytes of a signed list; the issuer's or the approver's key alone suffices to withdraw."""
    check_forms(listed, where="revocation list")
    payload = canonical_json(camel_document(listed))
    return sign_envelope(payload, signers=[signer], payload_type=REVOCATION_PAYLOAD_TYPE).to_bytes()


def open_revocations(data: bytes, *, issuer: IssuerDocument) -> RevocationList:
    """Read a signed list of the issuer described.

    Raises:
        DocumentFormError: malformed, or the list of another issuer.
        EnvelopeError: not signed by an issuer or approver key that was valid when the list was made.
    """
    envelope = read_envelope(data)
    if envelope.payload_type != REVOCATION_PAYLOAD_TYPE:
        raise EnvelopeError("this envelope does not hold a revocation list")
    keys = signers_of(envelope, issuer=issuer)
    document = read_canonical(envelope.payload, what="the revocation list", largest=LARGEST_ENVELOPE)
    listed = read_camel(RevocationList, document, where="revocation list")
    check_forms(listed, where="revocation list")
    if listed.schema_version != 1 or listed.issuer != issuer.issuer:
        raise DocumentFormError("the revocation list is of another issuer, or of an unknown version")
    moment = time_from_text(listed.issued_at)
    if any(key.role == "log" or key.why_not_valid_at(moment) for key in keys):
        raise EnvelopeError("the revocation list is not signed by an issuer or approver key valid at its time")
    return listed
