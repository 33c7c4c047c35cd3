"""/ask: the form, its mistakes, and what a second click does."""

from __future__ import annotations

from typing import Any

import pytest
from bs4 import BeautifulSoup
from django.core import mail
from django.test import Client

from deletion_service.requests.models import ErasureRequest
from tests.cast import ALICE
from tests.doors import links_in_mail
from tests.world import make_model
from workers.reconcile import reconcile

pytestmark = pytest.mark.django_db


def form_token(page: Any) -> str:
    return str(BeautifulSoup(page.content, "html.parser").find("input", {"name": "form_token"})["value"])


def ask(client: Client, **fields: str) -> Any:
    """Open the form and send it."""
    return client.post("/ask", {"form_token": form_token(client.get("/ask")), **fields})


def test_asking_gives_a_number_and_a_date_and_a_mail_gives_the_rest(client: Client) -> None:
    answer = ask(client, email=ALICE.value, statement="I lived at 48 Brackenfell Lane")
    request = ErasureRequest.objects.get()
    page = client.get(answer.headers["Location"]).content.decode()
    assert request.receipt in page
    assert request.clocks.get().due_on.strftime("%-d %B %Y") in page
    assert "/status/" not in page
    assert mail.outbox == []
    reconcile()
    assert [path.split("/")[1] for path in links_in_mail(ALICE.value)] == ["confirm", "status"]


def test_only_the_address_is_needed_and_everything_else_is_handed_over_when_given(client: Client) -> None:
    make_model()
    given = {"name": "Alice Korvel", "phone": "+49 30 1234", "account": "K-17", "model": "assistant"}
    assert ask(client, email=ALICE.value, **given).status_code == 302
    request = ErasureRequest.objects.get()
    assert (request.capacity, request.regime, request.model_names) == ("controller", "gdpr", ["assistant"])


def test_the_regime_is_the_deployments_own(client: Client, settings: Any) -> None:
    settings.DEFAULT_REGIME = "ccpa"
    ask(client, email=ALICE.value)
    assert {clock.kind for clock in ErasureRequest.objects.get().clocks.all()} == {"ack", "respond"}


def test_the_same_form_sent_twice_opens_one_request(client: Client) -> None:
    token = form_token(client.get("/ask"))
    first = client.post("/ask", {"form_token": token, "email": ALICE.value})
    second = client.post("/ask", {"form_token": token, "email": ALICE.value})
    assert (first.status_code, second.status_code) == (302, 302)
    assert client.get(first.headers["Location"]).content == client.get(second.headers["Location"]).content
    assert ErasureRequest.objects.count() == 1


def test_a_form_sent_again_with_other_details_is_not_taken_for_the_first(client: Client) -> None:
    token = form_token(client.get("/ask"))
    client.post("/ask", {"form_token": token, "email": "typo@mail.example"})
    second = client.post("/ask", {"form_token": token, "email": ALICE.value})
    assert second.status_code == 422
    assert "sent before with other details" in second.content.decode()
    assert form_token(second) != token
    assert client.post("/ask", {"form_token": form_token(second), "email": ALICE.value}).status_code == 302
    assert ErasureRequest.objects.count() == 2


@pytest.mark.parametrize("token", ["", "req_01kexample0000000000000000", "req_01kexample0000000000000000:forged"])
def test_a_form_without_our_token_is_asked_for_once_more(client: Client, token: str) -> None:
    answer = client.post("/ask", {"form_token": token, "email": ALICE.value})
    assert answer.status_code == 422
    assert ALICE.value in answer.content.decode()
    assert client.post("/ask", {"form_token": form_token(answer), "email": ALICE.value}).status_code == 302


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({}, "email"),
        ({"email": "alice"}, "email"),
        ({"email": ALICE.value, "name": "A" * 400}, "name"),
        ({"email": ALICE.value, "name": "A\x01"}, "name"),
        ({"email": ALICE.value, "account": "\x07"}, "account"),
        ({"email": ALICE.value, "phone": "no digits"}, "phone"),
        ({"email": ALICE.value, "statement": "x" * 20_001}, "statement"),
        ({"email": ALICE.value, "model": "no-such-model"}, "model"),
        ({"email": ALICE.value, "website": "https://spam.example"}, "website"),
    ],
)
def test_a_mistake_is_named_in_a_summary_that_leads_to_its_field(
    client: Client, fields: dict[str, str], field: str
) -> None:
    answer = ask(client, **fields)
    assert answer.status_code == 422
    page = BeautifulSoup(answer.content, "html.parser")
    summary = page.find(role="alert")
    assert summary is not None
    assert [a["href"] for a in summary.find_all("a")] == [f"#id_{field}"]
    wrong = page.find(id=f"id_{field}")
    assert wrong is not None
    assert wrong["aria-invalid"] == "true"
    assert page.find(id=f"id_{field}_error") is not None
    assert f"id_{field}_error" in wrong["aria-describedby"]
    assert str(page.title.string).startswith("Error: ")
    assert not ErasureRequest.objects.exists()


def test_nothing_typed_is_lost_when_a_form_has_a_mistake(client: Client) -> None:
    answer = ask(client, email="alice", name="Alice Korvel", statement="My old address")
    page = answer.content.decode()
    for value in ('value="alice"', "Alice Korvel", "My old address"):
        assert value in page


def test_every_field_has_a_label_and_works_without_a_script(client: Client) -> None:
    page = BeautifulSoup(client.get("/ask").content, "html.parser")
    for field in page.find_all(["input", "select", "textarea"]):
        if field.get("type") != "hidden":
            assert page.find("label", {"for": field["id"]}) is not None
    assert page.find("script") is None
    assert page.find(style=True) is None


def test_a_stranger_can_ask_only_so_often(client: Client, monkeypatch: Any) -> None:
    monkeypatch.setattr("deletion_service.portal.limits._AddressThrottle.THROTTLE_RATES", {"ask": "2/hour"})
    assert [ask(client, email=f"a{n}@mail.example").status_code for n in range(3)] == [302, 302, 429]
    assert client.get("/ask").status_code == 200
    assert ErasureRequest.objects.count() == 2


def test_a_forged_acknowledgement_is_a_link_that_does_not_work(client: Client) -> None:
    ask(client, email=ALICE.value)
    pk = ErasureRequest.objects.get().pk
    assert client.get(f"/asked/{pk}").status_code == 410
    assert client.get(f"/asked/{pk}:forged").status_code == 410
