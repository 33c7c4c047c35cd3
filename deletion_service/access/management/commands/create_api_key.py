"""`manage.py create_api_key NAME --scope SCOPE`: a machine's key; its secret is shown once."""

from __future__ import annotations

import json
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from deletion_service.access.keys import issue_key
from deletion_service.access.models import StaffMember
from deletion_service.access.permissions import SCOPE_ACTIONS
from deletion_service.errors import DomainError


class Command(BaseCommand):
    help = "Create an API key and print it, once."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("name", help="what the key is for")
        parser.add_argument("--scope", action="append", required=True, choices=sorted(SCOPE_ACTIONS))
        parser.add_argument("--staff", help="handle of the person the key acts for; needed to approve or issue")
        parser.add_argument("--network", action="append", default=[], help="allow the key from this network only")
        parser.add_argument("--days", type=int, default=365, help="validity")
        parser.add_argument("--json", action="store_true", help="print JSON, for scripts")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            key, secret = issue_key(
                options["name"],
                scopes=options["scope"],
                valid_days=options["days"],
                staff_member=_member(options["staff"]),
                allowed_networks=options["network"],
            )
        except DomainError as exc:
            raise CommandError(exc.message) from exc
        shown = {"name": key.name, "key": secret, "scopes": key.scopes, "expires_at": key.expires_at.isoformat()}
        self.stdout.write(json.dumps(shown) if options["json"] else f"{secret}\nIt cannot be shown again.")


def _member(handle: str | None) -> StaffMember | None:
    if handle is None:
        return None
    member = StaffMember.objects.filter(handle=handle).first()
    if member is None:
        raise CommandError(f"no member of staff is called {handle}; create one with create_staff")
    return member
