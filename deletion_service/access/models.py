"""Staff roles and machine keys. A key is stored as its SHA-256; the secret is shown once."""

from __future__ import annotations

from django.conf import settings
from django.db import models


class Role(models.TextChoices):
    """What a member of staff does here."""

    PRIVACY = "privacy", "privacy reviewer"
    ML = "ml", "machine-learning reviewer"
    AUDITOR = "auditor", "auditor (reads everything, decides nothing)"
    ADMINISTRATOR = "administrator", "administrator (keys and models, no decisions)"


class StaffMember(models.Model):
    """A staff account and its role; `handle` is what audit rows and pages call the person."""

    user = models.OneToOneField(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="staff_member")
    role = models.CharField(max_length=16, choices=Role)
    handle = models.CharField(max_length=64, unique=True)

    class Meta:
        constraints = [
            models.CheckConstraint(condition=models.Q(role__in=Role.values), name="staff_role_is_known"),
        ]

    def __str__(self) -> str:
        return self.handle


class ApiKey(models.Model):
    """A machine's credential: `prefix.secret`, scopes, expiry, allowed addresses.

    `staff_member` is set when the key acts for a person; only such a key may approve or issue.
    """

    prefix = models.CharField(max_length=12, unique=True)
    secret_sha256 = models.CharField(max_length=64)
    name = models.CharField(max_length=64)
    scopes = models.JSONField(default=list)
    staff_member = models.ForeignKey(StaffMember, null=True, blank=True, on_delete=models.PROTECT)
    allowed_networks = models.JSONField(default=list)
    created_at = models.DateTimeField(auto_now_add=True)
    expires_at = models.DateTimeField()
    revoked_at = models.DateTimeField(null=True, blank=True)
    last_used_at = models.DateTimeField(null=True, blank=True)

    def __str__(self) -> str:
        return f"{self.name} ({self.prefix})"
