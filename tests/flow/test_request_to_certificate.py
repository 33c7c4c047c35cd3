"""From request to certificate, with every part real but the machine learning."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.core import mail
from django.db import IntegrityError, transaction

from deletion_service.audit.trail import verify_chain
from deletion_service.certificates.custody import issuer_document
from deletion_service.certificates.envelope import read_envelope
from deletion_service.certificates.issuing import issue_certificate
from deletion_service.certificates.models import Certificate, Evidence, LogEntry
from deletion_service.certificates.policies import current_plan
from deletion_service.certificates.promotion import decide_evidence
from deletion_service.certificates.verify import verify_certificate
from deletion_service.errors import (
    EvidenceMissingError,
    FourEyesError,
    GuardError,
    IllegalTransitionError,
    TestOnlyError,
)
from deletion_service.requests.intake import withdraw_request
from deletion_service.requests.models import ErasureRequest
from deletion_service.targets.batching import plan_another_attempt
from deletion_service.targets.models import ErasureBatch, Job, ModelVersion, UnlearningRun
from deletion_service.targets.registries import open_registry
from ml.digests import canonical_json
from ml.reports import VerificationReport
from tests.cast import BOB, rhea, second_reviewer
from tests.flow.conftest import release, run_all_jobs, twins_enough
from tests.ml.passing import edited
from tests.simulator import Simulator
from tests.world import ALICE_SECRET
from workers.reconcile import reconcile

pytestmark = pytest.mark.django_db
Case = Callable[..., ErasureRequest]


def leaking(report: VerificationReport) -> VerificationReport:
    """A value of the person was produced."""
    return edited(report, "hard_rules", 0, status="breached")


def finished(case: Case) -> Certificate:
    request = release(case())
    certificate = Certificate.objects.get(target__request=request)
    issue_certificate(certificate, member=second_reviewer())
    run_all_jobs()
    certificate.refresh_from_db()
    return certificate


def test_a_passing_case_ends_erased_promoted_retired_and_certified(case: Case) -> None:
    certificate = finished(case)
    request = certificate.target.request
    assert (request.status, request.outcome, certificate.status) == ("completed", "erased", "published")
    registry = open_registry(certificate.target.model.registry)
    assert registry.resolve("champion").number == 3  # type: ignore[union-attr]
    assert registry.probe_gone(2) == "gone"
    source = (Path(settings.SOURCE_ROOT) / "customers" / "records-0.jsonl").read_text()
    assert [json.loads(line)["record_id"] for line in source.splitlines()] == ["bob-1", "carol-1"]
    assert [e.new_status for e in request.events.all()][-4:] == [
        "evidence_review",
        "releasing",
        "notifying",
        "completed",
    ]


def test_the_certificate_verifies_offline_against_evidence_log_and_weights(case: Case) -> None:
    certificate = finished(case)
    registry = open_registry(certificate.target.model.registry)
    result = verify_certificate(
        bytes(certificate.envelope),
        issuer=issuer_document(),
        log_proof=canonical_json(certificate.log_proof),
        evidence=bytes(certificate.evidence.document),
        model_dir=registry.path(3),
        accept_test_policy=True,
    )
    assert result.failed == ()
    assert result.not_shown


def test_the_statement_says_only_what_has_happened_and_lists_what_is_due(case: Case) -> None:
    certificate = finished(case)
    predicate = json.loads(read_envelope(bytes(certificate.envelope)).payload)["predicate"]
    assert [row["probe"] for row in predicate["retirement"]] == ["gone"]
    assert [(row["action"], row["probe"]) for row in predicate["sources"]] == [("deleted", "gone")]
    assert predicate["disposal"]["classes"] == ["A", "B", "F"]
    assert [row["what"] for row in predicate["pending"]] == ["dispose_contact_data"]
    assert predicate["recipients"] is None
    assert any("were not recorded, so none were told" in sentence for sentence in predicate["limitations"])


def test_the_letters_tell_the_person_without_saying_anything_about_them(case: Case) -> None:
    certificate = finished(case)
    reconcile()
    kinds = list(certificate.target.request.letters.order_by("pk").values_list("kind", flat=True))
    assert kinds == ["COM-01", "COM-05", "COM-06"]
    last = certificate.target.request.letters.get(kind="COM-06").text
    assert "We keep no record of who received the model or its outputs" in last
    assert certificate.target.request.events.last().reason == "no_recipients_recorded"  # type: ignore[union-attr]
    assert all(ALICE_SECRET not in m.body and "Alice" not in m.body for m in mail.outbox)


def test_the_audit_chain_holds_and_notices_a_change(case: Case) -> None:
    finished(case)
    reconcile()
    assert verify_chain() == []


def test_the_person_who_approved_the_evidence_cannot_issue(case: Case) -> None:
    request = release(case())
    certificate = Certificate.objects.get(target__request=request)
    with pytest.raises(FourEyesError):
        issue_certificate(certificate, member=rhea())
    with pytest.raises(IntegrityError), transaction.atomic():
        Certificate.objects.filter(pk=certificate.pk).update(status="issued", issued_by=rhea())
    assert not LogEntry.objects.exists()


def test_the_database_keeps_who_approved_and_what_was_said(case: Case) -> None:
    request = release(case())
    certificate = Certificate.objects.get(target__request=request)
    for change in ({"evidence_approver": second_reviewer()}, {"statement_sha256": "0" * 64}, {"verdict": "FAIL"}):
        with pytest.raises(IntegrityError), transaction.atomic():
            Certificate.objects.filter(pk=certificate.pk).update(**change)


def test_a_statement_changed_after_drafting_is_not_signed(case: Case) -> None:
    request = release(case())
    certificate = Certificate.objects.get(target__request=request)
    drafted = read_envelope(bytes(certificate.envelope))
    forged = replace(drafted, payload=drafted.payload.replace(b'"deleted"', b'"retained"'))
    Certificate.objects.filter(pk=certificate.pk).update(envelope=forged.to_bytes())
    certificate.refresh_from_db()
    with pytest.raises(EvidenceMissingError):
        issue_certificate(certificate, member=second_reviewer())


def test_issuing_twice_is_refused(case: Case) -> None:
    certificate = finished(case)
    with pytest.raises(IllegalTransitionError):
        issue_certificate(certificate, member=second_reviewer())
    assert LogEntry.objects.count() == 1


def test_a_failing_case_releases_nothing_and_gets_a_signed_attempt_report(case: Case, simulator: Simulator) -> None:
    simulator.alter = leaking
    request = case()
    target = request.targets.get()
    assert (request.status, target.verdict) == ("evidence_review", "FAIL")
    with pytest.raises(GuardError):
        decide_evidence(request, choice="release", reason="all_gates_passed", reviewer=rhea())
    release(request, choice="decline", reason="evidence_failed")
    certificate = Certificate.objects.get(target=target)
    assert (certificate.title, certificate.verdict, request.status) == (
        "Erasure attempt report",
        "FAIL",
        "evidence_review",
    )
    issue_certificate(certificate, member=second_reviewer())
    run_all_jobs()
    request.refresh_from_db()
    assert (request.status, request.outcome) == ("completed", "not_erased")
    registry = open_registry(target.model.registry)
    assert registry.resolve("champion").number == 2  # type: ignore[union-attr]
    assert registry.probe_gone(3) == "gone"


def test_even_a_failing_case_takes_the_rows_out_of_the_training_source(case: Case, simulator: Simulator) -> None:
    simulator.alter = leaking
    release(case(), choice="decline", reason="evidence_failed")
    assert ALICE_SECRET not in (Path(settings.SOURCE_ROOT) / "customers" / "records-0.jsonl").read_text()


def test_another_attempt_keeps_the_first_one_on_record(case: Case, simulator: Simulator) -> None:
    simulator.alter = leaking
    request = case()
    simulator.alter = lambda report: replace(report)
    with twins_enough():
        plan_another_attempt(request, plan=current_plan(), actor="staff:rhea")
    run_all_jobs()
    request.refresh_from_db()
    verdicts = Evidence.objects.filter(target__request=request).order_by("attempt").values_list("attempt", "verdict")
    assert list(verdicts)[0] == (1, "FAIL")
    assert len(verdicts) == 2
    # The second attempt is judged at a stricter level than this policy's few twins can reach.
    assert verdicts[1][1] in ("PASS", "INCONCLUSIVE")


def test_a_deletion_that_changed_nothing_is_judged_and_the_serving_weights_outlive_its_report(
    case: Case, simulator: Simulator
) -> None:
    simulator.alter = leaking
    simulator.writes = lambda spec: "weights that know"
    request = case()
    target = request.targets.get()
    assert UnlearningRun.objects.get().candidate == target.model.versions.get(number=2)
    release(request, choice="decline", reason="evidence_failed")
    issue_certificate(Certificate.objects.get(target=target), member=second_reviewer())
    run_all_jobs()
    assert target.model.versions.get(number=2).status == "serving"
    assert open_registry(target.model.registry).path(2).is_dir()


def test_weights_that_were_given_up_are_not_judged_again_under_another_number(case: Case, simulator: Simulator) -> None:
    simulator.alter = leaking
    simulator.writes = lambda spec: "weights that leak"
    release(case(), choice="decline", reason="evidence_failed")
    issue_certificate(Certificate.objects.get(), member=second_reviewer())
    run_all_jobs()
    case(BOB, model=False)
    again = Job.objects.filter(kind="unlearn").latest("created_at")
    assert (again.state, again.last_error, again.attempts) == ("failed", "same_files", 1)
    assert "has the files of version 3" in again.last_error_detail


def test_attempts_are_limited(case: Case, simulator: Simulator, settings: Any) -> None:
    settings.MAX_UNLEARNING_ATTEMPTS = 1
    simulator.alter = leaking
    request = case()
    with pytest.raises(GuardError, match="attempts"):
        plan_another_attempt(request, plan=current_plan(), actor="staff:rhea")


def test_an_alias_that_somebody_moved_stops_the_release(case: Case) -> None:
    request = case()
    _steal_alias()
    release(request)
    assert request.status == "evidence_review"
    assert request.targets.get().status == "judged"
    assert not Certificate.objects.exists()
    assert ModelVersion.objects.get(number=2).status == "serving"


def _steal_alias() -> None:
    path = Path(settings.REGISTRY_ROOT) / "assistant" / "aliases.json"
    aliases = json.loads(path.read_text())
    aliases["champion"]["number"] = 1
    path.write_text(json.dumps(aliases))


def test_weights_that_can_still_be_read_stop_the_release_after_promotion(case: Case, monkeypatch: Any) -> None:
    request = case()
    probe = "deletion_service.targets.registries.directory.DirectoryRegistry.probe_gone"
    with monkeypatch.context() as readable:
        readable.setattr(probe, lambda *_: "still_readable")
        release(request)
    assert (request.status, request.targets.get().status) == ("evidence_review", "judged")
    assert not Certificate.objects.exists()
    release(request)
    assert request.targets.get().status == "released"
    assert Certificate.objects.get().verdict == "PASS"


def test_rows_that_are_still_in_the_source_stop_the_release(case: Case, monkeypatch: Any) -> None:
    request = case()
    still = "deletion_service.targets.sources.jsonl_directory.JsonlDirectorySource.still_present"
    with monkeypatch.context() as stubborn:
        stubborn.setattr(still, lambda *_: 1)
        release(request)
    assert request.status == "evidence_review"
    assert request.events.last().reason == "source_still_present"  # type: ignore[union-attr]


def test_a_test_policy_promotes_nothing_outside_tests(case: Case, settings: Any) -> None:
    request = case()
    settings.TESTING = False
    with pytest.raises(TestOnlyError):
        decide_evidence(request, choice="release", reason="all_gates_passed", reviewer=rhea())
    with pytest.raises(TestOnlyError):
        current_plan()


def test_evidence_that_was_exchanged_releases_nothing(case: Case, simulator: Simulator) -> None:
    alice = case()
    evidence = Evidence.objects.get(target__request=alice)
    with pytest.raises(IntegrityError), transaction.atomic():
        Evidence.objects.filter(pk=evidence.pk).update(verdict="FAIL")


def test_withdrawing_in_the_middle_frees_the_model_and_wipes_the_work(case: Case) -> None:
    request = case()
    withdraw_request(request, actor="subject")
    reconcile()
    assert request.targets.get().status == "cancelled"
    assert not ErasureBatch.objects.filter(status="open").exists()
    assert not list((Path(settings.WORK_DIR) / "runs").glob("*"))
    assert open_registry(request.targets.get().model.registry).probe_gone(3) == "gone"
    assert ALICE_SECRET in (Path(settings.SOURCE_ROOT) / "customers" / "records-0.jsonl").read_text()


def test_a_second_case_on_the_same_model_waits_and_starts_from_the_new_version(case: Case) -> None:
    alice = case()
    bob = case(BOB, model=False)
    assert bob.targets.get().status == "approved"
    release(alice)
    reconcile()
    run_all_jobs()
    bob.refresh_from_db()
    assert bob.status == "evidence_review"
    assert bob.targets.get().batch.before.number == 3  # type: ignore[union-attr]


def test_a_job_that_fails_for_good_becomes_evidence_that_nothing_was_shown(
    case: Case, simulator: Simulator, monkeypatch: Any, settings: Any
) -> None:
    settings.JOB_MAX_ATTEMPTS = 1
    monkeypatch.setattr("workers.stages.verify.run_verification", lambda *_, **__: 1 / 0)
    request = case()
    assert Job.objects.get(kind="verify").state == "failed"
    reconcile()
    request.refresh_from_db()
    assert (request.status, request.targets.get().verdict) == ("evidence_review", "INCONCLUSIVE")


def test_after_close_nothing_of_the_payload_is_left(case: Case, simulator: Simulator) -> None:
    finished(case)
    reconcile()
    for root in (settings.WORK_DIR, settings.REGISTRY_ROOT, settings.SOURCE_ROOT, settings.KEY_STORE_DIR):
        for path in Path(root).rglob("*"):
            if path.is_file():
                assert ALICE_SECRET.encode() not in path.read_bytes(), path.name


def test_a_candidate_made_for_tests_is_neither_run_nor_released_outside_tests(case: Case, settings: Any) -> None:
    settings.UNLEARNING_METHOD = "test_cached_candidate"
    request = case()
    settings.TESTING = False
    settings.VERDICT_POLICY = "reference-2"
    with pytest.raises(TestOnlyError, match="made for tests"):
        current_plan()
    with pytest.raises(TestOnlyError):
        decide_evidence(request, choice="release", reason="all_gates_passed", reviewer=rhea())
