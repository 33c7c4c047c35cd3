"""The end of a request, as its person sees it: the signed document and how to check it."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.test import Client

from deletion_service.certificates.issuing import issue_certificate
from deletion_service.certificates.models import Certificate
from deletion_service.requests.identity import status_token
from deletion_service.requests.models import ErasureRequest
from tests.cast import second_reviewer
from tests.flow.conftest import release, run_all_jobs

pytestmark = pytest.mark.django_db


@pytest.fixture
def done(case: Callable[..., ErasureRequest]) -> ErasureRequest:
    """Alice's request has ended well."""
    request = release(case())
    issue_certificate(Certificate.objects.get(), member=second_reviewer())
    run_all_jobs()
    request.refresh_from_db()
    return request


def test_the_person_gets_every_file_that_the_check_needs(client: Client, done: ErasureRequest) -> None:
    link = f"/status/{done.receipt}/{status_token(done)}"
    certificate = Certificate.objects.get()
    page = client.get(link).content.decode()
    assert f"lethe cert verify {certificate.pk}.dsse.json --keys issuer.json" in page
    files = {
        kind: client.get(f"{link}/documents/{certificate.pk}.{kind}")
        for kind in ("dsse.json", "log.json", "evidence.json")
    }
    assert files["dsse.json"].content == bytes(certificate.envelope)
    assert files["evidence.json"].content == bytes(certificate.evidence.document)
    assert json.loads(files["log.json"].content) == certificate.log_proof
    uploads = {"certificate": "dsse.json", "log_proof": "log.json", "evidence": "evidence.json"}
    sent = {name: SimpleUploadedFile("x", files[kind].content) for name, kind in uploads.items()}
    checked = client.post("/check", sent)
    assert checked.status_code == 200
    text = checked.content.decode()
    assert "signed by" in text
    # The simulator judges by a policy made for tests, and the check says so.
    assert "made for tests" in text
    assert "What this check does not show" in text


def test_files_of_another_request_do_not_open_with_this_link(client: Client, done: ErasureRequest) -> None:
    link = f"/status/{done.receipt}/{status_token(done)}/documents"
    for name in ("crt_01kexample0000000000000000.dsse.json", "evidence.json", f"{Certificate.objects.get().pk}.secret"):
        assert client.get(f"{link}/{name}").status_code == 404


def test_a_draft_is_not_shown(client: Client, case: Callable[..., ErasureRequest]) -> None:
    request = release(case())
    link = f"/status/{request.receipt}/{status_token(request)}"
    certificate = Certificate.objects.get()
    assert certificate.status == "drafted"
    assert certificate.pk not in client.get(link).content.decode()
    assert client.get(f"{link}/documents/{certificate.pk}.dsse.json").status_code == 404
