"""The Celery app: hints only. The task is a thin call of the same `run_next_job` that the embedded runner calls."""

from __future__ import annotations

import os
from typing import Any

from celery import Celery
from celery.signals import beat_init, worker_init

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "deletion_service.settings")

import django  # noqa: E402 - settings must be named before Django is loaded

django.setup()

from django.conf import settings  # noqa: E402

from deletion_service.dispatch import RECONCILE, RUN_NEXT_JOB  # noqa: E402

app = Celery("lethe", broker=settings.REDIS_URL or "memory://")
app.conf.update(settings.CELERY_OPTIONS)
app.conf.beat_schedule = {"reconcile": {"task": RECONCILE, "schedule": 20.0, "options": {"queue": "cpu"}}}


@app.task(name=RUN_NEXT_JOB)
def run_next_job(queue: str) -> None:
    """Run what the database says is owed on `queue`, until nothing is."""
    from workers.jobs import run_next_job as run_job
    from workers.jobs import worker_name
    from workers.stages import STAGES

    while run_job([queue], stages=STAGES, owner=worker_name()):
        pass


@app.task(name=RECONCILE)
def reconcile() -> None:
    """Find what is owed and nobody was told of."""
    from workers.reconcile import reconcile as find_owed

    find_owed()


@worker_init.connect
@beat_init.connect
def _refuse_memory_broker(**_: Any) -> None:
    if not settings.REDIS_URL:
        raise SystemExit("REDIS_URL is not set; without Redis run: python manage.py run_jobs")
