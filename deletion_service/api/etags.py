"""Entity tags: whoever edits can say which state they saw, and is told when it is no longer the state."""

from __future__ import annotations

from typing import Any

from rest_framework.renderers import JSONRenderer
from rest_framework.request import Request

from deletion_service.api.errors import PreconditionFailedError
from ml.digests import sha256_hex


def etag_of(document: Any) -> str:
    """Return the strong entity tag of a JSON document."""
    return f'"{sha256_hex(JSONRenderer().render(document))[:32]}"'


def check_if_match(request: Request, document: Any) -> None:
    """Raise `PreconditionFailedError` if the caller names states and `document` is none of them."""
    named = request.headers.get("If-Match")
    if named is None or named.strip() == "*":
        return
    if etag_of(document) not in [tag.strip() for tag in named.split(",")]:
        raise PreconditionFailedError
