"""The Celery app of Lethe, whose workers unlearn as in production, only more slowly.

    celery -A tests.workers.patient_app worker ...

A fast processor would be done before anybody told it to end, and before a heartbeat wrote how far it is.
"""

import time

from ml.specs import Progress
from workers.celery import app  # noqa: F401 - what `celery -A` looks for
from workers.jobs import Lease

_note = Lease.on_progress


def _note_and_wait(lease: Lease, progress: Progress) -> None:
    _note(lease, progress)
    if progress.phase == "unlearning":
        time.sleep(1.5)


Lease.on_progress = _note_and_wait  # type: ignore[method-assign]
