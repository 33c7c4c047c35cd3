"""What a failed request looks like: problem documents for machines, plain and neutral pages for people."""

from __future__ import annotations

from typing import Any

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.template.loader import render_to_string

from deletion_service.api.errors import PROBLEM_TYPE, problem

_CODES = {400: "malformed_request", 403: "not_allowed", 404: "not_found", 500: "internal_error"}


def bad_request(request: HttpRequest, exception: Exception) -> HttpResponse:
    """400."""
    return _failure(request, 400)


def forbidden(request: HttpRequest, exception: Exception) -> HttpResponse:
    """403."""
    return _failure(request, 403)


def not_found(request: HttpRequest, exception: Exception) -> HttpResponse:
    """404."""
    return _failure(request, 404)


def internal_error(request: HttpRequest) -> HttpResponse:
    """500."""
    return _failure(request, 500)


def _failure(request: HttpRequest, status: int) -> HttpResponse:
    if request.path.startswith("/v1/"):
        document: dict[str, Any] = problem(status, code=_CODES[status], instance=request.path)
        return JsonResponse(document, status=status, content_type=PROBLEM_TYPE)
    # Without the request: a context processor that fails must not make a second failure.
    return HttpResponse(render_to_string(f"{status}.html"), status=status)
