"""What happened stays as it was written: whoever tries, through the ORM or with SQL, is refused by the database."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.apps import apps
from django.core.exceptions import FieldDoesNotExist
from django.db import DatabaseError, connection, models, transaction

from deletion_service.audit.models import AuditEvent, AuditSeal, AuditSealEntry
from deletion_service.certificates.issuing import issue_certificate
from deletion_service.certificates.models import (
    Certificate,
    CertificateEvent,
    Evidence,
    EvidenceDecision,
    LogCheckpoint,
    LogEntry,
    Promotion,
    SignedRevocations,
    Sweep,
    VerdictPolicy,
)
from deletion_service.requests.models import DisposalEvent, ErasureRequest, RequestEvent
from deletion_service.targets.models import LedgerEntry, Sentinel, TargetEvent, UnlearningRun
from tests.cast import second_reviewer
from tests.flow.conftest import release, run_all_jobs
from tests.triggers import lifted_triggers
from tests.world import make_model
from workers.reconcile import reconcile

pytestmark = pytest.mark.django_db
APPEND_ONLY: tuple[type[models.Model], ...] = (
    AuditEvent,
    AuditSeal,
    AuditSealEntry,
    RequestEvent,
    DisposalEvent,
    TargetEvent,
    VerdictPolicy,
    Evidence,
    EvidenceDecision,
    CertificateEvent,
    LogEntry,
    LogCheckpoint,
    SignedRevocations,
    Sentinel,
    LedgerEntry,
    Sweep,
)
FROZEN: dict[type[models.Model], tuple[str, ...]] = {
    Certificate: (
        "target",
        "evidence",
        "decision",
        "verdict",
        "statement_sha256",
        "evidence_approver",
        "drafted_at",
    ),
    Promotion: (
        "model",
        "epoch",
        "target",
        "evidence",
        "decision",
        "from_version",
        "to_version",
        "decided_at",
    ),
    UnlearningRun: (
        "batch",
        "attempt",
        "method",
        "method_settings",
        "seed",
        "seed_fixed",
        "verification_seed_sha256",
        "policy_name",
        "policy_sha256",
    ),
}
GUARDED = (*APPEND_ONLY, *FROZEN)


@pytest.fixture
def written(case: Callable[..., ErasureRequest]) -> ErasureRequest:
    """A case brought to its end, so that every table has rows."""
    make_model(spike_ins=1)
    request = release(case(model=False))
    issue_certificate(Certificate.objects.get(), member=second_reviewer())
    run_all_jobs()
    reconcile()
    assert [model for model in GUARDED if not model._default_manager.exists()] == []
    return request


def table(model: type[models.Model]) -> str:
    return model._meta.db_table


def rows(model: type[models.Model]) -> list[Any]:
    return list(model._default_manager.order_by("pk").values())


def guarded_in_the_database() -> set[str]:
    """The tables whose rows a trigger keeps from being deleted."""
    with connection.cursor() as cursor:
        if connection.vendor == "sqlite":
            cursor.execute("SELECT tbl_name FROM sqlite_master WHERE type = 'trigger' AND name LIKE '%no_delete'")
        else:
            cursor.execute("SELECT tgrelid::regclass::text FROM pg_trigger WHERE tgname LIKE '%no_delete'")
        return {name for (name,) in cursor.fetchall()}


def test_every_table_that_calls_itself_append_only_is_guarded_and_tested_here() -> None:
    say_so = {model for model in apps.get_models() if "Append-only" in (model.__doc__ or "")}
    assert say_so <= set(APPEND_ONLY)
    assert guarded_in_the_database() == {table(model) for model in GUARDED}


def statements(model: type[models.Model]) -> Iterator[str]:
    """Ways in SQL to change or lose rows."""
    name, pk = table(model), model._meta.pk.column  # type: ignore[union-attr]  # every model has a key
    if model in APPEND_ONLY:
        for field in model._meta.concrete_fields:
            yield f'UPDATE {name} SET "{field.column}" = "{field.column}"'
        columns = ", ".join(f'"{field.column}"' for field in model._meta.concrete_fields)
        yield (
            f"INSERT INTO {name} ({columns}) SELECT {columns} FROM {name} WHERE true "
            f'ON CONFLICT ("{pk}") DO UPDATE SET "{pk}" = excluded."{pk}"'
        )
    yield f"DELETE FROM {name}"
    yield f'DELETE FROM {name} WHERE "{pk}" = (SELECT max("{pk}") FROM {name})'
    if connection.vendor == "sqlite":
        yield f"INSERT OR REPLACE INTO {name} SELECT * FROM {name}"
        yield f"REPLACE INTO {name} SELECT * FROM {name}"
    else:
        yield f"TRUNCATE {name} CASCADE"


def execute(statement: str) -> None:
    """Run a statement; PostgreSQL empties no table while checks of it are still due."""
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
        cursor.execute(statement)


def test_no_statement_changes_replaces_deletes_or_empties_what_happened(written: ErasureRequest) -> None:
    for model in GUARDED:
        before = rows(model)
        for statement in statements(model):
            # Rows that other rows point to would be refused for that alone; it is the trigger that must answer.
            with pytest.raises(DatabaseError, match="append-only"), transaction.atomic():
                execute(statement)
        assert rows(model) == before, table(model)


def test_emptying_what_the_events_point_to_does_not_empty_the_events(written: ErasureRequest) -> None:
    if connection.vendor == "sqlite":
        pytest.skip("SQLite has no TRUNCATE")
    for parent in ("requests_erasurerequest", "access_staffmember", "targets_trainedmodel"):
        with pytest.raises(DatabaseError, match="append-only"), transaction.atomic():
            execute(f"TRUNCATE {parent} CASCADE")
    assert RequestEvent.objects.exists()


def test_the_orm_is_refused_as_well(written: ErasureRequest) -> None:
    for model in APPEND_ONLY:
        before = rows(model)
        row = model._default_manager.latest("pk")
        acts: tuple[Callable[[], Any], ...] = (
            row.save,
            row.delete,
            model._default_manager.all().delete,
            lambda model=model: model._default_manager.filter(pk__isnull=False)._raw_delete("default"),  # type: ignore[misc]
            lambda model=model, row=row: model._default_manager.bulk_update(  # type: ignore[misc]
                [row], [next(f.name for f in model._meta.concrete_fields if not f.primary_key)]
            ),
        )
        for act in acts:
            with pytest.raises(DatabaseError), transaction.atomic():
                act()
        assert rows(model) == before, table(model)


def other(value: Any) -> Any:
    """A value of the same type that is another one."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, dict):
        return {**value, "kinder": 1}
    if isinstance(value, int):
        return value + 1
    return value.replace(year=2001) if hasattr(value, "replace") and not isinstance(value, str) else f"x{value[1:]}"


@pytest.mark.parametrize("model", FROZEN)
def test_what_a_row_was_written_with_stays_while_the_rest_of_it_moves_on(
    model: type[models.Model], written: ErasureRequest
) -> None:
    row = model._default_manager.get()
    for name in FROZEN[model]:
        field = model._meta.get_field(name)
        column = getattr(field, "attname", name)
        with pytest.raises(DatabaseError, match="append-only"), transaction.atomic():
            model._default_manager.filter(pk=row.pk).update(**{column: other(getattr(row, column))})
    model._default_manager.filter(pk=row.pk).update(status=row.status)  # type: ignore[attr-defined]  # both have one


@pytest.mark.parametrize(("model", "columns"), FROZEN.items())
def test_the_frozen_columns_exist(model: type[models.Model], columns: tuple[str, ...]) -> None:
    for name in columns:
        try:
            model._meta.get_field(name)
        except FieldDoesNotExist:
            pytest.fail(f"{model.__name__} has no {name}")


def test_the_triggers_come_back_after_they_were_lifted(written: ErasureRequest) -> None:
    with lifted_triggers():
        AuditEvent.objects.filter(pk=AuditEvent.objects.latest("pk").pk).update(actor="somebody")
    with pytest.raises(DatabaseError, match="append-only"), transaction.atomic():
        AuditEvent.objects.update(actor="somebody else")
