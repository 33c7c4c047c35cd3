"""App configuration; loads no machine-learning library, so that a web process may list it."""

from django.apps import AppConfig


class WorkersConfig(AppConfig):
    """Commands of the workers."""

    name = "workers"
    label = "workers"
