"""Who may open the console: staff only, by role, and with a second factor where people decide."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.test import Client
from django.urls import reverse

from deletion_service.access.models import Role, StaffMember
from deletion_service.certificates.models import Certificate, Evidence
from deletion_service.console.urls import urlpatterns
from deletion_service.requests.models import ErasureRequest
from tests.cast import rhea
from tests.doors import signed_in
from tests.flow.conftest import release

pytestmark = pytest.mark.django_db
UNKNOWN = {
    "request_id": "req_01kexample0000000000000000",
    "target_id": "tgt_01kexample0000000000000000",
    "evidence_id": "evd_01kexample0000000000000000",
    "certificate_id": "crt_01kexample0000000000000000",
    "job_id": "job_01kexample0000000000000000",
    "model_id": "mdl_01kexample0000000000000000",
    "sweep_id": "swp_01kexample0000000000000000",
    "verb": "cancel",
    "kind": "dsse.json",
    "name": "hold",
}
READ_ONLY = {
    "queue",
    "case",
    "audit",
    "audit_export",
    "evidence",
    "evidence_file",
    "certificate",
    "certificate_file",
    "models",
    "ledger",
    "sweep_file",
}


def addresses() -> Iterator[tuple[str, str]]:
    for pattern in urlpatterns:
        wanted = pattern.pattern.converters
        yield str(pattern.name), reverse(f"console:{pattern.name}", kwargs={k: UNKNOWN[k] for k in wanted})


def member(role: str) -> StaffMember:
    user = get_user_model().objects.create(username=f"a-{role}")
    return StaffMember.objects.create(user=user, role=role, handle=f"a-{role}")


@pytest.mark.parametrize(("name", "address"), list(addresses()))
@pytest.mark.parametrize("method", ["get", "post"])
def test_no_page_opens_to_a_stranger(client: Client, name: str, address: str, method: str) -> None:
    answer = getattr(client, method)(address)
    assert answer.status_code in {302, 405}
    if answer.status_code == 302:
        assert answer.headers["Location"].startswith("/account/login/?next=")


@pytest.mark.parametrize(("name", "address"), list(addresses()))
def test_no_page_opens_to_an_account_without_a_role(name: str, address: str) -> None:
    browser = Client()
    browser.force_login(
        get_user_model().objects.create(username="x"), backend="django.contrib.auth.backends.ModelBackend"
    )
    assert {browser.get(address).status_code, browser.post(address).status_code} <= {403, 405}


@pytest.mark.parametrize(("name", "address"), list(addresses()))
def test_an_auditor_reads_and_decides_nothing(name: str, address: str) -> None:
    browser = signed_in(member(Role.AUDITOR))
    if name in READ_ONLY:
        assert browser.get(address).status_code in {200, 404}
    else:
        assert {browser.get(address).status_code, browser.post(address).status_code} <= {403, 405}


def test_an_administrator_sees_models_and_no_case() -> None:
    browser = signed_in(member(Role.ADMINISTRATOR))
    assert browser.get("/console/models").status_code == 200
    assert browser.get("/console/").status_code == 403


def test_deciding_needs_a_second_factor_and_reading_does_not(
    case: Callable[..., ErasureRequest], settings: Any
) -> None:
    request = release(case())
    browser = signed_in(rhea(), second_factor=False)
    sheet = f"/console/certificates/{Certificate.objects.get().pk}"
    assert browser.get(sheet).status_code == 200
    assert browser.get(f"/console/evidence/{Evidence.objects.get().pk}").status_code == 200
    for address in (f"{sheet}/issue", f"/console/cases/{request.pk}/decide", f"/console/cases/{request.pk}/do/start"):
        answer = browser.post(address)
        assert (answer.status_code, "needs your authenticator" in answer.content.decode()) == (403, True)
    settings.REQUIRE_SECOND_FACTOR = False
    assert browser.get(f"/console/cases/{request.pk}/decide").status_code == 200


def test_a_forged_form_changes_nothing(case: Callable[..., ErasureRequest]) -> None:
    request = case()
    browser = signed_in(rhea(), enforce_csrf_checks=True)
    assert browser.post(f"/console/cases/{request.pk}/do/hold").status_code == 403
    request.refresh_from_db()
    assert request.status == "evidence_review"


@pytest.mark.parametrize(("name", "address"), [(n, a) for n, a in addresses() if n not in {"queue", "models"}])
def test_an_unknown_object_is_not_found(name: str, address: str) -> None:
    browser = signed_in(rhea())
    answer = browser.get(address)
    if answer.status_code == 405:
        answer = browser.post(address)
    assert answer.status_code == 404
