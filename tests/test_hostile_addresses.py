"""Addresses and bodies that nobody was given: NUL, endless names, numbers beyond any row. Every door says no calmly.

On PostgreSQL several of these fail inside a query where SQLite finds nothing; the answers must not differ.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from django.core.cache import cache
from django.test import Client
from django.urls import URLPattern, URLResolver, get_resolver

from deletion_service.requests.models import ErasureRequest
from tests.cast import ALICE, second_reviewer
from tests.doors import ALL_READING, Machine, signed_in

pytestmark = [pytest.mark.django_db, pytest.mark.slow]
TEXTS = (
    "%00",
    "a%00b",
    "x" * 3000,
    "%ff%fe",
    "%ed%a0%80",
    "..%2f..%2fetc%2fpasswd",
    "';DROP TABLE x;--",
    "%F0%9F%92%A9",
)
NUMBERS = ("0", "2147483648", "9223372036854775808", "9" * 60, "%D9%A3")
CALM = {302, 400, 403, 404, 405, 409, 410, 422}


@pytest.fixture(autouse=True)
def _no_limits(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A test knocks more often than a stranger may."""
    cache.clear()
    plenty = dict.fromkeys(("ask", "portal", "status"), "9999/min")
    monkeypatch.setattr("deletion_service.portal.limits._AddressThrottle.THROTTLE_RATES", plenty)
    yield
    cache.clear()


def routes() -> Iterator[str]:
    """Every address of ours with a part that a stranger chooses."""

    def walk(resolver: URLResolver, prefix: str) -> Iterator[str]:
        for entry in resolver.url_patterns:
            route = f"{prefix}{entry.pattern}"
            if isinstance(entry, URLResolver):
                yield from walk(entry, route)
            elif isinstance(entry, URLPattern) and entry.callback.__module__.startswith("deletion_service"):
                yield route

    return (route for route in walk(get_resolver(), "") if "<" in route)


def addresses(route: str) -> Iterator[str]:
    for text in TEXTS:
        yield "/" + re.sub(r"<\w+:\w+>", text, re.sub(r"<int:\w+>", "1", route))
    if "<int:" in route:
        for number in NUMBERS:
            yield "/" + re.sub(r"<\w+:\w+>", "x", re.sub(r"<int:\w+>", number, route))


@pytest.fixture
def machine() -> Machine:
    """A machine that may do everything that needs no person."""
    return Machine(*ALL_READING, "requests:write", "registry:write", "approve")


def test_the_list_of_addresses_is_not_empty() -> None:
    assert len(list(routes())) > 30


@pytest.mark.parametrize("route", sorted(routes()))
def test_an_address_that_names_nothing_is_told_so_and_breaks_nothing(route: str, machine: Machine) -> None:
    browser = signed_in(second_reviewer())
    browser.raise_request_exception = False
    for address in addresses(route):
        doors: list[Any] = [browser, machine if route.startswith("v1/") else Client(raise_request_exception=False)]
        for door in doors:
            for answer in (door.get(address), door.post(address)):
                assert answer.status_code in CALM, address[:80]
                if route.startswith("v1/") and answer.status_code != 302:
                    assert answer.headers["Content-Type"] == "application/problem+json", address[:80]


@pytest.mark.parametrize(
    "address",
    [
        "/v1/requests?cursor=%00",
        "/v1/requests?limit=%00",
        "/v1/targets?request=%00",
        "/v1/jobs?request=%00",
        "/v1/jobs?request=" + "x" * 3000,
        "/v1/targets?request=%F0%9F%92%A9",
    ],
)
def test_a_query_that_names_nothing_is_told_so(address: str, machine: Machine) -> None:
    assert machine.get(address).status_code in {200, 400, 422}


@pytest.mark.parametrize("value", ["%00", "x" * 3000, "-1", "9" * 60, "%F0%9F%92%A9", "%ff"])
@pytest.mark.parametrize(
    "page", ["/console/?status={}", "/console/?regime={}", "/console/?flag={}", "/console/?page={}"]
)
def test_a_filter_that_names_nothing_shows_a_page_or_says_so(page: str, value: str) -> None:
    assert signed_in(second_reviewer()).get(page.format(value)).status_code in {200, 400, 404, 422}


@pytest.mark.parametrize("place", ["statement", "upstream_id", "models", "identifiers", "regime", "due_on"])
@pytest.mark.parametrize("text", ["\0", "a\0b", "\u202e", "\U0010ffff", "x" * 500_000])
def test_a_body_with_text_that_no_column_holds_opens_nothing_half(machine: Machine, place: str, text: str) -> None:
    body: dict[str, Any] = {"identifiers": [{"type": "email", "value": ALICE.value}]}
    body[place] = [text] if place == "models" else text
    if place == "identifiers":
        body[place] = [{"type": "name", "value": text}]
    answer = Machine("requests:write").post("/v1/requests", json.dumps(body))
    assert answer.status_code in {201, 422}
    assert ErasureRequest.objects.count() == (answer.status_code == 201)


@pytest.mark.parametrize("field", ["email", "name", "phone", "account", "statement", "model", "form_token", "website"])
@pytest.mark.parametrize("text", ["\0", "a\0b", "x" * 500_000])
def test_a_form_with_text_that_no_column_holds_opens_nothing(field: str, text: str) -> None:
    answer = Client().post("/ask", {"email": ALICE.value, "form_token": "", field: text})
    assert answer.status_code == 422
    assert not ErasureRequest.objects.exists()


@pytest.mark.parametrize(
    "content_type", ["application/json", "text/plain", "multipart/form-data", "multipart/form-data; boundary=x", ""]
)
@pytest.mark.parametrize("path", ["/ask", "/check"])
def test_a_body_of_another_type_is_a_form_without_fields(path: str, content_type: str) -> None:
    answer = Client(raise_request_exception=False).post(path, b'{"email": "a"}', content_type=content_type)
    assert answer.status_code in {400, 422}
    assert not ErasureRequest.objects.exists()


@pytest.mark.parametrize("path", ["/ask", "/check"])
def test_a_huge_body_is_refused_before_it_is_read_into_a_form(path: str, settings: Any) -> None:
    settings.DATA_UPLOAD_MAX_MEMORY_SIZE = 1000
    client = Client(raise_request_exception=False)
    assert client.post(path, {"email": "x" * 2000, "certificate": "x" * 2000}).status_code == 400
    assert client.post(path, {f"field{n}": "x" for n in range(2000)}).status_code == 400
    assert not ErasureRequest.objects.exists()


@pytest.mark.parametrize(
    "body", [{}, [], None, 7, "x", {"certificate": None}, {"certificate": 7}, {"certificate": "\0"}]
)
def test_the_public_check_refuses_what_is_no_certificate(body: Any) -> None:
    answer = Client(raise_request_exception=False).post(
        "/v1/certificates/verify", json.dumps(body), content_type="application/json"
    )
    assert answer.status_code in {200, 400, 422}
    if answer.status_code == 200:
        assert answer.json()["ok"] is False
