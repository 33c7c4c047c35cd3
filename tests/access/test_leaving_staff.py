"""Whoever leaves decides nothing any more, by no door; whoever lost their secrets gets others."""

from __future__ import annotations

import io
import json
import time

import pytest
from allauth.mfa.totp.internal.auth import format_hotp_value, hotp_value
from django.core.management import CommandError, call_command
from django.test import Client

from deletion_service.access.staff import create_staff_member
from tests.cast import rhea
from tests.doors import Machine, signed_in

pytestmark = pytest.mark.django_db


def test_the_sessions_and_keys_of_somebody_who_left_open_nothing() -> None:
    member = rhea()
    browser, key = signed_in(member), Machine("requests:read", staff=member)
    machine = Machine("requests:read")
    assert (browser.get("/console/").status_code, key.get("/v1/requests").status_code) == (200, 200)
    call_command("deactivate_staff", member.handle, stdout=io.StringIO())
    assert browser.get("/console/").status_code == 302
    assert key.get("/v1/requests").status_code == 401
    assert machine.get("/v1/requests").status_code == 200
    with pytest.raises(CommandError, match="no open account"):
        call_command("deactivate_staff", member.handle, stdout=io.StringIO())


def test_a_key_ends_with_the_account_it_acts_for_however_that_was_closed() -> None:
    member = rhea()
    key = Machine("requests:read", staff=member)
    member.user.is_active = False
    member.user.save(update_fields=["is_active"])
    assert key.get("/v1/requests").status_code == 401


def test_renewed_secrets_open_the_account_and_the_lost_ones_do_not() -> None:
    lost = create_staff_member("rhea", role="privacy")
    out = io.StringIO()
    call_command("renew_staff", "rhea", "--json", stdout=out)
    new = json.loads(out.getvalue())
    assert not {new["password"], new["totp_secret"]} & {lost.password, lost.totp_secret}
    for password, secret, opens in ((lost.password, lost.totp_secret, 302), (new["password"], new["totp_secret"], 200)):
        client = Client()
        client.post("/account/login/", {"login": "rhea", "password": password})
        code = format_hotp_value(hotp_value(secret, int(time.time()) // 30))
        client.post("/account/2fa/authenticate/", {"code": code})
        assert client.get("/console/").status_code == opens
    with pytest.raises(CommandError, match="no open account"):
        call_command("renew_staff", "nobody", stdout=io.StringIO())
