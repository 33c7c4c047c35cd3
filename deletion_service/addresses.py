"""Addresses that can name nothing are refused before anything is looked up.

PostgreSQL holds no NUL character and fails on a query with one; SQLite finds nothing. Here both say the same.
"""

from __future__ import annotations

from collections.abc import Callable

from django.core.exceptions import BadRequest
from django.http import HttpRequest, HttpResponseBase

Handler = Callable[[HttpRequest], HttpResponseBase]


def refuse_nul(get_response: Handler) -> Handler:
    """Middleware: 400 where the path or the query holds a NUL character, whichever way it is written."""

    def middleware(request: HttpRequest) -> HttpResponseBase:
        query = request.META.get("QUERY_STRING", "")
        if "\0" in request.path_info or "\0" in query or "%00" in query:
            raise BadRequest("an address holds no NUL character")
        return get_response(request)

    return middleware
