"""App configuration."""

from django.apps import AppConfig


class TargetsConfig(AppConfig):
    """What must be forgotten, in which model?"""

    name = "deletion_service.targets"
    label = "targets"
