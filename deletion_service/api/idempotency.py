"""A repeated POST answers what the first one answered, and does nothing twice.

The unique constraint decides who is first. The act and its answer are one transaction: a crash leaves neither, and the
claim it leaves behind may be taken over after a minute. Answers are sealed under the caller's own key, keys and bodies
are kept as keyed digests: the table tells a reader nothing about a person.
"""

from __future__ import annotations

import base64
import json
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import update_wrapper
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from django.db import IntegrityError, transaction
from django.utils import timezone
from django.utils.crypto import salted_hmac
from rest_framework.exceptions import APIException
from rest_framework.renderers import JSONRenderer
from rest_framework.request import Request
from rest_framework.response import Response

from deletion_service.api.authentication import principal_of
from deletion_service.api.models import IdempotencyRecord
from deletion_service.errors import StaleStateError

KEPT_FOR: Final = timedelta(hours=72)
IN_FLIGHT_FOR: Final = timedelta(seconds=60)
_KEY: Final = re.compile(r"[!-~]{1,255}")
_NONCE: Final = 12

View = TypeVar("View")
P = ParamSpec("P")


class IdempotencyKeyMissingError(APIException):
    """The header is missing or malformed."""

    status_code = 400
    default_detail = "send an Idempotency-Key header of 1 to 255 visible characters, such as a UUID"
    default_code = "idempotency_key_missing"


class IdempotencyKeyReusedError(APIException):
    """The key was used for something else."""

    status_code = 422
    default_detail = "this Idempotency-Key was used with another body; make a new key for a new request"
    default_code = "idempotency_key_reused"


class InFlightError(APIException):
    """The first request of this key is still being answered."""

    status_code = 409
    default_detail = "the first request with this Idempotency-Key is still being answered; ask again shortly"
    default_code = "request_in_flight"
    wait = 1


@dataclass(frozen=True, slots=True)
class _Claim:
    """The right to answer first: valid while the row carries this time and no answer."""

    pk: int
    at: datetime


def idempotent(
    post: Callable[Concatenate[View, Request, P], Response],
) -> Callable[Concatenate[View, Request, P], Response]:
    """Make a POST handler answer once per principal, key and body."""

    def once(view: View, request: Request, /, *args: P.args, **kwargs: P.kwargs) -> Response:
        return answer_once(request, lambda: post(view, request, *args, **kwargs))

    return update_wrapper(once, post)


def answer_once(request: Request, act: Callable[[], Response]) -> Response:
    """Answer a request, or replay what was answered first.

    1. Claim the key; a finished claim is replayed.  2. Act and store the answer in one transaction, fenced by the
    claim.  3. Whatever fails releases the claim, since nothing was done.
    """
    key = request.headers.get("Idempotency-Key", "")
    if not _KEY.fullmatch(key):
        raise IdempotencyKeyMissingError
    principal = principal_of(request).label
    claim = _claim(principal, key, _digest("body", _fingerprint(request)))
    if isinstance(claim, Response):
        return claim
    try:
        with transaction.atomic():
            response = act()
            _store(claim, response, secret=_answer_key(principal, key))
    except BaseException:
        IdempotencyRecord.objects.filter(pk=claim.pk, created_at=claim.at, status_code=None).delete()
        raise
    return response


def purge_answers(*, now: datetime) -> int:
    """Forget answers older than `KEPT_FOR`; return how many."""
    deleted, _ = IdempotencyRecord.objects.filter(created_at__lt=now - KEPT_FOR).delete()
    return deleted


def _claim(principal: str, key: str, body_digest: str) -> _Claim | Response:
    key_digest = _digest("key", key)
    try:
        with transaction.atomic():
            row = IdempotencyRecord.objects.create(
                principal=principal, key_sha256=key_digest, request_sha256=body_digest
            )
    except IntegrityError:
        return _meet(IdempotencyRecord.objects.get(principal=principal, key_sha256=key_digest), key, body_digest)
    return _Claim(row.pk, row.created_at)


def _meet(row: IdempotencyRecord, key: str, body_digest: str) -> _Claim | Response:
    if row.request_sha256 != body_digest:
        raise IdempotencyKeyReusedError
    if row.status_code is not None:
        return _replay(row, key)
    now = timezone.now()
    if now - row.created_at < IN_FLIGHT_FOR:
        raise InFlightError
    taken = IdempotencyRecord.objects.filter(pk=row.pk, created_at=row.created_at, status_code=None)
    if taken.update(created_at=now) != 1:
        raise InFlightError
    return _Claim(row.pk, now)


def _store(claim: _Claim, response: Response, *, secret: bytes) -> None:
    sealed = _seal(secret, JSONRenderer().render(response.data))
    row = IdempotencyRecord.objects.filter(pk=claim.pk, created_at=claim.at, status_code=None)
    location = str(response.headers.get("Location", ""))
    if row.update(status_code=response.status_code, body={"sealed": sealed}, location=location) != 1:
        raise StaleStateError("another request took over this Idempotency-Key; nothing was done here")


def _replay(row: IdempotencyRecord, key: str) -> Response:
    data = json.loads(_unseal(_answer_key(row.principal, key), (row.body or {})["sealed"]))
    headers = {"Idempotency-Replayed": "true"}
    if row.location:
        headers["Location"] = row.location
    return Response(data, status=row.status_code, headers=headers)


def _fingerprint(request: Request) -> str:
    return json.dumps([request.method, request.path, request.data], sort_keys=True)


def _digest(purpose: str, text: str) -> str:
    return salted_hmac(f"lethe.idempotency-{purpose}", text, algorithm="sha256").hexdigest()


def _answer_key(principal: str, key: str) -> bytes:
    return salted_hmac("lethe.idempotency-answer", f"{principal}\n{key}", algorithm="sha256").digest()


def _seal(secret: bytes, content: bytes) -> str:
    nonce = secrets.token_bytes(_NONCE)
    return base64.b64encode(nonce + AESGCM(secret).encrypt(nonce, content, None)).decode()


def _unseal(secret: bytes, sealed: str) -> Any:
    raw = base64.b64decode(sealed)
    return AESGCM(secret).decrypt(raw[:_NONCE], raw[_NONCE:], None)
