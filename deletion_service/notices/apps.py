"""App configuration."""

from django.apps import AppConfig


class NoticesConfig(AppConfig):
    """Letters to the people concerned; thin, logged by hash."""

    name = "deletion_service.notices"
    label = "notices"
