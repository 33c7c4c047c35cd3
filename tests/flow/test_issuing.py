"""Nobody signs blind: what is issued was judged again, is about its own case, and is signed by keys that count now."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone

from deletion_service.access.keys import issue_key
from deletion_service.certificates.canonical import time_text
from deletion_service.certificates.custody import issuer_document, issuer_signer
from deletion_service.certificates.envelope import read_envelope, sign_envelope
from deletion_service.certificates.issuing import issue_certificate
from deletion_service.certificates.models import Certificate, EvidenceDecision, LogEntry
from deletion_service.certificates.signing import IssuerDocument
from deletion_service.errors import EvidenceMissingError, SigningError
from deletion_service.requests.codes import Capacity
from deletion_service.requests.models import ErasureRequest
from deletion_service.targets.locate import receive_instruction
from ml.digests import canonical_json, sha256_hex
from tests.cast import application, rhea, second_reviewer
from tests.certificates import forge
from tests.doors import signed_in
from tests.flow.conftest import release, run_all_jobs
from tests.simulator import Simulator
from tests.world import make_model
from workers.reconcile import reconcile

pytestmark = [pytest.mark.slow, pytest.mark.django_db]
Case = Callable[..., ErasureRequest]


def drafted(case: Case) -> Certificate:
    return Certificate.objects.get(target__request=release(case()))


def beside(draft: Certificate, payload: bytes, *, signer: Any) -> Certificate:
    """Another draft for the same target, such as somebody who can write to the database would put there."""
    decision = EvidenceDecision.objects.create(
        request=draft.target.request,
        attempt=1,
        round=9,
        choice="release",
        reason="all_gates_passed",
        decided_by=rhea(),
        role="privacy",
    )
    return Certificate.objects.create(
        target=draft.target,
        evidence=draft.evidence,
        decision=decision,
        verdict="PASS",
        envelope=sign_envelope(payload, signers=[signer]).to_bytes(),
        statement_sha256=sha256_hex(payload),
        evidence_approver=rhea(),
    )


def refused(certificate: Certificate, says: str) -> None:
    with pytest.raises(EvidenceMissingError, match=says):
        issue_certificate(certificate, member=second_reviewer())
    certificate.refresh_from_db()
    assert (certificate.status, certificate.issued_by) == ("drafted", None)
    assert len(read_envelope(bytes(certificate.envelope)).signatures) == 1
    assert not LogEntry.objects.exists()


def test_what_mallory_signed_is_not_countersigned(case: Case) -> None:
    payload = canonical_json({"anything": "all was deleted"})

    refused(beside(drafted(case), payload, signer=forge.MALLORY), "signatures")


def test_what_the_issuers_key_signed_is_judged_again_before_it_is_countersigned(case: Case) -> None:
    draft = drafted(case)
    statement = json.loads(read_envelope(bytes(draft.envelope)).payload)
    statement["predicate"]["claim"] = "All data of the person were fully deleted."

    refused(beside(draft, canonical_json(statement), signer=issuer_signer()), "claim")


def test_a_sound_statement_of_another_certificate_is_not_issued_under_this_ones_id(case: Case) -> None:
    draft = drafted(case)
    statement = json.loads(read_envelope(bytes(draft.envelope)).payload)
    statement["predicate"]["certificateId"] = "crt_another"

    refused(beside(draft, canonical_json(statement), signer=issuer_signer()), "another certificate and decision")


def with_key(role: str, **changes: Any) -> IssuerDocument:
    document = issuer_document()
    keys = tuple(replace(key, **changes) if key.role == role else key for key in document.keys)
    return replace(document, keys=keys)


def put_up(monkeypatch: pytest.MonkeyPatch, document: IssuerDocument) -> None:
    monkeypatch.setattr("deletion_service.certificates.issuing.issuer_document", lambda: document)


def test_a_key_that_ended_after_the_draft_signs_nothing_and_the_next_step_works(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    draft = drafted(case)
    with monkeypatch.context() as rotated:
        put_up(rotated, with_key("issuer", revoked_at=time_text(timezone.now() + timedelta(seconds=1))))
        rotated.setattr("django.utils.timezone.now", lambda now=timezone.now: now() + timedelta(seconds=5))
        with pytest.raises(SigningError, match="issuer key of .* was revoked .* manage.py redraft_certificate"):
            issue_certificate(draft, member=second_reviewer())
    assert not LogEntry.objects.exists()

    call_command("redraft_certificate", draft.pk, "--by", "rhea", verbosity=0)
    run_all_jobs()

    draft.refresh_from_db()
    fresh = Certificate.objects.exclude(pk=draft.pk).get()
    assert (draft.status, fresh.status, fresh.decision) == ("discarded", "drafted", draft.decision)
    issue_certificate(fresh, member=second_reviewer())
    run_all_jobs()
    fresh.refresh_from_db()
    assert (fresh.status, fresh.target.request.status) == ("published", "completed")
    with pytest.raises(CommandError, match="discarded"):
        call_command("redraft_certificate", draft.pk, "--by", "rhea", verbosity=0)


def test_an_approver_key_younger_than_the_draft_makes_no_certificate_that_nobody_accepts(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    draft = drafted(case)
    begins = time_text(timezone.now() + timedelta(seconds=1))
    put_up(monkeypatch, with_key("approver", not_before=begins))
    monkeypatch.setattr("django.utils.timezone.now", lambda now=timezone.now: now() + timedelta(seconds=5))

    with pytest.raises(SigningError, match="key_validity: the approver key .* redraft_certificate"):
        issue_certificate(draft, member=second_reviewer())
    assert not LogEntry.objects.exists()


def test_the_page_shows_the_evidence_judged_again_before_a_person_signs(case: Case) -> None:
    draft = drafted(case)
    forged = beside(draft, canonical_json({"anything": "all was deleted"}), signer=forge.MALLORY)
    client = signed_in(second_reviewer())

    page = client.get(f"/console/certificates/{draft.pk}")

    outcomes = {check.name: check.outcome for check in page.context["result"].checks}
    assert page.context["closed_because"] == ""
    assert {outcomes[name] for name in ("signatures", "evidence_verdict", "evidence_numbers")} == {"ok"}
    assert "judged again by the policy, the evidence carries PASS" in page.content.decode()
    assert client.get(f"/console/certificates/{forged.pk}").status_code == 409


@pytest.mark.parametrize("stage", ["unlearn", "verify"])
def test_the_report_on_an_attempt_that_its_worker_abandoned_can_be_issued(
    case: Case, monkeypatch: pytest.MonkeyPatch, settings: Any, stage: str
) -> None:
    settings.JOB_MAX_ATTEMPTS = 1
    work = "run_unlearning" if stage == "unlearn" else "run_verification"
    monkeypatch.setattr(f"workers.stages.{stage}.{work}", lambda *_, **__: 1 / 0)
    request = case()
    reconcile()
    request.refresh_from_db()
    release(request, choice="decline", reason="evidence_inconclusive")
    report = Certificate.objects.get()

    issue_certificate(report, member=second_reviewer())
    run_all_jobs()

    report.refresh_from_db()
    assert (report.status, report.verdict) == ("published", "INCONCLUSIVE")


def test_the_certificate_of_an_instruction_names_the_controller_as_the_one_who_approved_the_start(
    simulator: Simulator,
) -> None:
    make_model()
    key, _ = issue_key("controller", scopes=["requests:write"])
    sent = replace(application(), capacity=Capacity.PROCESSOR, contact_email="", model_names=("assistant",))
    request = receive_instruction(sent, sender=key, actor="key").request
    run_all_jobs()
    request.refresh_from_db()
    draft = Certificate.objects.get(target__request=release(request))

    issue_certificate(draft, member=second_reviewer())

    statement = json.loads(read_envelope(bytes(draft.envelope)).payload)
    assert [row["role"] for row in statement["predicate"]["approvals"]] == ["controller", "privacy"]
