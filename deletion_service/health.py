"""Whether this process lives and can work. No details to strangers: `lethe doctor` has them."""

from __future__ import annotations

from django.conf import settings
from django.db import DatabaseError, connection
from django.http import HttpRequest, HttpResponse


def healthz(request: HttpRequest) -> HttpResponse:
    """The process answers."""
    return HttpResponse("ok", content_type="text/plain")


def readyz(request: HttpRequest) -> HttpResponse:
    """The database answers and the key encryption key can be read."""
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
        ready = settings.KEY_ENCRYPTION_KEY_FILE.is_file()
    except (DatabaseError, OSError):
        ready = False
    return HttpResponse("ready" if ready else "not ready", status=200 if ready else 503, content_type="text/plain")
