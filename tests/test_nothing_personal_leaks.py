"""Recognisable values go in through every door. Afterwards they are in no log and no table: audit, sessions, jobs..."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.apps import apps
from django.conf import settings
from django.core.cache import cache
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db import IntegrityError, connection
from django.test import Client
from django.utils.module_loading import import_string

from deletion_service.requests.codes import Ground
from deletion_service.requests.identity import identity_token, status_token
from deletion_service.requests.models import ErasureRequest
from deletion_service.targets.locate import start_search
from tests.cast import rhea, second_reviewer
from tests.doors import Machine, signed_in
from tests.flow.conftest import run_all_jobs
from tests.portal.test_ask import ask
from tests.world import make_model
from workers.reconcile import reconcile

pytestmark = pytest.mark.django_db
MARK = "zq7v"
EMAIL = f"person.{MARK}@mail.example"
NAME = f"Person {MARK}"
STATEMENT = f"I lived at {MARK} lane"


@pytest.fixture
def logged() -> Iterator[Callable[[], str]]:
    """Everything any logger says, in the form that reaches the log."""
    formatter = import_string("structlog.stdlib.ProcessorFormatter")(
        **{k: v for k, v in settings.LOGGING["formatters"]["json"].items() if k != "()"}
    )
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter)
    root, level = logging.getLogger(), logging.getLogger().level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    cache.clear()
    yield stream.getvalue
    root.removeHandler(handler)
    root.setLevel(level)
    cache.clear()


def tables() -> Iterator[tuple[str, str]]:
    """Every row of every table, as text, with the bytes decoded as far as they can be."""
    with connection.cursor() as cursor:
        for model in apps.get_models(include_auto_created=True):
            table = model._meta.db_table
            cursor.execute(f'SELECT * FROM "{table}"')
            for row in cursor.fetchall():
                yield table, " ".join(_text(value) for value in row)


def _text(value: Any) -> str:
    return bytes(value).decode("latin-1") if isinstance(value, bytes | memoryview) else str(value)


def knock_on_every_door() -> None:
    """Ask, send, search, check and sign in, rightly and wrongly, with recognisable values everywhere."""
    make_model()
    person = Client(raise_request_exception=False)
    ask(person, email=EMAIL, name=NAME, phone="0301234567", account=f"account-{MARK}", statement=STATEMENT)
    ask(person, email=f"{MARK} is no address", statement=STATEMENT)
    ask(person, email=EMAIL, website=MARK)
    person.post("/ask", {"email": EMAIL, "form_token": MARK})
    request = ErasureRequest.objects.get()
    reconcile()
    person.post(f"/confirm/{request.receipt}/{identity_token(request.identity_check)}")
    person.get(f"/status/{request.receipt}/{status_token(request)}")
    person.get(f"/status/{MARK}/{MARK}")
    person.get(f"/nowhere/{MARK}?q={MARK}")
    person.post("/check", {"certificate": SimpleUploadedFile(f"{MARK}.json", f'{{"payload": "{MARK}"}}'.encode())})
    person.post("/account/login/", {"login": EMAIL, "password": f"password-{MARK}"})
    machine = Machine("requests:write", "requests:read")
    body = {"identifiers": [{"type": "email", "value": EMAIL}, {"type": "name", "value": NAME}], "statement": STATEMENT}
    machine.post("/v1/requests", body, key=f"key-{MARK}")
    machine.post("/v1/requests", {**body, "statement": 7}, key=f"key-{MARK}")
    machine.post("/v1/requests", {**body, MARK: MARK})
    machine.post("/v1/requests", {**body, "models": [MARK]})
    machine.post("/v1/requests", f'{{"{MARK}"'.encode())
    machine.get(f"/v1/requests/{MARK}")
    machine.get(f"/v1/requests?cursor={MARK}")
    request.refresh_from_db()
    start_search(request, ground=Ground.CONSENT_WITHDRAWN, reviewer=rhea(), actor="staff:rhea")
    run_all_jobs()
    reviewer = signed_in(second_reviewer())
    reviewer.raise_request_exception = False
    reviewer.get(f"/console/cases/{request.pk}")
    reviewer.get(f"/console/?status={MARK}")
    reviewer.post(f"/console/cases/{request.pk}/do/refuse", {"refusal": MARK, "note": MARK, "seen": MARK})
    reconcile()


def test_values_from_every_door_are_in_no_log_and_in_no_table_in_the_clear(logged: Callable[[], str]) -> None:
    knock_on_every_door()
    request = ErasureRequest.objects.get(capacity="controller")
    rows = list(tables())
    assert {table for table, text in rows if MARK in text} == set()
    # What must be found shows that the search finds.
    assert {table for table, text in rows if request.pk in text} >= {"audit_auditevent", "requests_erasurerequest"}
    text = logged()
    assert "job_started" in text
    for secret in (MARK, status_token(request)):
        assert secret not in text


def test_a_failure_is_logged_by_route_and_place_without_its_message(
    logged: Callable[[], str], monkeypatch: Any
) -> None:
    def crash(*_: Any, **__: Any) -> None:
        raise IntegrityError(f"Key (email)=({EMAIL}) already exists")

    monkeypatch.setattr("deletion_service.portal.views.find_by_status_link", crash)
    client = Client(raise_request_exception=False)
    assert client.get(f"/status/{MARK}/secret-token").status_code == 500
    monkeypatch.setattr("deletion_service.api.views.requests.page_of", crash)
    assert Machine("requests:read").get(f"/v1/requests?cursor={MARK}").status_code == 500
    text = logged()
    assert MARK not in text
    assert "secret-token" not in text
    assert "status/<str:receipt>/<str:token>" in text
    assert "IntegrityError" in text
    assert "test_nothing_personal_leaks.py" in text
