"""What somebody at a terminal sees: sentences, and a bar that moves while jobs run."""

from __future__ import annotations

import sys
import time
from typing import Final, TextIO

_WIDTH: Final = 30
_QUIET_S: Final = 20.0


class Screen:
    """Sentences on their own lines; a bar on the last one. Without a terminal the bar becomes a line now and then."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout
        self._live = self._stream.isatty()
        self._bar = ""
        self._shown = ("", 0.0)

    def say(self, sentence: str = "") -> None:
        """Print a line."""
        self._clear()
        self._stream.write(f"{sentence}\n")
        self._stream.flush()

    def bar(self, title: str, done: int, total: int) -> None:
        """Show how far something is."""
        share = min(1.0, done / total) if total else 0.0
        line = f"  {title:<28} [{'#' * round(share * _WIDTH):<{_WIDTH}}] {share:4.0%}"
        if self._live:
            self._clear()
            self._bar = line
            self._stream.write(line)
            self._stream.flush()
            return
        last, at = self._shown
        if title != last or time.monotonic() - at > _QUIET_S:
            self._shown = (title, time.monotonic())
            self.say(line)

    def _clear(self) -> None:
        if self._bar:
            self._stream.write(f"\r{' ' * len(self._bar)}\r")
            self._bar = ""
