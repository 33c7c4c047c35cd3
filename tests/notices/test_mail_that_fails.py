"""Mail that does not leave: tried again with growing pauses, and given up, because the address must not stay for it."""

from __future__ import annotations

import smtplib
from datetime import timedelta
from typing import Any

import pytest
from django.core.mail import EmailMessage
from django.utils import timezone

from deletion_service.notices.letters import owe_letters, send_owed
from deletion_service.notices.models import Letter
from deletion_service.requests.intake import open_request
from tests.cast import ALICE, BOB, application

pytestmark = pytest.mark.django_db


@pytest.fixture
def letter() -> Letter:
    """The first letter to Alice, owed and not sent."""
    open_request(application(), actor="subject")
    owe_letters()
    return Letter.objects.get()


def relay_says(monkeypatch: pytest.MonkeyPatch, error: OSError) -> list[int]:
    tries: list[int] = []

    def refuse(self: EmailMessage, fail_silently: bool = False) -> int:
        tries.append(1)
        raise error

    monkeypatch.setattr(EmailMessage, "send", refuse)
    return tries


def refused(code: int) -> smtplib.SMTPRecipientsRefused:
    return smtplib.SMTPRecipientsRefused({ALICE.value: (code, b"no")})


def test_a_relay_that_is_away_is_asked_again_later_and_not_at_once(
    letter: Letter, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = relay_says(monkeypatch, ConnectionRefusedError())
    send_owed()
    send_owed()
    assert len(tries) == 1
    Letter.objects.update(next_try_at=timezone.now())
    send_owed()
    letter.refresh_from_db()
    assert (len(tries), letter.tries, letter.undeliverable) == (2, 2, False)


def test_it_leaves_once_the_relay_is_back(letter: Letter, monkeypatch: pytest.MonkeyPatch, mailoutbox: Any) -> None:
    with monkeypatch.context() as away:
        relay_says(away, ConnectionRefusedError())
        send_owed()
    Letter.objects.update(next_try_at=timezone.now())
    assert send_owed() == 1
    assert len(mailoutbox) == 1


@pytest.mark.parametrize(("error", "given_up"), [(refused(550), True), (refused(451), False)])
def test_a_mailbox_that_takes_nothing_is_given_up_and_a_busy_one_is_not(
    letter: Letter, monkeypatch: pytest.MonkeyPatch, error: OSError, given_up: bool
) -> None:
    relay_says(monkeypatch, error)
    send_owed()
    letter.refresh_from_db()
    assert letter.undeliverable is given_up


def test_after_three_days_a_letter_is_given_up(letter: Letter, monkeypatch: pytest.MonkeyPatch) -> None:
    relay_says(monkeypatch, TimeoutError())
    Letter.objects.update(owed_at=timezone.now() - timedelta(days=3, minutes=1))
    send_owed()
    letter.refresh_from_db()
    assert letter.undeliverable


@pytest.mark.parametrize(("error", "given_up"), [(UnicodeError(), True), (RuntimeError(), False)])
def test_a_letter_that_cannot_be_written_keeps_no_other_back(
    letter: Letter, monkeypatch: pytest.MonkeyPatch, error: Exception, given_up: bool
) -> None:
    open_request(application(BOB), actor="subject")
    owe_letters()
    real = EmailMessage.send

    def send(self: EmailMessage, fail_silently: bool = False) -> int:
        if ALICE.value in self.to:
            raise error
        return real(self, fail_silently)

    monkeypatch.setattr(EmailMessage, "send", send)
    assert send_owed() == 1
    letter.refresh_from_db()
    assert (letter.sent_at, letter.tries, letter.undeliverable) == (None, 1, given_up)
