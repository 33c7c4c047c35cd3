"""The Celery app: hints only. The task is a thin call of the same `run_next_job` that the embedded runner calls."""

from __future__ import annotations

import logging.config
import os
from typing import Any

from celery import Celery
from celery.signals import beat_init, setup_logging, worker_init, worker_shutting_down

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "deletion_service.settings")

import django  # noqa: E402 - settings must be named before Django is loaded

django.setup()

from django.conf import settings  # noqa: E402

from deletion_service.dispatch import CONTROL, RECONCILE, RUN_NEXT_JOB, WATCH, ring  # noqa: E402
from workers.shutdown import stoppable, worker_ends  # noqa: E402

app = Celery("lethe", broker=settings.REDIS_URL or "memory://")
app.conf.update(settings.CELERY_OPTIONS)
# A message that nobody took before the next one is due is dropped: a worker that was away finds one of each.
# They have a queue of their own: a letter must not wait behind an unlearning run.
app.conf.beat_schedule = {
    name: {"task": name, "schedule": every_s, "options": {"queue": CONTROL, "expires": every_s}}
    for name, every_s in ((RECONCILE, 20.0), (WATCH, 3600.0))
}


@app.task(name=RUN_NEXT_JOB)
def run_next_job(queue: str) -> None:
    """Run one job that the database says is owed on `queue`, and ring for the next: each gets a fresh process.

    A worker that is told to end has the stage checkpoint, hands the job back, and takes no other.
    """
    from workers.jobs import run_next_job as run_job
    from workers.jobs import worker_name
    from workers.stages import STAGES

    with stoppable() as stopping:
        if not stopping.is_set() and run_job([queue], stages=STAGES, owner=worker_name(), stopping=stopping):
            ring(queue)


@app.task(name=RECONCILE)
def reconcile() -> None:
    """Find what is owed and nobody was told of."""
    from workers.reconcile import reconcile as find_owed

    find_owed()


@app.task(name=WATCH)
def watch() -> None:
    """Look for retired weights that came back."""
    from workers.reconcile import watch as look

    look()


@worker_shutting_down.connect
def _tell_the_jobs(**_: Any) -> None:
    """Celery lets a running task finish, however long it takes; ours can stop at its next checkpoint."""
    worker_ends()


@setup_logging.connect
def _log_as_the_service_does(**_: Any) -> None:
    """Celery would put handlers of its own in place, which print exceptions with the values in them."""
    logging.config.dictConfig(settings.LOGGING)


@worker_init.connect
@beat_init.connect
def _refuse_memory_broker(**_: Any) -> None:
    if not settings.REDIS_URL:
        raise SystemExit("REDIS_URL is not set; without Redis run: python manage.py run_jobs")
