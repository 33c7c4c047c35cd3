"""Decisions on evidence: what may be declined, what a declined target may be called, and whose decision counts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.utils import timezone

from deletion_service.certificates.custody import issuer_document
from deletion_service.certificates.issuing import issue_certificate
from deletion_service.certificates.models import Certificate
from deletion_service.certificates.promotion import decide_evidence, latest_decision
from deletion_service.certificates.verify import verify_certificate
from deletion_service.errors import FourEyesError, GuardError
from deletion_service.requests.models import ErasureRequest
from deletion_service.targets.registries import open_registry
from tests.cast import application, rhea, second_reviewer
from tests.flow.conftest import release, run_all_jobs, work_through
from tests.simulator import Simulator
from tests.world import make_model, weights
from workers.jobs import run_next_job
from workers.reconcile import reconcile
from workers.stages import STAGES

pytestmark = [pytest.mark.slow, pytest.mark.django_db]
Case = Callable[..., ErasureRequest]
RETRAINING = timezone.localdate() + timedelta(days=40)


def decline(request: ErasureRequest) -> None:
    decide_evidence(request, choice="decline", reason="retrain_planned", reviewer=rhea(), retrain_on=RETRAINING)
    run_all_jobs()
    request.refresh_from_db()


def test_a_declined_pass_ends_with_a_report_that_claims_no_erasure_and_a_letter_that_agrees(case: Case) -> None:
    request = case()
    decline(request)
    report = Certificate.objects.get(target__request=request)
    issue_certificate(report, member=second_reviewer())
    run_all_jobs()
    reconcile()
    request.refresh_from_db()
    report.refresh_from_db()

    assert (report.title, report.verdict, report.status) == ("Erasure attempt report", "INCONCLUSIVE", "published")
    assert (request.status, request.outcome) == ("completed", "scheduled_retrain")
    registry = open_registry(report.target.model.registry)
    assert registry.resolve("champion").number == 2  # type: ignore[union-attr]
    assert registry.probe_gone(3) == "gone"
    result = verify_certificate(
        bytes(report.envelope),
        issuer=issuer_document(),
        evidence=bytes(report.evidence.document),
        expect="INCONCLUSIVE",
        accept_test_policy=True,
    )
    assert result.failed == ()
    assert result.statement is not None
    assert [row.code for row in result.statement.facts.evaluation.unmet] == ["declined"]
    letter = " ".join(request.letters.get(kind="COM-06").text.split())
    assert "passed its tests, but we decided not to release it" in letter
    assert f"planned for {RETRAINING.isoformat()}" in letter


def test_what_serves_already_cannot_be_declined_but_can_be_released_again(case: Case, monkeypatch: Any) -> None:
    request = case()
    probe = "deletion_service.targets.registries.directory.DirectoryRegistry.probe_gone"
    with monkeypatch.context() as readable:
        readable.setattr(probe, lambda *_: "still_readable")
        release(request)
    assert request.status == "evidence_review"

    with pytest.raises(GuardError, match="already serves"):
        decline(request)
    release(request)

    assert Certificate.objects.get(target__request=request).verdict == "PASS"


def two_targets(monkeypatch: pytest.MonkeyPatch) -> ErasureRequest:
    """Alice's case about two models that learned from her, up to the evidence review."""
    make_model("assistant")
    kept = shutil.copytree(Path(settings.REGISTRY_ROOT), Path(settings.HOME_DIR) / "kept", dirs_exist_ok=True)
    shutil.rmtree(Path(settings.HOME_DIR) / "scratch-models")
    with monkeypatch.context() as other:
        other.setattr("tests.world.weights", lambda folder, content: weights(folder, f"{content} and helps"))
        make_model("helper")
    shutil.copytree(kept / "assistant", Path(settings.REGISTRY_ROOT) / "assistant")
    return work_through(application())


def point_alias(model: str, number: int) -> None:
    path = Path(settings.REGISTRY_ROOT) / model / "aliases.json"
    aliases = json.loads(path.read_text())
    aliases["champion"]["number"] = number
    path.write_text(json.dumps(aliases))


def test_who_approved_a_released_target_cannot_issue_it_because_another_decided_on_its_neighbour(
    simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = two_targets(monkeypatch)
    decide_evidence(request, choice="release", reason="all_gates_passed", reviewer=rhea())
    stolen = request.jobs.filter(kind="promote").order_by("created_at", "id")[1].target
    assert stolen is not None
    point_alias(stolen.model.name, 1)
    run_all_jobs()
    request.refresh_from_db()
    assert sorted(request.targets.values_list("status", flat=True)) == ["judged", "released"]
    point_alias(stolen.model.name, 2)
    decide_evidence(request, choice="release", reason="all_gates_passed", reviewer=second_reviewer())
    run_all_jobs()

    first = Certificate.objects.exclude(target=stolen).get()
    again = Certificate.objects.get(target=stolen)
    assert (first.evidence_approver, again.evidence_approver) == (rhea(), second_reviewer())
    assert latest_decision(first.target).decided_by == rhea()
    for member in (rhea(), second_reviewer()):
        with pytest.raises(FourEyesError):
            issue_certificate(again, member=member)
    with pytest.raises(FourEyesError):
        issue_certificate(first, member=rhea())
    assert issue_certificate(first, member=second_reviewer()).status == "issued"


def test_a_target_that_is_being_released_does_not_stay_so_because_its_neighbour_was_sent_back(
    simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = two_targets(monkeypatch)
    decide_evidence(request, choice="release", reason="all_gates_passed", reviewer=rhea())
    first, second = (job.target for job in request.jobs.filter(kind="promote").order_by("created_at", "id"))
    assert first is not None
    assert second is not None
    point_alias(first.model.name, 1)
    assert run_next_job(["cpu"], stages=STAGES, owner="test")
    request.refresh_from_db()
    assert (first.events.last().reason, request.status) == ("promotion_conflict", "releasing")  # type: ignore[union-attr]
    run_all_jobs()
    request.refresh_from_db()
    assert (request.status, request.events.last().reason) == ("evidence_review", "promotion_conflict")  # type: ignore[union-attr]
    decline(request)

    assert {t.pk: t.status for t in request.targets.all()} == {first.pk: "not_released", second.pk: "released"}
    verdicts = Certificate.objects.filter(target__request=request).values_list("target", "verdict")
    assert dict(verdicts) == {first.pk: "INCONCLUSIVE", second.pk: "PASS"}
