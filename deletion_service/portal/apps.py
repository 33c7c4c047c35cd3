"""App configuration."""

from django.apps import AppConfig


class PortalConfig(AppConfig):
    """Pages for data subjects."""

    name = "deletion_service.portal"
    label = "portal"
