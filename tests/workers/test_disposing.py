"""Destroying the keys can be interrupted anywhere, any number of times, and still ends in a statement."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

from deletion_service.certificates.models import Certificate
from deletion_service.certificates.promotion import decide_evidence
from deletion_service.requests.models import ErasureRequest
from deletion_service.targets.models import Job
from tests.cast import rhea
from tests.flow.conftest import run_all_jobs
from workers.jobs import Lease, run_next_job
from workers.stages import STAGES

pytestmark = [pytest.mark.slow, pytest.mark.django_db]


class Killer:
    """Ends a stage just before its N-th write under the fence or to the disk, as a kill would."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.writes_left = 0
        hold, sync = Lease._hold, os.fsync
        monkeypatch.setattr(Lease, "_hold", lambda lease, **changes: (self.count(), hold(lease, **changes))[1])
        monkeypatch.setattr(os, "fsync", lambda descriptor: (self.count(), sync(descriptor))[1])

    def count(self) -> None:
        self.writes_left -= 1
        if self.writes_left == 0:
            raise SystemExit("killed")


def dies(killer: Killer, writes: int) -> bool:
    """Run the disposal until its N-th write; whether it got that far without an end."""
    killer.writes_left = writes
    try:
        run_next_job(["cpu"], stages=STAGES, owner="test")
    except SystemExit:
        Job.objects.filter(state="leased").update(lease_until=timezone.now() - timedelta(seconds=1))
        return True
    return False


@pytest.mark.parametrize("writes", range(1, 8))
def test_a_disposal_that_dies_before_a_write_and_again_before_each_that_is_left_ends_in_one_statement(
    case: Callable[..., ErasureRequest], monkeypatch: pytest.MonkeyPatch, settings: Any, writes: int
) -> None:
    settings.JOB_MAX_ATTEMPTS = 100
    request = case()
    decide_evidence(request, choice="release", reason="all_gates_passed", reviewer=rhea())
    while not Job.objects.filter(kind="dispose").exists():
        run_next_job(["cpu"], stages=STAGES, owner="test")
    killer = Killer(monkeypatch)
    assert dies(killer, writes)
    assert any(not dies(killer, again) for again in range(1, 20))
    assert errors(request) == []
    killer.writes_left = 0
    run_all_jobs()
    assert Certificate.objects.get().verdict == "PASS"
    assert sorted(request.disposals.values_list("data_class", flat=True)) == ["A", "B", "F"]


def errors(request: ErasureRequest) -> Sequence[tuple[str, str]]:
    return list(request.jobs.exclude(last_error="").values_list("kind", "last_error"))
