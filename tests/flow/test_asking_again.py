"""Somebody whose deletion was tried and not released asks again: they are told the truth, and no level is won back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

from deletion_service.certificates.issuing import issue_certificate
from deletion_service.certificates.models import Certificate
from deletion_service.errors import GuardError, InvalidInputError
from deletion_service.requests.codes import Capacity
from deletion_service.requests.intake import withdraw_request
from deletion_service.requests.models import ErasureRequest
from deletion_service.targets.batching import next_attempt
from deletion_service.targets.catalogue import register_model
from deletion_service.targets.locate import close_nothing_found, receive_instruction
from deletion_service.targets.models import ModelVersion, SubjectMark
from tests.cast import ALICE, BOB, Identifier, application, second_reviewer
from tests.doors import Machine
from tests.flow.conftest import begin_work, release, run_all_jobs, search_owed, twins_enough
from tests.flow.test_request_to_certificate import leaking
from tests.simulator import Simulator
from tests.world import make_model
from workers.reconcile import reconcile

pytestmark = pytest.mark.django_db
Case = Callable[..., ErasureRequest]


@pytest.fixture
def not_forgotten(case: Case, simulator: Simulator) -> ErasureRequest:
    """Alice's deletion failed and was declined; her rows are gone, and the model that learned from them serves."""
    simulator.alter = leaking
    request = release(case(), choice="decline", reason="evidence_failed")
    issue_certificate(Certificate.objects.get(), member=second_reviewer())
    run_all_jobs()
    reconcile()
    request.refresh_from_db()
    assert (request.status, request.outcome) == ("completed", "not_erased")
    return request


def again(who: Any = ALICE) -> ErasureRequest:
    """A case whose search has ended and found no row."""
    request = search_owed(application(who))
    run_all_jobs()
    close_nothing_found(request, actor="staff:rhea")
    reconcile()
    request.refresh_from_db()
    return request


def letter(request: ErasureRequest) -> str:
    return str(request.letters.get(kind="COM-07").text)


def test_alice_is_told_that_a_model_still_learned_from_her(not_forgotten: ErasureRequest) -> None:
    request = again()
    assert (request.status, request.outcome) == ("closed_no_action", "not_erased")
    assert request.events.latest("id").reason == "still_learned"
    assert "a model that learned from them still serves" in letter(request)
    assert "found nothing" not in letter(request)


def test_whoever_is_kept_to_be_known_again_is_told_so_and_nobody_else(
    not_forgotten: ErasureRequest, case: Case, simulator: Simulator
) -> None:
    told = " ".join(not_forgotten.letters.get(kind="COM-06").text.split())
    assert "we keep a keyed digest of the identifiers you proved" in told
    simulator.alter = lambda report: report
    erased = release(case(BOB, model=False))
    issue_certificate(Certificate.objects.get(target__request=erased), member=second_reviewer())
    run_all_jobs()
    reconcile()
    assert "keyed digest" not in erased.letters.get(kind="COM-06").text


def test_nobody_else_is_told_anything_of_it(not_forgotten: ErasureRequest) -> None:
    stranger = again(Identifier("email", "stranger@mail.example"))
    assert (stranger.status, stranger.outcome) == ("closed_no_action", "no_personal_data_found")
    assert "found nothing" in letter(stranger)


def test_a_sender_hears_the_same_without_a_person_in_between(not_forgotten: ErasureRequest) -> None:
    sender = Machine("requests:write").key
    said = replace(application(ALICE), capacity=Capacity.PROCESSOR)
    request = receive_instruction(said, sender=sender, actor="machine").request
    run_all_jobs()
    request.refresh_from_db()
    assert (request.status, request.outcome) == ("closed_no_action", "not_erased")


def test_once_the_old_weights_are_gone_there_is_nothing_and_nothing_is_kept(not_forgotten: ErasureRequest) -> None:
    before = not_forgotten.targets.get().batch.before  # type: ignore[union-attr]
    assert SubjectMark.objects.exists()
    ModelVersion.objects.filter(pk=before.pk).update(status="retired")
    assert again().outcome == "no_personal_data_found"
    assert not SubjectMark.objects.exists()


def test_a_mark_is_no_identifier_and_goes_with_a_release(case: Case) -> None:
    request = case()
    (mark,) = SubjectMark.objects.all()
    assert len(mark.digest) == 64
    assert not any(part in mark.digest for part in ("alice", "korvel"))
    release(request)
    issue_certificate(Certificate.objects.get(), member=second_reviewer())
    run_all_jobs()
    reconcile()
    assert not SubjectMark.objects.exists()


def test_whoever_withdraws_after_the_evidence_does_not_begin_at_the_first_level_again(
    case: Case, simulator: Simulator
) -> None:
    simulator.alter = leaking
    withdraw_request(case(), actor="subject")
    reconcile()
    request = search_owed(application())
    run_all_jobs()
    assert next_attempt(request) == 2
    with pytest.raises(GuardError, match="attempt 2"):
        begin_work(request)
    request.refresh_from_db()
    assert request.attempt == 0


def test_the_level_of_a_second_attempt_is_the_seconds_also_in_another_request(case: Case, simulator: Simulator) -> None:
    simulator.alter = leaking
    withdraw_request(case(), actor="subject")
    reconcile()
    request = search_owed(application())
    run_all_jobs()
    with twins_enough():
        begin_work(request)
    run_all_jobs()
    evidence = request.targets.get().evidence.get()
    assert (evidence.attempt, evidence.run.attempt) == (2, 2)
    assert request.letters.filter(kind="COM-05").count() == 0
    reconcile()
    assert request.letters.filter(kind="COM-05").count() == 1


def test_withdrawing_before_anything_was_judged_costs_nothing_and_old_withdrawals_are_forgotten(
    case: Case, settings: Any
) -> None:
    make_model()
    first = search_owed(application())
    run_all_jobs()
    withdraw_request(first, actor="subject")
    reconcile()
    assert not SubjectMark.objects.filter(target__request=first).exists()
    assert "keyed digest" not in first.letters.get(kind="COM-10").text
    second = case(BOB, model=False)
    withdraw_request(second, actor="subject")
    reconcile()
    assert SubjectMark.objects.filter(target__request=second).exists()
    assert f"for {settings.MARK_DAYS} days" in second.letters.get(kind="COM-10").text
    long_ago = timezone.now() - timedelta(days=settings.MARK_DAYS + 1)
    ErasureRequest.objects.filter(pk=second.pk).update(closed_at=long_ago)
    reconcile()
    assert not SubjectMark.objects.exists()


def test_a_model_that_shares_a_source_with_the_one_named_is_searched_too() -> None:
    model = make_model()
    other = register_model(
        "other", registry={"kind": "directory", "name": "other"}, sources=model.sources, alias="champion", actor="test"
    )
    with pytest.raises(InvalidInputError, match="another model has this registry"):
        register_model("mixed", registry=dict(model.registry), sources=model.sources, alias="champion", actor="test")
    alone = register_model(
        "alone",
        registry={"kind": "directory", "name": "alone"},
        sources=[{"kind": "jsonl_directory", "name": "elsewhere"}],
        alias="champion",
        actor="test",
    )
    request = search_owed(replace(application(), model_names=["assistant"]))
    run_all_jobs()
    assert {target.model_id for target in request.targets.all()} == {model.pk, other.pk}
    assert alone.pk not in {target.model_id for target in request.targets.all()}
