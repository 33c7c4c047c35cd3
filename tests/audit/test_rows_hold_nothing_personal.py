"""Audit rows are kept for ever, so they hold ids and codes: nothing that says anything about a person."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from deletion_service.audit.models import AuditEvent
from deletion_service.audit.trail import event_document
from deletion_service.certificates.issuing import issue_certificate
from deletion_service.certificates.models import Certificate
from deletion_service.requests.models import ErasureRequest
from tests.cast import ALICE, ALICE_NAME, second_reviewer
from tests.flow.conftest import release, run_all_jobs
from tests.world import ALICE_SECRET
from workers.reconcile import reconcile

pytestmark = pytest.mark.django_db
FORMS = {
    "actor": r"subject|worker|clock|notices|test|staff:[a-z0-9-]+|key:[A-Za-z0-9_.-]+|instruction",
    "action": r"[a-z]+\.[a-z_]+",
    "object_type": r"[a-z]+",
    "object_id": r"[a-z]{3}_[0-9a-z]{26}|[0-9]+",
    "reason": r"|[A-Za-z0-9_-]{1,64}",
    "request_id": r"|req_[0-9a-z]{26}",
}


def test_every_column_of_a_whole_case_is_an_id_or_a_code(case: Callable[..., ErasureRequest]) -> None:
    release(case())
    issue_certificate(Certificate.objects.get(), member=second_reviewer())
    run_all_jobs()
    reconcile()
    events = [event_document(event) for event in AuditEvent.objects.all()]
    assert len(events) > 25
    for event in events:
        for column, form in FORMS.items():
            assert re.fullmatch(form, str(event[column])), (column, event["action"])
    text = repr(events)
    for personal in (ALICE.value, ALICE_NAME.value, ALICE_SECRET, "Brackenfell", "Alice", "korvel"):
        assert personal not in text


def test_no_column_is_long_enough_for_a_story() -> None:
    lengths = {f.name: f.max_length for f in AuditEvent._meta.concrete_fields if f.max_length}
    assert set(lengths) == set(FORMS)
    assert max(lengths.values()) <= 64
