"""Keys: who may sign which part of a certificate, and the signers that hold them.

Must never write a private key anywhere but into the file asked for, and never return one. The issuer document is the
verifier's root of trust: public keys with roles and times, the log's origin, the known verdict policies.
"""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Literal, Protocol, TypeAlias

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from deletion_service.certificates.canonical import (
    DocumentFormError,
    base64_bytes,
    base64_text,
    camel_document,
    read_camel,
    read_json,
    time_from_text,
    time_text,
)
from deletion_service.errors import DomainError, SigningError
from ml.digests import canonical_json

logger = logging.getLogger(__name__)

Role: TypeAlias = Literal["issuer", "approver", "log"]
LARGEST_ISSUER_DOCUMENT: Final = 1 << 20
_LARGEST_KEY_FILE: Final = 1 << 14
_PUBLIC_KEY_BYTES: Final = 32


class IssuerDocumentError(DomainError):
    """An issuer document contradicts itself; get it again from a place you trust."""

    code = "issuer_document_invalid"


class Signer(Protocol):
    """Whatever holds a private key: a file, a hardware module, a key service."""

    @property
    def keyid(self) -> str:
        """`key_id(public_key)`."""

    @property
    def public_key(self) -> bytes:
        """The 32 raw bytes of the Ed25519 public key."""

    def sign(self, message: bytes) -> bytes:
        """Return the 64 bytes of an Ed25519 signature over `message`."""


def key_id(public_key: bytes) -> str:
    """Name a key by its content: `sha256:` and the SHA-256 of the raw public key."""
    return f"sha256:{hashlib.sha256(public_key).hexdigest()}"


def signature_holds(signature: bytes, *, message: bytes, public_key: bytes) -> bool:
    """True when `signature` is an Ed25519 signature over `message` by `public_key`."""
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


# --- signers ------------------------------------------------------------------------------------------------------


class Ed25519Signer:
    """Signs with a private key held in memory."""

    def __init__(self, private_key: Ed25519PrivateKey) -> None:
        self._private_key = private_key
        self.public_key = private_key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        self.keyid = key_id(self.public_key)

    def sign(self, message: bytes) -> bytes:
        """Return the Ed25519 signature over `message`."""
        return self._private_key.sign(message)


class NullSigner:
    """Signs nothing, for development without keys: what it returns never verifies, and it says so each time."""

    keyid = "null:not-a-key"
    public_key = b""

    def sign(self, message: bytes) -> bytes:
        """Return bytes that are not a signature."""
        logger.warning("NOT SIGNED: the null signer is configured; this document will never verify")
        return b"not signed"


def load_signer(path: Path) -> Ed25519Signer:
    """Read a file-key signer: PEM, PKCS#8, Ed25519, unencrypted, readable by its owner alone.

    Raises:
        SigningError: the file is missing, not a regular file, open to others, or holds another kind of key.
    """
    pem = _read_private_file(path)
    try:
        private_key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise SigningError(f"key file {path.name} is not an unencrypted PEM private key") from None
    if not isinstance(private_key, Ed25519PrivateKey):
        raise SigningError(f"key file {path.name} holds another kind of key; make an Ed25519 one")
    return Ed25519Signer(private_key)


def _read_private_file(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            status = os.fstat(stream.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise SigningError(f"key file {path.name} is not a regular file")
            if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise SigningError(f"key file {path.name} is open to others than its owner; set its mode to 0600")
            return stream.read(_LARGEST_KEY_FILE)
    except OSError as exc:
        raise SigningError(f"key file {path.name} cannot be read: {exc.strerror}") from None


def generate_key_file(path: Path) -> Ed25519Signer:
    """Make a new Ed25519 key and write it to `path` with mode 0600; the file appears whole or not at all.

    Raises:
        SigningError: something is there already (a key is never replaced), or the folder cannot be written.
    """
    private_key = Ed25519PrivateKey.generate()
    pem = private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    try:
        with _temporary_sibling(path) as unfinished:
            _write_private(unfinished, pem)
            os.link(unfinished, path)  # unlike a rename it refuses to replace
        _sync_folder(path.parent)
    except FileExistsError:
        raise SigningError(f"key file {path.name} exists; a key is never replaced, choose another name") from None
    except OSError as exc:
        raise SigningError(f"key file {path.name} cannot be written: {exc.strerror}") from None
    return Ed25519Signer(private_key)


@contextmanager
def _temporary_sibling(path: Path) -> Iterator[Path]:
    sibling = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        yield sibling
    finally:
        with suppress(FileNotFoundError):
            sibling.unlink()


def _write_private(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# --- issuer document ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class IssuerKey:
    """One public key: its role, and when signatures by it count. `not_after` is the last second that counts."""

    keyid: str
    role: Role
    algorithm: Literal["ed25519"]
    public_key: str
    not_before: str
    not_after: str
    revoked_at: str | None

    def __post_init__(self) -> None:
        if self.keyid != key_id(self.raw_public_key):
            raise IssuerDocumentError("a key id of the issuer document is not the digest of its public key")
        if time_from_text(self.not_before) >= time_from_text(self.not_after):
            raise IssuerDocumentError("a key of the issuer document ends before it begins")
        if self.revoked_at is not None:
            time_from_text(self.revoked_at)

    @property
    def raw_public_key(self) -> bytes:
        """The 32 raw bytes of the key."""
        raw = base64_bytes(self.public_key, what="a public key of the issuer document")
        if len(raw) != _PUBLIC_KEY_BYTES:
            raise IssuerDocumentError(f"a public key of the issuer document is not {_PUBLIC_KEY_BYTES} bytes long")
        return raw

    def why_not_valid_at(self, moment: datetime) -> str | None:
        """Say why a signature made at `moment` does not count; `None` when it does."""
        if moment < time_from_text(self.not_before):
            return f"was not valid before {self.not_before}"
        if moment > time_from_text(self.not_after):
            return f"expired at {self.not_after}"
        if self.revoked_at is not None and moment >= time_from_text(self.revoked_at):
            return f"was revoked at {self.revoked_at}"
        return None


@dataclass(frozen=True, slots=True)
class LogDescription:
    """The transparency log that lists the issuer's certificates, by its origin line."""

    origin: str


@dataclass(frozen=True, slots=True)
class KnownPolicy:
    """A verdict policy the issuer has published, by digest; one for `test` gives a verdict no evidential value."""

    name: str
    version: str
    purpose: Literal["release", "test"]
    sha256: str


@dataclass(frozen=True, slots=True)
class IssuerDocument:
    """Whom to believe: read it once from the issuer's own site, keep it, and check certificates against it."""

    issuer: str
    keys: tuple[IssuerKey, ...]
    log: LogDescription
    policies: tuple[KnownPolicy, ...]
    schema_version: int = 1

    def __post_init__(self) -> None:
        if self.schema_version != 1:
            raise IssuerDocumentError("issuer document: schema_version must be 1")
        if len({key.keyid for key in self.keys}) != len(self.keys):
            raise IssuerDocumentError("the issuer document lists a key twice; each key has one role")
        if len({policy.sha256 for policy in self.policies}) != len(self.policies):
            raise IssuerDocumentError("the issuer document lists a policy twice")

    def key(self, keyid: str) -> IssuerKey | None:
        """Return the key called `keyid`, if it is listed."""
        return next((key for key in self.keys if key.keyid == keyid), None)

    def policy(self, sha256: str) -> KnownPolicy | None:
        """Return the policy with this digest, if it is listed."""
        return next((policy for policy in self.policies if policy.sha256 == sha256), None)

    def to_document(self) -> dict[str, Any]:
        """Return the document as plain JSON."""
        return camel_document(self)

    def to_bytes(self) -> bytes:
        """Return the canonical JSON of the document."""
        return canonical_json(self.to_document())

    @classmethod
    def from_bytes(cls, data: bytes) -> IssuerDocument:
        """Read an issuer document; layout and key order are free, since a person may have edited it.

        Raises:
            DocumentFormError, IssuerDocumentError: it is malformed or contradicts itself.
        """
        document = read_json(data, what="the issuer document", largest=LARGEST_ISSUER_DOCUMENT)
        if not isinstance(document, dict) or "schema_version" not in document:
            raise DocumentFormError("the issuer document is not a JSON object with a schema_version")
        return read_camel(cls, document, where="issuer document")


def issuer_key(signer: Signer, *, role: Role, not_before: datetime, not_after: datetime) -> IssuerKey:
    """Describe a signer's public key for the issuer document."""
    return IssuerKey(
        keyid=signer.keyid,
        role=role,
        algorithm="ed25519",
        public_key=base64_text(signer.public_key),
        not_before=time_text(not_before),
        not_after=time_text(not_after),
        revoked_at=None,
    )
