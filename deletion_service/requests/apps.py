"""App configuration."""

from django.apps import AppConfig


class RequestsConfig(AppConfig):
    """Who asks, and may they?"""

    name = "deletion_service.requests"
    label = "requests"
