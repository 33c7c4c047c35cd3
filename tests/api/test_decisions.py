"""Targets, jobs, evidence, decisions and certificates: from instruction to signed document, by machine."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import pytest
from django.test import Client

from deletion_service.certificates.models import Certificate, Evidence
from deletion_service.requests.models import ErasureRequest
from deletion_service.targets.models import Job
from ml.digests import canonical_json, sha256_hex
from tests.cast import ALICE, rhea, second_reviewer
from tests.doors import Machine, signed_in
from tests.flow.conftest import release, run_all_jobs
from tests.simulator import Simulator
from tests.world import make_model

pytestmark = pytest.mark.django_db
RELEASE = {"choice": "release", "reason": "all_gates_passed"}


def test_an_instruction_is_carried_out_by_two_people_and_its_sender_reads_everything(
    sender: Machine, simulator: Simulator
) -> None:
    make_model()
    body = {"identifiers": [{"type": "email", "value": ALICE.value}], "upstream_id": "case-1"}
    location = sender.post("/v1/requests", body).headers["Location"]
    run_all_jobs()
    shown = sender.get(location)
    assert shown.json()["status"] == "evidence_review"
    target = sender.get(f"/v1/targets/{shown.json()['targets'][0]['id']}").json()
    assert (target["verdict"], target["record_count"]) == ("PASS", "1-10")
    evidence = sender.get(f"/v1/evidence/{target['evidence'][0]['id']}").json()
    assert evidence["findings"] == []
    assert {row["result"] for row in evidence["gates"]} == {"PASS"}
    bytes_ = sender.get(evidence["document"]).content
    assert sha256_hex(bytes_) == evidence["sha256"]
    assert sender.post(f"{location}/evidence-decision", RELEASE).status_code == 403

    approver = Machine("approve", "requests:read", staff=rhea())
    decided = approver.post(f"{location}/evidence-decision", RELEASE, **{"If-Match": shown.headers["ETag"]})
    assert (decided.status_code, decided.headers["Location"]) == (202, location)
    run_all_jobs()
    certificate = Certificate.objects.get()
    path = f"/v1/certificates/{certificate.pk}"
    assert sender.get(path).status_code == 404
    assert sender.get(f"/v1/targets/{target['id']}").json()["certificates"] == []
    refused = approver.post(f"{path}/issue")
    assert (refused.status_code, refused.json()["code"]) == (403, "second_person_required")
    issuer = Machine("approve", "certificates:read", staff=second_reviewer())
    assert issuer.get(f"{path}/log-proof").status_code == 404
    assert issuer.post(f"{path}/issue").status_code == 202
    run_all_jobs()

    certificate.refresh_from_db()
    answer = sender.get(path)
    assert answer.content == bytes(certificate.envelope)
    assert answer.headers["Content-Type"] == "application/vnd.dsse.envelope.v1+json"
    assert sender.get(f"{path}/evidence").content == bytes_
    assert sender.get(f"{path}/log-proof").content == canonical_json(certificate.log_proof)
    assert (sender.get(location).json()["outcome"], sender.get(location).json()["status"]) == ("erased", "completed")
    mallory = Machine("requests:read", "targets:read", "evidence:read", "certificates:read")
    for secret in (path, f"{path}/log-proof", f"{path}/evidence", f"/v1/targets/{target['id']}", evidence["document"]):
        assert mallory.get(secret).status_code == 404


def test_the_same_decision_sent_twice_is_taken_once(case: Callable[..., ErasureRequest]) -> None:
    request = case()
    browser = signed_in(rhea())
    path, headers = f"/v1/requests/{request.pk}/evidence-decision", {"Idempotency-Key": "k-1"}
    answers = [browser.post(path, json.dumps(RELEASE), content_type="application/json", headers=headers) for _ in "ab"]
    assert [a.status_code for a in answers] == [202, 202]
    assert request.evidence_decisions.count() == 1
    later = browser.post(path, json.dumps(RELEASE), content_type="application/json", headers={"Idempotency-Key": "k-2"})
    assert (later.status_code, later.json()["code"]) == (409, "guard_not_met")


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"choice": "release"},
        {"choice": "erase everything", "reason": "all_gates_passed"},
        {"choice": ["release"], "reason": "all_gates_passed"},
        {"choice": "decline", "reason": "retrain_planned", "retrain_on": "soon"},
        {**RELEASE, "note": "free text"},
    ],
)
def test_a_decision_that_does_not_fit_is_refused(case: Callable[..., ErasureRequest], body: dict[str, Any]) -> None:
    request = case()
    answer = Machine("approve", staff=rhea()).post(f"/v1/requests/{request.pk}/evidence-decision", body)
    assert answer.status_code == 422
    assert request.evidence_decisions.count() == 0


def test_evidence_whose_bytes_changed_is_not_shown(case: Callable[..., ErasureRequest], monkeypatch: Any) -> None:
    case()
    monkeypatch.setattr("deletion_service.certificates.evidence.sha256_hex", lambda _: "0" * 64)
    answer = signed_in(rhea()).get(f"/v1/evidence/{Evidence.objects.get().pk}")
    assert (answer.status_code, answer.json()["code"]) == (409, "evidence_missing")


def test_a_job_is_cancelled_and_tried_again_by_who_may(sender: Machine) -> None:
    sender.post("/v1/requests", {"identifiers": [{"type": "email", "value": ALICE.value}]})
    job = f"/v1/jobs/{Job.objects.get().pk}"
    assert sender.get(job).json()["progress"] == {"phase": "", "done": 0, "total": 0}
    assert sender.post(f"{job}/cancel").status_code == 403
    operator = Machine("admin", staff=rhea())
    assert operator.post(f"{job}/cancel").json()["state"] == "cancelled"
    assert operator.post(f"{job}/cancel").status_code == 409
    assert operator.post(f"{job}/retry").json()["state"] == "ready"


def encoded(content: bytes) -> str:
    return base64.b64encode(content).decode()


def test_anybody_may_have_a_certificate_checked_and_nothing_is_kept(case: Callable[..., ErasureRequest]) -> None:
    from deletion_service.certificates.issuing import issue_certificate

    release(case())
    certificate = issue_certificate(Certificate.objects.get(), member=second_reviewer())
    body = {
        "certificate": encoded(bytes(certificate.envelope)),
        "evidence": encoded(bytes(certificate.evidence.document)),
    }
    answer = Client().post("/v1/certificates/verify", json.dumps(body), content_type="application/json").json()
    outcomes = {check["name"]: check["outcome"] for check in answer["checks"]}
    assert outcomes["signatures"] == outcomes["evidence_verdict"] == "ok"
    assert outcomes["log_inclusion"] == "not checked"
    # The simulator judges by a policy made for tests, and the check says so.
    assert [name for name, outcome in outcomes.items() if outcome == "failed"] == ["policy"]
    assert answer["not_shown"]
    broken = bytearray(bytes(certificate.envelope))
    broken[len(broken) // 2] ^= 1
    body["certificate"] = encoded(bytes(broken))
    answer = Client().post("/v1/certificates/verify", json.dumps(body), content_type="application/json").json()
    assert answer["ok"] is False
    assert answer["verdict"] is None


@pytest.mark.parametrize(
    ("body", "status"),
    [({}, 422), ({"certificate": "no base64!"}, 422), ({"certificate": 7}, 422), ({"certificate": ""}, 422), ([], 422)],
)
def test_a_check_of_nonsense_is_refused(body: Any, status: int) -> None:
    answer = Client().post("/v1/certificates/verify", json.dumps(body), content_type="application/json")
    assert answer.status_code == status


def test_the_issuer_document_is_what_the_offline_check_takes() -> None:
    from deletion_service.certificates.signing import IssuerDocument

    answer = Client().get("/.well-known/erasure-issuer.json")
    assert {key.role for key in IssuerDocument.from_bytes(answer.content).keys} == {"issuer", "approver", "log"}
