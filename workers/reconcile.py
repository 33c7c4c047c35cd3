"""Find what is owed and nobody was told of: lost hints, dead leases, letters, expiries, disposals, breaches, seals.

Every step is safe to repeat and to run twice at once; a step that fails is logged and the others still run.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Final

import structlog
from django.conf import settings
from django.db import IntegrityError, transaction
from django.db.models import F, Q
from django.db.models.functions import Now
from django.utils import timezone

from deletion_service.api.idempotency import purge_answers
from deletion_service.audit import trail
from deletion_service.certificates.custody import sign_disposal
from deletion_service.certificates.policies import current_plan
from deletion_service.certificates.promotion import return_to_review
from deletion_service.certificates.sweeps import alarms
from deletion_service.dispatch import ring
from deletion_service.errors import DomainError
from deletion_service.notices.letters import owe_letter, owe_letters, send_owed
from deletion_service.requests.clocks import record_breaches
from deletion_service.requests.codes import DataClass
from deletion_service.requests.identity import expire_checks, renew_checks
from deletion_service.requests.models import ErasureRequest
from deletion_service.requests.payload import destroy_class
from deletion_service.requests.statuses import TERMINAL_STATUSES, RequestStatus
from deletion_service.targets import lifecycle
from deletion_service.targets.batching import close_batch, open_due_batches
from deletion_service.targets.ledger import must_destroy_vault
from deletion_service.targets.marks import forget_marks
from deletion_service.targets.models import ErasureBatch, ErasureTarget, Job, ModelVersion, TrainedModel
from deletion_service.targets.registries import open_registry
from deletion_service.targets.statuses import JobKind, JobState, TargetStatus, VersionStatus
from ml.errors import MlError
from workers.abandoned import record_abandoned_attempt, record_abandoned_sweep
from workers.clearing import retire_unregistered
from workers.judging import open_review
from workers.workspace import wipe_orphans, wipe_run

_log = structlog.get_logger(__name__)
_AT_ONCE: Final = (RequestStatus.WITHDRAWN, RequestStatus.EXPIRED)


def reconcile() -> dict[str, int]:
    """Run every step; return how much each one found."""
    return {step.__name__: _guarded(step) for step in STEPS}


def watch() -> dict[str, int]:
    """Run the steps that read whole registries; return how much each one found."""
    return {step.__name__: _guarded(step) for step in SLOW_STEPS}


def _guarded(step: Callable[[], int]) -> int:
    try:
        return step()
    except Exception:  # noqa: BLE001 - a process boundary: one broken step must not starve the others
        _log.error("reconcile_step_failed", step=step.__name__, exc_info=True)
        return 0


def fail_exhausted_jobs() -> int:
    """Fail jobs whose lease ran out with no attempt left: whatever killed them would kill them again."""
    found = Job.objects.filter(state=JobState.LEASED, lease_until__lt=Now(), attempts__gte=F("max_attempts")).update(
        state=JobState.FAILED,
        lease_until=None,
        last_error="attempts_exhausted",
        last_error_detail="its worker died each time; look for the reason on the worker's host, then try again",
        finished_at=Now(),
    )
    if found:
        _log.error("jobs_failed", count=found, error="attempts_exhausted")
    return found


def cancel_disowned_jobs() -> int:
    """Cancel jobs that were asked to stop while nobody ran them, or whose request closed.

    One that somebody still runs is asked to stop; its heartbeat hears of it.
    """
    Job.objects.filter(state=JobState.LEASED, cancel_requested=False, request__status__in=TERMINAL_STATUSES).update(
        cancel_requested=True
    )
    idle = Q(state=JobState.READY) | Q(state=JobState.LEASED, lease_until__lt=Now())
    done = Q(cancel_requested=True) | Q(request__status__in=TERMINAL_STATUSES)
    jobs = Job.objects.filter(idle & done).values_list("pk", flat=True)
    return (
        Job.objects.filter(pk__in=list(jobs))
        .filter(idle)
        .update(state=JobState.CANCELLED, lease_until=None, finished_at=Now())
    )


def record_abandoned_attempts() -> int:
    """Turn an unlearning or verification that failed for good into evidence that says so."""
    failed = Job.objects.filter(
        state=JobState.FAILED,
        kind__in=[JobKind.UNLEARN, JobKind.VERIFY],
        request__status=RequestStatus.WORKING,
        target__status=TargetStatus.WORKING,
        round=F("request__attempt"),
    )
    found = 0
    for job in failed.select_related("target__request", "run__batch__before__base", "run__candidate"):
        record_abandoned_attempt(job)
        found += 1
    return found


def record_abandoned_sweeps() -> int:
    """Let people see a candidate whose sweep failed for good: nobody can release it until the sweep is tried again."""
    failed = Job.objects.filter(
        state=JobState.FAILED,
        kind=JobKind.SWEEP,
        request__status=RequestStatus.WORKING,
        target__status=TargetStatus.WORKING,
        round=F("request__attempt"),
    )
    found = 0
    for job in failed.select_related("target__request", "run__candidate__model"):
        record_abandoned_sweep(job)
        found += 1
    return found


def reopen_reviews() -> int:
    """Open reviews that a legal hold kept shut: what settled while the case was held moved its target alone."""
    waiting = ErasureRequest.objects.filter(targets__status=TargetStatus.JUDGED).distinct()
    found = 0
    for request in waiting.filter(status__in=[RequestStatus.WORKING, RequestStatus.RELEASING]):
        held_at = request.status
        open_review(request)
        return_to_review(request)
        found += request.status != held_at
    return found


def settle_closed_requests() -> int:
    """Cancel the targets of requests that were withdrawn, free their models, and wipe their work directories.

    A target whose job still runs waits for it to stop: what it writes until then would be left behind.
    """
    running = Job.objects.filter(state=JobState.LEASED).values("target")
    targets = (
        ErasureTarget.objects.filter(request__status=RequestStatus.WITHDRAWN)
        .exclude(status__in=[TargetStatus.CANCELLED, TargetStatus.RELEASED, TargetStatus.NOT_RELEASED])
        .exclude(pk__in=running.exclude(target=None))
    )
    found = 0
    for target in targets:
        with transaction.atomic():
            lifecycle.move(target, TargetStatus.CANCELLED, actor="worker", reason="request_withdrawn")
            _retire_candidates(target)
            if target.batch is not None:
                close_batch(target.batch)
        found += 1
    return found


def _retire_candidates(target: ErasureTarget) -> None:
    """A candidate of a withdrawn request is nobody's: remove it from the registry."""
    retire_unregistered(target)
    runs = [] if target.batch is None else list(target.batch.runs.select_related("candidate__model"))
    for run in runs:
        wipe_run(run)
        if run.candidate is not None and run.candidate.status == VersionStatus.CANDIDATE:
            open_registry(run.candidate.model.registry).retire(run.candidate.number)
            ModelVersion.objects.filter(pk=run.candidate_id).update(status=VersionStatus.RETIRED)


def open_waiting_batches() -> int:
    """Start targets whose model has become free."""
    waiting = ErasureTarget.objects.filter(status=TargetStatus.APPROVED, request__status=RequestStatus.WORKING)
    return len(open_due_batches(current_plan())) if waiting.exists() else 0


def dispose_owed_classes() -> int:
    """Destroy sealed data that a closed request no longer needs: at once, or after letter and complaint window."""
    window = timezone.now() - timedelta(days=settings.COMPLAINT_WINDOW_DAYS)
    closed = ErasureRequest.objects.filter(status__in=TERMINAL_STATUSES, sealed_items__isnull=False).distinct()
    found = 0
    for request in closed:
        held = set(request.sealed_items.exclude(data_class=DataClass.VAULT).values_list("data_class", flat=True))
        waits = request.closed_at is not None and request.closed_at > window
        for data_class in sorted(held):
            if _must_wait(request, DataClass(data_class), waits=waits):
                continue
            destroy_class(request, DataClass(data_class), actor="worker", sign=sign_disposal)
            found += 1
    return found


def _must_wait(request: ErasureRequest, data_class: DataClass, *, waits: bool) -> bool:
    if data_class == DataClass.CONTACT:
        return waits or request.letters.filter(sent_at=None, undeliverable=False).exists()
    # A refusal may be challenged within the window; everything else has no further use for the payload.
    return waits and request.status == RequestStatus.REFUSED


def destroy_expired_vaults() -> int:
    """Destroy the keys of probes that must not be opened any more; from then on spike-ins stand for those people."""
    today, found = timezone.localdate(), 0
    for request in ErasureRequest.objects.filter(sealed_items__data_class=DataClass.VAULT).distinct():
        if must_destroy_vault(request, on=today):
            destroy_class(request, DataClass.VAULT, actor="worker", sign=sign_disposal)
            found += 1
    return found


def forget_unused_marks() -> int:
    """Delete keyed digests of people whose case needs to be known again no more."""
    return forget_marks()


def record_missed_deadlines() -> int:
    """Mark clocks that ran out."""
    return record_breaches(today=timezone.localdate())


def renew_and_expire_checks() -> int:
    """Remind once, then let identity checks expire."""
    now = timezone.now()
    expired = expire_checks(now=now)
    for check in renew_checks(now=now):
        owe_letter(check.request, "COM-02", occasion="reminder")
    return expired


def write_letters() -> int:
    """Owe and send letters."""
    owe_letters()
    return send_owed()


def forget_old_answers() -> int:
    """Forget the sealed answers kept for repeated requests, once their time is over."""
    return purge_answers(now=timezone.now())


def seal_audit_trail() -> int:
    """Seal new audit events; a rival that sealed the same ones first wins."""
    try:
        seal = trail.seal_events()
    except IntegrityError:
        return 0
    return 0 if seal is None else seal.count


def watch_registries() -> int:
    """Raise an alarm where retired weights can be read or resolved again."""
    found = 0
    for model in TrainedModel.objects.all():
        retired = list(model.versions.filter(status=VersionStatus.RETIRED).values_list("manifest_sha256", flat=True))
        try:
            alarms = open_registry(model.registry).watch(retired) if retired else []
        except (DomainError, MlError, OSError) as exc:
            alarms = [type(exc).__name__]
        for _ in alarms:
            _log.error("resurrection_detected", model=model.pk)
            found += 1
    return found


def watch_resurfaced() -> int:
    """Raise an alarm where the alias was moved by hand to a version that brings an earlier deletion back."""
    found = 0
    for sweep in alarms():
        model = sweep.version.model
        pointer = open_registry(model.registry).resolve(model.alias)
        if pointer is not None and pointer.number == sweep.version.number:
            _log.error("resurfaced_version_serves", model=model.pk, version=sweep.version_id)
            found += 1
    return found


def wipe_orphaned_scratch() -> int:
    """Wipe what killed jobs left in clear text, and what they left half written in registries."""
    return wipe_orphans() + sum(open_registry(model.registry).tidy() for model in TrainedModel.objects.all())


def ring_for_waiting_jobs() -> int:
    """Repeat the hint for queues with jobs that are ready, or that a dead worker left behind."""
    ready = Q(state=JobState.READY, available_at__lte=Now()) | Q(state=JobState.LEASED, lease_until__lt=Now())
    queues = Job.objects.filter(ready).values_list("queue", flat=True)
    for queue in set(queues):
        ring(queue)
    return len(set(queues))


def close_finished_batches() -> int:
    """Free models whose open batch has no target left at work."""
    found = 0
    for batch in ErasureBatch.objects.filter(status=ErasureBatch.Status.OPEN):
        statuses = set(batch.targets.values_list("status", flat=True))
        if statuses <= {TargetStatus.CANCELLED, TargetStatus.RELEASED, TargetStatus.NOT_RELEASED}:
            close_batch(batch)
            found += 1
    return found


STEPS: Final[tuple[Callable[[], int], ...]] = (
    fail_exhausted_jobs,
    cancel_disowned_jobs,
    record_abandoned_attempts,
    record_abandoned_sweeps,
    reopen_reviews,
    settle_closed_requests,
    close_finished_batches,
    open_waiting_batches,
    renew_and_expire_checks,
    write_letters,
    dispose_owed_classes,
    destroy_expired_vaults,
    forget_unused_marks,
    record_missed_deadlines,
    wipe_orphaned_scratch,
    forget_old_answers,
    seal_audit_trail,
    ring_for_waiting_jobs,
)
SLOW_STEPS: Final[tuple[Callable[[], int], ...]] = (watch_registries, watch_resurfaced)
