"""How often a principal may call; strangers share a tighter limit, counted by address."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rest_framework.request import Request
from rest_framework.throttling import SimpleRateThrottle

from deletion_service.access.permissions import Principal

if TYPE_CHECKING:
    from rest_framework.views import APIView  # would import this module again


class PrincipalThrottle(SimpleRateThrottle):
    """Counts a key or a member of staff."""

    scope = "principal"

    def get_cache_key(self, request: Request, view: APIView) -> str | None:
        """Return the bucket of the principal; `None` for strangers."""
        if not isinstance(request.user, Principal):
            return None
        return self.cache_format % {"scope": self.scope, "ident": request.user.label}


class AnonymousThrottle(SimpleRateThrottle):
    """Counts an address without a principal."""

    scope = "anonymous"

    def get_cache_key(self, request: Request, view: APIView) -> str | None:
        """Return the bucket of the address; `None` for principals."""
        if isinstance(request.user, Principal):
            return None
        return self.cache_format % {"scope": self.scope, "ident": self.get_ident(request)}
