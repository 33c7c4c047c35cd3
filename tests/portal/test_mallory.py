"""Mallory has her own mailbox and Alice's name and address. She learns nothing and erases nothing."""

from __future__ import annotations

import re

import pytest
from django.core import mail
from django.test import Client

from deletion_service.requests.codes import Ground
from deletion_service.requests.identity import identity_token, status_token
from deletion_service.requests.models import ErasureRequest
from deletion_service.targets.locate import close_nothing_found, start_search
from tests.cast import ALICE, ALICE_NAME, MALLORY, rhea
from tests.flow.conftest import run_all_jobs
from tests.portal.test_ask import ask
from tests.world import make_model
from workers.reconcile import reconcile

pytestmark = pytest.mark.django_db


def without_particulars(text: str, request: ErasureRequest) -> str:
    """What a page or mail says, without what differs between any two requests."""
    for own in (request.receipt, request.pk, status_token(request), identity_token(request.identity_check)):
        text = text.replace(own, "·")
    return re.sub(r'value="[^"]*"|The link works once, until .*|\b[0-9a-f]{64}\b', "·", text)


def seen_by_mallory(client: Client, name: str) -> list[str]:
    """Everything Mallory sees while she claims to be `name`, up to a reviewer's decision and after it."""
    mail.outbox.clear()
    seen = [client.get(ask(client, email=MALLORY.value, name=name).headers["Location"]).content.decode()]
    request = ErasureRequest.objects.latest("received_at")
    link = f"/status/{request.receipt}/{status_token(request)}"

    def look() -> None:
        reconcile()
        seen.append(client.get(link).content.decode())

    look()
    client.post(f"/confirm/{request.receipt}/{identity_token(request.identity_check)}")
    look()
    request.refresh_from_db()
    start_search(request, ground=Ground.CONSENT_WITHDRAWN, reviewer=rhea(), actor="staff:rhea")
    look()
    run_all_jobs()
    look()
    close_nothing_found_or_unproven(request)
    look()
    seen += [str(message.subject) + str(message.body) for message in mail.outbox]
    return [re.sub(r"[0-9a-f]{8}( [0-9a-f]{8}){7}", "·", without_particulars(text, request)) for text in seen]


def close_nothing_found_or_unproven(request: ErasureRequest) -> None:
    """Rhea does not accept a match that nobody proved."""
    close_nothing_found(request, actor="staff:rhea")


def test_pages_and_mails_are_the_same_whether_the_name_she_claims_is_known_or_not(client: Client) -> None:
    make_model()
    known = seen_by_mallory(client, ALICE_NAME.value)
    unknown = seen_by_mallory(client, "Nobody Inparticular")
    assert len(known) == len(unknown) > 6
    assert known == unknown


def test_asking_in_alices_name_sends_one_mail_to_alice_and_shows_mallory_no_link(client: Client) -> None:
    make_model()
    page = client.get(ask(client, email=ALICE.value).headers["Location"]).content.decode()
    reconcile()
    request = ErasureRequest.objects.get()
    assert status_token(request) not in page
    assert [message.to for message in mail.outbox] == [[ALICE.value]]
    assert client.get(f"/status/{request.receipt}/{'0' * 64}").status_code == 410
    assert request.status == "awaiting_verification"


def test_a_guessed_receipt_number_and_an_unknown_one_get_the_same_answer(client: Client) -> None:
    ask(client, email=ALICE.value)
    known = ErasureRequest.objects.get().receipt
    pages = [(page, receipt) for page in ("status", "confirm", "receipt") for receipt in (known, "LT-AAAA-AAAA-AAAA")]
    answers = [client.get(f"/{page}/{receipt}/{'0' * 64}") for page, receipt in pages]
    assert {a.status_code for a in answers} == {410}
    assert len({a.content for a in answers}) == 1
    assert len({tuple(sorted(a.headers)) for a in answers}) == 1
