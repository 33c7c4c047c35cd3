"""App configuration."""

from django.apps import AppConfig


class AccessConfig(AppConfig):
    """Who may do what: one table; API keys; staff roles."""

    name = "deletion_service.access"
    label = "access"
