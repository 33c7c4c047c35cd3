"""`manage.py revoke_api_key NAME`: end a machine's keys at once."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from deletion_service.access.keys import revoke_key
from deletion_service.access.models import ApiKey


class Command(BaseCommand):
    help = "End every API key of a name at once; what they did stays on record."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("name", help="what the key is for, as it was named when it was made")

    def handle(self, *args: Any, **options: Any) -> None:
        keys = list(ApiKey.objects.filter(name=options["name"], revoked_at=None))
        if not keys:
            raise CommandError("no key of this name is in use; keys are named when create_api_key makes them")
        for key in keys:
            revoke_key(key)
        self.stdout.write(f"{len(keys)} key{'s' * (len(keys) > 1)} revoked")
