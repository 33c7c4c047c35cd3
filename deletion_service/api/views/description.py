"""The description of REST v1, for machines and for people."""

from __future__ import annotations

import json
from functools import cache
from typing import Any, cast

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from drf_spectacular.generators import SchemaGenerator


@cache
def openapi_document() -> dict[str, Any]:
    """Return the OpenAPI 3.1 description of everything above."""
    generator: Any = SchemaGenerator
    schema = generator().get_schema(request=None, public=True)
    return cast("dict[str, Any]", json.loads(json.dumps(schema, default=str)))


def openapi(request: HttpRequest) -> HttpResponse:
    """The description, for machines."""
    return HttpResponse(json.dumps(openapi_document(), indent=1), content_type="application/json")


def docs(request: HttpRequest) -> HttpResponse:
    """The description, for people."""
    return render(request, "api/docs.html")
