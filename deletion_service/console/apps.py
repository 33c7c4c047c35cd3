"""App configuration."""

from django.apps import AppConfig


class ConsoleConfig(AppConfig):
    """Pages for reviewers."""

    name = "deletion_service.console"
    label = "console"
