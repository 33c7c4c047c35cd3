"""What may enter a log line: ids, codes, numbers and places in the code.

Must never let an exception's message through (a database names the offending values in it), nor a request's path
(a status link opens with it).
"""

from __future__ import annotations

import logging
import sys
import traceback
from pathlib import Path
from types import TracebackType
from typing import Any

EventDict = dict[str, Any]


def traceback_without_values(logger: Any, method: str, event: EventDict) -> EventDict:
    """Replace `exc_info` by the exception's type and the places it passed, innermost last."""
    found = event.pop("exc_info", None)
    if not found:
        return event
    kind, trace = _kind_and_trace(found)
    frames = [f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in traceback.extract_tb(trace)]
    return event | {"error": kind, "frames": frames}


def route_instead_of_path(logger: Any, method: str, event: EventDict) -> EventDict:
    """Name a failed request by the route it matched and its status, not by its path."""
    record = event.get("_record")
    request = getattr(record, "request", None)
    if not isinstance(record, logging.LogRecord) or request is None or not hasattr(request, "resolver_match"):
        return event
    route = getattr(request.resolver_match, "route", "no route")
    return event | {"event": record.name, "route": route, "status": getattr(record, "status_code", None)}


def _kind_and_trace(found: Any) -> tuple[str, TracebackType | None]:
    if found is True:
        found = sys.exc_info()
    if isinstance(found, BaseException):
        return type(found).__name__, found.__traceback__
    kind, _, trace = found
    return getattr(kind, "__name__", "unknown"), trace
