"""App configuration."""

from django.apps import AppConfig


class AuditConfig(AppConfig):
    """The audit trail: ids and reason codes, sealed into a hash chain."""

    name = "deletion_service.audit"
    label = "audit"
