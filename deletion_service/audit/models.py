"""The audit trail. Rows hold ids and codes only, so that keeping them harms nobody; triggers refuse any change."""

from __future__ import annotations

from django.db import models


class AuditEvent(models.Model):
    """Who did what to which object. Written in the transaction of the act itself."""

    id = models.BigAutoField(primary_key=True)
    at = models.DateTimeField(auto_now_add=True)
    actor = models.CharField(max_length=64)
    action = models.CharField(max_length=64)
    object_type = models.CharField(max_length=32)
    object_id = models.CharField(max_length=64)
    reason = models.CharField(max_length=64, blank=True, default="")
    request_id = models.CharField(max_length=40, blank=True, default="", db_index=True)

    class Meta:
        ordering = ("id",)

    def __str__(self) -> str:
        return f"{self.id} {self.action} {self.object_id}"


class AuditSeal(models.Model):
    """A batch of events under one hash, chained to the seal before it."""

    id = models.BigAutoField(primary_key=True)
    count = models.PositiveIntegerField()
    events_sha256 = models.CharField(max_length=64)
    previous_sha256 = models.CharField(max_length=64, unique=True)
    seal_sha256 = models.CharField(max_length=64, unique=True)
    sealed_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ("id",)

    def __str__(self) -> str:
        return f"seal {self.id} over {self.count} events"


class AuditSealEntry(models.Model):
    """Which seal covers which event. A list, not a range: ids of concurrent writers commit out of order."""

    seal = models.ForeignKey(AuditSeal, on_delete=models.PROTECT, related_name="entries")
    event = models.OneToOneField(AuditEvent, on_delete=models.PROTECT, related_name="seal_entry")

    def __str__(self) -> str:
        return f"event {self.event_id} in seal {self.seal_id}"
