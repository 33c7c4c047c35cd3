"""The search finds by what was proven. Mallory, with a mailbox of her own, can neither erase nor discover Alice."""

from __future__ import annotations

import pytest
from django.core import mail

from deletion_service.errors import GuardError
from deletion_service.notices.models import Letter
from deletion_service.requests.codes import Ground, MatchReason
from deletion_service.requests.identity import confirm_identity
from deletion_service.requests.intake import open_request
from deletion_service.requests.models import ErasureRequest
from deletion_service.targets.locate import accept_unproven, close_nothing_found, fix_targets, start_search
from deletion_service.targets.models import ErasureTarget
from tests.cast import ALICE, ALICE_NAME, BOB, MALLORY, Identifier, application, rhea
from tests.flow.conftest import run_all_jobs
from tests.world import make_model
from workers.reconcile import reconcile

pytestmark = pytest.mark.django_db


def searched(who: Identifier, *also: Identifier) -> ErasureRequest:
    request = open_request(application(who, also=also), actor="subject").request
    confirm_identity(request.identity_check)
    request.refresh_from_db()
    start_search(request, ground=Ground.CONSENT_WITHDRAWN, reviewer=rhea(), actor="staff:rhea")
    run_all_jobs()
    request.refresh_from_db()
    return request


def test_a_proven_mailbox_finds_the_records_the_versions_and_the_source() -> None:
    make_model()
    target = searched(ALICE).targets.get()
    assert (target.record_count, target.unproven_count) == (2, 0)
    assert [c.version.number for c in target.contaminated.all()] == [2]
    assert [(s.name, s.record_count, s.action) for s in target.sources.all()] == [("customers", 2, "pending")]


def test_the_base_that_never_saw_the_person_is_no_contaminated_version() -> None:
    make_model()
    assert not searched(ALICE).targets.get().contaminated.filter(version__kind="base").exists()


def test_mallory_cannot_erase_alice_by_naming_her() -> None:
    make_model()
    request = searched(MALLORY, ALICE, ALICE_NAME)
    target = request.targets.get()
    assert (target.record_count, target.unproven_count) == (0, 2)
    assert not target.contaminated.exists()
    with pytest.raises(GuardError, match="no record"):
        fix_targets(request, actor="staff:rhea")
    assert ErasureTarget.objects.get(pk=target.pk).status == "located"


def test_mallory_hears_the_same_whether_she_names_alice_or_nobody() -> None:
    make_model()
    letters = []
    for claimed in (ALICE_NAME, Identifier("name", "Nobody Inparticular")):
        mail.outbox.clear()
        request = searched(MALLORY, claimed)
        close_nothing_found(request, actor="staff:rhea")
        reconcile()
        bodies = [m.body.replace(request.receipt, "") for m in mail.outbox]
        texts = Letter.objects.filter(request=request).order_by("pk").values_list("kind", "text")
        letters.append(([len(b) for b in bodies], [(k, t.replace(request.receipt, "")) for k, t in texts]))
        assert (request.status, request.outcome) == ("closed_no_action", "no_personal_data_found")
    assert letters[0] == letters[1]


def test_an_unproven_match_counts_only_for_a_coded_reason_of_a_reviewer() -> None:
    make_model()
    request = searched(Identifier("email", "alice.new@mail.example"), ALICE_NAME)
    target = request.targets.get()
    accept_unproven(target, reason=MatchReason.DOCUMENT_SEEN, reviewer=rhea())
    target.refresh_from_db()
    assert (target.record_count, target.unproven_count, target.match_reason) == (2, 0, "document_seen")
    assert [c.version.number for c in target.contaminated.all()] == [2]
    assert [t.pk for t in fix_targets(request, actor="staff:rhea")] == [target.pk]


def test_a_search_is_limited_to_the_models_that_were_named() -> None:
    make_model()
    request = open_request(application(ALICE), actor="subject").request
    ErasureRequest.objects.filter(pk=request.pk).update(model_names=["another"])
    confirm_identity(request.identity_check)
    request.refresh_from_db()
    start_search(request, ground=Ground.VOLUNTARY, reviewer=rhea(), actor="staff:rhea")
    run_all_jobs()
    assert not request.targets.exists()


def test_found_records_cannot_be_closed_as_nothing_found() -> None:
    make_model()
    request = searched(BOB)
    with pytest.raises(GuardError, match="were found"):
        close_nothing_found(request, actor="staff:rhea")


def test_targets_cannot_be_fixed_before_the_search_has_finished() -> None:
    make_model()
    request = open_request(application(ALICE), actor="subject").request
    confirm_identity(request.identity_check)
    request.refresh_from_db()
    start_search(request, ground=Ground.VOLUNTARY, reviewer=rhea(), actor="staff:rhea")
    with pytest.raises(GuardError, match="not finished"):
        fix_targets(request, actor="staff:rhea")


def test_a_repeated_search_writes_nothing_twice() -> None:
    make_model()
    request = searched(ALICE)
    job = request.jobs.get(kind="locate")
    job.state, job.finished_at = "ready", None
    job.save()
    run_all_jobs()
    assert request.targets.count() == 1
    assert request.targets.get().events.count() == 1
