"""`manage.py audit_verify`: check the audit hash chain; exit 1 and say what is wrong if it does not hold."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from deletion_service.audit.models import AuditSeal
from deletion_service.audit.trail import newest_seal, verify_chain


class Command(BaseCommand):
    help = "Check the audit hash chain, and print its end for you to note elsewhere."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--noted", default="", help="a seal digest noted earlier; it must still be in the chain")

    def handle(self, *args: Any, **options: Any) -> None:
        if problems := verify_chain(noted=options["noted"]):
            raise CommandError("\n".join(problems))
        self.stdout.write(f"the chain of {AuditSeal.objects.count()} seals holds; it ends with {newest_seal()}")
