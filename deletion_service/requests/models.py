"""Who asks, and may they? Nothing about the person stands here in the clear."""

from __future__ import annotations

from django.db import models
from django.db.models import F, Q

from deletion_service.access.models import ApiKey, StaffMember
from deletion_service.audit.events import pair_is_listed
from deletion_service.ids import ID_LENGTH, new_receipt, request_id, subject_id
from deletion_service.requests.codes import (
    Capacity,
    DataClass,
    Ground,
    Outcome,
    OutcomePlan,
    ReasonCode,
    Refusal,
    Regime,
)
from deletion_service.requests.statuses import MOVES, TERMINAL_STATUSES, RequestStatus


class DataSubject(models.Model):
    """The person the data is about: a commitment that only they can open."""

    id = models.CharField(primary_key=True, max_length=ID_LENGTH + 4, default=subject_id)
    commitment_sha256 = models.CharField(max_length=64)
    created_at = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return self.id


class ErasureRequest(models.Model):
    """A demand that data be forgotten. Dates, codes and ids only (class D); the rest is sealed."""

    Status = RequestStatus

    id = models.CharField(primary_key=True, max_length=ID_LENGTH + 4, default=request_id)
    receipt = models.CharField(max_length=20, unique=True, default=new_receipt)
    subject = models.ForeignKey(DataSubject, on_delete=models.PROTECT, related_name="requests")
    capacity = models.CharField(max_length=16, choices=Capacity)
    regime = models.CharField(max_length=16, choices=Regime)
    status = models.CharField(max_length=24, choices=RequestStatus, default=RequestStatus.RECEIVED)
    held_status = models.CharField(max_length=24, choices=RequestStatus, blank=True, default="")
    outcome = models.CharField(max_length=24, choices=Outcome, blank=True, default="")
    outcome_plan = models.CharField(max_length=24, choices=OutcomePlan, default=OutcomePlan.UNLEARN_NOW)
    planned_on = models.DateField(null=True, blank=True)
    ground = models.CharField(max_length=40, choices=Ground, blank=True, default="")
    refusal = models.CharField(max_length=40, choices=Refusal, blank=True, default="")
    refusal_note = models.TextField(blank=True, default="")
    language = models.CharField(max_length=8, default="en")
    model_names = models.JSONField(default=list)
    attempt = models.PositiveIntegerField(default=0)
    upstream_id = models.CharField(max_length=64, blank=True, default="")
    sender = models.ForeignKey(ApiKey, null=True, blank=True, on_delete=models.PROTECT, related_name="requests")
    reviewer = models.ForeignKey(StaffMember, null=True, blank=True, on_delete=models.PROTECT, related_name="+")
    starter = models.ForeignKey(StaffMember, null=True, blank=True, on_delete=models.PROTECT, related_name="+")
    received_at = models.DateTimeField()
    closed_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ("received_at", "id")
        constraints = [
            models.CheckConstraint(condition=Q(status__in=RequestStatus.values), name="request_status_is_known"),
            models.CheckConstraint(condition=Q(capacity__in=Capacity.values), name="request_capacity_is_known"),
            models.CheckConstraint(condition=Q(regime__in=Regime.values), name="request_regime_is_known"),
            models.CheckConstraint(condition=Q(outcome__in=[*Outcome.values, ""]), name="request_outcome_is_known"),
            models.CheckConstraint(
                condition=Q(held_status__in=[*RequestStatus.values, ""]), name="request_held_status_is_known"
            ),
            models.CheckConstraint(condition=Q(ground__in=[*Ground.values, ""]), name="request_ground_is_known"),
            models.CheckConstraint(condition=Q(refusal__in=[*Refusal.values, ""]), name="request_refusal_is_known"),
            models.CheckConstraint(condition=Q(outcome_plan__in=OutcomePlan.values), name="request_plan_is_known"),
            models.CheckConstraint(
                condition=Q(status__in=TERMINAL_STATUSES, closed_at__isnull=False)
                | (~Q(status__in=TERMINAL_STATUSES) & Q(closed_at=None)),
                name="request_closed_at_if_and_only_if_terminal",
            ),
            models.CheckConstraint(
                condition=~Q(status__in=TERMINAL_STATUSES) | ~Q(outcome=""), name="request_terminal_has_outcome"
            ),
            models.CheckConstraint(
                condition=Q(status="on_hold", held_status__gt="") | (~Q(status="on_hold") & Q(held_status="")),
                name="request_held_status_if_and_only_if_on_hold",
            ),
            models.CheckConstraint(
                condition=Q(starter=None) | Q(reviewer=None) | ~Q(starter=F("reviewer")) | Q(sender__isnull=False),
                name="request_started_by_a_second_person",
            ),
            models.CheckConstraint(
                condition=~Q(outcome_plan="retrain_at_next_cycle") | Q(planned_on__isnull=False),
                name="request_retraining_has_a_date",
            ),
            models.UniqueConstraint(
                fields=("sender", "upstream_id"),
                condition=Q(sender__isnull=False) & ~Q(upstream_id=""),
                name="request_upstream_id_is_unique_per_sender",
            ),
        ]

    def __str__(self) -> str:
        return self.id

    @property
    def is_terminal(self) -> bool:
        """Whether nothing can follow."""
        return self.status in TERMINAL_STATUSES


class RequestEvent(models.Model):
    """One move of a request. Append-only; the pair must be in the move table."""

    request = models.ForeignKey(ErasureRequest, on_delete=models.PROTECT, related_name="events")
    old_status = models.CharField(max_length=24, blank=True, default="")
    new_status = models.CharField(max_length=24)
    actor = models.CharField(max_length=64)
    reason = models.CharField(max_length=40, choices=ReasonCode)
    at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ("id",)
        constraints = [
            models.CheckConstraint(
                condition=pair_is_listed(MOVES, RequestStatus.RECEIVED), name="request_event_pair_is_a_move"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.request_id}: {self.old_status or 'new'} to {self.new_status}"


class IdentityCheck(models.Model):
    """Deciding that the asker is the data subject. Level and how it was decided; the proof itself is sealed."""

    class Level(models.TextChoices):
        SENDER = "L0", "vouched for by the sender"
        MAIL_LINK = "L1", "one-use mailed link"

    class Status(models.TextChoices):
        PENDING = "pending", "pending"
        ACCEPTED = "accepted", "accepted"
        EXPIRED = "expired", "expired"

    request = models.OneToOneField(ErasureRequest, on_delete=models.PROTECT, related_name="identity_check")
    level = models.CharField(max_length=4, choices=Level)
    status = models.CharField(max_length=16, choices=Status, default=Status.PENDING)
    link_nonce = models.CharField(max_length=64, blank=True, default="")
    expires_at = models.DateTimeField(null=True, blank=True)
    reminded_at = models.DateTimeField(null=True, blank=True)
    decided_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        constraints = [
            models.CheckConstraint(condition=Q(level__in=["L0", "L1"]), name="identity_check_level_is_known"),
            models.CheckConstraint(
                condition=Q(status__in=["pending", "accepted", "expired"]), name="identity_check_status_is_known"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.request_id} {self.level} {self.status}"


class Clock(models.Model):
    """A legal deadline. Dates are in the controller's time zone; breaches stay visible for ever."""

    class State(models.TextChoices):
        RUNNING = "running", "running"
        PAUSED = "paused", "paused"
        MET = "met", "met"
        BREACHED = "breached", "breached"
        CANCELLED = "cancelled", "cancelled"

    request = models.ForeignKey(ErasureRequest, on_delete=models.PROTECT, related_name="clocks")
    kind = models.CharField(max_length=16)
    regime = models.CharField(max_length=16)
    started_on = models.DateField()
    base_due_on = models.DateField()
    due_on = models.DateField()
    state = models.CharField(max_length=16, choices=State, default=State.RUNNING)
    extended_at = models.DateTimeField(null=True, blank=True)
    extension_reason = models.CharField(max_length=40, blank=True, default="")
    breached_at = models.DateTimeField(null=True, blank=True)
    stopped_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ("due_on", "id")
        constraints = [
            models.UniqueConstraint(fields=("request", "kind"), name="clock_kind_is_unique_per_request"),
            models.CheckConstraint(
                condition=Q(state__in=["running", "paused", "met", "breached", "cancelled"]),
                name="clock_state_is_known",
            ),
            models.CheckConstraint(condition=Q(due_on__gte=F("base_due_on")), name="clock_due_is_not_before_base"),
            models.CheckConstraint(
                condition=~Q(state="breached") | Q(breached_at__isnull=False), name="clock_breach_has_a_time"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.request_id} {self.kind} due {self.due_on}"


class ClockPause(models.Model):
    """A span during which a clock did not run."""

    clock = models.ForeignKey(Clock, on_delete=models.PROTECT, related_name="pauses")
    started_on = models.DateField()
    ended_on = models.DateField(null=True, blank=True)
    reason = models.CharField(max_length=40)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=("clock",), condition=Q(ended_on=None), name="clock_has_at_most_one_open_pause"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.clock_id}: {self.started_on} to {self.ended_on or 'now'}"


class SealedItem(models.Model):
    """Ciphertext under a data encryption key that is kept elsewhere; unreadable once that key is gone."""

    request = models.ForeignKey(ErasureRequest, on_delete=models.PROTECT, related_name="sealed_items")
    data_class = models.CharField(max_length=1, choices=DataClass)
    name = models.CharField(max_length=64)
    version = models.PositiveIntegerField(default=1)
    key_id = models.CharField(max_length=64)
    ciphertext = models.BinaryField()
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=("request", "data_class", "name"), name="sealed_item_name_is_unique"),
            models.CheckConstraint(condition=Q(data_class__in=DataClass.values), name="sealed_item_class_is_known"),
        ]

    def __str__(self) -> str:
        return f"{self.request_id} {self.data_class} {self.name}"


class DisposalEvent(models.Model):
    """Proof that a class of data became unreadable: which keys, when, by what method. Append-only.

    Class F has no keys: its ids are those of the runs whose directories were wiped and looked for.
    """

    request = models.ForeignKey(ErasureRequest, on_delete=models.PROTECT, related_name="disposals")
    data_class = models.CharField(max_length=1)
    key_ids = models.JSONField(default=list)
    method = models.CharField(max_length=32, default="dek_destroyed")
    store = models.CharField(max_length=64)
    at = models.DateTimeField()
    signature = models.TextField(blank=True, default="")
    signing_key_id = models.CharField(max_length=80, blank=True, default="")

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=("request", "data_class"), name="disposal_once_per_class"),
        ]

    def __str__(self) -> str:
        return f"{self.request_id} class {self.data_class}"
