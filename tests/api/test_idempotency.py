"""Idempotency-Key: a repeated POST answers what the first one answered, and does nothing twice."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.core.management import call_command
from django.utils import timezone

from deletion_service.api.idempotency import IN_FLIGHT_FOR, KEPT_FOR
from deletion_service.api.models import IdempotencyRecord
from deletion_service.requests.models import ErasureRequest
from tests.cast import ALICE, BOB
from tests.doors import Machine

pytestmark = pytest.mark.django_db
BODY: dict[str, Any] = {"identifiers": [{"type": "email", "value": ALICE.value}]}
OTHER: dict[str, Any] = {"identifiers": [{"type": "email", "value": BOB.value}]}


def test_a_repeated_post_gets_the_first_answer_with_its_location_and_opens_nothing(sender: Machine) -> None:
    first = sender.post("/v1/requests", BODY, key="k-1")
    again = sender.post("/v1/requests", BODY, key="k-1")
    assert (again.status_code, again.json()) == (first.status_code, first.json())
    assert again.headers["Location"] == first.headers["Location"]
    assert again.headers["Idempotency-Replayed"] == "true"
    assert ErasureRequest.objects.count() == 1


def test_another_spelling_of_the_same_body_is_the_same_request(sender: Machine) -> None:
    sender.post("/v1/requests", b'{"identifiers":[{"type":"email","value":"a@b.example"}],"regime":"gdpr"}', key="k-1")
    again = sender.post(
        "/v1/requests", b'{"regime" : "gdpr", "identifiers": [{"value":"a@b.example","type":"email"}]}', key="k-1"
    )
    assert again.status_code == 201
    assert ErasureRequest.objects.count() == 1


def test_a_key_used_again_with_another_body_is_refused(sender: Machine) -> None:
    sender.post("/v1/requests", BODY, key="k-1")
    again = sender.post("/v1/requests", OTHER, key="k-1")
    assert (again.status_code, again.json()["code"]) == (422, "idempotency_key_reused")
    assert ErasureRequest.objects.count() == 1


def test_a_key_used_again_for_another_operation_is_refused(sender: Machine) -> None:
    location = sender.post("/v1/requests", BODY, key="k-1").headers["Location"]
    assert sender.post(f"{location}/withdraw", key="k-1").status_code == 422


@pytest.mark.parametrize("key", ["", " ", "a" * 256, "clé"])
def test_a_missing_or_malformed_key_is_refused(sender: Machine, key: str) -> None:
    answer = sender.post("/v1/requests", BODY, key=key)
    assert (answer.status_code, answer.json()["code"]) == (400, "idempotency_key_missing")
    assert not ErasureRequest.objects.exists()


def test_two_machines_may_use_the_same_key(sender: Machine) -> None:
    other = Machine("requests:write")
    assert (
        sender.post("/v1/requests", BODY, key="k-1").json()["id"]
        != other.post("/v1/requests", BODY, key="k-1").json()["id"]
    )


def test_while_the_first_is_in_flight_a_repetition_waits(sender: Machine) -> None:
    sender.post("/v1/requests", BODY, key="k-1")
    IdempotencyRecord.objects.update(status_code=None, body=None)
    answer = sender.post("/v1/requests", BODY, key="k-1")
    assert (answer.status_code, answer.json()["code"]) == (409, "request_in_flight")
    assert answer.headers["Retry-After"] == "2"


def test_a_claim_that_a_crash_left_behind_is_taken_over_after_a_minute(sender: Machine) -> None:
    sender.post("/v1/requests", BODY, key="k-1")
    ErasureRequest.objects.update(upstream_id="of-the-first")
    IdempotencyRecord.objects.update(status_code=None, body=None, created_at=timezone.now() - IN_FLIGHT_FOR)
    assert sender.post("/v1/requests", BODY, key="k-1").status_code == 201
    assert ErasureRequest.objects.count() == 2


def test_a_refused_body_leaves_the_key_free(sender: Machine) -> None:
    assert sender.post("/v1/requests", {}, key="k-1").status_code == 422
    assert not IdempotencyRecord.objects.exists()
    assert sender.post("/v1/requests", BODY, key="k-1").status_code == 201


def test_a_crash_inside_the_act_leaves_neither_request_nor_answer(sender: Machine, monkeypatch: Any) -> None:
    def crash(*_: Any, **__: Any) -> None:
        raise RuntimeError("killed")

    monkeypatch.setattr("deletion_service.api.idempotency._store", crash)
    assert sender.post("/v1/requests", BODY, key="k-1").status_code == 500
    assert not ErasureRequest.objects.exists()
    assert not IdempotencyRecord.objects.exists()


def test_the_stored_answer_can_be_read_with_the_callers_key_only(sender: Machine) -> None:
    nonce = sender.post("/v1/requests", BODY, key="k-1").json()["subject_nonce"]
    row = IdempotencyRecord.objects.get()
    stored = f"{row.body} {row.key_sha256} {row.request_sha256} {row.location}"
    assert nonce not in stored
    assert "subject_nonce" not in stored
    assert "k-1" not in stored


def test_answers_are_forgotten_after_three_days(sender: Machine) -> None:
    sender.post("/v1/requests", BODY, key="old")
    IdempotencyRecord.objects.update(created_at=timezone.now() - KEPT_FOR - timedelta(seconds=1))
    sender.post("/v1/requests", BODY, key="new")
    call_command("purge_idempotency", verbosity=0, stdout=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    assert IdempotencyRecord.objects.count() == 1
