"""How an operation is described: one decorator that insists on an example and names the problems it may answer with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

from drf_spectacular.extensions import OpenApiAuthenticationExtension
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiExample, OpenApiParameter, OpenApiResponse, extend_schema, inline_serializer
from rest_framework import serializers

from deletion_service.api.errors import PROBLEM_TYPE, TITLES, problem
from deletion_service.api.examples import page
from deletion_service.api.fields import StrictSerializer
from deletion_service.api.serializers import ProblemOut

JSON: Final = "application/json"
READING: Final = (401, 403, 404, 429)
LISTING: Final = (401, 403, 422, 429)
STARTING: Final = (400, 401, 403, 404, 409, 412, 413, 422, 429)
CREATING: Final = (400, 401, 403, 409, 413, 422, 429)
_CODES: Final = {
    400: "idempotency_key_missing",
    401: "not_authenticated",
    403: "not_allowed",
    404: "not_found",
    409: "stale_state",
    410: "payload_destroyed",
    412: "changed_meanwhile",
    413: "body_too_large",
    422: "invalid_input",
    429: "throttled",
    503: "signing_unavailable",
}
IDEMPOTENCY_KEY: Final = OpenApiParameter(
    "Idempotency-Key",
    OpenApiTypes.STR,
    OpenApiParameter.HEADER,
    required=True,
    description="1 to 255 visible characters, new for each act. The same key and body answer the same for 72 hours.",
    examples=[OpenApiExample("A UUID", value="8f14e45f-ceea-467f-ab7d-2f6b1a0c9d11")],
)
IF_MATCH: Final = OpenApiParameter(
    "If-Match",
    OpenApiTypes.STR,
    OpenApiParameter.HEADER,
    description="The ETag of the request as you read it; 412 if it changed since.",
)
_PAGING: Final = (
    OpenApiParameter("cursor", OpenApiTypes.STR, description="`next_cursor` of the page before."),
    OpenApiParameter("limit", OpenApiTypes.INT, description="1 to 200; default 50."),
)
Method = TypeVar("Method", bound=Callable[..., Any])


def operation(
    name: str,
    summary: str,
    *,
    answer: Any,
    example: dict[str, Any],
    problems: Sequence[int],
    description: str = "",
    status: int = 200,
    media_type: str = JSON,
    body: type[StrictSerializer] | None = None,
    body_example: dict[str, Any] | None = None,
    parameters: Sequence[OpenApiParameter] = (),
    public: bool = False,
) -> Callable[[Method], Method]:
    """Describe an operation; `example` is its answer, `body_example` what is sent."""
    examples = [
        OpenApiExample("Answer", value=example, response_only=True, media_type=media_type, status_codes=[str(status)])
    ]
    if body_example is not None:
        examples.append(OpenApiExample("Body", value=body_example, request_only=True))
    responses: dict[Any, Any] = {(status, media_type): OpenApiResponse(answer, description=summary)}
    responses |= {(code, PROBLEM_TYPE): _problem_response(code) for code in problems}
    decorate: Callable[[Method], Method] = extend_schema(
        operation_id=name,
        summary=summary,
        description=description or None,
        request=body,
        responses=responses,
        examples=examples,
        parameters=list(parameters),
        auth=[] if public else None,
    )
    return decorate


def listing(
    name: str,
    summary: str,
    *,
    item: type[serializers.Serializer[Any]],
    example: dict[str, Any],
    parameters: Sequence[OpenApiParameter] = (),
    more_problems: Sequence[int] = (),
) -> Callable[[Method], Method]:
    """Describe an operation that lists in pages."""
    fields: dict[str, Any] = {"items": item(many=True), "next_cursor": serializers.CharField(allow_null=True)}
    answer = inline_serializer(name=f"{item.__name__.removesuffix('Out')}Page", fields=fields)
    return operation(
        name,
        summary,
        answer=answer,
        example=page(example),
        problems=(*LISTING, *more_problems),
        parameters=(*_PAGING, *parameters),
    )


def _problem_response(code: int) -> OpenApiResponse:
    value = problem(code, code=_CODES[code], instance="/v1/requests", detail=TITLES[code])
    return OpenApiResponse(
        ProblemOut,
        description=TITLES[code],
        examples=[OpenApiExample("Problem", value=value, response_only=True, media_type=PROBLEM_TYPE)],
    )


class ApiKeyScheme(OpenApiAuthenticationExtension):  # type: ignore[no-untyped-call]  # registers the subclass
    """Describes API keys."""

    target_class = "deletion_service.api.authentication.ApiKeyAuthentication"
    name = "apiKey"

    def get_security_definition(self, auto_schema: Any) -> dict[str, str]:
        """Return the scheme."""
        return {"type": "http", "scheme": "bearer", "description": "`prefix.secret` of an API key, with its scopes."}


class StaffSessionScheme(OpenApiAuthenticationExtension):  # type: ignore[no-untyped-call]  # registers the subclass
    """Describes the console's session."""

    target_class = "deletion_service.api.authentication.StaffSessionAuthentication"
    name = "staffSession"

    def get_security_definition(self, auto_schema: Any) -> dict[str, str]:
        """Return the scheme."""
        text = "The console's session, with its CSRF token on unsafe methods."
        return {"type": "apiKey", "in": "cookie", "name": "sessionid", "description": text}
