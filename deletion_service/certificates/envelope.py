"""DSSE v1 envelopes: signatures over bytes, never over meaning.

Must never parse the payload, and must never accept two spellings of one envelope: the log names an envelope by the
digest of its bytes. Source: github.com/secure-systems-lab/dsse, protocol.md and envelope.md, version 1.0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from deletion_service.certificates.canonical import base64_bytes, base64_text, read_canonical
from deletion_service.certificates.signing import IssuerDocument, IssuerKey, Signer, signature_holds
from deletion_service.errors import DomainError
from ml.digests import canonical_json

IN_TOTO_PAYLOAD_TYPE: Final = "application/vnd.in-toto+json"
LARGEST_ENVELOPE: Final = 8 << 20
_MOST_SIGNATURES: Final = 8


class EnvelopeError(DomainError):
    """An envelope is malformed, or would carry the same signature twice."""

    code = "envelope_invalid"


@dataclass(frozen=True, slots=True)
class Signature:
    """One signature and a hint of the key that made it; the hint proves nothing."""

    keyid: str
    value: bytes


@dataclass(frozen=True, slots=True)
class Envelope:
    """A payload and its signatures, in the order of their key ids."""

    payload: bytes
    payload_type: str
    signatures: tuple[Signature, ...]

    def __post_init__(self) -> None:
        keyids = [signature.keyid for signature in self.signatures]
        if not 1 <= len(keyids) <= _MOST_SIGNATURES:
            raise EnvelopeError(f"an envelope has 1 to {_MOST_SIGNATURES} signatures")
        if keyids != sorted(set(keyids)):
            raise EnvelopeError("the signatures of an envelope stand in the order of their key ids, each key once")
        if len({signature.value for signature in self.signatures}) != len(keyids):
            raise EnvelopeError("the same signature stands twice in the envelope")

    @property
    def signed_bytes(self) -> bytes:
        """What every signature covers: the pre-authentication encoding of type and payload."""
        return pae(self.payload_type, self.payload)

    def to_bytes(self) -> bytes:
        """Return the canonical JSON of the envelope: the bytes that are stored, logged and sent."""
        rows = [{"keyid": s.keyid, "sig": base64_text(s.value)} for s in self.signatures]
        return canonical_json(
            {"payload": base64_text(self.payload), "payloadType": self.payload_type, "signatures": rows}
        )


def pae(payload_type: str, payload: bytes) -> bytes:
    """Return the DSSE pre-authentication encoding: `DSSEv1 <len> <type> <len> <payload>`, lengths in bytes."""
    kind = payload_type.encode("utf-8")
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def sign_envelope(payload: bytes, *, signers: Sequence[Signer], payload_type: str = IN_TOTO_PAYLOAD_TYPE) -> Envelope:
    """Sign `payload` with each signer."""
    covered = pae(payload_type, payload)
    signatures = [Signature(signer.keyid, signer.sign(covered)) for signer in signers]
    return Envelope(payload, payload_type, _in_order(signatures))


def add_signature(envelope: Envelope, *, signer: Signer) -> Envelope:
    """Return the envelope with one signature more, over the same payload.

    Raises:
        EnvelopeError: this key has signed already.
    """
    added = Signature(signer.keyid, signer.sign(envelope.signed_bytes))
    return Envelope(envelope.payload, envelope.payload_type, _in_order([*envelope.signatures, added]))


def read_envelope(data: bytes) -> Envelope:
    """Read an envelope that must be spelled exactly as `Envelope.to_bytes` spells it.

    Raises:
        DocumentFormError: not canonical JSON, or base64 in a second spelling.
        EnvelopeError: members missing, unknown or of the wrong type, signatures repeated or out of order.
    """
    document = read_canonical(data, what="the envelope", largest=LARGEST_ENVELOPE)
    _expect_members(document, {"payload": str, "payloadType": str, "signatures": list})
    for row in document["signatures"]:
        _expect_members(row, {"keyid": str, "sig": str})
    return Envelope(
        payload=base64_bytes(document["payload"], what="the payload"),
        payload_type=document["payloadType"],
        signatures=tuple(
            Signature(row["keyid"], base64_bytes(row["sig"], what="a signature")) for row in document["signatures"]
        ),
    )


def signers_of(envelope: Envelope, *, issuer: IssuerDocument) -> tuple[IssuerKey, ...]:
    """Return the listed key behind each signature, in their order.

    Raises:
        EnvelopeError: a signature names no listed key, or does not hold under the key it names.
    """
    return tuple(_signer_of(envelope, row, number, issuer) for number, row in enumerate(envelope.signatures, start=1))


def _signer_of(envelope: Envelope, signature: Signature, number: int, issuer: IssuerDocument) -> IssuerKey:
    key = issuer.key(signature.keyid)
    if key is None:
        raise EnvelopeError(f"signature {number} names a key that the issuer document does not list")
    if not signature_holds(signature.value, message=envelope.signed_bytes, public_key=key.raw_public_key):
        raise EnvelopeError(f"signature {number} does not hold: the content or the signature was altered")
    return key


def _in_order(signatures: Sequence[Signature]) -> tuple[Signature, ...]:
    return tuple(sorted(signatures, key=lambda signature: signature.keyid))


def _expect_members(node: Any, members: dict[str, type]) -> None:
    if not isinstance(node, dict) or set(node) != set(members):
        raise EnvelopeError(f"the envelope needs exactly the members {', '.join(members)} here")
    for name, kind in members.items():
        if not isinstance(node[name], kind):
            raise EnvelopeError(f"envelope member {name} is of the wrong type")
