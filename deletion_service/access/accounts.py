"""Staff sign-in rules for django-allauth and django-axes: nobody signs up, deciding needs a second factor, and what a
stranger types as a user name is kept as a keyed digest only."""

from __future__ import annotations

import base64
import hashlib
from typing import Any

from allauth.account.adapter import DefaultAccountAdapter
from allauth.account.authentication import get_authentication_records
from allauth.mfa.adapter import DefaultMFAAdapter
from cryptography.fernet import Fernet
from django.conf import settings
from django.contrib.auth.base_user import AbstractBaseUser
from django.http import HttpRequest
from django.utils.crypto import salted_hmac

from deletion_service.access.permissions import SECOND_FACTOR_ACTIONS, Action


class StaffAccountAdapter(DefaultAccountAdapter):  # type: ignore[misc]  # the library ships no types
    """Accounts are made by an administrator (`manage.py create_staff`), never by signing up."""

    def is_open_for_signup(self, request: HttpRequest) -> bool:
        """Always False."""
        return False


class StaffMfaAdapter(DefaultMFAAdapter):  # type: ignore[misc]  # the library ships no types
    """Authenticator secrets are encrypted at rest and cannot be switched off by whoever opened a session."""

    def encrypt(self, text: str) -> str:
        """Return a secret as it is stored."""
        return _secret_box().encrypt(text.encode()).decode()

    def decrypt(self, encrypted_text: str) -> str:
        """Return a stored secret."""
        return _secret_box().decrypt(encrypted_text.encode()).decode()

    def can_delete_authenticator(self, authenticator: Any) -> bool:
        """Only where deciding needs no second factor."""
        return not settings.REQUIRE_SECOND_FACTOR


def has_second_factor(request: HttpRequest, user: AbstractBaseUser) -> bool:
    """Whether `user` opened this session with a second factor (time-based code or recovery code)."""
    records: list[dict[str, Any]] = get_authentication_records(request, user)
    return any(record.get("method") == "mfa" for record in records)


def second_factor_missing(request: HttpRequest, user: AbstractBaseUser, action: Action) -> bool:
    """Whether `action` must wait until this session has shown a second factor."""
    return settings.REQUIRE_SECOND_FACTOR and action in SECOND_FACTOR_ACTIONS and not has_second_factor(request, user)


def client_address(request: HttpRequest) -> str:
    """Return the address of the client: the peer, or what the outermost trusted proxy saw."""
    peer = str(request.META.get("REMOTE_ADDR", ""))
    forwarded = request.headers.get("X-Forwarded-For", "")
    if settings.NUM_PROXIES == 0 or not forwarded:
        return peer
    hops = [hop.strip() for hop in forwarded.split(",")]
    return hops[-min(settings.NUM_PROXIES, len(hops))]


def lockout_name(request: HttpRequest, credentials: dict[str, Any] | None = None) -> str:
    """Return what stands for a typed user name in the lockout table."""
    typed = (credentials or {}).get("username") or request.POST.get("login", "")
    return salted_hmac("lethe.lockout", str(typed).casefold(), algorithm="sha256").hexdigest()


def lockout_log_name(username: str, *_: object) -> str:
    """Return what a log line may call a client that failed to sign in."""
    return username[:12]


def _secret_box() -> Fernet:
    key = hashlib.sha256(b"lethe.authenticator-secrets" + settings.SECRET_KEY.encode()).digest()
    return Fernet(base64.urlsafe_b64encode(key))
