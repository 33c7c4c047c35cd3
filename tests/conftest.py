"""What every test shares; its home directory, outside which nothing is read or written, is made in `tests.home`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import settings as hypothesis_settings

# How long an example takes says something about the machine and what else it does.
hypothesis_settings.register_profile("lethe", deadline=None)
hypothesis_settings.load_profile("lethe")


def pytest_report_header() -> list[str]:
    """Say which database and which broker this run is about."""
    from django.conf import settings
    from django.db import connection

    return [
        f"database: {connection.vendor}",
        f"broker: {'redis' if settings.REDIS_URL else 'none, the embedded runner'}",
    ]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest file: a process that came to it last would still be at it when the other has no work."""
    items.sort(key=lambda item: item.path.name != "test_celery_worker.py")


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
