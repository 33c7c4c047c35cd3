"""Somebody who owns the database lifts the triggers: to empty tables between tests, or to tamper in one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from django.db import connection


@contextmanager
def lifted_triggers() -> Iterator[None]:
    """Take the triggers of every table away, and put the same ones back."""
    with connection.cursor() as cursor:
        if connection.vendor == "sqlite":
            triggers = cursor.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
            before = [f"DROP TRIGGER {name}" for name, _ in triggers]
            after = [definition for _, definition in triggers]
        else:
            cursor.execute("SELECT DISTINCT tgrelid::regclass::text FROM pg_trigger WHERE NOT tgisinternal")
            tables = [table for (table,) in cursor.fetchall()]
            before = ["SET CONSTRAINTS ALL IMMEDIATE", *(f"ALTER TABLE {t} DISABLE TRIGGER USER" for t in tables)]
            after = ["SET CONSTRAINTS ALL IMMEDIATE", *(f"ALTER TABLE {t} ENABLE TRIGGER USER" for t in tables)]
        for statement in before:
            cursor.execute(statement)
        yield
        for statement in after:
            cursor.execute(statement)
