"""The web application, which kills its process, as `kill -9` does, where a request asks for it.

A POST with the header `X-Die: start` dies before anything is read, with `X-Die: commit-N` just before its N-th commit.
One that has fewer commits dies with its answer ready and none of it sent.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterable
from typing import Any, Final

from django.conf import settings
from django.db.backends.base.base import BaseDatabaseWrapper

from deletion_service.wsgi import application as lethe

_PREFIX: Final = "commit-"
_wish = threading.local()
_commit = BaseDatabaseWrapper.commit


def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """Answer as Lethe does, or die on the way."""
    wish = environ.get("HTTP_X_DIE", "") if environ["REQUEST_METHOD"] == "POST" else ""
    if wish == "start":
        _die(wish)
    _wish.commits = int(wish.removeprefix(_PREFIX)) if wish else 0
    answer: Iterable[bytes] = lethe(environ, start_response)
    if wish:
        _die("answer")
    return answer


def _counted_commit(self: BaseDatabaseWrapper) -> None:
    left = getattr(_wish, "commits", 0)
    if left == 1:
        _die("commit")
    _wish.commits = left - 1
    _commit(self)


def _die(where: str) -> None:
    with (settings.HOME_DIR.parent / "deaths").open("a") as notes:
        notes.write(f"web:{where}\n")
    os.kill(os.getpid(), signal.SIGKILL)


BaseDatabaseWrapper.commit = _counted_commit  # type: ignore[method-assign]
