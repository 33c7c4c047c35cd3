"""What the case page offers: exactly what the move table allows, with a sentence on what is closed."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from bs4 import BeautifulSoup
from django.utils import timezone

from deletion_service.console.actions import ACTIONS, offers
from deletion_service.notices.models import Letter
from deletion_service.requests.codes import Ground
from deletion_service.requests.identity import confirm_identity
from deletion_service.requests.intake import open_request
from deletion_service.requests.models import Clock, ErasureRequest
from deletion_service.requests.statuses import MOVES, RequestStatus
from deletion_service.targets.locate import start_search
from tests.cast import ALICE_NAME, MALLORY, application, rhea, second_reviewer
from tests.console.test_walk import post
from tests.doors import Machine, signed_in
from tests.flow.conftest import run_all_jobs
from tests.world import make_model
from workers.reconcile import reconcile

pytestmark = pytest.mark.django_db


@pytest.fixture
def proven(db: Any) -> ErasureRequest:
    """Alice's request, with her mailbox proven."""
    request = open_request(application(), actor="subject").request
    confirm_identity(request.identity_check)
    request.refresh_from_db()
    return request


def offered(case: ErasureRequest) -> set[str]:
    case.refresh_from_db()
    return {offer.action.name for offer in offers(case, rhea())}


@pytest.mark.parametrize("status", RequestStatus.values)
def test_an_offer_never_contradicts_the_move_table(status: str) -> None:
    case = ErasureRequest(status=status, held_status="in_review" if status == "on_hold" else "")
    for action in ACTIONS:
        if action.to is not None and action.fits(case):
            assert action.to in MOVES[status]


def test_every_open_status_offers_something_or_waits_for_a_machine_or_the_person() -> None:
    waiting = {"received", "awaiting_verification", "working", "releasing", "notifying"}
    for status, allowed in MOVES.items():
        names = {a.name for a in ACTIONS if a.fits(ErasureRequest(status=status)) and a.to not in {None, "on_hold"}}
        if allowed and status not in waiting and status != "on_hold":
            assert names, status


def test_review_offers_a_search_a_question_a_refusal_and_a_hold(proven: ErasureRequest) -> None:
    assert offered(proven) == {"search", "ask", "refuse", "hold", "announce-extension"}


def test_a_closed_offer_is_a_disabled_button_with_the_guards_own_sentence(proven: ErasureRequest) -> None:
    make_model()
    start_search(proven, ground=Ground.CONSENT_WITHDRAWN, reviewer=rhea(), actor="staff:rhea")
    page = BeautifulSoup(signed_in(rhea()).get(f"/console/cases/{proven.pk}").content, "html.parser")
    button = page.find("button", string="Accept the targets")
    assert button is not None
    assert button.has_attr("disabled")
    why = page.find(id=button["aria-describedby"])
    assert why is not None
    assert "has not finished" in why.get_text()


def test_a_search_needs_a_ground(proven: ErasureRequest) -> None:
    path = f"/console/cases/{proven.pk}/do/search"
    assert post(signed_in(rhea()), path, ground="").status_code == 409
    assert post(signed_in(rhea()), path, ground="instruction").status_code == 409
    proven.refresh_from_db()
    assert proven.status == "in_review"
    assert post(signed_in(rhea()), path, ground="consent_withdrawn").status_code == 302


def test_a_decision_on_a_state_that_is_gone_is_refused(proven: ErasureRequest) -> None:
    browser, path = signed_in(rhea()), f"/console/cases/{proven.pk}/do/hold"
    seen = browser.get(path).context["form"].initial["seen"]
    start_search(proven, ground=Ground.VOLUNTARY, reviewer=second_reviewer(), actor="staff:reviewer-2")
    answer = browser.post(path, {"seen": seen})
    assert answer.status_code == 409
    assert "changed since you opened" in answer.content.decode()
    proven.refresh_from_db()
    assert proven.status == "locating"


def test_an_action_that_the_table_does_not_allow_changes_nothing(proven: ErasureRequest) -> None:
    browser = signed_in(second_reviewer())
    for name in ("start", "accept-targets", "lift", "again", "extend"):
        path = f"/console/cases/{proven.pk}/do/{name}"
        seen = signed_in(rhea()).get(f"/console/cases/{proven.pk}/do/hold").context["form"].initial["seen"]
        assert browser.post(path, {"seen": seen}).status_code == 409, name
    proven.refresh_from_db()
    assert proven.status == "in_review"


def test_refusing_needs_a_code_and_a_note_and_warns_that_the_person_reads_it(proven: ErasureRequest) -> None:
    browser, path = signed_in(rhea()), f"/console/cases/{proven.pk}/do/refuse"
    assert "The person will read this" in browser.get(path).content.decode()
    assert post(browser, path, refusal="expression", note=" ").status_code == 409
    assert post(browser, path, refusal="", note="text").status_code == 409
    assert post(browser, path, refusal="expression", note='It\'s "news" & protected.').status_code == 302
    proven.refresh_from_db()
    assert (proven.status, proven.outcome) == ("refused", "refused")
    reconcile()
    assert 'It\'s "news" & protected.' in Letter.objects.get(kind="COM-08").text


def test_an_excessive_request_is_refused_by_two_people_only(proven: ErasureRequest) -> None:
    first, second = signed_in(rhea()), signed_in(second_reviewer())
    base = f"/console/cases/{proven.pk}"
    assert post(first, f"{base}/do/refuse", refusal="excessive", note="The fortieth this month.").status_code == 302
    proven.refresh_from_db()
    assert proven.status == "in_review"
    assert "you proposed the refusal" in first.get(base).content.decode()
    assert first.get(f"{base}/do/confirm-refusal").context["closed_because"]
    sent = first.get(f"{base}/do/hold").context["form"].initial["seen"]
    assert first.post(f"{base}/do/confirm-refusal", {"seen": sent}).status_code == 409
    assert "The fortieth this month." in second.get(f"{base}/do/confirm-refusal").content.decode()
    assert post(second, f"{base}/do/confirm-refusal").status_code == 302
    proven.refresh_from_db()
    assert (proven.status, proven.reviewer, proven.starter) == ("refused", rhea(), second_reviewer())
    assert proven.events.get(new_status="refused").actor == "staff:reviewer-2"


def test_a_refusal_is_confirmed_in_the_words_that_were_read(proven: ErasureRequest) -> None:
    first, second, base = signed_in(rhea()), signed_in(second_reviewer()), f"/console/cases/{proven.pk}"
    post(first, f"{base}/do/refuse", refusal="excessive", note="The fortieth this month.")
    read = second.get(f"{base}/do/confirm-refusal").context["form"].initial["seen"]
    post(first, f"{base}/do/refuse", refusal="excessive", note="Something else altogether.")
    assert second.post(f"{base}/do/confirm-refusal", {"seen": read}).status_code == 409
    proven.refresh_from_db()
    assert proven.status == "in_review"


def test_a_question_waits_for_an_answer_and_an_instruction_gets_none(proven: ErasureRequest) -> None:
    browser, base = signed_in(rhea()), f"/console/cases/{proven.pk}/do"
    assert post(browser, f"{base}/ask").status_code == 302
    assert offered(proven) == {"answered", "hold", "announce-extension"}
    assert post(browser, f"{base}/answered").status_code == 302
    sent = Machine("requests:write").post("/v1/requests", {"identifiers": [{"type": "name", "value": "Alice"}]}).json()
    instruction = ErasureRequest.objects.get(pk=sent["id"])
    ErasureRequest.objects.filter(pk=instruction.pk).update(status="in_review")
    assert "only its sender talks" in browser.get(f"/console/cases/{instruction.pk}/do/ask").context["closed_because"]


def test_a_hold_offers_only_its_end_and_the_clock_and_returns_to_where_it_was(proven: ErasureRequest) -> None:
    browser, base = signed_in(rhea()), f"/console/cases/{proven.pk}/do"
    assert post(browser, f"{base}/hold").status_code == 302
    assert offered(proven) == {"lift", "announce-extension"}
    assert proven.clocks.get().state == Clock.State.RUNNING
    assert post(browser, f"{base}/lift").status_code == 302
    proven.refresh_from_db()
    assert proven.status == "in_review"


def test_a_clock_is_extended_after_its_notice_was_sent_and_once(proven: ErasureRequest) -> None:
    browser, base = signed_in(rhea()), f"/console/cases/{proven.pk}/do"
    assert post(browser, f"{base}/announce-extension", reason="complexity").status_code == 302
    before = proven.clocks.get().due_on
    assert "has not been sent yet" in browser.get(f"{base}/extend").context["closed_because"]
    reconcile()
    assert post(browser, f"{base}/extend").status_code == 302
    clock = proven.clocks.get()
    assert clock.due_on > before
    assert clock.extension_reason == "complexity"
    text = Letter.objects.get(kind="COM-04").text
    assert clock.due_on.isoformat() in text
    assert "the request is complex" in text
    assert "once is all" in browser.get(f"{base}/extend").context["closed_because"]
    assert "once is all" in browser.get(f"{base}/announce-extension").context["closed_because"]


def test_a_match_that_nobody_proved_counts_only_with_a_reviewers_reason() -> None:
    make_model()
    request = open_request(application(MALLORY, also=(ALICE_NAME,)), actor="subject").request
    confirm_identity(request.identity_check)
    request.refresh_from_db()
    start_search(request, ground=Ground.CONSENT_WITHDRAWN, reviewer=rhea(), actor="staff:rhea")
    run_all_jobs()
    browser = signed_in(rhea())
    page = browser.get(f"/console/cases/{request.pk}").content.decode()
    assert "0 records by proven identifiers" in page
    assert "2 more match only details that nobody proved" in page
    path = f"/console/targets/{request.targets.get().pk}/accept-match"
    assert post(browser, path, reason="").status_code == 409
    assert post(browser, path, reason="document_seen").status_code == 302
    assert request.targets.get().record_count == 2
    assert post(browser, path, reason="document_seen").status_code == 409


def test_work_is_started_by_a_second_person(proven: ErasureRequest, simulator: Any) -> None:
    make_model()
    start_search(proven, ground=Ground.CONSENT_WITHDRAWN, reviewer=rhea(), actor="staff:rhea")
    run_all_jobs()
    first, second = signed_in(rhea()), signed_in(second_reviewer())
    base = f"/console/cases/{proven.pk}/do"
    assert post(first, f"{base}/accept-targets").status_code == 302
    assert "same person" in first.get(f"{base}/start").context["closed_because"]
    assert post(second, f"{base}/start").status_code == 302


def test_only_fitting_decisions_on_the_evidence_are_open(case: Callable[..., ErasureRequest]) -> None:
    request = case()
    browser, path = signed_in(rhea()), f"/console/cases/{request.pk}/decide"
    choices = {row["value"]: row for row in browser.get(path).context["choices"]}
    assert not choices["release"]["closed"]
    assert choices["release_partial"]["closed"]
    assert "nothing to release in part" in choices["release_partial"]["objection"]
    assert not choices["decline"]["closed"]
    assert post(browser, path, choice="decline", reason="evidence_failed").status_code == 409
    assert post(browser, path, choice="decline", reason="retrain_planned").status_code == 409
    past = {"choice": "decline", "reason": "retrain_planned", "retrain_on": "2020-03-01"}
    assert post(browser, path, **past).status_code == 409
    assert post(browser, path, choice="release", reason="evidence_failed").status_code == 409
    planned = {
        "choice": "decline",
        "reason": "retrain_planned",
        "retrain_on": (timezone.localdate() + timedelta(days=90)).isoformat(),
    }
    assert post(browser, path, **planned).status_code == 302
    request.refresh_from_db()
    assert request.planned_on is not None


def test_a_job_is_stopped_and_tried_again_from_the_case_page(proven: ErasureRequest) -> None:
    start_search(proven, ground=Ground.VOLUNTARY, reviewer=rhea(), actor="staff:rhea")
    job, browser = proven.jobs.get(), signed_in(rhea())
    browser.post(f"/console/jobs/{job.pk}/cancel")
    job.refresh_from_db()
    assert job.state == "cancelled"
    browser.post(f"/console/jobs/{job.pk}/retry")
    job.refresh_from_db()
    assert job.state == "ready"
    page = browser.post(f"/console/jobs/{job.pk}/retry", follow=True).content.decode()
    assert "only a failed one" in page


def test_the_audit_tab_exports_what_was_hashed(proven: ErasureRequest) -> None:
    import json

    from deletion_service.audit.models import AuditEvent
    from deletion_service.audit.trail import event_document

    answer = signed_in(rhea()).get(f"/console/cases/{proven.pk}/audit.jsonl")
    lines = [json.loads(line) for line in answer.getvalue().decode().splitlines()]
    events = AuditEvent.objects.filter(request_id=proven.pk).order_by("id")
    assert lines == [event_document(event) for event in events]
    assert len(lines) >= 3
