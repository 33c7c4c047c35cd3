"""Who may open a console page: a signed-in member of staff, by the one permission table, with a second factor where
people decide."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps

from django.contrib.auth.views import redirect_to_login
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponseBase
from django.shortcuts import render
from django.views.decorators.cache import never_cache

from deletion_service.access.accounts import second_factor_missing
from deletion_service.access.models import StaffMember
from deletion_service.access.permissions import Action, staff_principal
from deletion_service.errors import DomainError, NotFoundError

Page = Callable[..., HttpResponseBase]


def staff_page(action: Action) -> Callable[[Page], Page]:
    """Open a page to members of staff whose role allows `action`; the page gets the member as its second argument."""

    def decorate(page: Page) -> Page:
        @never_cache
        @wraps(page)
        def guarded(request: HttpRequest, **kwargs: str) -> HttpResponseBase:
            if not request.user.is_authenticated:
                return redirect_to_login(request.get_full_path())
            member = member_of(request)
            if not staff_principal(member).may(action):
                raise PermissionDenied
            if second_factor_missing(request, request.user, action):
                return render(request, "console/second_factor.html", status=403)
            return _answered(page, request, member, **kwargs)

        return guarded

    return decorate


def member_of(request: HttpRequest) -> StaffMember:
    """Return the member of staff behind a session; an account without a role may open nothing."""
    if not request.user.is_authenticated:
        raise PermissionDenied
    member = StaffMember.objects.filter(user_id=request.user.pk).first()
    if member is None:
        raise PermissionDenied
    return member


def _answered(page: Page, request: HttpRequest, member: StaffMember, **kwargs: str) -> HttpResponseBase:
    try:
        return page(request, member, **kwargs)
    except NotFoundError as exc:
        raise Http404 from exc
    except DomainError as exc:
        return render(request, "console/refused.html", {"sentence": exc.message}, status=409)
