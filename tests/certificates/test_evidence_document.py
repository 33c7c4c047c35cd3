"""The evidence document: one shape, read strictly, judged again by whoever holds it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from deletion_service.certificates.canonical import DocumentFormError
from deletion_service.certificates.evidence_document import read_evidence
from ml.decision import judge
from ml.digests import canonical_json
from tests.certificates import forge


@pytest.fixture(scope="module")
def alice(tmp_path_factory: pytest.TempPathFactory) -> forge.CertificateSet:
    return forge.certificate_set(tmp_path_factory.mktemp("alice"))


def test_evidence_comes_back_and_carries_the_verdict_it_states(alice: forge.CertificateSet) -> None:
    document = read_evidence(alice.evidence)

    assert document.target == "tgt_01jalice"
    assert document.attempt == document.report.attempt == 1
    assert document.policy == alice.policy
    assert document.policy_sha256 == alice.policy.sha256
    assert document.unlearning == forge.unlearning_report(alice.manifest)
    assert document.judged_again() == judge(document.report, alice.policy)
    assert document.judged_again().to_document() == document.stated_verdict


def test_evidence_without_a_run_says_so(tmp_path: Path) -> None:
    assert read_evidence(forge.certificate_set(tmp_path, run=False).evidence).unlearning is None


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update(extra=1),
        lambda d: d.pop("unlearning"),
        lambda d: d.pop("verdict"),
        lambda d: d.update(schema_version=2),
        lambda d: d.update(target=None),
        lambda d: d.update(attempt="1"),
        lambda d: d.update(attempt=True),
        lambda d: d.update(verdict="PASS"),
        lambda d: d.update(unlearning={}),
        lambda d: d["policy"].update(alpha="0.5"),
        lambda d: d["policy"].pop("families"),
        lambda d: d["report"].update(attacks=None),
        lambda d: d["report"]["attacks"][0].update(p_residual="NaN"),
        lambda d: d["report"]["attacks"][0].update(score_of_record_7="0.1"),
    ],
)
def test_evidence_with_a_member_unknown_missing_or_malformed_is_refused(
    alice: forge.CertificateSet, change: Any
) -> None:
    document = json.loads(alice.evidence)
    change(document)

    with pytest.raises(DocumentFormError):
        read_evidence(canonical_json(document))


def test_evidence_laid_out_by_hand_is_refused(alice: forge.CertificateSet) -> None:
    with pytest.raises(DocumentFormError, match="canonical"):
        read_evidence(json.dumps(json.loads(alice.evidence), indent=1).encode())
