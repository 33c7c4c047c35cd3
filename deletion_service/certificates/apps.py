"""App configuration."""

from django.apps import AppConfig


class CertificatesConfig(AppConfig):
    """What was shown, and what do we sign?"""

    name = "deletion_service.certificates"
    label = "certificates"
