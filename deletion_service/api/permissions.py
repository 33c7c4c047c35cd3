"""Each view declares the action of the permission table that each method needs; an undeclared one is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rest_framework.permissions import BasePermission
from rest_framework.request import Request

from deletion_service.access.accounts import second_factor_missing
from deletion_service.access.permissions import Action, require
from deletion_service.api.authentication import principal_of
from deletion_service.errors import SecondFactorError

if TYPE_CHECKING:
    from rest_framework.views import APIView  # would import this module again

# Declared by a view that anybody may call.
PUBLIC: Final = "public"
Actions = dict[str, Action | str]


class HasScope(BasePermission):
    """Asks the one permission table; a session also needs its second factor where people decide."""

    def has_permission(self, request: Request, view: APIView) -> bool:
        """Raise the error that says what is missing."""
        actions: Actions = getattr(view, "actions", {})
        method = "GET" if request.method == "HEAD" else str(request.method)
        if actions.get(method) == PUBLIC:
            return True
        principal = principal_of(request)
        if method not in actions:
            # Without a handler the answer is 405; a handler that declares nothing is closed.
            return not hasattr(view, method.lower())
        action = Action(actions[method])
        require(principal, action)
        person = principal.staff if principal.key is None else None
        if person is not None and second_factor_missing(request._request, person.user, action):
            raise SecondFactorError("sign in again with your authenticator code; deciding needs a second factor")
        return True
