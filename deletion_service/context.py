"""What every page may say about its deployment."""

from __future__ import annotations

from django.conf import settings
from django.http import HttpRequest


def deployment(request: HttpRequest) -> dict[str, str]:
    """Return the controller's name and contact address."""
    return {"controller_name": settings.CONTROLLER_NAME, "contact_email": settings.CONTACT_EMAIL}
