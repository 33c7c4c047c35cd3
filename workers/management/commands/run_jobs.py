"""`manage.py run_jobs`: the embedded runner. The same claim and stage code as a Celery worker, without a broker."""

from __future__ import annotations

import signal
import threading
import time
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandParser
from django.db import close_old_connections

from workers.jobs import run_next_job, worker_name
from workers.reconcile import reconcile, watch
from workers.stages import STAGES

_RECONCILE_S = 2.0
_WATCH_S = 3600.0
_SHORTEST_WAIT_S, _LONGEST_WAIT_S = 0.2, 2.0


class Command(BaseCommand):
    help = "Run jobs from the database until stopped."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--queue", action="append", help="a queue to serve (repeatable); default: all")
        parser.add_argument("--until-idle", action="store_true", help="stop when nothing is owed")

    def handle(self, *args: Any, **options: Any) -> None:
        stopping = threading.Event()
        for signal_number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            signal.signal(signal_number, lambda *_: stopping.set())
        sweeper = threading.Thread(target=_sweep, args=(stopping,), name="reconcile", daemon=True)
        if not options["until_idle"]:
            sweeper.start()
        _serve(tuple(options["queue"] or settings.QUEUES), stopping, until_idle=options["until_idle"])
        stopping.set()


def _serve(queues: tuple[str, ...], stopping: threading.Event, *, until_idle: bool) -> None:
    wait = _SHORTEST_WAIT_S
    while not stopping.is_set():
        close_old_connections()
        if until_idle:
            reconcile()
        if run_next_job(queues, stages=STAGES, owner=worker_name(), stopping=stopping):
            wait = _SHORTEST_WAIT_S
        elif until_idle:
            return
        else:
            stopping.wait(wait)
            wait = min(_LONGEST_WAIT_S, wait * 1.5)


def _sweep(stopping: threading.Event) -> None:
    """Reconcile beside the jobs, so that a letter does not wait for an unlearning run."""
    watched = 0.0
    while not stopping.wait(_RECONCILE_S):
        close_old_connections()
        reconcile()
        if time.monotonic() - watched > _WATCH_S:
            watched = time.monotonic()
            watch()
    close_old_connections()
