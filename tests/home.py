"""A home directory of its own for each process that runs tests, with keys made for it, before settings are read.

Named by `-p` in pyproject.toml, because pytest-django reads the settings before any conftest is imported where the
environment already names them, as it does in a second process.
"""

from __future__ import annotations

import atexit
import io
import os
import shutil
import tempfile
from pathlib import Path

_HOME = Path(tempfile.mkdtemp(prefix="lethe-tests-"))
atexit.register(shutil.rmtree, _HOME, ignore_errors=True)
os.environ["LETHE_HOME"] = str(_HOME)
os.environ["LETHE_TESTING"] = "true"
os.environ["LETHE_EMAIL_BACKEND"] = "django.core.mail.backends.locmem.EmailBackend"
os.environ["LETHE_LOG_LEVEL"] = "ERROR"
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "deletion_service.settings")
# Tests end our own processes, never the database server: it need not wait for the disk at every commit.
os.environ.setdefault("PGOPTIONS", "-c synchronous_commit=off")
os.environ.pop("LETHE_FIXED_SEED", None)
(_HOME / "secrets").mkdir()
(_HOME / "secrets" / "secret_key").write_text("a-secret-that-only-tests-use-and-that-signs-nothing-real")

import django  # noqa: E402 - the environment above must be set before settings are read

django.setup()

from django.core.management import call_command  # noqa: E402

call_command("create_keys", verbosity=0, stdout=io.StringIO())
