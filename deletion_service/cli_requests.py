"""`lethe request ...`: instructions over REST, for machines and for people at a terminal.

The key comes from the environment or a file, never from an argument, which other users of the machine could read.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlencode

from deletion_service.terminal import OK, RefusedError, UnreachableError, UsageError, print_json, visible

_TIMEOUT_S: Final = 30.0
_LARGEST: Final = 1 << 20


def create_arguments(parser: argparse.ArgumentParser) -> None:
    """What an instruction says. The person stands in a file: arguments end up in histories and process lists."""
    parser.add_argument("file", type=Path, metavar="FILE", help="JSON as POST /v1/requests takes it; - for stdin")
    parser.add_argument("--model", action="append", default=[], help="a model to search (repeatable; default: all)")
    parser.add_argument("--upstream-id", help="your own reference; taken once")
    parser.add_argument("--due-on", metavar="YYYY-MM-DD", help="the date by which you answer the person")
    parser.add_argument("--idempotency-key", help="repeat one to ask again for the same answer (default: a new one)")


def create(options: argparse.Namespace) -> int:
    """Send an instruction, and print the request with the person's nonce."""
    given = {"models": options.model or None, "upstream_id": options.upstream_id, "due_on": options.due_on}
    body = _instruction(options.file) | {name: value for name, value in given.items() if value is not None}
    headers = {"Idempotency-Key": options.idempotency_key or str(uuid.uuid4())}
    shown = _call("POST", "/v1/requests", body=body, headers=headers)
    return _print(options, shown, _one)


def list_arguments(parser: argparse.ArgumentParser) -> None:
    """Which page."""
    parser.add_argument("--limit", type=int, default=50)
    parser.add_argument("--cursor", help="next_cursor of the page before")


def list_requests(options: argparse.Namespace) -> int:
    """Print the requests that the key may see, newest first."""
    query = {"limit": options.limit} | ({"cursor": options.cursor} if options.cursor else {})
    return _print(options, _call("GET", f"/v1/requests?{urlencode(query)}"), _many)


def one_argument(parser: argparse.ArgumentParser) -> None:
    """Which request."""
    parser.add_argument("request", metavar="ID", help="such as req_01k...")


def show(options: argparse.Namespace) -> int:
    """Print one request."""
    return _print(options, _call("GET", f"/v1/requests/{quote(options.request, safe='')}"), _one)


def withdraw(options: argparse.Namespace) -> int:
    """Take an instruction back."""
    path = f"/v1/requests/{quote(options.request, safe='')}/withdraw"
    return _print(options, _call("POST", path, body={}, headers={"Idempotency-Key": str(uuid.uuid4())}), _one)


def _call(method: str, path: str, *, body: Any = None, headers: dict[str, str] | None = None) -> Any:
    """Ask the service and return its document.

    Raises:
        UnreachableError: no answer, or one that is not from this service.
        RefusedError: a problem document.
    """
    # The offline commands must start without this library.
    import httpx

    sent = {"Authorization": f"Bearer {_key()}", "Accept": "application/json", **(headers or {})}
    try:
        answer = httpx.request(method, f"{_url()}{path}", json=body, headers=sent, timeout=_TIMEOUT_S)
    except (httpx.HTTPError, httpx.InvalidURL) as exc:
        raise UnreachableError(f"no answer from {_url()} ({type(exc).__name__}); check LETHE_URL") from exc
    except ValueError as exc:
        raise UsageError("the instruction or the key holds characters that cannot be sent; nothing was sent") from exc
    try:
        document = answer.json()
    except (ValueError, RecursionError) as exc:
        raise UnreachableError(f"{_url()} answered {answer.status_code} without JSON; check LETHE_URL") from exc
    if answer.status_code >= 500:
        raise UnreachableError(_problem(document, answer.status_code))
    if answer.status_code >= 400:
        raise RefusedError(_problem(document, answer.status_code))
    return document


def _problem(document: Any, status: int) -> str:
    if not isinstance(document, dict):
        return f"the service answered {status}"
    lines = [f"{document.get('title', status)} ({document.get('code', status)}): {document.get('detail', '')}"]
    rows = document.get("errors")
    lines += [f"  {row.get('pointer')}: {row.get('detail')}" for row in rows or () if isinstance(row, dict)]
    return "\n".join(lines)


def _url() -> str:
    url = os.environ.get("LETHE_URL", "").rstrip("/")
    if not url.startswith(("http://", "https://")):
        raise UsageError("set LETHE_URL to the address of the service, such as https://privacy.example")
    return url


def _key() -> str:
    if key := os.environ.get("LETHE_API_KEY", "").strip():
        return key
    name = os.environ.get("LETHE_API_KEY_FILE", "")
    if not name:
        raise UsageError("set LETHE_API_KEY or LETHE_API_KEY_FILE; manage.py create_api_key makes a key")
    try:
        return Path(name).read_text(encoding="ascii").strip()
    except (OSError, ValueError) as exc:
        raise UsageError(f"the key file {name} cannot be read") from exc


def _instruction(path: Path) -> dict[str, Any]:
    try:
        if str(path) == "-":
            text = sys.stdin.read(_LARGEST + 1)
        else:
            with path.open(encoding="utf-8") as stream:
                text = stream.read(_LARGEST + 1)
        if len(text) > _LARGEST:
            raise UsageError(f"{path}: larger than any instruction")
        document = json.loads(text)
    except (OSError, ValueError, RecursionError) as exc:
        raise UsageError(f"{path}: cannot be read as JSON") from exc
    if not isinstance(document, dict):
        raise UsageError(f"{path}: an instruction is a JSON object")
    return document


def _print(options: argparse.Namespace, document: Any, lay_out: Callable[[Any], list[str]]) -> int:
    if options.json:
        print_json(document)
        return OK
    try:
        lines = lay_out(document)
    except (KeyError, TypeError, AttributeError) as exc:
        raise UnreachableError(f"{_url()} answered as no Lethe service does; check LETHE_URL") from exc
    sys.stdout.write("\n".join(visible(line) for line in lines) + "\n")
    return OK


def _one(document: Any) -> list[str]:
    shown = ("id", "status", "outcome", "refusal", "due_on", "upstream_id", "subject_nonce")
    lines = [f"{name:<14} {document[name]}" for name in shown if document.get(name)]
    lines += [f"{'target':<14} {t['model']}: {t['status']}, {t['verdict']}" for t in document["targets"]]
    if "subject_nonce" in document:
        lines.append("Give subject_nonce to the person and keep no copy: it is not shown again.")
    return lines


def _many(document: Any) -> list[str]:
    lines = [f"{r['id']}  {r['status']:<22} {r['outcome'] or '-':<16} {r['due_on']}" for r in document["items"]]
    if document["next_cursor"]:
        lines.append(f"more: --cursor {document['next_cursor']}")
    return lines or ["no requests"]
