"""`manage.py renew_staff HANDLE`: other secrets for somebody who lost theirs; shown once."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from deletion_service.access.management.shown_once import show_once
from deletion_service.access.staff import renew_secrets
from deletion_service.errors import DomainError


class Command(BaseCommand):
    help = "Give a staff account another password and authenticator secret, and print them, once."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("handle", help="the account's handle, such as rhea")
        parser.add_argument("--json", action="store_true", help="print JSON, for scripts")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            new = renew_secrets(options["handle"])
        except DomainError as exc:
            raise CommandError(exc.message) from exc
        show_once(self.stdout, new, as_json=options["json"])
