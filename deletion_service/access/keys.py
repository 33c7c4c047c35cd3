"""Issue, look up and revoke API keys."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import secrets
from collections.abc import Sequence
from datetime import timedelta
from typing import Final

from django.db.models import Q
from django.utils import timezone

from deletion_service.access.models import ApiKey, StaffMember
from deletion_service.access.permissions import SCOPE_ACTIONS
from deletion_service.errors import InvalidInputError

_LAST_USED_RESOLUTION: Final = timedelta(minutes=1)


def issue_key(
    name: str,
    *,
    scopes: Sequence[str],
    valid_days: int = 365,
    staff_member: StaffMember | None = None,
    allowed_networks: Sequence[str] = (),
) -> tuple[ApiKey, str]:
    """Create a key; return its row and the secret, which is never shown again."""
    if unknown := sorted(set(scopes) - set(SCOPE_ACTIONS)):
        raise InvalidInputError(f"scope {unknown[0]!r} does not exist; known: {', '.join(sorted(SCOPE_ACTIONS))}")
    for network in allowed_networks:
        _network(network)
    prefix, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
    key = ApiKey.objects.create(
        prefix=prefix,
        secret_sha256=_digest(secret),
        name=name,
        scopes=sorted(set(scopes)),
        staff_member=staff_member,
        allowed_networks=list(allowed_networks),
        expires_at=timezone.now() + timedelta(days=valid_days),
    )
    return key, f"{prefix}.{secret}"


def find_key(presented: str, *, address: str) -> ApiKey | None:
    """Return the valid key that was presented from `address`, or `None`; comparison takes constant time.

    A key that acts for a person ends with their account.
    """
    prefix, _, secret = presented.partition(".")
    key = ApiKey.objects.select_related("staff_member__user").filter(prefix=prefix).first()
    matches = hmac.compare_digest(key.secret_sha256 if key else "0" * 64, _digest(secret))
    if key is None or not matches or not _usable(key, address):
        return None
    _touch(key)
    return key


def revoke_key(key: ApiKey) -> None:
    """End a key at once."""
    ApiKey.objects.filter(pk=key.pk, revoked_at=None).update(revoked_at=timezone.now())


def _usable(key: ApiKey, address: str) -> bool:
    if key.revoked_at is not None or key.expires_at <= timezone.now():
        return False
    if key.staff_member is not None and not key.staff_member.user.is_active:
        return False
    return not key.allowed_networks or any(_lies_in(address, network) for network in key.allowed_networks)


def _lies_in(address: str, network: str) -> bool:
    """False also for a peer without an address, such as a local socket."""
    try:
        return ipaddress.ip_address(address) in _network(network)
    except ValueError:
        return False


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    try:
        return ipaddress.ip_network(text)
    except ValueError as exc:
        raise InvalidInputError("an allowed network is not an IP network such as 192.0.2.0/24") from exc


def _touch(key: ApiKey) -> None:
    """Note the use, at most once a minute: a write on each read would cost more than the read."""
    stale = Q(last_used_at=None) | Q(last_used_at__lt=timezone.now() - _LAST_USED_RESOLUTION)
    ApiKey.objects.filter(stale, pk=key.pk).update(last_used_at=timezone.now())


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
