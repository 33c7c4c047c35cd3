"""Every test runs in a home directory of its own, with keys made for it; nothing outside it is read or written."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

_HOME = Path(tempfile.mkdtemp(prefix="lethe-tests-"))
os.environ["LETHE_HOME"] = str(_HOME)
os.environ["LETHE_TESTING"] = "true"
os.environ["LETHE_EMAIL_BACKEND"] = "django.core.mail.backends.locmem.EmailBackend"
os.environ["LETHE_LOG_LEVEL"] = "ERROR"
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "deletion_service.settings")
os.environ.pop("LETHE_FIXED_SEED", None)
(_HOME / "secrets").mkdir()
(_HOME / "secrets" / "secret_key").write_text("a-secret-that-only-tests-use-and-that-signs-nothing-real")

import django  # noqa: E402 - the environment above must be set before settings are read

django.setup()

from django.core.management import call_command  # noqa: E402

call_command("create_keys", verbosity=0, stdout=io.StringIO())


def pytest_report_header() -> list[str]:
    """Say which database and which broker this run is about."""
    from django.conf import settings
    from django.db import connection

    return [
        f"database: {connection.vendor}",
        f"broker: {'redis' if settings.REDIS_URL else 'none, the embedded runner'}",
    ]


@pytest.fixture(scope="session", autouse=True)
def _emptying_lifts_the_triggers() -> Iterator[None]:
    """Tests that commit empty the tables afterwards, which the append-only triggers would refuse."""
    from django.db import connection

    from tests.triggers import lifted_triggers

    empty = connection.ops.execute_sql_flush

    def lifted(statements: list[str]) -> None:
        with lifted_triggers():
            empty(statements)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(connection.ops, "execute_sql_flush", lifted)
        yield
