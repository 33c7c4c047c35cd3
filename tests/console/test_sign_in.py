"""Signing in: user name, password, authenticator code; guessing is stopped, and what is typed is not kept."""

from __future__ import annotations

import io
import json
import time
from typing import Any

import pytest
from allauth.mfa.models import Authenticator
from allauth.mfa.totp.internal.auth import format_hotp_value, hotp_value
from axes.models import AccessAttempt
from django.core.cache import cache
from django.core.management import CommandError, call_command
from django.test import Client

from deletion_service.access.models import StaffMember
from deletion_service.access.permissions import Action
from deletion_service.access.staff import create_staff_member
from deletion_service.errors import InvalidInputError

pytestmark = pytest.mark.django_db


def sign_in(client: Client, handle: str, password: str) -> Any:
    return client.post("/account/login/", {"login": handle, "password": password}, follow=True)


def code(secret: str) -> str:
    return format_hotp_value(hotp_value(secret, int(time.time()) // 30))


def test_a_new_member_signs_in_with_password_and_code_and_may_decide(client: Client) -> None:
    new = create_staff_member("rhea", role="privacy")
    asked = sign_in(client, "rhea", new.password)
    assert "authenticator" in asked.content.decode()
    assert client.get("/console/").status_code == 302
    assert client.post("/account/2fa/authenticate/", {"code": code(new.totp_secret)}).status_code == 302
    assert client.get("/console/").status_code == 200
    headers = {"Idempotency-Key": "k"}
    answer = client.post("/v1/certificates/crt_x/issue", "{}", content_type="application/json", headers=headers)
    assert answer.status_code == 404


def test_a_wrong_code_opens_nothing_and_a_code_works_once(client: Client) -> None:
    new = create_staff_member("rhea", role="privacy")
    sign_in(client, "rhea", new.password)
    client.post("/account/2fa/authenticate/", {"code": "000000"})
    assert client.get("/console/").status_code == 302
    right = code(new.totp_secret)
    client.post("/account/2fa/authenticate/", {"code": right})
    assert client.get("/console/").status_code == 200
    other = Client()
    sign_in(other, "rhea", new.password)
    other.post("/account/2fa/authenticate/", {"code": right})
    assert other.get("/console/").status_code == 302


def test_guessing_a_password_locks_that_name_from_that_address(client: Client) -> None:
    new = create_staff_member("rhea", role="privacy")
    answers = [sign_in(client, "rhea", f"guess {n}").status_code for n in range(5)]
    assert answers == [200, 200, 200, 200, 429]
    cache.clear()  # as after a restart: the lock is in the database
    locked = sign_in(client, "rhea", new.password)
    assert locked.status_code == 429
    assert client.get("/console/").status_code == 302


def test_what_is_typed_as_a_user_name_is_kept_as_a_keyed_digest_only(client: Client) -> None:
    sign_in(client, "alice.korvel@mail.example", "x")
    row = AccessAttempt.objects.get()
    kept = " ".join(str(getattr(row, field.name)) for field in AccessAttempt._meta.fields)
    assert "alice" not in kept
    assert len(row.username) == 64


def test_the_authenticator_secret_is_not_stored_in_the_clear() -> None:
    new = create_staff_member("rhea", role="privacy")
    assert new.totp_secret not in json.dumps(Authenticator.objects.get().data)


def test_nobody_signs_up_and_nobody_resets_a_password_by_mail(client: Client) -> None:
    for path in ("signup/", "password/reset/", "email/", "confirm-email/"):
        assert client.get(f"/account/{path}").status_code == 404


def test_the_command_prints_both_secrets_once_and_can_be_used_by_a_script() -> None:
    out = io.StringIO()
    call_command("create_staff", "rhea", "--role", "privacy", "--json", stdout=out)
    shown = json.loads(out.getvalue())
    member = StaffMember.objects.get(handle="rhea")
    assert member.user.check_password(shown["password"])
    assert shown["totp_uri"].startswith("otpauth://totp/")
    with pytest.raises(CommandError, match="taken"):
        call_command("create_staff", "rhea", "--role", "ml")


@pytest.mark.parametrize("handle", ["", "R", "Rhea Korvel", "rhea@mail.example", "x" * 41])
def test_a_handle_is_a_short_name_and_no_address(handle: str) -> None:
    with pytest.raises(InvalidInputError):
        create_staff_member(handle, role="privacy")


def test_an_api_key_is_made_for_a_machine_or_for_a_person() -> None:
    create_staff_member("rhea", role="privacy")
    out = io.StringIO()
    call_command("create_api_key", "platform", "--scope", "approve", "--staff", "rhea", "--json", stdout=out)
    from deletion_service.access.keys import find_key
    from deletion_service.access.permissions import key_principal

    key = find_key(json.loads(out.getvalue())["key"], address="127.0.0.1")
    assert key is not None
    assert key_principal(key).may(Action.ISSUE)
    with pytest.raises(CommandError, match="nobody|no member"):
        call_command("create_api_key", "platform", "--scope", "approve", "--staff", "nobody")
