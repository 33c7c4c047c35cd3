"""Read JSON bodies strictly: bounded in size and depth, no member twice, no NaN, no text that cannot be stored.

No message repeats what was sent.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import IO, Any, Final

from django.conf import settings
from rest_framework import status
from rest_framework.exceptions import APIException, ParseError
from rest_framework.parsers import BaseParser

MAX_DEPTH: Final = 16


class BodyTooLargeError(APIException):
    """The body is larger than this operation takes."""

    status_code = status.HTTP_413_REQUEST_ENTITY_TOO_LARGE
    default_detail = "the body is larger than this operation takes; send less"
    default_code = "body_too_large"


class StrictJsonParser(BaseParser):
    """`application/json`, at most `max_body_bytes` of the view or of the settings."""

    media_type = "application/json"

    def parse(
        self, stream: IO[Any], media_type: str | None = None, parser_context: Mapping[str, Any] | None = None
    ) -> Any:
        """Return the document, or raise an error that says how the body is malformed."""
        view = (parser_context or {}).get("view")
        limit: int = getattr(view, "max_body_bytes", settings.DATA_UPLOAD_MAX_MEMORY_SIZE)
        body = stream.read(limit + 1)
        if len(body) > limit:
            raise BodyTooLargeError
        return read_json(body)


def read_json(body: bytes) -> Any:
    """Parse JSON.

    Raises:
        ParseError: not UTF-8, not JSON, nested too deeply, a member given twice, NaN, or a lone surrogate.
    """
    try:
        document = json.loads(body.decode("utf-8"), object_pairs_hook=_members, parse_constant=_refuse_constant)
        json.dumps(document, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as exc:
        raise ParseError("the body is not well-formed JSON in UTF-8") from exc
    if _depth(document) > MAX_DEPTH:
        raise ParseError(f"the body nests deeper than {MAX_DEPTH} levels")
    return document


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a member is given twice")
    return members


def _refuse_constant(name: str) -> Any:
    raise ValueError("NaN and infinity are not JSON")


def _depth(document: Any) -> int:
    """Count levels without recursion, whatever the document."""
    level, depth = [document], 0
    while level:
        depth += 1
        level = [child for node in level for child in _children(node)]
    return depth


def _children(node: Any) -> list[Any]:
    if isinstance(node, dict):
        return list(node.values())
    return node if isinstance(node, list) else []
