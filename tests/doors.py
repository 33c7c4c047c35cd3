"""How tests come through the doors: a machine with a key, staff with a session, a person with a mailbox."""

from __future__ import annotations

import json
import re
import time
import uuid
from collections.abc import Sequence
from typing import Any

from allauth.account.internal.flows.login import (
    _AUTHENTICATION_METHODS_USER_SESSION_KEY,
    AUTHENTICATION_METHODS_SESSION_KEY,
)
from django.core import mail
from django.test import Client

from deletion_service.access.keys import issue_key
from deletion_service.access.models import ApiKey, StaffMember

ALL_READING = ("requests:read", "targets:read", "evidence:read", "certificates:read")


class Machine:
    """A client that sends JSON with an API key and a fresh Idempotency-Key."""

    def __init__(self, *scopes: str, staff: StaffMember | None = None, **options: Any) -> None:
        self.key: ApiKey
        self.key, self.secret = issue_key("test", scopes=scopes, staff_member=staff, **options)
        self.client = Client(raise_request_exception=False)

    def get(self, path: str, **headers: str) -> Any:
        """GET with the key."""
        return self.client.get(path, headers={"Authorization": f"Bearer {self.secret}", **headers})

    def post(self, path: str, body: Any = None, *, key: str | None = None, **headers: str) -> Any:
        """POST JSON; `key` repeats an Idempotency-Key, an empty one sends none."""
        sent = {"Authorization": f"Bearer {self.secret}", **headers}
        if key != "":
            sent["Idempotency-Key"] = key or str(uuid.uuid4())
        content = body if isinstance(body, bytes | str) else json.dumps({} if body is None else body)
        return self.client.post(path, content, content_type="application/json", headers=sent)


def signed_in(member: StaffMember, *, second_factor: bool = True, enforce_csrf_checks: bool = False) -> Client:
    """Return a browser in which `member` is signed in, as after the sign-in pages."""
    client = Client(raise_request_exception=True, enforce_csrf_checks=enforce_csrf_checks)
    client.force_login(member.user, backend="django.contrib.auth.backends.ModelBackend")
    if second_factor:
        session = client.session
        session[_AUTHENTICATION_METHODS_USER_SESSION_KEY] = str(member.user.pk)
        session[AUTHENTICATION_METHODS_SESSION_KEY] = [{"method": "mfa", "at": time.time(), "type": "totp"}]
        session.save()
    return client


def links_in_mail(to: str) -> list[str]:
    """Return the paths of the links in the newest mail to an address."""
    message = next(m for m in reversed(mail.outbox) if m.to == [to])
    return re.findall(r"https?://[^/\s]+(/\S+)", str(message.body))


def codes_of(problem: dict[str, Any]) -> Sequence[tuple[str, str]]:
    """Return (pointer, code) of every fault of a problem document."""
    return [(row["pointer"], row["code"]) for row in problem["errors"]]
