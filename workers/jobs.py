"""Claim, lease, heartbeat, fence: the database is the queue of record (service-stack section 4).

The Celery task and `manage.py run_jobs` both call `run_next_job`. Nothing here knows what a stage does; a stage may
be killed at any point and is claimed again when its lease has run out, under a higher token. Every effect goes
through `Lease.fenced`, which a replaced worker cannot enter.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final, Protocol

import structlog
from django.conf import settings
from django.db import close_old_connections, connection, transaction
from django.db.models import F, Q
from django.db.models.functions import Coalesce, Now
from django.utils import timezone

from deletion_service.errors import DomainError, LeaseLostError, StoreUnavailableError
from deletion_service.targets.models import Device, Job
from deletion_service.targets.statuses import OF_AN_ATTEMPT, OWED_IN, JobState
from ml.errors import MlError, RunStoppedError
from ml.specs import Progress

_log = structlog.get_logger(__name__)
# These cannot succeed by trying again on the same inputs; everything else is retried until attempts run out.
_TRANSIENT_KINDS: Final = frozenset({"unavailable", "conflict"})
_UNEXPECTED: Final = "this was not expected; the worker's log says where it happened. Try again, or report it"
_TOO_LONG: Final = "it ran longer than a job may; if it was healthy, raise LETHE_JOB_DEADLINE_S, then try again"
_LONGEST_DETAIL: Final = 400
Stage = Callable[["Lease"], None]


class Stopping(Protocol):
    """Whether this process was told to end; a `threading.Event` is one."""

    def is_set(self) -> bool:
        """Return whether to checkpoint and hand the job back."""
        ...


@dataclass(slots=True)
class Lease:
    """The right to work on one job until `lease_until`, for as long as `token` is the job's token."""

    job_id: str
    kind: str
    token: int
    owner: str
    stopping: Stopping = field(default_factory=threading.Event)
    lost: threading.Event = field(default_factory=threading.Event)
    cancelled: threading.Event = field(default_factory=threading.Event)
    _progress: Progress | None = None

    def job(self) -> Job:
        """Return the job row with what belongs to it."""
        rows = Job.objects.select_related("request", "version__model", "version__base", "run__candidate")
        return rows.select_related("target__model", "target__batch__before").get(pk=self.job_id)

    @contextmanager
    def fenced(self) -> Iterator[Job]:
        """Open a transaction that only the current token may enter; the job's row is locked for its length.

        Raises:
            LeaseLostError: another worker holds the job; nothing is written.
        """
        with transaction.atomic():
            self._hold(step=F("step"))
            yield self.job()

    def record(self, **changes: Any) -> None:
        """Write fields of the job under the fence: step, checkpoint, progress."""
        with transaction.atomic():
            self._hold(**changes)

    def finish(self) -> None:
        """Mark the job done; called inside `fenced`, in the transaction of its last effect."""
        ended = {"finished_at": timezone.now(), "last_error": "", "last_error_detail": ""}
        self._hold(state=JobState.DONE, lease_until=None, **ended)
        Device.objects.filter(job_id=self.job_id).update(job=None, lease_until=None)

    def should_stop(self) -> bool:
        """Whether to checkpoint and return: shutdown, cancel, deadline, or another worker took over."""
        return self.stopping.is_set() or self.lost.is_set() or self.cancelled.is_set()

    def on_progress(self, progress: Progress) -> None:
        """Note progress; the heartbeat writes it."""
        self._progress = progress

    def beat(self) -> None:
        """Extend the lease and write progress, or find out that it was lost, cancelled or is past its deadline."""
        changes: dict[str, Any] = {"lease_until": Now() + timedelta(seconds=settings.LEASE_S)}
        if progress := self._progress:
            changes |= {
                "progress_phase": progress.phase[:32],
                "progress_done": progress.done,
                "progress_total": progress.total,
            }
        held = Job.objects.filter(pk=self.job_id, token=self.token, state=JobState.LEASED)
        if held.update(**changes) != 1:
            self.lost.set()
        elif held.filter(Q(cancel_requested=True) | Q(deadline_at__lt=Now())).exists():
            self.cancelled.set()
        Device.objects.filter(job_id=self.job_id).update(lease_until=Now() + timedelta(seconds=settings.LEASE_S))

    def _hold(self, **changes: Any) -> None:
        held = Job.objects.filter(pk=self.job_id, token=self.token, state=JobState.LEASED)
        if held.update(**changes) != 1:
            self.lost.set()
            raise LeaseLostError(f"job {self.job_id} was taken over; this worker stops")


def worker_name() -> str:
    """Return who this process is, for job rows: host and process id."""
    return f"{socket.gethostname()[:40]}:{os.getpid()}"


def claim(queues: Sequence[str], *, owner: str) -> Lease | None:
    """Lease the job that has waited longest: expired leases first, then the oldest ready one.

    The claim itself counts the attempt, so that a job that kills its process still uses attempts up.
    """
    for state in (_expired(), _ready()):
        with transaction.atomic():
            candidates = Job.objects.filter(state, _owed(), queue__in=queues, attempts__lt=F("max_attempts"))
            candidates = candidates.filter(cancel_requested=False)
            if connection.features.has_select_for_update_skip_locked:
                candidates = candidates.select_for_update(skip_locked=True, of=("self",))
            job = candidates.order_by("created_at", "id").first()
            if job is not None and (lease := _take(job, owner=owner)) is not None:
                return lease
    return None


def _expired() -> Q:
    return Q(state=JobState.LEASED, lease_until__lt=Now())


def _ready() -> Q:
    return Q(state=JobState.READY, available_at__lte=Now())


def _owed() -> Q:
    condition = Q(request=None)
    for kind, statuses in OWED_IN.items():
        current = Q(round=F("request__attempt")) if kind in OF_AN_ATTEMPT else Q()
        condition |= Q(kind=kind, request__status__in=sorted(statuses)) & current
    return condition


def _take(job: Job, *, owner: str) -> Lease | None:
    """Compare and set on the token; a rival that was faster leaves nothing to take."""
    taken = Job.objects.filter(pk=job.pk, token=job.token, state=job.state).update(
        state=JobState.LEASED,
        token=F("token") + 1,
        attempts=F("attempts") + 1,
        owner=owner,
        lease_until=Now() + timedelta(seconds=settings.LEASE_S),
        # A deadline is about work, not about waiting: a legal hold or a long queue must cost no job its life.
        deadline_at=Now() + timedelta(seconds=settings.JOB_DEADLINE_S),
        started_at=Coalesce("started_at", Now()),
    )
    if taken != 1 or not _take_device(job):
        return None
    return Lease(job.pk, job.kind, job.token + 1, owner)


def _take_device(job: Job) -> bool:
    """Lease an accelerator of the job's queue, where devices are listed; a CPU queue needs none."""
    devices = Device.objects.filter(capability=job.queue)
    if not devices.exists():
        return True
    Device.objects.filter(job_id=job.pk).update(job=None, lease_until=None)
    free = devices.filter(Q(job=None) | Q(lease_until__lt=Now())).order_by("name").first()
    if free is None:
        Job.objects.filter(pk=job.pk).update(
            state=JobState.READY,
            lease_until=None,
            attempts=F("attempts") - 1,
            available_at=Now() + timedelta(seconds=5),
        )
        return False
    taken = devices.filter(pk=free.pk, token=free.token).update(
        job=job, token=F("token") + 1, lease_until=Now() + timedelta(seconds=settings.LEASE_S)
    )
    return taken == 1


def run_next_job(
    queues: Sequence[str], *, stages: dict[str, Stage], owner: str, stopping: Stopping | None = None
) -> str | None:
    """Claim one job and run its stage to its end; return the job's id, or `None` when nothing is owed.

    `stopping` asks the stage to checkpoint and hand the job back (shutdown).
    """
    lease = claim(queues, owner=owner)
    if lease is None:
        return None
    if stopping is not None:
        lease.stopping = stopping
    log = _log.bind(job=lease.job_id, kind=lease.kind, token=lease.token)
    log.info("job_started")
    with _heartbeat(lease):
        outcome = _run_stage(lease, stages[lease.kind])
    log.info("job_left", outcome=outcome)
    return lease.job_id


def _run_stage(lease: Lease, stage: Stage) -> str:
    """Run a stage and turn every way it can end into a state of the job."""
    try:
        stage(lease)
    except LeaseLostError:
        return "lost"
    except RunStoppedError:
        return _hand_back(lease)
    except StoreUnavailableError as exc:
        return _postpone(lease, exc)
    except (DomainError, MlError) as exc:
        kind = getattr(exc, "kind", "")
        return give_up_or_retry(lease, code=exc.code, detail=str(exc), transient=kind in _TRANSIENT_KINDS)
    except Exception as exc:  # noqa: BLE001 - a process boundary: whatever a stage raises, the job row must say so
        _log.error("stage_crashed", job=lease.job_id, kind=lease.kind, exc_info=True)
        # Its message may hold anything, so only its type is kept.
        return give_up_or_retry(lease, code=type(exc).__name__[:64], detail=_UNEXPECTED, transient=True)
    return "done"


def _hand_back(lease: Lease) -> str:
    """Release a stopped job: cancelled if that was asked, failed if it took too long, else ready at once and without
    using up an attempt."""
    with suppress(LeaseLostError):
        if lease.cancelled.is_set() and lease.job().cancel_requested:
            lease.record(state=JobState.CANCELLED, lease_until=None, finished_at=timezone.now())
            return "cancelled"
        if lease.cancelled.is_set():
            return give_up_or_retry(lease, code="deadline_passed", detail=_TOO_LONG, transient=False)
        lease.record(state=JobState.READY, lease_until=None, attempts=F("attempts") - 1, available_at=Now())
        return "handed_back"
    return "lost"


def _postpone(lease: Lease, exc: StoreUnavailableError) -> str:
    """Come back later without using up an attempt: somebody else's command ends, or an operator mounts what is missing;
    neither says anything about the work."""
    later = Now() + timedelta(seconds=settings.STORE_WAIT_S)
    why = {"last_error": exc.code, "last_error_detail": str(exc)[:_LONGEST_DETAIL]}
    with suppress(LeaseLostError):
        lease.record(state=JobState.READY, lease_until=None, attempts=F("attempts") - 1, available_at=later, **why)
        return "postponed"
    return "lost"


def give_up_or_retry(lease: Lease, *, code: str, detail: str, transient: bool) -> str:
    """After a failure: wait and try again, or fail the job for a person to see, with what it is about and what to do.

    `detail` is the message of an expected error: it names objects and the next step, never what was said or learned.
    """
    # A file name may hold bytes that are no text; no database would take them.
    text = detail.encode("ascii", "backslashreplace").decode()
    failure = {"last_error": code, "last_error_detail": text[:_LONGEST_DETAIL]}
    with suppress(LeaseLostError):
        job = lease.job()
        if transient and job.attempts < job.max_attempts:
            wait = timedelta(seconds=settings.JOB_BACKOFF_S * 2 ** min(job.attempts, 6))
            lease.record(state=JobState.READY, lease_until=None, available_at=Now() + wait, **failure)
            return "retrying"
        lease.record(state=JobState.FAILED, lease_until=None, finished_at=timezone.now(), **failure)
        _log.error("job_failed", job=lease.job_id, kind=lease.kind, error=code)
        return "failed"
    return "lost"


@contextmanager
def _heartbeat(lease: Lease) -> Iterator[None]:
    """Beat from a thread while the stage runs, so that a long training step does not look like a dead worker."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(settings.HEARTBEAT_S):
            close_old_connections()
            try:
                lease.beat()
            except Exception as exc:  # noqa: BLE001 - a thread boundary: a missed beat must not end the heartbeat
                _log.warning("heartbeat_failed", job=lease.job_id, error=type(exc).__name__)
        connection.close()

    thread = threading.Thread(target=beat, name=f"heartbeat-{lease.job_id}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
