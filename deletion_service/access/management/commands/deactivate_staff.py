"""`manage.py deactivate_staff HANDLE`: close the account of somebody who left, and end their API keys."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from deletion_service.access.staff import deactivate_staff_member
from deletion_service.errors import DomainError


class Command(BaseCommand):
    help = "Close a staff account for good: sign-in, open sessions and API keys end at once; what they did stays."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("handle", help="the account's handle, such as rhea")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            ended = deactivate_staff_member(options["handle"])
        except DomainError as exc:
            raise CommandError(exc.message) from exc
        self.stdout.write(f"{options['handle']} can no longer sign in; {ended} API key{'s' * (ended != 1)} revoked")
