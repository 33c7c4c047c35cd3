"""POST and GET /v1/requests: instructions from machines."""

from __future__ import annotations

from typing import Any

import pytest

from deletion_service.requests.models import ErasureRequest
from deletion_service.targets.models import Job
from tests.cast import ALICE
from tests.doors import Machine, codes_of
from tests.world import make_model

pytestmark = pytest.mark.django_db
BODY: dict[str, Any] = {"identifiers": [{"type": "email", "value": ALICE.value}], "upstream_id": "case-1"}


def test_an_instruction_opens_a_request_and_owes_the_search(sender: Machine) -> None:
    make_model()
    answer = sender.post("/v1/requests", {**BODY, "models": ["assistant"]})
    assert answer.status_code == 201
    shown = answer.json()
    assert answer.headers["Location"] == f"/v1/requests/{shown['id']}"
    assert (shown["capacity"], shown["status"], shown["upstream_id"]) == ("processor", "locating", "case-1")
    assert len(bytes.fromhex(shown["subject_nonce"])) == 32
    assert Job.objects.get().kind == "locate"


def test_what_was_sent_is_not_sent_back(sender: Machine) -> None:
    created = sender.post("/v1/requests", {**BODY, "statement": "I lived at 48 Brackenfell Lane"})
    shown = sender.get(created.headers["Location"])
    for answer in (created, shown):
        assert b"Brackenfell" not in answer.content
        assert ALICE.value.encode() not in answer.content


def test_the_senders_due_date_is_taken_over(sender: Machine) -> None:
    assert sender.post("/v1/requests", {**BODY, "due_on": "2099-03-01"}).json()["due_on"] == "2099-03-01"


def test_an_unknown_model_is_refused_by_its_place_and_nothing_is_opened(sender: Machine) -> None:
    answer = sender.post("/v1/requests", {**BODY, "models": ["no-such-model"]})
    assert (answer.status_code, answer.json()["code"]) == (422, "model_unknown")
    assert codes_of(answer.json()) == [("/models/0", "model_unknown")]
    assert not ErasureRequest.objects.exists()


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"identifiers": []}, "/identifiers"),
        ({"identifiers": "alice"}, "/identifiers"),
        ({"identifiers": [{"type": "email"}]}, "/identifiers/0/value"),
        ({"identifiers": [{"type": "email", "value": 7}]}, "/identifiers/0/value"),
        ({"identifiers": [{"type": "email", "value": ["a"]}]}, "/identifiers/0/value"),
        ({"identifiers": [{"type": "passport", "value": "x"}]}, "/identifiers/0/type"),
        ({"identifiers": [{"type": "email", "value": "not an address"}]}, "/identifiers/0/value"),
        ({"identifiers": [{"type": "name", "value": "x" * 321}]}, "/identifiers/0/value"),
        ({"identifiers": [{"type": "name", "value": "a\u0000b"}]}, "/identifiers/0/value"),
        ({"identifiers": [{"type": "name", "value": "Alice"}] * 21}, "/identifiers"),
        ({"statement": {"text": "x"}}, "/statement"),
        ({"statement": "x" * 20_001}, "/statement"),
        ({"models": "assistant"}, "/models"),
        ({"models": [None]}, "/models/0"),
        ({"regime": "martian"}, "/regime"),
        ({"due_on": "tomorrow"}, "/due_on"),
        ({"due_on": 20261120}, "/due_on"),
        ({"due_on": "2001-01-01"}, "/due_on"),
        ({"upstream_id": "a person's name"}, "/upstream_id"),
        ({"upstream_id": "x" * 65}, "/upstream_id"),
    ],
)
def test_a_member_that_does_not_fit_is_named_by_pointer(sender: Machine, change: dict[str, Any], pointer: str) -> None:
    answer = sender.post("/v1/requests", {**BODY, **change})
    assert answer.status_code == 422
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert pointer in [row["pointer"] for row in answer.json()["errors"]]
    assert not ErasureRequest.objects.exists()


@pytest.mark.parametrize("extra", [{"capacity": "controller"}, {"ALICE": 1}])
def test_an_unknown_member_is_refused(sender: Machine, extra: dict[str, Any]) -> None:
    answer = sender.post("/v1/requests", {**BODY, **extra})
    assert (answer.status_code, codes_of(answer.json())) == (422, [("", "unknown_member")])


@pytest.mark.parametrize("body", [b"[]", b'"text"', b"null", b"7"])
def test_a_body_that_is_no_object_is_refused(sender: Machine, body: bytes) -> None:
    assert sender.post("/v1/requests", body).status_code == 422


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"\xff\xfe",
        b'{"statement": NaN}',
        b'{"statement": "a", "statement": "b"}',
        b'{"statement": "\\ud800"}',
        b"[" * 100_000,
        b"[" * 20 + b"]" * 20,
        b'{"due_on": ' + b"9" * 5_000 + b"}",
    ],
    ids=["cut", "not utf-8", "nan", "twice", "surrogate", "endless", "deep", "huge number"],
)
def test_a_malformed_body_is_refused_before_anything_is_read_from_it(sender: Machine, body: bytes) -> None:
    answer = sender.post("/v1/requests", body)
    assert answer.status_code == 400
    assert answer.json()["code"] == "parse_error"


def test_a_huge_body_is_refused(sender: Machine) -> None:
    answer = sender.post("/v1/requests", b'{"statement": "' + b"x" * (1 << 20) + b'"}')
    assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")


def test_only_json_is_taken(sender: Machine) -> None:
    headers = {"Authorization": f"Bearer {sender.secret}", "Idempotency-Key": "k"}
    answer = sender.client.post("/v1/requests", {"a": "b"}, headers=headers)
    assert answer.status_code == 415


def test_another_machine_sees_neither_the_request_nor_that_it_exists(sender: Machine) -> None:
    location = sender.post("/v1/requests", BODY).headers["Location"]
    mallory = Machine("requests:read", "requests:write", "targets:read")
    foreign, absent = mallory.get(location), mallory.get("/v1/requests/req_01kexample0000000000000000")
    assert foreign.status_code == absent.status_code == 404
    assert foreign.json()["detail"] == absent.json()["detail"]
    assert mallory.get("/v1/requests").json()["items"] == []
    assert mallory.post(f"{location}/withdraw").status_code == 404
    assert mallory.get("/v1/targets").json()["items"] == []
    assert mallory.get("/v1/jobs").json()["items"] == []


def test_the_same_upstream_id_is_taken_once_for_ever(sender: Machine) -> None:
    assert sender.post("/v1/requests", BODY).status_code == 201
    again = sender.post("/v1/requests", BODY)
    assert (again.status_code, codes_of(again.json())) == (422, [("/upstream_id", "invalid_input")])
    assert ErasureRequest.objects.count() == 1


def test_a_list_comes_in_pages_newest_first(sender: Machine) -> None:
    made = [sender.post("/v1/requests", {**BODY, "upstream_id": f"case-{n}"}).json()["id"] for n in range(5)]
    seen, cursor = [], ""
    while cursor is not None:
        page = sender.get(f"/v1/requests?limit=2{'&cursor=' + cursor if cursor else ''}").json()
        seen += [row["id"] for row in page["items"]]
        cursor = page["next_cursor"]
    assert seen == sorted(made, reverse=True)


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=abc", "limit=201", "cursor=xyz", "cursor=AAAA", "limit=9" + "9" * 99]
)
def test_a_bad_page_is_refused(sender: Machine, query: str) -> None:
    assert sender.get(f"/v1/requests?{query}").status_code == 422


def test_the_sender_withdraws_its_own_instruction(sender: Machine) -> None:
    location = sender.post("/v1/requests", BODY).headers["Location"]
    answer = sender.post(f"{location}/withdraw")
    assert (answer.status_code, answer.json()["status"]) == (200, "withdrawn")
    again = sender.post(f"{location}/withdraw")
    assert (again.status_code, again.json()["code"]) == (409, "illegal_transition")


def test_an_edit_based_on_an_older_state_is_refused(sender: Machine) -> None:
    location = sender.post("/v1/requests", BODY).headers["Location"]
    seen = sender.get(location).headers["ETag"]
    ErasureRequest.objects.update(attempt=7)
    stale = sender.post(f"{location}/withdraw", **{"If-Match": seen})
    assert (stale.status_code, stale.json()["code"]) == (412, "changed_meanwhile")
    assert ErasureRequest.objects.get().status == "locating"
    fresh = sender.post(f"{location}/withdraw", **{"If-Match": sender.get(location).headers["ETag"]})
    assert fresh.status_code == 200
