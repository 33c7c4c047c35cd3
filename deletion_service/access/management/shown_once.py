"""Print the two secrets of a staff account: the only time anybody sees them."""

from __future__ import annotations

import json

from django.core.management.base import OutputWrapper

from deletion_service.access.staff import NewStaffMember


def show_once(out: OutputWrapper, new: NewStaffMember, *, as_json: bool) -> None:
    """Write handle, role, password and authenticator secret to `out`."""
    shown = {
        "handle": new.member.handle,
        "role": new.member.role,
        "password": new.password,
        "totp_secret": new.totp_secret,
        "totp_uri": new.totp_uri,
    }
    if as_json:
        out.write(json.dumps(shown))
        return
    for name, value in shown.items():
        out.write(f"{name:<12} {value}")
    out.write("Neither secret can be shown again. Enter the second one in an authenticator app.")
