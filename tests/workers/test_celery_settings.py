"""What the Celery app is told: a queue of its own for sweeps, and our logging instead of its own."""

from __future__ import annotations

import subprocess
import sys

from deletion_service.dispatch import CONTROL, RECONCILE, WATCH
from workers.celery import app

_LEAK = """
import logging
from workers.celery import app
app.log.setup()
try:
    raise ValueError("Alice Korvel lives at 48 Brackenfell Lane")
except ValueError:
    logging.getLogger("some.library").exception("it failed")
"""


def test_a_library_that_logs_an_exception_in_a_worker_does_not_print_what_it_says() -> None:
    result = subprocess.run([sys.executable, "-c", _LEAK], capture_output=True, text=True, check=True)
    printed = result.stdout + result.stderr
    assert "Brackenfell" not in printed
    assert '"error": "ValueError"' in printed


def test_sweeps_never_wait_behind_jobs() -> None:
    queues = {name: entry["options"]["queue"] for name, entry in app.conf.beat_schedule.items()}
    assert queues == {RECONCILE: CONTROL, WATCH: CONTROL}
