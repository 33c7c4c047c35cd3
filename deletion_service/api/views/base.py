"""What all operations share."""

from __future__ import annotations

from typing import Any, ClassVar, cast

from django.http import HttpResponse
from rest_framework.request import Request
from rest_framework.views import APIView

from deletion_service.access.models import ApiKey, StaffMember
from deletion_service.access.permissions import Principal
from deletion_service.api.fields import StrictSerializer
from deletion_service.api.permissions import Actions
from deletion_service.errors import NotAllowedError


class View(APIView):
    """What all operations share: declared actions, no OPTIONS guessing."""

    actions: ClassVar[Actions] = {}
    metadata_class = None


def read_body(serializer: type[StrictSerializer], request: Request) -> dict[str, Any]:
    """Return the validated members of a body, or raise the error that names each fault."""
    form = serializer(data=request.data)
    form.is_valid(raise_exception=True)
    return cast("dict[str, Any]", form.validated_data)


def sender_of(principal: Principal) -> ApiKey:
    """Return the key that a sender of instructions uses."""
    if principal.key is None:
        raise NotAllowedError(f"{principal.label} has no API key; instructions come from machines")
    return principal.key


def person_of(principal: Principal) -> StaffMember:
    """Return the person who decides: signed in, or behind the key."""
    if principal.staff is None:
        raise NotAllowedError(f"{principal.label} acts for nobody; only a person may decide")
    return principal.staff


def file_answer(content: bytes, *, media_type: str, name: str) -> HttpResponse:
    """Return stored bytes, unchanged, as a file."""
    response = HttpResponse(content, content_type=media_type)
    response["Content-Disposition"] = f'attachment; filename="{name}"'
    return response
