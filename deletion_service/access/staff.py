"""Staff accounts: made, renewed and closed by an administrator; their secrets are shown once."""

from __future__ import annotations

import base64
import re
import secrets
from dataclasses import dataclass
from typing import Final

from allauth.mfa.adapter import get_adapter
from allauth.mfa.models import Authenticator
from django.contrib.auth import get_user_model
from django.db import IntegrityError, transaction
from django.utils import timezone

from deletion_service.access.models import ApiKey, Role, StaffMember
from deletion_service.errors import InvalidInputError

# Handles appear in audit rows as `staff:<handle>`, which hold 64 characters.
_HANDLE: Final = re.compile(r"[a-z][a-z0-9-]{1,39}")
_TOTP_BYTES: Final = 20


@dataclass(frozen=True, slots=True)
class NewStaffMember:
    """A new account and its two secrets; neither can be shown again."""

    member: StaffMember
    password: str
    totp_secret: str
    totp_uri: str


@transaction.atomic
def create_staff_member(handle: str, *, role: str) -> NewStaffMember:
    """Create an account that can sign in and decide at once.

    Raises:
        InvalidInputError: the handle is malformed or taken, or the role unknown.
    """
    if not _HANDLE.fullmatch(handle):
        raise InvalidInputError("a handle is 2 to 40 lower-case letters, digits and hyphens", pointer="/handle")
    if role not in Role.values:
        raise InvalidInputError(f"roles are {', '.join(sorted(Role.values))}", pointer="/role")
    password = secrets.token_urlsafe(18)
    try:
        with transaction.atomic():
            user = get_user_model().objects.create_user(username=handle, password=password)
            member = StaffMember.objects.create(user=user, role=role, handle=handle)
    except IntegrityError as exc:
        raise InvalidInputError(f"the handle {handle} is taken", pointer="/handle") from exc
    return _with_second_factor(member, password)


@transaction.atomic
def deactivate_staff_member(handle: str) -> int:
    """Close an account for good: no sign-in, no open session and no API key of theirs works from now on. What they
    decided stays on record. Returns how many keys ended.

    Raises:
        InvalidInputError: no open account has this handle.
    """
    member = _active(handle)
    get_user_model().objects.filter(pk=member.user_id).update(is_active=False)
    return ApiKey.objects.filter(staff_member=member, revoked_at=None).update(revoked_at=timezone.now())


@transaction.atomic
def renew_secrets(handle: str) -> NewStaffMember:
    """Give an account another password and authenticator secret, for somebody who lost theirs; old ones end at once.

    Raises:
        InvalidInputError: no open account has this handle.
    """
    member = _active(handle)
    password = secrets.token_urlsafe(18)
    member.user.set_password(password)
    member.user.save(update_fields=["password"])
    Authenticator.objects.filter(user=member.user).delete()
    return _with_second_factor(member, password)


def _active(handle: str) -> StaffMember:
    member = StaffMember.objects.select_related("user").filter(handle=handle, user__is_active=True).first()
    if member is None:
        raise InvalidInputError(f"no open account has the handle {handle}", pointer="/handle")
    return member


def _with_second_factor(member: StaffMember, password: str) -> NewStaffMember:
    secret = base64.b32encode(secrets.token_bytes(_TOTP_BYTES)).decode()
    user, adapter = member.user, get_adapter()
    Authenticator.objects.create(user=user, type=Authenticator.Type.TOTP, data={"secret": adapter.encrypt(secret)})
    return NewStaffMember(member, password, secret, adapter.build_totp_url(user, secret))
