"""Owe work: write job rows, idempotently, in the caller's transaction. Claiming them is the workers' side."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from django.conf import settings
from django.utils import timezone

from deletion_service.audit import trail
from deletion_service.dispatch import ring
from deletion_service.errors import IllegalTransitionError
from deletion_service.requests.models import ErasureRequest
from deletion_service.targets.models import ErasureTarget, Job, ModelVersion, UnlearningRun
from deletion_service.targets.statuses import OF_AN_ATTEMPT, JobKind, JobState


def owe(
    kind: JobKind,
    request: ErasureRequest,
    *,
    target: ErasureTarget | None = None,
    run: UnlearningRun | None = None,
    round_: int = 1,
) -> Job:
    """Write the job `kind` unless it is owed already, and ring for a worker after commit."""
    queue = _queue(kind)
    defaults = {"run": run, **_at_once(queue)}
    job, _ = Job.objects.get_or_create(kind=kind, request=request, target=target, round=round_, defaults=defaults)
    ring(queue)
    return job


def owe_sweep(version: ModelVersion) -> Job:
    """Write the sweep of a version that came from outside, unless it is owed already."""
    queue = _queue(JobKind.SWEEP)
    job, _ = Job.objects.get_or_create(kind=JobKind.SWEEP, version=version, round=1, defaults=_at_once(queue))
    ring(queue)
    return job


def _queue(kind: JobKind) -> str:
    return settings.COMPUTE_QUEUE if kind in OF_AN_ATTEMPT else "cpu"


def _at_once(queue: str) -> dict[str, Any]:
    now = timezone.now()
    return {
        "queue": queue,
        "available_at": now,
        "deadline_at": now + timedelta(seconds=settings.JOB_DEADLINE_S),
        "max_attempts": settings.JOB_MAX_ATTEMPTS,
    }


def cancel_job(job: Job, *, actor: str) -> None:
    """Ask a job to stop: a ready one ends at once, a leased one at its next heartbeat."""
    stopped = Job.objects.filter(pk=job.pk, state=JobState.READY).update(
        state=JobState.CANCELLED, finished_at=timezone.now(), cancel_requested=True
    )
    asked = Job.objects.filter(pk=job.pk, state=JobState.LEASED).update(cancel_requested=True)
    if not stopped and not asked:
        raise IllegalTransitionError(f"job {job.pk} is {job.get_state_display()}; it cannot be cancelled")
    trail.record(actor=actor, action="job.cancel_requested", obj=job, request_id=job.request_id or "")
    job.refresh_from_db()


def retry_job(job: Job, *, actor: str) -> None:
    """Give a failed or cancelled job a fresh set of attempts.

    Raises:
        IllegalTransitionError: it has not failed, or belongs to an attempt that another one followed.
    """
    if not job.is_current:
        raise IllegalTransitionError(f"job {job.pk} belongs to an earlier attempt; only the newest one goes on")
    changed = Job.objects.filter(pk=job.pk, state__in=[JobState.FAILED, JobState.CANCELLED]).update(
        state=JobState.READY,
        attempts=0,
        cancel_requested=False,
        finished_at=None,
        available_at=timezone.now(),
        deadline_at=timezone.now() + timedelta(seconds=settings.JOB_DEADLINE_S),
    )
    if not changed:
        raise IllegalTransitionError(f"job {job.pk} is {job.get_state_display()}; only a failed one can be retried")
    trail.record(actor=actor, action="job.retried", obj=job, request_id=job.request_id or "")
    job.refresh_from_db()
    ring(job.queue)
