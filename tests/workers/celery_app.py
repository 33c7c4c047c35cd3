"""The Celery app of Lethe, whose workers unlearn to a candidate that was made beforehand.

    celery -A tests.workers.celery_app worker ...

The name of the candidate's directory stands in the file `candidate` beside the home directory.
"""

from pathlib import Path

from django.conf import settings

from tests.flow.crash_runner import use_candidate
from workers.celery import app  # noqa: F401 - what `celery -A` looks for

use_candidate(Path((settings.HOME_DIR.parent / "candidate").read_text()))
