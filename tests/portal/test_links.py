"""Mailed links: confirm, receipt, status, withdraw. A link that does not work tells nothing."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.test import Client
from django.utils import timezone

from deletion_service.requests.identity import identity_token, status_token, subject_nonce
from deletion_service.requests.intake import commitment, open_request
from deletion_service.requests.models import ErasureRequest, IdentityCheck
from tests.cast import ALICE, application
from workers.reconcile import reconcile

pytestmark = pytest.mark.django_db


@pytest.fixture
def asked(client: Client) -> ErasureRequest:
    """Alice has asked and not confirmed yet."""
    return open_request(application(statement="I lived at 48 Brackenfell Lane"), actor="subject").request


def confirm_link(request: ErasureRequest) -> str:
    return f"/confirm/{request.receipt}/{identity_token(request.identity_check)}"


def status_link(request: ErasureRequest) -> str:
    return f"/status/{request.receipt}/{status_token(request)}"


def test_looking_at_the_link_confirms_nothing_so_that_link_scanners_do_no_harm(
    client: Client, asked: ErasureRequest
) -> None:
    for _ in range(2):
        assert client.get(confirm_link(asked)).status_code == 200
    assert client.head(confirm_link(asked)).status_code == 200
    asked.refresh_from_db()
    assert asked.status == "awaiting_verification"


def test_pressing_the_button_confirms_and_leads_to_the_receipt(client: Client, asked: ErasureRequest) -> None:
    answer = client.post(confirm_link(asked))
    asked.refresh_from_db()
    assert asked.status == "in_review"
    page = client.get(answer.headers["Location"]).content.decode()
    nonce = subject_nonce(asked)
    assert nonce is not None
    assert nonce in page.replace(" ", "")
    assert asked.subject.commitment_sha256 == commitment(bytes.fromhex(nonce), [ALICE])


def test_the_proof_code_is_shown_until_its_owner_says_that_they_have_it_and_never_again(
    client: Client, asked: ErasureRequest
) -> None:
    receipt = client.post(confirm_link(asked)).headers["Location"]
    nonce = str(subject_nonce(asked))
    assert "Keep your proof code" in client.get(status_link(asked)).content.decode()
    client.post(receipt)
    assert subject_nonce(asked) is None
    assert nonce not in client.get(receipt).content.decode().replace(" ", "")
    assert "Keep your proof code" not in client.get(status_link(asked)).content.decode()
    assert client.post(receipt).status_code == 302


@pytest.mark.parametrize("fault", ["used", "expired", "wrong token", "unknown receipt", "closed meanwhile"])
def test_every_link_that_does_not_work_gets_the_same_page(client: Client, asked: ErasureRequest, fault: str) -> None:
    link = confirm_link(asked)
    if fault == "used":
        client.post(link)
    if fault == "expired":
        IdentityCheck.objects.update(expires_at=timezone.now() - timedelta(seconds=1))
    if fault == "wrong token":
        link = f"/confirm/{asked.receipt}/{'0' * 64}"
    if fault == "unknown receipt":
        link = f"/confirm/LT-AAAA-AAAA-AAAA/{'0' * 64}"
    if fault == "closed meanwhile":
        Client().post(f"{status_link(asked)}/withdraw")
    neutral = client.get("/status/LT-ZZZZ-ZZZZ-ZZZZ/0")
    for answer in (client.get(link), client.post(link)):
        assert answer.status_code == 410
        assert answer.content == neutral.content


def test_a_status_page_says_where_the_request_stands_and_shows_nothing_that_was_told(
    client: Client, asked: ErasureRequest
) -> None:
    reconcile()
    page = client.get(status_link(asked)).content.decode()
    for words in (asked.receipt, "Received", "We received your request", "Withdraw the request"):
        assert words in page
    for told in ("Brackenfell", ALICE.value, "alice"):
        assert told not in page


def test_withdrawing_asks_once_more_and_then_ends_the_request(client: Client, asked: ErasureRequest) -> None:
    link = f"{status_link(asked)}/withdraw"
    assert client.get(link).status_code == 200
    asked.refresh_from_db()
    assert asked.status == "awaiting_verification"
    client.post(link)
    asked.refresh_from_db()
    assert (asked.status, asked.outcome) == ("withdrawn", "withdrawn")
    assert "no longer be withdrawn" in client.get(link).content.decode()
    assert client.post(link).status_code == 302


def test_the_status_page_does_not_open_with_the_confirmation_link(client: Client, asked: ErasureRequest) -> None:
    token = identity_token(asked.identity_check)
    assert client.get(f"/status/{asked.receipt}/{token}").status_code == 410
    assert client.get(f"/receipt/{asked.receipt}/{token}").status_code == 410


def test_a_person_who_hammers_a_status_page_is_slowed_down(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deletion_service.portal.limits._AddressThrottle.THROTTLE_RATES", {"status": "3/min"})
    codes = [client.get(f"/status/LT-AAAA-AAAA-AAAA/{n}").status_code for n in range(4)]
    assert codes == [410, 410, 410, 429]
