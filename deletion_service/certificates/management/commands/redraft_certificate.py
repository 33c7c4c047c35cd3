"""`manage.py redraft_certificate ID --by HANDLE`: put a draft that cannot be issued aside, and have another made."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from deletion_service.access.models import StaffMember
from deletion_service.certificates.issuing import discard_draft
from deletion_service.certificates.models import Certificate
from deletion_service.errors import DomainError


class Command(BaseCommand):
    help = "Discard a drafted certificate and owe the workers a new draft of it."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("certificate", help="its id, crt_...")
        parser.add_argument("--by", required=True, help="handle of the member of staff who decided")

    def handle(self, *args: Any, **options: Any) -> None:
        certificate = Certificate.objects.filter(pk=options["certificate"]).first()
        if certificate is None:
            raise CommandError(f"there is no certificate {options['certificate']}")
        if not StaffMember.objects.filter(handle=options["by"]).exists():
            raise CommandError(f"no member of staff is called {options['by']}")
        try:
            discard_draft(certificate, actor=f"staff:{options['by']}")
        except DomainError as exc:
            raise CommandError(exc.message) from exc
        self.stdout.write(f"{certificate.pk} is discarded; a worker drafts another one")
