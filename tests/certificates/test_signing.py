"""Keys and the issuer document."""

from __future__ import annotations

import json
import logging
import stat
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
)

from deletion_service.certificates.canonical import DocumentFormError
from deletion_service.certificates.envelope import sign_envelope, signers_of
from deletion_service.certificates.signing import (
    IssuerDocument,
    IssuerDocumentError,
    KnownPolicy,
    NullSigner,
    generate_key_file,
    key_id,
    load_signer,
    signature_holds,
)
from deletion_service.errors import DomainError, SigningError
from tests.certificates import forge

MOMENT = datetime(2027, 3, 5, 12, tzinfo=UTC)


def test_a_generated_key_signs_and_is_loaded_again(tmp_path: Path) -> None:
    made = generate_key_file(tmp_path / "issuer.pem")
    loaded = load_signer(tmp_path / "issuer.pem")

    assert loaded.keyid == made.keyid == key_id(made.public_key)
    assert signature_holds(loaded.sign(b"m"), message=b"m", public_key=made.public_key)
    assert not signature_holds(loaded.sign(b"m"), message=b"n", public_key=made.public_key)


def test_a_key_file_is_readable_by_its_owner_alone_and_leaves_no_second_copy(tmp_path: Path) -> None:
    generate_key_file(tmp_path / "issuer.pem")

    assert stat.S_IMODE((tmp_path / "issuer.pem").stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["issuer.pem"]


def test_a_key_is_never_replaced(tmp_path: Path) -> None:
    first = generate_key_file(tmp_path / "issuer.pem")

    with pytest.raises(SigningError, match="exists"):
        generate_key_file(tmp_path / "issuer.pem")

    assert load_signer(tmp_path / "issuer.pem").keyid == first.keyid
    assert [path.name for path in tmp_path.iterdir()] == ["issuer.pem"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o602, 0o777])
def test_a_key_file_open_to_others_is_refused(tmp_path: Path, mode: int) -> None:
    generate_key_file(tmp_path / "issuer.pem")
    (tmp_path / "issuer.pem").chmod(mode)

    with pytest.raises(SigningError, match="0600"):
        load_signer(tmp_path / "issuer.pem")


def test_a_missing_key_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SigningError):
        load_signer(tmp_path / "missing.pem")
    with pytest.raises(SigningError):
        load_signer(tmp_path)
    with pytest.raises(SigningError):
        generate_key_file(tmp_path / "no such folder" / "issuer.pem")


def write_pem(path: Path, key: Any, encryption: KeySerializationEncryption) -> Path:
    path.touch(mode=0o600)
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption))
    return path


def test_another_kind_of_key_an_encrypted_one_and_rubbish_are_refused(tmp_path: Path) -> None:
    elliptic = write_pem(tmp_path / "p256.pem", ec.generate_private_key(ec.SECP256R1()), NoEncryption())
    locked = write_pem(tmp_path / "locked.pem", Ed25519PrivateKey.generate(), BestAvailableEncryption(b"secret"))
    rubbish = tmp_path / "rubbish.pem"
    rubbish.touch(mode=0o600)
    rubbish.write_bytes(b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")

    for path in (elliptic, locked, rubbish):
        with pytest.raises(SigningError, match=path.name):
            load_signer(path)


def test_the_null_signer_says_so_loudly_and_never_verifies(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        envelope = sign_envelope(b"{}", signers=[NullSigner()])

    assert "NOT SIGNED" in caplog.text
    with pytest.raises(DomainError):
        signers_of(envelope, issuer=forge.issuer_document())
    assert not signature_holds(envelope.signatures[0].value, message=envelope.signed_bytes, public_key=b"")
    assert not signature_holds(envelope.signatures[0].value, message=envelope.signed_bytes, public_key=bytes(32))


# --- issuer document ----------------------------------------------------------------------------------------------


def test_the_issuer_document_comes_back() -> None:
    document = forge.issuer_document(forge.policy())

    assert IssuerDocument.from_bytes(document.to_bytes()) == document
    assert set(document.to_document()["keys"][0]) == {
        "keyid",
        "role",
        "algorithm",
        "publicKey",
        "notBefore",
        "notAfter",
        "revokedAt",
    }


def test_a_person_may_lay_the_issuer_document_out_as_they_like() -> None:
    document = forge.issuer_document()

    assert IssuerDocument.from_bytes(json.dumps(document.to_document(), indent=4).encode()) == document


def edited(change: Any) -> bytes:
    document = forge.issuer_document(forge.policy()).to_document()
    change(document)
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda d: d["keys"].append(d["keys"][0]), id="a key listed twice"),
        pytest.param(lambda d: d["keys"].append({**d["keys"][0], "role": "approver"}), id="a key with two roles"),
        pytest.param(lambda d: d["keys"][0].update(keyid="sha256:" + "0" * 64), id="a key under another id"),
        pytest.param(lambda d: d["keys"][0].update(role="admin"), id="an unknown role"),
        pytest.param(lambda d: d["keys"][0].update(algorithm="rsa"), id="an unknown algorithm"),
        pytest.param(lambda d: d["keys"][0].update(publicKey="QQ=="), id="a key of the wrong length"),
        pytest.param(lambda d: d["keys"][0].update(publicKey="QQ"), id="a key that is not base64"),
        pytest.param(lambda d: d["keys"][0].update(notBefore="2029-01-01T00:00:00Z"), id="ends before it begins"),
        pytest.param(lambda d: d["keys"][0].update(revokedAt="yesterday"), id="a time that is none"),
        pytest.param(lambda d: d["keys"][0].pop("notAfter"), id="a key without an end"),
        pytest.param(lambda d: d.update(extra=1), id="an unknown member"),
        pytest.param(lambda d: d.update(schema_version=2), id="an unknown version"),
        pytest.param(lambda d: d.pop("schema_version"), id="no version"),
        pytest.param(lambda d: d["policies"].append(d["policies"][0]), id="a policy listed twice"),
    ],
)
def test_an_issuer_document_that_contradicts_itself_is_refused(change: Any) -> None:
    with pytest.raises((IssuerDocumentError, DocumentFormError)):
        IssuerDocument.from_bytes(edited(change))


def test_the_same_key_under_two_ids_cannot_be_described_at_all() -> None:
    listed = forge.issuer_document()
    renamed = {"keyid": "sha256:" + "1" * 64, "role": "approver"}

    with pytest.raises(IssuerDocumentError):
        replace(listed.keys[0], **renamed)


@pytest.mark.parametrize("data", [b"", b"[]", b"null", b'{"keys":[],"keys":[]}', b"\x80"])
def test_what_is_not_an_issuer_document_is_refused_with_a_typed_error(data: bytes) -> None:
    with pytest.raises(DomainError):
        IssuerDocument.from_bytes(data)


def test_a_key_counts_from_its_first_to_its_last_second_and_not_from_its_revocation_on() -> None:
    key = forge.issuer_document().keys[0]
    revoked = replace(key, revoked_at="2027-03-05T12:00:00Z")

    assert key.why_not_valid_at(MOMENT) is None
    assert key.why_not_valid_at(datetime(2027, 1, 1, tzinfo=UTC)) is None
    assert key.why_not_valid_at(datetime(2028, 1, 1, tzinfo=UTC)) is None
    assert "before" in str(key.why_not_valid_at(datetime(2026, 12, 31, 23, 59, 59, tzinfo=UTC)))
    assert "expired" in str(key.why_not_valid_at(datetime(2028, 1, 1, 0, 0, 1, tzinfo=UTC)))
    assert "revoked" in str(revoked.why_not_valid_at(MOMENT))
    assert revoked.why_not_valid_at(datetime(2027, 3, 5, 11, 59, 59, tzinfo=UTC)) is None


def test_a_policy_is_found_by_its_digest() -> None:
    policy = forge.policy()

    assert forge.issuer_document(policy).policy(policy.sha256) == KnownPolicy("forged", "1", "release", policy.sha256)
    assert forge.issuer_document(policy).policy("0" * 64) is None
