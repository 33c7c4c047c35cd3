"""Who may start the work, and work that could not end in a PASS is not started at all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from django.db import IntegrityError, transaction

from deletion_service.certificates.policies import current_plan
from deletion_service.errors import FourEyesError, GuardError
from deletion_service.requests.codes import MatchReason
from deletion_service.requests.models import ErasureRequest
from deletion_service.targets.batching import plan_another_attempt, start_work
from deletion_service.targets.locate import accept_unproven, fix_targets
from deletion_service.targets.models import ErasureTarget, Job, UnlearningRun
from ml.reports import VerificationReport
from tests.cast import ALICE_NAME, MALLORY, application, rhea, second_reviewer
from tests.doors import signed_in
from tests.flow.conftest import run_all_jobs, search_owed
from tests.ml.passing import edited
from tests.simulator import Simulator
from tests.world import make_model
from workers.reconcile import reconcile

pytestmark = pytest.mark.django_db


def searched() -> ErasureRequest:
    """Mallory asks with Alice's name; Rhea sets the ground, and the search finds what only the name points to."""
    make_model()
    request = search_owed(application(MALLORY, also=(ALICE_NAME,)))
    run_all_jobs()
    request.refresh_from_db()
    return request


def test_who_accepted_an_unproven_match_cannot_start_the_work(simulator: Simulator) -> None:
    request = searched()
    accept_unproven(request.targets.get(), reason=MatchReason.DOCUMENT_SEEN, reviewer=second_reviewer())
    fix_targets(request, actor="staff:rhea")

    with pytest.raises(FourEyesError, match="second reviewer must start it"):
        start_work(request, starter=second_reviewer(), plan=current_plan(), actor="staff:reviewer-2")
    assert not Job.objects.filter(kind="unlearn").exists()
    assert request.targets.get().match_reviewer == second_reviewer()


def test_who_accepted_the_targets_cannot_start_the_work(simulator: Simulator) -> None:
    request = searched()
    accept_unproven(request.targets.get(), reason=MatchReason.DOCUMENT_SEEN, reviewer=rhea())
    fix_targets(request, actor="staff:reviewer-2")

    for member in (rhea(), second_reviewer()):
        with pytest.raises(FourEyesError):
            start_work(request, starter=member, plan=current_plan(), actor=f"staff:{member.handle}")


def test_the_database_keeps_no_accepted_match_without_the_person_who_answers_for_it(simulator: Simulator) -> None:
    target = searched().targets.get()

    with pytest.raises(IntegrityError), transaction.atomic():
        ErasureTarget.objects.filter(pk=target.pk).update(match_reason=MatchReason.DOCUMENT_SEEN)


def leaking(report: VerificationReport) -> VerificationReport:
    return edited(report, "hard_rules", 0, status="breached")


def test_an_attempt_that_could_never_pass_is_refused_before_anything_is_computed(
    case: Callable[..., ErasureRequest], simulator: Simulator
) -> None:
    simulator.alter = leaking
    request = case()
    reference = replace(current_plan(), policy_name="reference-2")

    with pytest.raises(GuardError, match=r"reference-2 has too few twins for F4, F6 .* policy with more twins"):
        plan_another_attempt(request, plan=reference, actor="staff:rhea")

    request.refresh_from_db()
    assert (request.status, request.attempt, UnlearningRun.objects.count()) == ("evidence_review", 1, 1)
    page = signed_in(rhea()).get(f"/console/cases/{request.pk}/do/again")
    assert "could never pass" in page.context["closed_because"]


def test_an_attempt_that_its_worker_abandoned_leaves_no_second_one_that_could_never_pass(
    case: Callable[..., ErasureRequest], monkeypatch: pytest.MonkeyPatch, settings: Any
) -> None:
    settings.JOB_MAX_ATTEMPTS = 1
    monkeypatch.setattr("workers.stages.verify.run_verification", lambda *_, **__: 1 / 0)
    request = case()
    reconcile()
    request.refresh_from_db()
    assert request.status == "evidence_review"

    with pytest.raises(GuardError, match="could never pass"):
        plan_another_attempt(request, plan=current_plan(), actor="staff:rhea")
    assert not Job.objects.filter(kind="unlearn", round=2).exists()
