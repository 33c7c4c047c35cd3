"""What makes a repeated POST harmless: the first answer, kept for the same key, principal and body."""

from __future__ import annotations

from django.db import models


class IdempotencyRecord(models.Model):
    """The first use of an Idempotency-Key by a principal: digest of the request, and the answer once there is one."""

    principal = models.CharField(max_length=80)
    key_sha256 = models.CharField(max_length=64)
    request_sha256 = models.CharField(max_length=64)
    status_code = models.PositiveIntegerField(null=True, blank=True)
    body = models.JSONField(null=True, blank=True)
    location = models.CharField(max_length=200, blank=True, default="")
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=("principal", "key_sha256"), name="idempotency_key_once_per_principal"),
        ]

    def __str__(self) -> str:
        return f"{self.principal} {self.key_sha256[:8]}"
