"""Signed lists of revoked certificates."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from deletion_service.certificates.revocation import (
    REVOCATION_PAYLOAD_TYPE,
    RevocationList,
    RevokedCertificate,
    open_revocations,
    sign_revocations,
)
from deletion_service.errors import DomainError
from ml.digests import canonical_json
from tests.certificates import forge

LISTED = RevocationList(
    issuer="Lethe test issuer",
    issued_at="2027-06-01T00:00:00Z",
    revoked=(RevokedCertificate("crt_01jbob", "weights_restored", "2027-05-30T08:00:00Z"),),
)


def document(**changes: Any) -> bytes:
    row = {"certificateId": "crt_01jbob", "reason": "weights_restored", "revokedAt": "2027-05-30T08:00:00Z"}
    whole = {"issuer": LISTED.issuer, "issuedAt": LISTED.issued_at, "revoked": [row], "schema_version": 1, **changes}
    return forge.signed_raw(canonical_json(whole), signers=[forge.ISSUER], kind=REVOCATION_PAYLOAD_TYPE)


@pytest.mark.parametrize("signer", [forge.ISSUER, forge.APPROVER])
def test_a_list_signed_by_either_key_of_the_issuer_is_read(signer: Any) -> None:
    listed = open_revocations(sign_revocations(LISTED, signer=signer), issuer=forge.issuer_document())

    assert listed == LISTED
    assert listed.entry("crt_01jbob") == LISTED.revoked[0]
    assert listed.entry("crt_01jalice") is None


@pytest.mark.parametrize("signer", [forge.LOG, forge.MALLORY])
def test_a_list_signed_by_another_key_is_refused(signer: Any) -> None:
    with pytest.raises(DomainError):
        open_revocations(sign_revocations(LISTED, signer=signer), issuer=forge.issuer_document())


def test_a_list_made_while_its_key_was_not_valid_is_refused() -> None:
    late = replace(LISTED, issued_at="2029-01-01T00:00:00Z")

    with pytest.raises(DomainError, match="valid at its time"):
        open_revocations(sign_revocations(late, signer=forge.ISSUER), issuer=forge.issuer_document())


def test_a_certificate_is_no_revocation_list() -> None:
    with pytest.raises(DomainError):
        open_revocations(forge.signed_raw(b"{}"), issuer=forge.issuer_document())


@pytest.mark.parametrize(
    "changes",
    [
        {"issuer": "Another issuer"},
        {"schema_version": 2},
        {"extra": 1},
        {
            "revoked": [
                {"certificateId": "crt_01jbob", "reason": "because I say so", "revokedAt": "2027-05-30T08:00:00Z"}
            ]
        },
        {"revoked": [{"certificateId": "crt_01jbob"}]},
        {"issuedAt": "yesterday"},
    ],
)
def test_a_malformed_list_or_that_of_another_issuer_is_refused(changes: dict[str, Any]) -> None:
    assert open_revocations(document(), issuer=forge.issuer_document()) == LISTED
    with pytest.raises(DomainError):
        open_revocations(document(**changes), issuer=forge.issuer_document())


def test_one_flipped_bit_in_a_list_is_noticed() -> None:
    exact = sign_revocations(LISTED, signer=forge.ISSUER)
    issuer = forge.issuer_document()

    for position in range(len(exact)):
        altered = bytearray(exact)
        altered[position] ^= 1 << position % 8
        with pytest.raises(DomainError):
            open_revocations(bytes(altered), issuer=issuer)


def test_a_free_text_reason_is_never_signed() -> None:
    with pytest.raises(DomainError):
        sign_revocations(
            replace(LISTED, revoked=(RevokedCertificate("crt_01jbob", "Bob asked", LISTED.issued_at),)),
            signer=forge.ISSUER,
        )


def test_a_list_holds_ids_and_codes_alone() -> None:
    envelope = json.loads(sign_revocations(LISTED, signer=forge.ISSUER))

    assert set(envelope) == {"payload", "payloadType", "signatures"}
