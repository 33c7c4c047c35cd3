"""Opening, proving and withdrawing a request."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from django.core import mail
from django.utils import timezone

from deletion_service.access.keys import issue_key
from deletion_service.errors import IllegalTransitionError, InvalidInputError, LinkError
from deletion_service.requests.codes import Capacity, DataClass
from deletion_service.requests.identity import (
    confirm_identity,
    find_by_status_link,
    identity_token,
    pending_check,
    status_token,
)
from deletion_service.requests.intake import Application, Identifier, commitment, open_request, withdraw_request
from deletion_service.requests.models import ErasureRequest, IdentityCheck
from deletion_service.requests.payload import open_sealed
from tests.cast import ALICE, ALICE_NAME, MALLORY, application
from workers.reconcile import reconcile

pytestmark = pytest.mark.django_db


def ask(who: Identifier = ALICE, **changes: object) -> ErasureRequest:
    return open_request(replace(application(who), **changes), actor="subject").request  # type: ignore[arg-type]


def test_a_new_request_waits_for_proof_and_its_clock_runs() -> None:
    request = ask()
    assert request.status == "awaiting_verification"
    assert request.clocks.get().state == "running"
    assert [e.new_status for e in request.events.all()] == ["received", "awaiting_verification"]


def test_the_commitment_opens_with_the_nonce_and_with_nothing_else() -> None:
    opened = open_request(application(ALICE, also=(ALICE_NAME,)), actor="subject")
    stored = opened.request.subject.commitment_sha256
    nonce = bytes.fromhex(opened.subject_nonce)
    assert stored == commitment(nonce, [ALICE_NAME, ALICE])
    assert stored != commitment(nonce, [MALLORY])
    assert stored != commitment(bytes(32), [ALICE, ALICE_NAME])


def test_the_recipe_in_the_runbook_opens_the_commitment(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "runbook.md").read_text()
    recipe = page.split("```python\n")[1].split("```")[0]
    phone = Identifier("phone", "+49 (30) 1234-56")
    opened = open_request(application(ALICE, also=(ALICE_NAME, phone)), actor="subject")
    said = [["email", "alice.korvel@mail.example"], ["name", "alice korvel"], ["phone", "4930123456"]]
    asked = '"0123 4567 …", [["email", "alice@mail.example"], ["name", "alice korvel"]]'
    assert asked in recipe
    exec(recipe.replace(asked, f"{opened.subject_nonce!r}, {said!r}"), {})
    assert capsys.readouterr().out.strip() == opened.request.subject.commitment_sha256


def test_the_mail_is_thin_and_its_link_proves_the_mailbox() -> None:
    request = ask(statement="I lived at 48 Brackenfell Lane")
    reconcile()
    (message,) = mail.outbox
    assert message.to == [ALICE.value]
    assert "Brackenfell" not in message.body + message.subject
    assert identity_token(request.identity_check) in message.body
    confirm_identity(pending_check(request.receipt, identity_token(request.identity_check)))
    request.refresh_from_db()
    assert request.status == "in_review"
    assert json.loads(open_sealed(request, DataClass.PAYLOAD, "proven")) == [{"type": "email", "value": ALICE.value}]


def test_only_the_mailbox_is_proven_whatever_else_was_claimed() -> None:
    request = open_request(application(MALLORY, also=(ALICE, ALICE_NAME)), actor="subject").request
    confirm_identity(request.identity_check)
    assert json.loads(open_sealed(request, DataClass.PAYLOAD, "proven")) == [{"type": "email", "value": MALLORY.value}]


def test_a_used_link_is_refused_and_changes_nothing() -> None:
    request = ask()
    token = identity_token(request.identity_check)
    confirm_identity(pending_check(request.receipt, token))
    with pytest.raises(LinkError):
        pending_check(request.receipt, token)
    assert request.events.count() == 3


def test_two_presses_of_the_button_confirm_once() -> None:
    request = ask()
    check = pending_check(request.receipt, identity_token(request.identity_check))
    rival = IdentityCheck.objects.get(pk=check.pk)
    confirm_identity(check)
    with pytest.raises(LinkError, match="used before"):
        confirm_identity(rival)


@pytest.mark.parametrize("receipt", ["LT-XXXX-XXXX-XXXX", ""])
def test_an_unknown_receipt_gets_the_same_answer_as_a_wrong_token(receipt: str) -> None:
    request = ask()
    with pytest.raises(LinkError) as unknown:
        pending_check(receipt, "0" * 64)
    with pytest.raises(LinkError) as wrong:
        pending_check(request.receipt, "0" * 64)
    assert unknown.value.message == wrong.value.message


def test_a_status_link_belongs_to_one_request() -> None:
    alice, mallory = ask(), ask(MALLORY)
    assert find_by_status_link(alice.receipt, status_token(alice)) == alice
    with pytest.raises(LinkError):
        find_by_status_link(alice.receipt, status_token(mallory))


def test_an_ignored_link_is_renewed_once_and_then_everything_is_destroyed() -> None:
    request = ask()
    old = identity_token(request.identity_check)
    IdentityCheck.objects.update(expires_at=timezone.now() - timedelta(minutes=1))
    reconcile()
    request.refresh_from_db()
    assert request.status == "awaiting_verification"
    with pytest.raises(LinkError):
        pending_check(request.receipt, old)
    IdentityCheck.objects.update(expires_at=timezone.now() - timedelta(minutes=1))
    reconcile()
    reconcile()
    request.refresh_from_db()
    assert (request.status, request.outcome) == ("expired", "expired")
    assert set(request.sealed_items.values_list("data_class", flat=True)) == {"C"}
    assert [m.subject for m in mail.outbox] == [f"Your request {request.receipt}"] * 3


def test_withdrawing_destroys_the_payload_and_says_so() -> None:
    request = ask()
    withdraw_request(request, actor="subject")
    reconcile()
    assert (request.status, request.outcome) == ("withdrawn", "withdrawn")
    assert not request.sealed_items.filter(data_class="A").exists()
    assert request.disposals.filter(data_class="A").exists()
    assert request.clocks.get().state == "cancelled"
    with pytest.raises(IllegalTransitionError):
        withdraw_request(request, actor="subject")


def test_contact_data_go_after_the_complaint_window() -> None:
    request = ask()
    withdraw_request(request, actor="subject")
    reconcile()
    assert request.sealed_items.filter(data_class="C").exists()
    ErasureRequest.objects.filter(pk=request.pk).update(closed_at=timezone.now() - timedelta(days=31))
    reconcile()
    assert not request.sealed_items.exists()


@pytest.mark.parametrize(
    ("changes", "pointer"),
    [
        ({"contact_email": "not an address"}, "/contact_email"),
        ({"identifiers": ()}, "/identifiers"),
        ({"identifiers": (ALICE,) * 21}, "/identifiers"),
        ({"identifiers": (Identifier("iris", "x"),)}, "/identifiers/0/type"),
        ({"identifiers": (Identifier("name", "   "),)}, "/identifiers/0/value"),
        ({"identifiers": (Identifier("name", "x" * 321),)}, "/identifiers/0/value"),
        ({"identifiers": (Identifier("name", "a\x00b"),)}, "/identifiers/0/value"),
        ({"statement": "x" * 20_001}, "/statement"),
        ({"statement": "a\x07b"}, "/statement"),
        ({"language": "tlh"}, "/language"),
    ],
)
def test_bad_input_names_the_field_and_leaves_nothing_behind(changes: dict[str, object], pointer: str) -> None:
    with pytest.raises(InvalidInputError) as error:
        ask(**changes)
    assert error.value.pointer == pointer
    assert not ErasureRequest.objects.exists()


def test_an_instruction_is_vouched_for_and_nobody_writes_to_the_person() -> None:
    key, _ = issue_key("privacy platform", scopes=["requests:write"])
    instruction = Application(Capacity.PROCESSOR, "gdpr", (ALICE,), upstream_id="up-1")  # type: ignore[arg-type]
    request = open_request(instruction, actor="key", sender=key).request
    reconcile()
    assert (request.status, request.ground) == ("in_review", "instruction")
    assert mail.outbox == []
    with pytest.raises(InvalidInputError, match="received before"):
        open_request(instruction, actor="key", sender=key)
    assert ErasureRequest.objects.count() == 1


def test_an_instruction_needs_a_sender() -> None:
    with pytest.raises(InvalidInputError, match="sender"):
        open_request(Application(Capacity.PROCESSOR, "gdpr", (ALICE,)), actor="mallory")  # type: ignore[arg-type]
