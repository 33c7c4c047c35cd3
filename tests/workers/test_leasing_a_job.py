"""The database is the queue: one worker a job, dead workers lose it, replaced workers write nothing."""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

from deletion_service.errors import IllegalTransitionError, InvalidInputError, LeaseLostError, RegistryError
from deletion_service.requests.models import ErasureRequest
from deletion_service.targets.jobs import cancel_job, owe, retry_job
from deletion_service.targets.models import Device, Job
from deletion_service.targets.statuses import JobKind, JobState
from ml.errors import RunStoppedError
from ml.specs import Progress
from tests.requests.test_moving_a_request import request_in
from workers.jobs import Lease, claim, run_next_job
from workers.reconcile import cancel_disowned_jobs, fail_exhausted_jobs

pytestmark = pytest.mark.django_db


def owed(**changes: Any) -> Job:
    job = owe(JobKind.LOCATE, request_in("locating"))
    Job.objects.filter(pk=job.pk).update(**changes)
    job.refresh_from_db()
    return job


def run(stage: Any) -> Job:
    job_id = run_next_job(["cpu"], stages={JobKind.LOCATE: stage}, owner="test")
    return Job.objects.get(pk=job_id)


def expire(job: Job) -> None:
    Job.objects.filter(pk=job.pk).update(lease_until=timezone.now() - timedelta(seconds=1))


def finish(lease: Lease) -> None:
    with lease.fenced():
        lease.finish()


def test_a_claim_takes_the_oldest_ready_job_and_counts_the_attempt() -> None:
    first, _ = owed(), owed()
    lease = claim(["cpu"], owner="one")
    assert lease is not None
    first.refresh_from_db()
    assert (lease.job_id, first.state, first.token, first.attempts, first.owner) == (first.pk, "leased", 1, 1, "one")


def test_a_leased_job_is_nobody_elses_until_its_lease_runs_out() -> None:
    job = owed()
    assert claim(["cpu"], owner="one") is not None
    assert claim(["cpu"], owner="two") is None
    expire(job)
    second = claim(["cpu"], owner="two")
    assert second is not None
    assert second.token == 2


def test_expired_leases_come_before_ready_jobs() -> None:
    dead, _ = owed(), owed()
    claim(["cpu"], owner="dead")
    expire(dead)
    lease = claim(["cpu"], owner="two")
    assert lease is not None
    assert lease.job_id == dead.pk


@pytest.mark.parametrize("queue", ["gpu.24g", "other"])
def test_a_queue_serves_its_own_jobs_only(queue: str) -> None:
    owed()
    assert claim([queue], owner="one") is None


@pytest.mark.parametrize(
    "changes",
    [
        {"available_at": timezone.now() + timedelta(days=1)},
        {"cancel_requested": True},
        {"attempts": 5},
        {"state": JobState.FAILED},
    ],
)
def test_a_job_that_must_not_run_is_not_claimed(changes: dict[str, Any]) -> None:
    owed(**changes)
    assert claim(["cpu"], owner="one") is None


@pytest.mark.parametrize("status", ["on_hold", "withdrawn", "working"])
def test_a_job_runs_only_while_its_request_owes_it(status: str) -> None:
    owe(JobKind.LOCATE, request_in(status))
    assert claim(["cpu"], owner="one") is None


def test_a_replaced_worker_can_write_nothing() -> None:
    job = owed()
    zombie = claim(["cpu"], owner="zombie")
    assert zombie is not None
    expire(job)
    heir = claim(["cpu"], owner="heir")
    assert heir is not None
    with pytest.raises(LeaseLostError), zombie.fenced():
        pytest.fail("the zombie entered the fence")
    with pytest.raises(LeaseLostError):
        zombie.record(step="mine")
    zombie.beat()
    assert zombie.should_stop()
    finish(heir)
    job.refresh_from_db()
    assert (job.state, job.step) == ("done", "")


def test_a_beat_extends_the_lease_and_writes_progress() -> None:
    job = owed()
    lease = claim(["cpu"], owner="one")
    assert lease is not None
    expire(job)
    lease.on_progress(Progress("train", 3, 10))
    lease.beat()
    job.refresh_from_db()
    assert job.lease_until is not None
    assert job.lease_until > timezone.now()
    assert (job.progress_phase, job.progress_done, job.progress_total) == ("train", 3, 10)


@pytest.mark.parametrize(
    "changes", [{"cancel_requested": True}, {"deadline_at": timezone.now() - timedelta(seconds=1)}]
)
def test_a_beat_finds_out_that_the_job_is_to_stop(changes: dict[str, Any]) -> None:
    job = owed()
    lease = claim(["cpu"], owner="one")
    assert lease is not None
    Job.objects.filter(pk=job.pk).update(**changes)
    lease.beat()
    assert lease.should_stop()


def test_waiting_costs_a_job_nothing_of_its_time() -> None:
    long_ago = timezone.now() - timedelta(days=30)
    job = owed(deadline_at=long_ago)
    assert cancel_disowned_jobs() == 0
    assert claim(["cpu"], owner="one") is not None
    job.refresh_from_db()
    assert job.deadline_at > timezone.now()


def test_a_job_that_runs_too_long_fails_for_a_person_to_see() -> None:
    owed()

    def never_end(lease: Lease) -> None:
        Job.objects.update(deadline_at=timezone.now() - timedelta(seconds=1))
        lease.beat()
        assert lease.should_stop()
        raise RunStoppedError("stopped")

    job = run(never_end)
    assert (job.state, job.last_error) == ("failed", "deadline_passed")


def test_a_finished_stage_leaves_a_done_job() -> None:
    owed()
    job = run(finish)
    assert (job.state, job.lease_until, job.attempts) == ("done", None, 1)
    assert job.finished_at is not None


def test_an_expected_failure_that_trying_again_cannot_cure_fails_the_job_at_once() -> None:
    owed()

    def refuse(_: Lease) -> None:
        raise InvalidInputError("a name is no name")

    job = run(refuse)
    assert (job.state, job.last_error, job.attempts) == ("failed", "invalid_input", 1)


@pytest.mark.parametrize("error", [RegistryError("away"), RuntimeError("bug")])
def test_a_passing_failure_is_tried_again_later_until_attempts_run_out(error: Exception) -> None:
    owed(max_attempts=2)

    def fail(_: Lease) -> None:
        raise error

    job = run(fail)
    assert job.state == "ready"
    assert job.available_at > timezone.now()
    Job.objects.update(available_at=timezone.now())
    assert run(fail).state == "failed"


def test_an_unexpected_error_leaves_its_type_and_never_its_message() -> None:
    owed(max_attempts=1)

    def leak(_: Lease) -> None:
        raise RuntimeError("Alice lives at 48 Brackenfell Lane")

    assert run(leak).last_error == "RuntimeError"


def test_shutting_down_hands_the_job_back_without_using_an_attempt() -> None:
    owed()
    stopping = threading.Event()
    stopping.set()

    def checkpoint_and_stop(lease: Lease) -> None:
        assert lease.should_stop()
        raise RunStoppedError("stopped")

    run_next_job(["cpu"], stages={JobKind.LOCATE: checkpoint_and_stop}, owner="test", stopping=stopping)
    job = Job.objects.get()
    assert (job.state, job.attempts, job.token) == ("ready", 0, 1)


def test_cancelling_a_ready_job_ends_it_and_a_leased_one_at_its_next_beat() -> None:
    ready = owed()
    cancel_job(ready, actor="rhea")
    assert ready.state == "cancelled"
    leased = owed()

    def wait_for_cancel(lease: Lease) -> None:
        cancel_job(Job.objects.get(pk=leased.pk), actor="rhea")
        lease.beat()
        assert lease.should_stop()
        raise RunStoppedError("stopped")

    assert run(wait_for_cancel).state == "cancelled"


def test_a_failed_job_can_be_given_fresh_attempts() -> None:
    job = owed(state=JobState.FAILED, attempts=5)
    retry_job(job, actor="rhea")
    assert (job.state, job.attempts) == ("ready", 0)
    assert run(finish).state == "done"


def test_work_of_an_attempt_that_another_one_followed_is_neither_run_nor_tried_again() -> None:
    request = request_in("working")
    old, new = (owe(JobKind.UNLEARN, request, round_=attempt) for attempt in (1, 2))
    ErasureRequest.objects.filter(pk=request.pk).update(attempt=2)
    Job.objects.filter(pk=old.pk).update(state=JobState.FAILED)
    with pytest.raises(IllegalTransitionError, match="earlier attempt"):
        retry_job(Job.objects.get(pk=old.pk), actor="rhea")
    Job.objects.filter(pk=old.pk).update(state=JobState.READY)
    lease = claim(["cpu"], owner="test")
    assert lease is not None
    assert lease.job_id == new.pk
    assert claim(["cpu"], owner="test") is None


def test_a_job_that_kills_every_worker_fails_for_a_person_to_see() -> None:
    job = owed(max_attempts=1)
    claim(["cpu"], owner="killed")
    expire(job)
    assert claim(["cpu"], owner="next") is None
    assert fail_exhausted_jobs() == 1
    job.refresh_from_db()
    assert (job.state, job.last_error) == ("failed", "attempts_exhausted")


def test_jobs_of_a_closed_request_are_cancelled() -> None:
    job = owe(JobKind.LOCATE, request_in("withdrawn"))
    assert cancel_disowned_jobs() == 1
    job.refresh_from_db()
    assert job.state == "cancelled"


def test_the_same_work_is_owed_once() -> None:
    request = request_in("locating")
    assert owe(JobKind.LOCATE, request).pk == owe(JobKind.LOCATE, request).pk
    assert owe(JobKind.LOCATE, request, round_=2).pk != owe(JobKind.LOCATE, request).pk


def test_two_jobs_never_share_a_listed_device() -> None:
    Device.objects.create(name="host-a:0", capability="cpu")
    first, second = owed(), owed()
    assert claim(["cpu"], owner="one") is not None
    assert claim(["cpu"], owner="two") is None
    second.refresh_from_db()
    assert (second.state, second.attempts) == ("ready", 0)
    assert Device.objects.get().job_id == first.pk


def test_a_finished_job_frees_its_device() -> None:
    Device.objects.create(name="host-a:0", capability="cpu")
    owed()
    run(finish)
    assert Device.objects.get().job is None
