"""Lists in pages: newest first, with an opaque cursor that stays valid while rows are added."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

from django.db.models import Model, QuerySet
from rest_framework.request import Request
from rest_framework.response import Response

from deletion_service.errors import InvalidInputError

DEFAULT_LIMIT: Final = 50
MAX_LIMIT: Final = 200
_ID: Final = re.compile(r"[a-z]{3}_[0-9a-z]{26}")
Row = TypeVar("Row", bound=Model)


def page_of(rows: QuerySet[Row], request: Request, show: Callable[[Sequence[Row]], Any]) -> Response:
    """Return one page of `rows`: `{"items": [...], "next_cursor": ... or null}`."""
    limit = _limit(request.query_params.get("limit"))
    rows = rows.order_by("-pk")
    if cursor := request.query_params.get("cursor"):
        rows = rows.filter(pk__lt=_read(cursor))
    found = list(rows[: limit + 1])
    following = _cursor(str(found[limit - 1].pk)) if len(found) > limit else None
    return Response({"items": show(found[:limit]), "next_cursor": following})


def _limit(text: str | None) -> int:
    if text is None:
        return DEFAULT_LIMIT
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:6]) <= MAX_LIMIT:
        raise InvalidInputError(f"limit is a whole number from 1 to {MAX_LIMIT}", pointer="?limit")
    return int(text[:6])


def _cursor(pk: str) -> str:
    return base64.urlsafe_b64encode(pk.encode()).decode()


def _read(cursor: str) -> str:
    try:
        pk = base64.b64decode(cursor.encode(), altchars=b"-_", validate=True).decode()
    except (binascii.Error, UnicodeError):
        pk = ""
    if not _ID.fullmatch(pk):
        raise InvalidInputError("this cursor is not one that a list returned; start without one", pointer="?cursor")
    return pk
