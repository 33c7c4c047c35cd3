"""Seal, open and destroy what a request says about a person. One key per request and class (compliance section 6).

Destroying the key is the deletion: the ciphertext may survive in a backup and is noise without it.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from django.db import transaction
from django.utils import timezone

from deletion_service.audit import trail
from deletion_service.errors import InvalidInputError, PayloadDestroyedError
from deletion_service.requests.codes import DERIVED_CLASS, DataClass
from deletion_service.requests.keystore import key_store
from deletion_service.requests.models import DisposalEvent, ErasureRequest, SealedItem
from ml.digests import canonical_json

MAX_SEALED_BYTES: Final = 64 << 20
_NONCE: Final = 12

# Signs the canonical bytes of a disposal; returns (key id, signature in hexadecimal).
DisposalSigner = Callable[[bytes], tuple[str, str]]


@transaction.atomic
def seal(request: ErasureRequest, data_class: DataClass, name: str, content: bytes) -> SealedItem:
    """Seal `content` under the request's key of `data_class`, replacing an item of the same name.

    Raises:
        InvalidInputError: the content is larger than `MAX_SEALED_BYTES`.
        PayloadDestroyedError: the class was already disposed of.
    """
    if len(content) > MAX_SEALED_BYTES:
        raise InvalidInputError("the content is too large to seal; send it in parts")
    if DisposalEvent.objects.filter(request=request, data_class=data_class).exists():
        raise PayloadDestroyedError(f"class {data_class} of {request.pk} was disposed of; nothing can be added")
    earlier = SealedItem.objects.filter(request=request, data_class=data_class, name=name).first()
    version = earlier.version + 1 if earlier else 1
    key_id = _key_id(request, data_class) or key_store().create()
    ciphertext = _encrypt(key_store().get(key_id), content, _context(request.pk, data_class, name, version))
    item, _ = SealedItem.objects.update_or_create(
        request=request,
        data_class=data_class,
        name=name,
        defaults={"version": version, "key_id": key_id, "ciphertext": ciphertext},
    )
    return item


def open_sealed(request: ErasureRequest, data_class: DataClass, name: str) -> bytes:
    """Return the content of a sealed item.

    Raises:
        PayloadDestroyedError: no such item, or its key is gone.
    """
    item = SealedItem.objects.filter(request=request, data_class=data_class, name=name).first()
    if item is None:
        raise PayloadDestroyedError(f"{request.pk} has no sealed {name}; it was never given or was disposed of")
    key = key_store().get(item.key_id)
    return _decrypt(key, bytes(item.ciphertext), _context(request.pk, data_class, name, item.version))


def seal_file(request: ErasureRequest, data_class: DataClass, path: Path, content: bytes) -> None:
    """Write `content` to `path` as ciphertext under the request's key; the key must exist already."""
    key_id = _key_id(request, data_class)
    if key_id is None:
        raise PayloadDestroyedError(f"class {data_class} of {request.pk} has no key")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    temporary.write_bytes(_encrypt(key_store().get(key_id), content, _context(request.pk, data_class, path.name, 1)))
    temporary.replace(path)


def open_file(request: ErasureRequest, data_class: DataClass, path: Path) -> bytes:
    """Return the content of a file written by `seal_file`."""
    key_id = _key_id(request, data_class)
    if key_id is None or not path.is_file():
        raise PayloadDestroyedError(f"class {data_class} of {request.pk} cannot be read any more")
    return _decrypt(key_store().get(key_id), path.read_bytes(), _context(request.pk, data_class, path.name, 1))


def destroy_class(request: ErasureRequest, data_class: DataClass, *, actor: str, sign: DisposalSigner) -> DisposalEvent:
    """Make a class of sealed data unreadable for ever, and record the signed proof. Repeating it changes nothing.

    The keys go first: if the record fails afterwards, a repetition finds the keys gone and records that.
    """
    if done := DisposalEvent.objects.filter(request=request, data_class=data_class).first():
        return done
    items = SealedItem.objects.filter(request=request, data_class=data_class)
    key_ids = sorted(set(items.values_list("key_id", flat=True)))
    for key_id in key_ids:
        key_store().destroy(key_id)
    return _record_disposal(
        request, data_class, key_ids, method="dek_destroyed", store=key_store().name, actor=actor, sign=sign
    )


def record_wiped(request: ErasureRequest, runs: Sequence[str], *, actor: str, sign: DisposalSigner) -> DisposalEvent:
    """Record the signed proof that nothing of these runs is left in the work directory; the caller has looked."""
    if done := DisposalEvent.objects.filter(request=request, data_class=DERIVED_CLASS).first():
        return done
    return _record_disposal(
        request, DERIVED_CLASS, sorted(runs), method="wiped", store="work_directory", actor=actor, sign=sign
    )


@transaction.atomic
def _record_disposal(
    request: ErasureRequest,
    data_class: str,
    key_ids: list[str],
    *,
    method: str,
    store: str,
    actor: str,
    sign: DisposalSigner,
) -> DisposalEvent:
    at = timezone.now()
    document = {
        "request": request.pk,
        "class": str(data_class),
        "key_ids": key_ids,
        "at": at.isoformat(),
        "store": store,
        "method": method,
    }
    signing_key_id, signature = sign(canonical_json(document))
    event = DisposalEvent.objects.create(
        request=request,
        data_class=data_class,
        key_ids=key_ids,
        method=method,
        store=store,
        at=at,
        signature=signature,
        signing_key_id=signing_key_id,
    )
    SealedItem.objects.filter(request=request, data_class=data_class).delete()
    trail.record(actor=actor, action="payload.disposed", obj=event, reason=f"class_{data_class}", request_id=request.pk)
    return event


def _key_id(request: ErasureRequest, data_class: DataClass) -> str | None:
    items = SealedItem.objects.filter(request=request, data_class=data_class)
    return items.values_list("key_id", flat=True).first()


def _context(request_id: str, data_class: str, name: str, version: int) -> bytes:
    return canonical_json([request_id, str(data_class), name, version])


def _encrypt(key: bytes, content: bytes, context: bytes) -> bytes:
    nonce = secrets.token_bytes(_NONCE)
    return nonce + AESGCM(key).encrypt(nonce, content, context)


def _decrypt(key: bytes, sealed: bytes, context: bytes) -> bytes:
    try:
        return AESGCM(key).decrypt(sealed[:_NONCE], sealed[_NONCE:], context)
    except InvalidTag as exc:
        raise PayloadDestroyedError("a sealed item does not open; it was changed or moved") from exc
