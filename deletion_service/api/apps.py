"""App configuration."""

from django.apps import AppConfig


class ApiConfig(AppConfig):
    """REST doors for machines."""

    name = "deletion_service.api"
    label = "api"
