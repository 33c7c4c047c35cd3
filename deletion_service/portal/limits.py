"""How often a stranger may use the portal, counted by address, in memory only."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from rest_framework.throttling import SimpleRateThrottle

Page = Callable[..., HttpResponse]


class _AddressThrottle(SimpleRateThrottle):
    def __init__(self, scope: str) -> None:
        self.scope = scope
        super().__init__()

    def get_cache_key(self, request: Any, view: Any) -> str:
        return self.cache_format % {"scope": self.scope, "ident": self.get_ident(request)}


def limited(scope: str, *, methods: tuple[str, ...] = ("GET", "HEAD", "POST")) -> Callable[[Page], Page]:
    """Answer 429 once an address has used up the rate of `scope` (settings) with these methods."""

    def decorate(page: Page) -> Page:
        @wraps(page)
        def limited_page(request: HttpRequest, **kwargs: str) -> HttpResponse:
            throttle = _AddressThrottle(scope)
            if request.method in methods and not throttle.allow_request(request, None):  # type: ignore[arg-type]  # reads headers only
                response = render(request, "429.html", status=429)
                response["Retry-After"] = str(int(throttle.wait() or 1) + 1)
                return response
            return page(request, **kwargs)

        return limited_page

    return decorate
