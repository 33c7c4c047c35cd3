"""Data encryption keys, wrapped and kept apart from the database, so that no backup of one restores the other.

The directory store is for one host. A key management service implements the same Protocol.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
from pathlib import Path
from typing import Final, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from django.conf import settings

from deletion_service.errors import KeyStoreError, PayloadDestroyedError
from deletion_service.ids import new_id

_NONCE: Final = 12
_KEY_ID: Final = re.compile(r"dek_[0-9a-z]{26}")


class KeyStore(Protocol):
    """Creates, returns and destroys data encryption keys."""

    name: str

    def create(self) -> str:
        """Create a key and return its id."""
        ...

    def get(self, key_id: str) -> bytes:
        """Return a key, or raise `PayloadDestroyedError`."""
        ...

    def destroy(self, key_id: str) -> None:
        """Destroy a key; repeating it is harmless. Returns only when the key is gone."""
        ...

    def digest(self, purpose: str, content: bytes) -> str:
        """Return a keyed digest in hex; without the store nobody can tell what it is of, or try."""
        ...


class DirectoryKeyStore:
    """One file a key, wrapped with AES-256-GCM under the key encryption key."""

    def __init__(self, directory: Path, kek_file: Path) -> None:
        self.name = f"directory:{directory.name}"
        self._directory = directory
        self._kek_file = kek_file

    def create(self) -> str:
        """Create a 256-bit key, durable before its id is returned."""
        key_id, key = new_id("dek"), AESGCM.generate_key(bit_length=256)
        nonce = secrets.token_bytes(_NONCE)
        wrapped = nonce + AESGCM(self._kek()).encrypt(nonce, key, key_id.encode())
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(self._path(key_id), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(wrapped)
            stream.flush()
            os.fsync(stream.fileno())
        _sync_directory(self._directory)
        return key_id

    def get(self, key_id: str) -> bytes:
        """Return the unwrapped key."""
        path = self._path(key_id)
        if not path.is_file():
            raise PayloadDestroyedError("the key of this sealed item was destroyed; its content cannot be read again")
        wrapped = path.read_bytes()
        if not any(wrapped):
            raise PayloadDestroyedError("the key of this sealed item was overwritten; its content cannot be read again")
        try:
            return AESGCM(self._kek()).decrypt(wrapped[:_NONCE], wrapped[_NONCE:], key_id.encode())
        except InvalidTag as exc:
            raise KeyStoreError("a wrapped key does not open under the current key encryption key") from exc

    def digest(self, purpose: str, content: bytes) -> str:
        """HMAC-SHA256 under a key of its own for each purpose, derived from the key encryption key (HKDF)."""
        derived = HKDF(hashes.SHA256(), length=32, salt=None, info=f"lethe/{purpose}".encode()).derive(self._kek())
        return hmac.new(derived, content, hashlib.sha256).hexdigest()

    def destroy(self, key_id: str) -> None:
        """Overwrite and unlink the wrapped key."""
        path = self._path(key_id)
        if not path.is_file():
            return
        with path.open("r+b") as stream:
            stream.write(b"\0" * path.stat().st_size)
            stream.flush()
            os.fsync(stream.fileno())
        path.unlink()
        _sync_directory(self._directory)

    def _path(self, key_id: str) -> Path:
        if not _KEY_ID.fullmatch(key_id):
            raise KeyStoreError("malformed key id")
        return self._directory / key_id

    def _kek(self) -> bytes:
        try:
            kek = bytes.fromhex(self._kek_file.read_text(encoding="ascii").strip())
        except (OSError, ValueError) as exc:
            raise KeyStoreError("the key encryption key is missing or malformed; run manage.py create_keys") from exc
        if len(kek) != 32:
            raise KeyStoreError("the key encryption key must have 256 bits")
        return kek


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def key_store() -> KeyStore:
    """Return the key store this deployment uses."""
    return DirectoryKeyStore(settings.KEY_STORE_DIR, settings.KEY_ENCRYPTION_KEY_FILE)
