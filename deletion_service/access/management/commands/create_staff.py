"""`manage.py create_staff HANDLE --role ROLE`: a staff account; its two secrets are shown once."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from deletion_service.access.management.shown_once import show_once
from deletion_service.access.models import Role
from deletion_service.access.staff import create_staff_member
from deletion_service.errors import DomainError


class Command(BaseCommand):
    help = "Create a staff account and print its password and authenticator secret, once."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("handle", help="how audit rows and pages call the person, such as rhea")
        parser.add_argument("--role", required=True, choices=Role.values)
        parser.add_argument("--json", action="store_true", help="print JSON, for scripts")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            new = create_staff_member(options["handle"], role=options["role"])
        except DomainError as exc:
            raise CommandError(exc.message) from exc
        show_once(self.stdout, new, as_json=options["json"])
