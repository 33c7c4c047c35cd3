"""Problem documents: one form for every failure, and nothing in them that was sent."""

from __future__ import annotations

from typing import Any

import pytest
from django.test import Client

from deletion_service.access.models import ApiKey
from tests.doors import Machine

pytestmark = pytest.mark.django_db
MEMBERS = {"type", "title", "status", "detail", "instance", "code", "errors"}


def test_every_failure_is_a_problem_document(sender: Machine) -> None:
    answers = [
        sender.get("/v1/requests/req_unknown"),
        sender.get("/v1/nowhere"),
        sender.get("/v1/requests?limit=0"),
        sender.post("/v1/requests", {}),
        sender.post("/v1/requests", b"{"),
        sender.post("/v1/requests", {}, key=""),
        sender.client.put("/v1/requests", headers={"Authorization": f"Bearer {sender.secret}"}),
        Client().get("/v1/requests"),
        Machine("targets:read").get("/v1/requests"),
    ]
    for answer in answers:
        assert answer.headers["Content-Type"] == "application/problem+json"
        document = answer.json()
        assert set(document) == MEMBERS
        assert document["status"] == answer.status_code
        assert document["type"] == f"https://lethe.example/problems/{document['code']}"
        assert document["detail"]
    assert [a.status_code for a in answers] == [404, 404, 422, 422, 400, 400, 405, 401, 403]


SECRET = "Brackenfell-48"


@pytest.mark.parametrize(
    "body",
    [
        {"identifiers": [{"type": SECRET, "value": "x"}]},
        {"identifiers": [{"type": "email", "value": SECRET}]},
        {"identifiers": SECRET},
        {"regime": SECRET, "identifiers": [{"type": "name", "value": "x"}]},
        {"models": [SECRET], "identifiers": [{"type": "name", "value": "x"}]},
        {"due_on": SECRET, "identifiers": [{"type": "name", "value": "x"}]},
        {"upstream_id": f" {SECRET}", "identifiers": [{"type": "name", "value": "x"}]},
        {SECRET: 1, "identifiers": [{"type": "name", "value": "x"}]},
    ],
)
def test_a_problem_never_repeats_a_value_that_was_sent(sender: Machine, body: dict[str, Any]) -> None:
    answer = sender.post("/v1/requests", body)
    assert answer.status_code == 422
    assert SECRET not in answer.content.decode()


def test_an_unexpected_failure_says_nothing_about_its_cause(sender: Machine, monkeypatch: Any) -> None:
    def crash(*_: Any) -> None:
        raise RuntimeError(SECRET)

    monkeypatch.setattr("deletion_service.api.views.requests.page_of", crash)
    answer = sender.get("/v1/requests")
    assert (answer.status_code, answer.json()["code"]) == (500, "internal_error")
    assert SECRET not in answer.content.decode()


def test_a_wrong_key_and_no_key_get_the_same_challenge() -> None:
    for headers in (
        {},
        {"Authorization": "Bearer abc.def"},
        {"Authorization": "Bearer"},
        {"Authorization": "Basic eA=="},
    ):
        answer = Client().get("/v1/requests", headers=headers)
        assert answer.status_code == 401
        assert answer.headers["WWW-Authenticate"] == 'Bearer realm="lethe"'


def test_an_expired_or_revoked_key_opens_nothing(sender: Machine) -> None:
    from deletion_service.access.keys import revoke_key

    expired = Machine("requests:read", valid_days=-1)
    assert expired.get("/v1/requests").status_code == 401
    revoke_key(sender.key)
    assert sender.get("/v1/requests").status_code == 401


def test_a_key_works_from_its_networks_only() -> None:
    assert Machine("requests:read", allowed_networks=["127.0.0.0/8"]).get("/v1/requests").status_code == 200
    assert Machine("requests:read", allowed_networks=["192.0.2.0/24"]).get("/v1/requests").status_code == 401


def test_the_use_of_a_key_is_noted(sender: Machine) -> None:
    sender.get("/v1/requests")
    assert ApiKey.objects.get(pk=sender.key.pk).last_used_at is not None


def test_a_caller_without_patience_is_told_how_long_to_wait(sender: Machine, monkeypatch: Any) -> None:
    monkeypatch.setattr("deletion_service.api.throttles.PrincipalThrottle.THROTTLE_RATES", {"principal": "2/min"})
    assert [sender.get("/v1/requests").status_code for _ in range(3)] == [200, 200, 429]
    answer = sender.get("/v1/requests")
    assert 0 < int(answer.headers["Retry-After"]) <= 61
    assert Machine("requests:read").get("/v1/requests").status_code == 200


def test_strangers_have_a_limit_of_their_own(sender: Machine, monkeypatch: Any) -> None:
    monkeypatch.setattr("deletion_service.api.throttles.AnonymousThrottle.THROTTLE_RATES", {"anonymous": "1/min"})
    assert Client().get("/.well-known/erasure-issuer.json").status_code == 200
    assert Client().get("/.well-known/erasure-issuer.json").status_code == 429
    assert sender.get("/v1/requests").status_code == 200
