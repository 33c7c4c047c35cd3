"""`manage.py revoke_certificate ID --reason CODE --by HANDLE`: on a worker's host, which holds the issuer key."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from deletion_service.access.models import StaffMember
from deletion_service.certificates.custody import issuer_signer
from deletion_service.certificates.models import Certificate, CertificateEvent
from deletion_service.certificates.revoking import revoke_certificate
from deletion_service.errors import DomainError


class Command(BaseCommand):
    help = "Revoke a published certificate: log it, and sign a new list of revoked certificates."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("certificate", help="its id, crt_...")
        parser.add_argument("--reason", required=True, choices=CertificateEvent.Reason.values)
        parser.add_argument("--by", required=True, help="handle of the member of staff who decided")

    def handle(self, *args: Any, **options: Any) -> None:
        certificate = Certificate.objects.filter(pk=options["certificate"]).first()
        if certificate is None:
            raise CommandError(f"there is no certificate {options['certificate']}")
        if not StaffMember.objects.filter(handle=options["by"]).exists():
            raise CommandError(f"no member of staff is called {options['by']}")
        try:
            actor = f"staff:{options['by']}"
            revoke_certificate(certificate, reason=options["reason"], actor=actor, signer=issuer_signer())
        except DomainError as exc:
            raise CommandError(exc.message) from exc
        self.stdout.write(f"{certificate.pk} is revoked; the new list is at /.well-known/erasure-revocations.json")
