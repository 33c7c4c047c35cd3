"""The sweep finds what dead and late workers left: unrung jobs, running jobs of closed cases, weights, directories."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.utils import timezone

from deletion_service.audit.models import AuditEvent
from deletion_service.certificates.promotion import decide_evidence, send_back
from deletion_service.notices import letters
from deletion_service.requests.codes import ReasonCode
from deletion_service.requests.intake import withdraw_request
from deletion_service.requests.models import ErasureRequest
from deletion_service.requests.review import end_hold, hold_request
from deletion_service.targets.jobs import owe
from deletion_service.targets.models import Job, ModelVersion
from deletion_service.targets.registries import RUN_TAG, ModelRegistry, open_registry
from deletion_service.targets.statuses import JobKind
from ml.errors import RunStoppedError
from tests.cast import rhea
from tests.flow.conftest import release
from tests.requests.test_moving_a_request import request_in
from tests.simulator import Simulator
from tests.world import weights
from workers import reconcile as sweep
from workers.jobs import Lease, claim, run_next_job

pytestmark = pytest.mark.django_db
Case = Callable[..., ErasureRequest]


def registry_of(request: ErasureRequest) -> ModelRegistry:
    return open_registry(request.targets.get().model.registry)


def publish_unregistered(request: ErasureRequest) -> int:
    """What a worker leaves that is killed between publishing a candidate and telling the database."""
    run = request.targets.get().batch.runs.get()  # type: ignore[union-attr]
    folder = weights(Path(settings.HOME_DIR) / "scratch-models" / "unregistered", "published, never registered")
    return registry_of(request).publish(folder, parent=2, tags={RUN_TAG: run.pk}).number


def test_a_job_that_a_dead_worker_left_behind_is_rung_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    rung: list[str] = []
    monkeypatch.setattr(sweep, "ring", rung.append)
    job = owe(JobKind.LOCATE, request_in("locating"))
    claim(["cpu"], owner="dead")
    assert (sweep.ring_for_waiting_jobs(), rung) == (0, [])
    Job.objects.filter(pk=job.pk).update(lease_until=timezone.now() - timedelta(seconds=1))
    assert (sweep.ring_for_waiting_jobs(), rung) == (1, ["cpu"])


def test_a_running_job_of_a_withdrawn_case_is_stopped_before_anything_is_cleared_away(
    case: Case,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    request = case()
    Job.objects.filter(kind="verify").update(state="ready", finished_at=None)
    ErasureRequest.objects.filter(pk=request.pk).update(status="working")
    request.refresh_from_db()

    def withdrawn_meanwhile(lease: Lease) -> None:
        withdraw_request(request, actor="subject")
        sweep.reconcile()
        assert request.targets.get().status != "cancelled"
        lease.beat()
        assert lease.should_stop()
        raise RunStoppedError("stopped")

    run_next_job(["cpu"], stages={JobKind.VERIFY: withdrawn_meanwhile}, owner="test")
    assert Job.objects.get(kind="verify").state == "cancelled"
    sweep.reconcile()
    assert request.targets.get().status == "cancelled"
    assert registry_of(request).probe_gone(3) == "gone"
    assert not list((Path(settings.WORK_DIR) / "runs").glob("*"))


def test_weights_that_were_published_and_never_registered_go_with_a_withdrawn_case(
    case: Case,
) -> None:
    request = case()
    number = publish_unregistered(request)
    withdraw_request(request, actor="subject")
    sweep.reconcile()
    assert registry_of(request).probe_gone(number) == "gone"


def test_weights_that_were_published_and_never_registered_go_with_a_finished_case(
    case: Case,
) -> None:
    request = case()
    number = publish_unregistered(request)
    release(request)
    assert registry_of(request).probe_gone(number) == "gone"
    assert registry_of(request).probe_gone(3) == "still_readable"


def test_a_rejected_candidate_that_equals_a_version_in_use_does_not_take_it_along(
    case: Case,
    simulator: Simulator,
) -> None:
    request = case()
    run = request.targets.get().batch.runs.get()  # type: ignore[union-attr]
    base = ModelVersion.objects.get(kind="base")
    type(run).objects.filter(pk=run.pk).update(candidate=base)
    request.targets.update(verdict="FAIL")
    release(request, choice="decline", reason="evidence_failed")
    assert registry_of(request).probe_gone(base.number) == "still_readable"


def test_what_a_late_worker_writes_for_a_run_that_is_over_is_wiped(case: Case) -> None:
    request = case()
    run = request.targets.get().batch.runs.get()  # type: ignore[union-attr]
    folder = Path(settings.WORK_DIR) / "runs" / run.pk
    assert folder.is_dir()
    sweep.reconcile()
    assert folder.is_dir()
    release(request)
    folder.mkdir(parents=True)
    sweep.reconcile()
    assert not folder.exists()


def test_a_letter_that_two_sweeps_send_at_once_is_recorded_once(case: Case, monkeypatch: Any) -> None:
    case()
    letters.owe_letters()
    mail, inside = letters._mail, []

    def also_sent_by_another(letter: Any, address: str) -> Any:
        if not inside:
            inside.append(letter)
            letters.send_owed()
        return mail(letter, address)

    monkeypatch.setattr(letters, "_mail", also_sent_by_another)
    letters.send_owed()
    sent = list(AuditEvent.objects.filter(action="letter.sent").values_list("object_id", flat=True))
    assert sorted(sent) == sorted(set(sent))
    assert len(sent) == 2


def test_a_review_that_a_hold_kept_shut_is_opened_once_it_is_lifted(case: Case) -> None:
    request = case()
    target = request.targets.get()
    decide_evidence(request, choice="release", reason="all_gates_passed", reviewer=rhea())
    hold_request(request, reviewer=rhea())
    target.refresh_from_db()
    send_back(target, reason=ReasonCode.PROMOTION_CONFLICT)
    assert sweep.reopen_reviews() == 0
    end_hold(request, reviewer=rhea())
    assert request.status == "releasing"
    assert sweep.reopen_reviews() == 1
    request.refresh_from_db()
    assert request.status == "evidence_review"
    assert sweep.reopen_reviews() == 0


def test_lifting_a_hold_writes_no_letter_again(case: Case) -> None:
    request = case()
    letters.owe_letters()
    before = request.letters.count()
    hold_request(request, reviewer=rhea())
    end_hold(request, reviewer=rhea())
    letters.owe_letters()
    assert request.letters.count() == before
