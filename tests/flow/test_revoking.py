"""A certificate that must no longer be relied on: revoked, logged, and listed where anybody can read it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.test import Client

from deletion_service.certificates.custody import issuer_document
from deletion_service.certificates.issuing import issue_certificate
from deletion_service.certificates.models import Certificate, LogEntry
from deletion_service.certificates.verify import VerificationResult, verify_certificate
from deletion_service.requests.identity import status_token
from deletion_service.requests.models import ErasureRequest
from ml.digests import canonical_json
from tests.cast import second_reviewer
from tests.flow.conftest import release, run_all_jobs

pytestmark = [pytest.mark.slow, pytest.mark.django_db]
LIST = "/.well-known/erasure-revocations.json"


@pytest.fixture
def published(case: Callable[..., ErasureRequest]) -> Certificate:
    certificate = Certificate.objects.get(target__request=release(case()))
    issue_certificate(certificate, member=second_reviewer())
    run_all_jobs()
    certificate.refresh_from_db()
    return certificate


def revoke(certificate: Certificate, *, reason: str = "weights_restored") -> None:
    call_command("revoke_certificate", certificate.pk, "--reason", reason, "--by", "rhea", verbosity=0)
    certificate.refresh_from_db()


def checked(certificate: Certificate) -> VerificationResult:
    return verify_certificate(
        bytes(certificate.envelope),
        issuer=issuer_document(),
        log_proof=canonical_json(certificate.log_proof),
        revocations=Client().get(LIST).content,
        accept_test_policy=True,
    )


def test_a_revoked_certificate_fails_by_the_list_that_anybody_can_fetch(published: Certificate) -> None:
    assert checked(published).failed == ()

    revoke(published)

    result = checked(published)
    assert [check.name for check in result.failed] == ["revocation"]
    assert "weights_restored" in result.failed[0].sentence


def test_a_revocation_stays_on_record_in_the_log_and_cannot_be_repeated(published: Certificate) -> None:
    revoke(published)

    event = published.events.latest("id")
    assert (published.status, event.new_status, event.reason, event.actor) == (
        "revoked",
        "revoked",
        "weights_restored",
        "staff:rhea",
    )
    assert list(LogEntry.objects.values_list("kind", flat=True)) == ["certificate", "revocation"]
    with pytest.raises(CommandError, match="revoked"):
        revoke(published)


def test_only_a_published_certificate_is_revoked_and_only_for_a_known_reason(
    case: Callable[..., ErasureRequest],
) -> None:
    draft = Certificate.objects.get(target__request=release(case()))

    with pytest.raises(CommandError, match="drafted"):
        revoke(draft)
    with pytest.raises(CommandError):
        revoke(draft, reason="because")
    with pytest.raises(CommandError, match="no certificate"):
        call_command("revoke_certificate", "crt_none", "--reason", "issued_in_error", "--by", "rhea")
    assert not LogEntry.objects.exists()


def test_the_person_reads_on_their_page_that_it_was_revoked(published: Certificate) -> None:
    request = published.target.request
    address = f"/status/{request.receipt}/{status_token(request)}"
    assert "We revoked this document" not in Client().get(address).content.decode()

    revoke(published)

    assert "We revoked this document" in Client().get(address).content.decode()


def test_before_the_first_certificate_there_is_no_list(db: Any) -> None:
    answer = Client().get(LIST)

    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
