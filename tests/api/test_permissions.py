"""Who may call what: one table for keys and sessions; deciding needs a person with a second factor."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from django.urls import URLPattern

from deletion_service.access.models import Role, StaffMember
from deletion_service.access.permissions import SCOPE_ACTIONS, Action
from deletion_service.api.permissions import PUBLIC
from deletion_service.api.urls import urlpatterns
from deletion_service.api.views.base import View
from tests.cast import rhea, second_reviewer
from tests.doors import Machine, signed_in

pytestmark = pytest.mark.django_db
METHODS = ("get", "post", "put", "patch", "delete")


def operations() -> Iterator[tuple[str, type[View], str]]:
    for pattern in urlpatterns:
        assert isinstance(pattern, URLPattern)
        view = getattr(pattern.callback, "view_class", None)
        if view is not None:
            yield from ((str(pattern.pattern), view, name) for name in METHODS if hasattr(view, name))


@pytest.mark.parametrize(("path", "view", "method"), list(operations()), ids=lambda value: str(value))
def test_every_operation_declares_its_action(path: str, view: type[View], method: str) -> None:
    declared = view.actions[method.upper()]
    assert declared == PUBLIC or Action(declared) in Action


def test_only_the_issuers_documents_and_the_check_are_public() -> None:
    public = {path for path, view, method in operations() if view.actions[method.upper()] == PUBLIC}
    assert public == {
        ".well-known/erasure-issuer.json",
        ".well-known/erasure-revocations.json",
        "v1/certificates/verify",
    }


@pytest.mark.parametrize("scope", sorted(SCOPE_ACTIONS))
def test_a_scope_opens_its_own_operations_and_no_others(scope: str) -> None:
    machine = Machine(scope)
    for path, view, method in operations():
        action = view.actions[method.upper()]
        if action == PUBLIC or method != "get" or "<" in path:
            continue
        expected = 200 if action in SCOPE_ACTIONS[scope] else 403
        assert machine.get(f"/{path}").status_code == expected, path


def test_a_key_without_a_person_can_neither_approve_nor_issue() -> None:
    machine = Machine("approve", "requests:read")
    answer = machine.post("/v1/requests/req_any/evidence-decision", {"choice": "release", "reason": "all_gates_passed"})
    assert (answer.status_code, answer.json()["code"]) == (403, "not_allowed")
    assert machine.post("/v1/certificates/crt_any/issue").status_code == 403


def test_a_key_never_allows_more_than_its_persons_role() -> None:
    from django.contrib.auth import get_user_model

    user = get_user_model().objects.create(username="audrey")
    auditor = StaffMember.objects.create(user=user, role=Role.AUDITOR, handle="audrey")
    machine = Machine("approve", "registry:write", "requests:read", staff=auditor)
    assert machine.post("/v1/certificates/crt_any/issue").status_code == 403
    assert machine.post("/v1/models", {}).status_code == 403
    assert machine.get("/v1/requests").status_code == 200


def test_a_session_without_a_second_factor_reads_but_does_not_decide(settings: Any) -> None:
    browser = signed_in(rhea(), second_factor=False)
    assert browser.get("/v1/requests").status_code == 200
    sent: dict[str, Any] = {"data": "{}", "content_type": "application/json", "headers": {"Idempotency-Key": "k-1"}}
    answer = browser.post("/v1/certificates/crt_any/issue", **sent)
    assert (answer.status_code, answer.json()["code"]) == (403, "second_factor_required")
    assert signed_in(rhea()).post("/v1/certificates/crt_any/issue", **sent).status_code == 404
    settings.REQUIRE_SECOND_FACTOR = False
    assert browser.post("/v1/certificates/crt_any/issue", **sent).status_code == 404


def test_a_session_needs_its_csrf_token_to_change_anything() -> None:
    browser = signed_in(second_reviewer(), enforce_csrf_checks=True)
    assert browser.get("/v1/requests").status_code == 200
    answer = browser.post("/v1/jobs/job_any/cancel", headers={"Idempotency-Key": "k-1"})
    assert (answer.status_code, answer.json()["code"]) == (403, "permission_denied")


def test_an_account_without_a_role_is_nobody() -> None:
    from django.contrib.auth import get_user_model
    from django.test import Client

    browser = Client()
    browser.force_login(
        get_user_model().objects.create(username="left-last-year"), backend="django.contrib.auth.backends.ModelBackend"
    )
    assert browser.get("/v1/requests").status_code == 401
