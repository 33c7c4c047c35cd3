"""Who is calling: an API key, or a member of staff by their console session. `request.user` becomes the principal."""

from __future__ import annotations

from typing import cast

from rest_framework.authentication import BaseAuthentication, SessionAuthentication, get_authorization_header
from rest_framework.exceptions import AuthenticationFailed, NotAuthenticated
from rest_framework.request import Request

from deletion_service.access.accounts import client_address
from deletion_service.access.keys import find_key
from deletion_service.access.models import ApiKey, StaffMember
from deletion_service.access.permissions import Principal, key_principal, staff_principal


class ApiKeyAuthentication(BaseAuthentication):
    """`Authorization: Bearer prefix.secret`."""

    def authenticate(self, request: Request) -> tuple[Principal, ApiKey] | None:
        """Return the key's principal; `None` where no bearer key was sent."""
        scheme, _, presented = get_authorization_header(request).decode("latin-1").partition(" ")
        if scheme.lower() != "bearer":
            return None
        key = find_key(presented.strip(), address=client_address(request._request))
        if key is None:
            raise AuthenticationFailed
        return key_principal(key), key

    def authenticate_header(self, request: Request) -> str:
        """Return the challenge of a 401."""
        return 'Bearer realm="lethe"'


class StaffSessionAuthentication(SessionAuthentication):
    """The console's session; unsafe methods need its CSRF token."""

    def authenticate(self, request: Request) -> tuple[Principal, None] | None:
        """Return the principal of the member of staff who is signed in."""
        found = super().authenticate(request)
        member = None if found is None else StaffMember.objects.filter(user=found[0]).first()
        return None if member is None else (staff_principal(member), None)


def principal_of(request: Request) -> Principal:
    """Return who is calling, or raise `NotAuthenticated`."""
    principal = cast("Principal | None", request.user)
    if principal is None:
        raise NotAuthenticated
    return principal
