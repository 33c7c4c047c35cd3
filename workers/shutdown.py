"""How a job in one of a Celery worker's processes learns that the worker is told to end.

Celery tells the worker's main process only, so that process leaves word where its forked processes can see it. A
service manager may signal all of them at once, and a cold shutdown signals the one at work; both mean the same.
"""

from __future__ import annotations

import mmap
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from billiard import current_process

# Shared with forked processes. No lock goes with it that a killed process could keep.
_word: Final = mmap.mmap(-1, 1)


class _Stopping:
    """Set once the worker, or this process alone, was told to end."""

    def __init__(self) -> None:
        self._here = False

    def is_set(self) -> bool:
        return self._here or _word[0] != 0

    def set(self, *_: object) -> None:
        # No lock: a second signal may come while the first one's handler is here.
        self._here = True


def worker_ends() -> None:
    """Leave word for every process of this worker; there is no way back. Safe in a signal handler."""
    _word[0] = 1


@contextmanager
def stoppable() -> Iterator[_Stopping]:
    """Yield what says when to stop. Inside, SIGTERM and SIGQUIT ask a pool's process to stop and end nothing.

    The main process keeps the handlers that Celery gave it; so does a thread, which may not have any.
    """
    stopping = _Stopping()
    if current_process().name == "MainProcess" or threading.current_thread() is not threading.main_thread():
        yield stopping
        return
    earlier = {number: signal.signal(number, stopping.set) for number in (signal.SIGTERM, signal.SIGQUIT)}
    try:
        yield stopping
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
