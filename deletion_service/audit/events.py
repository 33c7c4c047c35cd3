"""What every append-only event table shares: only listed pairs of statuses, and no UPDATE, DELETE or TRUNCATE."""

from __future__ import annotations

from collections.abc import Mapping

from django.db import migrations
from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.migrations.state import StateApps
from django.db.models import Q


def pair_is_listed(moves: Mapping[str, frozenset[str]], first: str) -> Q:
    """Return the constraint that an event's `(old_status, new_status)` stands in a move table or is the first row."""
    condition = Q(old_status="", new_status=first)
    for old, allowed in moves.items():
        if allowed:
            condition |= Q(old_status=old, new_status__in=sorted(allowed))
    return condition


def append_only(*tables: str) -> migrations.RunPython:
    """Return a migration step whose triggers refuse to change, delete or empty `tables`, on PostgreSQL and SQLite."""

    def install(apps: StateApps, schema_editor: BaseDatabaseSchemaEditor) -> None:
        for table in tables:
            for statement in _triggers(schema_editor.connection.vendor, table):
                schema_editor.execute(statement, params=None)

    def remove(apps: StateApps, schema_editor: BaseDatabaseSchemaEditor) -> None:
        for table in tables:
            _remove(schema_editor, table)

    return migrations.RunPython(install, remove)


def frozen_columns(table: str, *columns: str) -> migrations.RunPython:
    """Return a migration step whose trigger refuses to change `columns` of a row once written, and to delete a row."""

    def install(apps: StateApps, schema_editor: BaseDatabaseSchemaEditor) -> None:
        vendor = schema_editor.connection.vendor
        for statement in _triggers(vendor, table, changed=columns):
            schema_editor.execute(statement, params=None)

    def remove(apps: StateApps, schema_editor: BaseDatabaseSchemaEditor) -> None:
        _remove(schema_editor, table)

    return migrations.RunPython(install, remove)


def lifted(guard: migrations.RunPython) -> migrations.RunPython:
    """Return the step that takes a guard away, to stand before changes of its table; SQLite makes a table anew then."""
    return migrations.RunPython(guard.reverse_code or migrations.RunPython.noop, guard.code)


def _remove(schema_editor: BaseDatabaseSchemaEditor, table: str) -> None:
    on = f" ON {table}" if schema_editor.connection.vendor == "postgresql" else ""
    for act in ("update", "delete", "truncate"):
        schema_editor.execute(f"DROP TRIGGER IF EXISTS {table}_no_{act}{on}")


def _triggers(vendor: str, table: str, *, changed: tuple[str, ...] = ()) -> list[str]:
    """Return the statements; with `changed`, an UPDATE is refused only where one of these columns differs."""
    differs = {
        "postgresql": " OR ".join(f"OLD.{c} IS DISTINCT FROM NEW.{c}" for c in changed),
        "sqlite": " OR ".join(f"OLD.{c} IS NOT NEW.{c}" for c in changed),
    }[vendor]
    when = {"update": f"WHEN ({differs}) " if changed else "", "delete": ""}
    if vendor == "postgresql":
        function = (
            "CREATE OR REPLACE FUNCTION lethe_append_only() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN RAISE EXCEPTION '% is append-only', TG_TABLE_NAME "
            "USING ERRCODE = 'integrity_constraint_violation'; END $$"
        )
        refuse = "EXECUTE FUNCTION lethe_append_only()"
        rows = [
            f"CREATE TRIGGER {table}_no_{act} BEFORE {act.upper()} ON {table} FOR EACH ROW {when[act]}{refuse}"
            for act in ("update", "delete")
        ]
        return [function, *rows, f"CREATE TRIGGER {table}_no_truncate BEFORE TRUNCATE ON {table} {refuse}"]
    return [
        f"CREATE TRIGGER {table}_no_{act} BEFORE {act.upper()} ON {table} {when[act]}"
        f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
        for act in ("update", "delete")
    ]
