"""`manage.py purge_idempotency`: forget answers that are kept for repeated requests, 72 hours after they were given."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand
from django.utils import timezone

from deletion_service.api.idempotency import purge_answers


class Command(BaseCommand):
    help = "Forget the stored answers of idempotent requests that are older than 72 hours."

    def handle(self, *args: Any, **options: Any) -> None:
        self.stdout.write(f"{purge_answers(now=timezone.now())} answers forgotten")
