"""DSSE envelopes: signatures over bytes, one spelling, and agreement with another implementation."""

from __future__ import annotations

import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from securesystemslib.dsse import Envelope as OtherEnvelope
from securesystemslib.signer import CryptoSigner, SSlibKey

from deletion_service.certificates.canonical import DocumentFormError
from deletion_service.certificates.envelope import (
    Envelope,
    EnvelopeError,
    Signature,
    add_signature,
    pae,
    read_envelope,
    sign_envelope,
    signers_of,
)
from deletion_service.certificates.signing import Ed25519Signer, key_id
from ml.digests import canonical_json
from tests.certificates import forge

PAYLOAD = b'{"a":1}'


def test_the_encoding_is_the_example_of_the_dsse_specification() -> None:
    covered = pae("http://example.com/HelloWorld", b"hello world")

    assert covered == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"


def test_lengths_count_bytes_not_characters() -> None:
    assert pae("é", "ü".encode()) == "DSSEv1 2 é 2 ü".encode()


def test_an_envelope_comes_back_byte_for_byte() -> None:
    envelope = sign_envelope(PAYLOAD, signers=[forge.ISSUER, forge.APPROVER])

    assert read_envelope(envelope.to_bytes()) == envelope
    assert read_envelope(envelope.to_bytes()).to_bytes() == envelope.to_bytes()


def test_a_signature_is_added_without_touching_the_payload() -> None:
    draft = sign_envelope(PAYLOAD, signers=[forge.ISSUER])

    finished = add_signature(draft, signer=forge.APPROVER)

    assert finished.payload == draft.payload
    assert set(draft.signatures) < set(finished.signatures)
    roles = {key.role for key in signers_of(finished, issuer=forge.issuer_document())}
    assert roles == {"issuer", "approver"}


def test_the_order_of_signing_does_not_show_in_the_bytes() -> None:
    one_way = sign_envelope(PAYLOAD, signers=[forge.ISSUER, forge.APPROVER])
    other_way = add_signature(sign_envelope(PAYLOAD, signers=[forge.APPROVER]), signer=forge.ISSUER)

    assert one_way.to_bytes() == other_way.to_bytes()


def test_a_key_signs_an_envelope_once() -> None:
    with pytest.raises(EnvelopeError):
        add_signature(sign_envelope(PAYLOAD, signers=[forge.ISSUER]), signer=forge.ISSUER)


def test_one_signature_under_two_key_ids_is_refused() -> None:
    value = forge.ISSUER.sign(pae("t", PAYLOAD))

    with pytest.raises(EnvelopeError, match="same signature"):
        Envelope(PAYLOAD, "t", (Signature("a", value), Signature("b", value)))


def test_signatures_in_another_order_are_a_second_spelling_and_refused() -> None:
    document = json.loads(sign_envelope(PAYLOAD, signers=[forge.ISSUER, forge.APPROVER]).to_bytes())
    document["signatures"].reverse()

    with pytest.raises(EnvelopeError, match="order"):
        read_envelope(canonical_json(document))


def envelope_document(**changes: Any) -> dict[str, Any]:
    document = json.loads(sign_envelope(PAYLOAD, signers=[forge.ISSUER]).to_bytes())
    return {**document, **changes}


@pytest.mark.parametrize(
    "changes",
    [
        {"extra": 1},
        {"payload": 1},
        {"payload": None},
        {"payloadType": None},
        {"signatures": {}},
        {"signatures": []},
        {"signatures": [1]},
        {"signatures": [{"keyid": "a"}]},
        {"signatures": [{"keyid": "a", "sig": "QQ==", "cert": ""}]},
        {"signatures": [{"keyid": 1, "sig": "QQ=="}]},
        {"signatures": [{"keyid": str(n), "sig": "QQ=="} for n in range(9)]},
    ],
)
def test_members_missing_unknown_or_mistyped_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(EnvelopeError):
        read_envelope(canonical_json(envelope_document(**changes)))


@pytest.mark.parametrize(
    "payload", ["eyJhIjoxfR==", "eyJhIjoxfQ", "eyJhIjoxfQ==\n", "eyJh Ijox fQ==", "eyJhIjoxfQ=%3D"]
)
def test_base64_in_a_second_spelling_is_refused(payload: str) -> None:
    with pytest.raises(DocumentFormError):
        read_envelope(canonical_json(envelope_document(payload=payload)))


@pytest.mark.parametrize("data", [b"", b"null", b"[]", b"{}", b'"x"', b"\xff\xfe"])
def test_what_is_not_an_envelope_is_refused_with_a_typed_error(data: bytes) -> None:
    with pytest.raises((EnvelopeError, DocumentFormError)):
        read_envelope(data)


def test_a_signature_by_an_unlisted_key_is_refused() -> None:
    envelope = sign_envelope(PAYLOAD, signers=[forge.MALLORY])

    with pytest.raises(EnvelopeError, match="does not list"):
        signers_of(envelope, issuer=forge.issuer_document())


def test_a_signature_over_another_payload_type_does_not_hold() -> None:
    envelope = sign_envelope(PAYLOAD, signers=[forge.ISSUER])
    relabelled = Envelope(envelope.payload, "text/plain", envelope.signatures)

    with pytest.raises(EnvelopeError, match="does not hold"):
        signers_of(relabelled, issuer=forge.issuer_document())


# --- another implementation ---------------------------------------------------------------------------------------


def other_signer() -> tuple[CryptoSigner, Ed25519Signer]:
    """The same private key in securesystemslib's signer and in ours."""
    private_key = Ed25519PrivateKey.generate()
    ours = Ed25519Signer(private_key)
    public = SSlibKey.from_crypto(private_key.public_key(), keyid=key_id(ours.public_key))
    return CryptoSigner(private_key, public), ours


def test_securesystemslib_verifies_an_envelope_signed_here() -> None:
    first, ours_first = other_signer()
    second, ours_second = other_signer()
    envelope = sign_envelope(PAYLOAD, signers=[ours_first, ours_second])

    read = OtherEnvelope.from_dict(json.loads(envelope.to_bytes()))

    accepted = read.verify([first.public_key, second.public_key], threshold=2)
    assert set(accepted) == {ours_first.keyid, ours_second.keyid}
    assert read.pae() == envelope.signed_bytes


def test_an_envelope_signed_by_securesystemslib_is_read_here() -> None:
    signers = [other_signer()[0], other_signer()[0]]
    theirs = OtherEnvelope(PAYLOAD, "application/vnd.in-toto+json", {})
    for signer in sorted(signers, key=lambda signer: signer.public_key.keyid):
        theirs.sign(signer)

    envelope = read_envelope(canonical_json(theirs.to_dict()))

    keys = {signer.public_key.keyid: signer for signer in signers}
    assert [row.keyid for row in envelope.signatures] == sorted(keys)
    assert envelope.signed_bytes == theirs.pae()
    assert envelope.payload == PAYLOAD
