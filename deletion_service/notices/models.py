"""Letters: their text (codes, dates and links' labels; nothing personal), its hash, and when it was sent."""

from __future__ import annotations

from django.db import models

from deletion_service.requests.models import ErasureRequest, RequestEvent


class Letter(models.Model):
    """One letter of one kind. `sent_at` is set when the mail was handed over; a row without it is still owed."""

    request = models.ForeignKey(ErasureRequest, on_delete=models.PROTECT, related_name="letters")
    event = models.OneToOneField(RequestEvent, null=True, blank=True, on_delete=models.PROTECT, related_name="letter")
    kind = models.CharField(max_length=8)
    occasion = models.CharField(max_length=64)
    template_version = models.PositiveIntegerField()
    language = models.CharField(max_length=8)
    text = models.TextField(blank=True, default="")
    text_sha256 = models.CharField(max_length=64, blank=True, default="")
    owed_at = models.DateTimeField(auto_now_add=True)
    sent_at = models.DateTimeField(null=True, blank=True)
    tries = models.PositiveIntegerField(default=0)
    next_try_at = models.DateTimeField(null=True, blank=True)
    undeliverable = models.BooleanField(default=False)

    class Meta:
        ordering = ("owed_at", "id")
        constraints = [
            models.UniqueConstraint(fields=("request", "kind", "occasion"), name="letter_once_per_occasion"),
        ]

    def __str__(self) -> str:
        return f"{self.kind} for {self.request_id}"
