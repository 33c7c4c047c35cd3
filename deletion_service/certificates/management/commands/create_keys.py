"""`manage.py create_keys`: make the secrets of a deployment; never overwrites one."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand

from deletion_service.certificates.custody import create_signing_keys


class Command(BaseCommand):
    help = "Create the secret key, the key encryption key and the three signing keys, where they do not exist."
    requires_system_checks: list[str] = []

    def handle(self, *args: Any, **options: Any) -> None:
        settings.SECRETS_DIR.mkdir(parents=True, exist_ok=True, mode=0o700)
        _create(settings.SECRETS_DIR / "secret_key", secrets.token_urlsafe(64))
        _create(settings.KEY_ENCRYPTION_KEY_FILE, secrets.token_hex(32))
        if not settings.ISSUER_DOCUMENT_FILE.exists():
            create_signing_keys()
        self.stdout.write("keys are in place")


def _create(path: Path, secret: str) -> None:
    if path.exists():
        return
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as stream:
        stream.write(secret + "\n")
