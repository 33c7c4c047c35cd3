"""Ring the workers' doorbell. A ring is a hint with a queue name, never a payload; losing all of them loses nothing.

The sweep of `workers.reconcile` finds whatever was not rung. This module never imports `workers`.
"""

from __future__ import annotations

from typing import Final

import structlog
from django.conf import settings
from django.db import transaction

RUN_NEXT_JOB: Final = "workers.run_next_job"
RECONCILE: Final = "workers.reconcile"
WATCH: Final = "workers.watch"
CONTROL: Final = "control"
"""The queue of sweeps; jobs never wait on it."""
TASK_NAMES: Final = (RUN_NEXT_JOB, RECONCILE, WATCH)

_log = structlog.get_logger(__name__)


def ring(queue: str) -> None:
    """After commit, tell a worker of `queue` that work is owed. Best effort: a dead broker is logged, never raised."""
    if settings.REDIS_URL:
        transaction.on_commit(lambda: _send(RUN_NEXT_JOB, queue))


def _send(name: str, queue: str) -> None:
    from celery import Celery  # noqa: PLC0415 - the embedded runner needs no Celery

    try:
        app = Celery(broker=settings.REDIS_URL)
        app.conf.update(settings.CELERY_OPTIONS)
        app.send_task(name, args=[queue], queue=queue, retry=False, ignore_result=True)
    except Exception as exc:  # noqa: BLE001 - a hint: any broker failure costs latency, never work
        _log.warning("hint_lost", queue=queue, error=type(exc).__name__)
