"""`manage.py revoke_api_key`: a key that leaked opens nothing from that moment on."""

from __future__ import annotations

import pytest
from django.core.management import CommandError, call_command

from tests.doors import Machine

pytestmark = pytest.mark.django_db


def test_a_revoked_key_opens_nothing_and_others_still_do() -> None:
    leaked, other = Machine("requests:read"), Machine("requests:read")
    other.key.name = "other"
    other.key.save(update_fields=["name"])
    assert leaked.get("/v1/requests").status_code == 200
    call_command("revoke_api_key", leaked.key.name, verbosity=0)
    assert leaked.get("/v1/requests").status_code == 401
    assert other.get("/v1/requests").status_code == 200


def test_a_name_that_no_key_in_use_has_is_told_so() -> None:
    with pytest.raises(CommandError, match="no key of this name is in use"):
        call_command("revoke_api_key", "nobody", verbosity=0)
