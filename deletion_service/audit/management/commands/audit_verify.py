"""`manage.py audit_verify`: check the audit hash chain; exit 1 and say what is wrong if it does not hold."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError

from deletion_service.audit.models import AuditSeal
from deletion_service.audit.trail import verify_chain


class Command(BaseCommand):
    help = "Check the audit hash chain."

    def handle(self, *args: Any, **options: Any) -> None:
        if problems := verify_chain():
            raise CommandError("\n".join(problems))
        self.stdout.write(f"the chain of {AuditSeal.objects.count()} seals holds")
