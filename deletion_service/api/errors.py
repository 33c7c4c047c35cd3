"""Turn errors into RFC 9457 problem documents. The one place that knows HTTP statuses of domain errors.

No document repeats a value that was sent: messages of form fields are our own sentences, chosen by code.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from django.core.exceptions import PermissionDenied
from django.http import Http404
from rest_framework import exceptions
from rest_framework.response import Response
from rest_framework.views import set_rollback

from deletion_service.errors import DomainError
from ml.errors import MlError

PROBLEM_TYPE: Final = "application/problem+json"
TYPE_BASE: Final = "https://lethe.example/problems/"
_STATUS: Final = {
    "invalid": 422,
    "forbidden": 403,
    "not_found": 404,
    "conflict": 409,
    "gone": 410,
    "unavailable": 503,
}
TITLES: Final = {
    400: "Malformed request",
    401: "Not authenticated",
    403: "Not allowed",
    404: "Not found",
    405: "Method not allowed",
    406: "Not acceptable",
    409: "Conflict",
    410: "Gone",
    412: "Changed meanwhile",
    413: "Body too large",
    415: "Media type not supported",
    422: "Not processable",
    429: "Too many requests",
    500: "Internal error",
    503: "Not available now",
}
_DETAILS: Final = {
    401: "send a valid API key as `Authorization: Bearer prefix.secret`, or sign in to the console",
    403: "this needs a right that you do not have, or a CSRF token",
    404: "there is nothing here, or nothing that you may see",
    405: "this address does not take this method; the Allow header lists those it takes",
    406: "answers here are JSON; ask for application/json",
    415: "send application/json",
    429: "wait as long as the Retry-After header says, then try again",
    500: "something failed on our side; nothing was done that you need to undo",
}
_FIELD_MESSAGES: Final = {
    "required": "this member is required",
    "null": "this member may not be null",
    "blank": "this member may not be empty",
    "empty": "this list may not be empty",
    "not_a_list": "this member is a list",
    "not_a_dict": "this member is an object",
    "invalid_choice": "this is not one of the values allowed",
    "max_length": "this is too long",
    "min_length": "this is too short",
    "max_value": "this is too large",
    "min_value": "this is too small",
    "unknown_member": "this member is not known",
    "wrong_type": "this member is of another type",
}


class PreconditionFailedError(exceptions.APIException):
    """The object changed since the caller read it."""

    status_code = 412
    default_detail = "the object changed since you read it; read it again, then decide"
    default_code = "changed_meanwhile"


def problem_response(exc: Exception, context: dict[str, Any]) -> Response | None:
    """Return the problem document of an expected error; `None` lets anything else become a logged 500."""
    found = _problem(exc)
    if found is None:
        return None
    set_rollback()
    status, code, detail, errors = found
    document = problem(status, code=code, detail=detail, instance=context["request"].path, errors=errors)
    return Response(document, status=status, content_type=PROBLEM_TYPE, headers=_headers(exc))


def problem(
    status: int, *, code: str, instance: str, detail: str = "", errors: list[dict[str, str]] | None = None
) -> dict[str, Any]:
    """Build a problem document."""
    return {
        "type": f"{TYPE_BASE}{code}",
        "title": TITLES.get(status, "Error"),
        "status": status,
        "detail": detail or _DETAILS.get(status, ""),
        "instance": instance,
        "code": code,
        "errors": errors or [],
    }


def _problem(exc: Exception) -> tuple[int, str, str, list[dict[str, str]]] | None:
    if isinstance(exc, DomainError):
        errors = [{"pointer": exc.pointer, "code": exc.code, "detail": exc.message}] if exc.pointer else []
        return _STATUS[exc.kind], exc.code, exc.message, errors
    if isinstance(exc, MlError):
        return 422, exc.code, str(exc), []
    if isinstance(exc, exceptions.ValidationError):
        errors = list(_field_errors(exc.get_full_details(), ""))
        return 422, "invalid_input", "the body does not have the form that this operation takes", errors
    if isinstance(exc, Http404):
        return 404, "not_found", "", []
    if isinstance(exc, PermissionDenied):
        return 403, "not_allowed", "", []
    if isinstance(exc, exceptions.APIException):
        own = exc.status_code not in _DETAILS
        return exc.status_code, str(exc.default_code), str(exc.detail) if own else "", []
    return None


def _headers(exc: Exception) -> dict[str, str]:
    headers = {}
    if challenge := getattr(exc, "auth_header", None):
        headers["WWW-Authenticate"] = challenge
    if wait := getattr(exc, "wait", None):
        headers["Retry-After"] = str(int(wait) + 1)
    return headers


def _field_errors(details: Any, pointer: str) -> Iterator[dict[str, str]]:
    """Walk the nested details of a validation error down to one entry a fault."""
    if isinstance(details, dict) and set(details) == {"message", "code"} and not isinstance(details["code"], dict):
        code = str(details["code"])
        yield {"pointer": pointer, "code": code, "detail": _FIELD_MESSAGES.get(code, "this member is not valid")}
    elif isinstance(details, dict):
        for name, child in details.items():
            step = "" if name == "non_field_errors" else f"/{name}"
            yield from _field_errors(child, pointer + step)
    elif isinstance(details, list):
        for index, child in enumerate(details):
            leaf = isinstance(child, dict) and set(child) == {"message", "code"}
            yield from _field_errors(child, pointer if leaf else f"{pointer}/{index}")
