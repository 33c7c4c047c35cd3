"""The offline check, seen by an honest user: what is checked, in which order, and what is always said."""

from __future__ import annotations

import ast
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import deletion_service.certificates.verify as module
from deletion_service.certificates.envelope import sign_envelope
from deletion_service.certificates.facts import MethodFacts, Pending, Retirement
from deletion_service.certificates.revocation import RevocationList, RevokedCertificate, sign_revocations
from deletion_service.certificates.signing import NullSigner
from deletion_service.certificates.statement import statement_bytes
from deletion_service.certificates.verify import CHECKS, VerificationResult, verify_certificate
from tests.certificates import forge


@pytest.fixture(scope="module")
def passed(tmp_path_factory: pytest.TempPathFactory) -> forge.CertificateSet:
    return forge.certificate_set(tmp_path_factory.mktemp("passed"))


@pytest.fixture(scope="module")
def failed(tmp_path_factory: pytest.TempPathFactory) -> forge.CertificateSet:
    return forge.certificate_set(tmp_path_factory.mktemp("failed"), leaking=True)


def outcomes(result: VerificationResult) -> dict[str, str]:
    return {check.name: check.outcome for check in result.checks}


def revocations(*, certificate_id: str = "crt_01jbob") -> bytes:
    row = RevokedCertificate(certificate_id, "weights_restored", "2027-05-30T08:00:00Z")
    return sign_revocations(RevocationList("Lethe test issuer", "2027-06-01T00:00:00Z", (row,)), signer=forge.ISSUER)


def test_with_everything_at_hand_every_check_is_made_and_holds(passed: forge.CertificateSet) -> None:
    result = verify_certificate(passed.certificate, **passed.inputs(revocations=revocations(), expect="PASS"))

    assert result.ok
    assert outcomes(result) == dict.fromkeys(CHECKS, "ok")


def test_the_certificate_alone_verifies_and_says_what_was_not_checked(passed: forge.CertificateSet) -> None:
    result = verify_certificate(passed.certificate, issuer=passed.issuer)

    assert result.ok
    assert {name for name, outcome in outcomes(result).items() if outcome == "not checked"} == {
        "log_checkpoint",
        "log_inclusion",
        "evidence_digest",
        "evidence_verdict",
        "evidence_numbers",
        "evidence_origin",
        "model_files",
        "revocation",
        "expected_verdict",
    }
    not_shown = " ".join(result.not_shown)
    for missing in ("log proof", "evidence", "model directory", "revocation list"):
        assert f"no {missing} was given" in not_shown


@pytest.mark.parametrize("certificate", [b"", b"{}", b"\x00", b"[[[["])
def test_rubbish_fails_the_first_check_and_no_other_is_made(passed: forge.CertificateSet, certificate: bytes) -> None:
    result = verify_certificate(certificate, **passed.inputs())

    assert [check.name for check in result.failed] == ["envelope"]
    assert list(outcomes(result)) == list(CHECKS)
    assert set(list(outcomes(result).values())[1:]) == {"not checked"}


def test_what_is_not_shown_is_said_whatever_the_result(passed: forge.CertificateSet) -> None:
    for certificate in (passed.certificate, b"{}"):
        said = " ".join(verify_certificate(certificate, **passed.inputs()).not_shown)
        assert "signatures show who states it, not that it is so" in said
        assert "times are claimed" in said
        assert "attack that is not listed" in said


def test_nothing_of_an_unsigned_statement_is_repeated(passed: forge.CertificateSet) -> None:
    result = verify_certificate(forge.signed(passed.statement, signers=[forge.MALLORY]), **passed.inputs())

    assert result.statement is None
    assert result.to_document()["title"] is result.to_document()["verdict"] is None


def test_a_signed_claim_is_not_repeated_when_any_check_fails(
    passed: forge.CertificateSet, failed: forge.CertificateSet
) -> None:
    document = verify_certificate(passed.certificate, **passed.inputs(evidence=failed.evidence)).to_document()

    assert document["ok"] is False
    assert document["title"] is document["verdict"] is document["claim"] is document["model_sha256"] is None


def test_an_attempt_report_verifies_as_what_it_is(failed: forge.CertificateSet) -> None:
    result = verify_certificate(failed.certificate, **failed.inputs())

    assert result.ok
    assert result.to_document()["title"] == "Erasure attempt report"
    assert result.to_document()["verdict"] == "FAIL"


def test_an_attempt_report_does_not_meet_the_expectation_of_a_pass(failed: forge.CertificateSet) -> None:
    result = verify_certificate(failed.certificate, **failed.inputs(expect="PASS"))

    assert [check.name for check in result.failed] == ["expected_verdict"]


def test_a_draft_with_the_issuers_signature_alone_is_no_certificate(passed: forge.CertificateSet) -> None:
    draft = forge.signed(passed.statement, signers=[forge.ISSUER])

    result = verify_certificate(draft, **passed.inputs())

    assert [check.name for check in result.failed] == ["signatures"]


def test_a_certificate_signed_by_the_null_signer_never_verifies(passed: forge.CertificateSet) -> None:
    unsigned = sign_envelope(statement_bytes(passed.statement), signers=[forge.ISSUER, NullSigner()]).to_bytes()

    result = verify_certificate(unsigned, **passed.inputs())

    assert [check.name for check in result.failed] == ["signatures"]


def test_a_verdict_by_a_test_policy_does_not_verify_unless_a_test_asks_for_it(tmp_path: Path) -> None:
    made = forge.certificate_set(tmp_path, judged_by=forge.policy(purpose="test"))

    assert [check.name for check in verify_certificate(made.certificate, **made.inputs()).failed] == ["policy"]
    assert verify_certificate(made.certificate, **made.inputs(), accept_test_policy=True).ok


def test_old_weights_under_dated_retention_are_accepted_and_named(tmp_path: Path, passed: forge.CertificateSet) -> None:
    kept = Retirement(passed.facts.model_before.digest, "retained", "2027-06-01", "still_readable", forge.ISSUED_AT)
    made = forge.certificate_set(
        tmp_path, retirement=(kept,), pending=(Pending("dispose_retained_weights", "2027-06-01"),)
    )

    result = verify_certificate(made.certificate, **made.inputs())

    assert result.ok
    assert result.statement is not None
    assert any("kept until 2027-06-01" in text for text in result.statement.words.limitations)


def test_evidence_without_an_unlearning_run_is_checked_as_far_as_it_goes(tmp_path: Path) -> None:
    unfinished = MethodFacts("energy_boundary", "not-run", "unchanged", None, None, None, ("7",))
    made = forge.certificate_set(tmp_path, leaking=True, run=False, method=unfinished)
    retrained = replace(unfinished, guarantee="exact_retrain")
    boasting = forge.certificate_set(tmp_path / "boasting", leaking=True, run=False, method=retrained)

    assert verify_certificate(made.certificate, **made.inputs()).ok
    result = verify_certificate(boasting.certificate, **boasting.inputs())
    assert [check.name for check in result.failed] == ["evidence_origin"]


def test_whoever_asks_for_a_complete_check_is_refused_one_that_was_not_made(passed: forge.CertificateSet) -> None:
    given = passed.inputs(revocations=revocations(), expect="PASS", complete=True)

    assert verify_certificate(passed.certificate, **given).ok
    result = verify_certificate(passed.certificate, **{**given, "model_dir": None, "revocations": None})
    assert [check.name for check in result.failed] == ["model_files", "revocation"]
    assert "no model directory was given" in " ".join(result.not_shown)


def test_a_declined_pass_verifies_as_the_attempt_report_that_it_is(tmp_path: Path) -> None:
    made = forge.certificate_set(tmp_path, declined=True)

    result = verify_certificate(made.certificate, **made.inputs(expect="INCONCLUSIVE"))

    assert result.ok
    document = result.to_document()
    assert document["title"] == "Erasure attempt report"
    assert document["claim"].startswith("No erasure is claimed")


# --- keys and times -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["issuer", "approver"])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"not_before": "2027-03-05T12:00:01Z"}, "before"),
        ({"not_after": "2027-03-05T11:59:59Z"}, "expired"),
        ({"revoked_at": "2027-03-05T12:00:00Z"}, "revoked"),
    ],
)
def test_a_key_that_did_not_count_at_the_time_claimed_fails(
    passed: forge.CertificateSet, role: str, change: dict[str, str], said: str
) -> None:
    keys = tuple(replace(key, **change) if key.role == role else key for key in passed.issuer.keys)

    result = verify_certificate(passed.certificate, **passed.inputs(issuer=replace(passed.issuer, keys=keys)))

    assert [check.name for check in result.failed] == ["key_validity"]
    assert said in result.failed[0].sentence
    assert result.statement is None


def test_a_key_revoked_afterwards_still_counts_and_is_named(passed: forge.CertificateSet) -> None:
    keys = tuple(replace(key, revoked_at="2027-09-01T00:00:00Z") for key in passed.issuer.keys if key.role != "log")
    log_key = next(key for key in passed.issuer.keys if key.role == "log")

    result = verify_certificate(
        passed.certificate, **passed.inputs(issuer=replace(passed.issuer, keys=(*keys, log_key)))
    )

    assert result.ok
    assert any("revoked later" in check.sentence for check in result.checks)


def test_a_revoked_log_key_signs_no_checkpoint_that_counts(passed: forge.CertificateSet) -> None:
    keys = tuple(replace(k, revoked_at="2027-09-01T00:00:00Z") if k.role == "log" else k for k in passed.issuer.keys)

    result = verify_certificate(passed.certificate, **passed.inputs(issuer=replace(passed.issuer, keys=keys)))

    assert [check.name for check in result.failed] == ["log_checkpoint"]


# --- model and revocation -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", forge.MODEL_FILES)
def test_one_flipped_bit_in_a_weight_file_is_noticed_and_the_file_named(tmp_path: Path, name: str) -> None:
    made = forge.certificate_set(tmp_path)
    content = (made.model_dir / name).read_bytes()
    for position in range(len(content)):
        altered = bytearray(content)
        altered[position] ^= 1 << position % 8
        (made.model_dir / name).write_bytes(altered)

        result = verify_certificate(made.certificate, issuer=made.issuer, model_dir=made.model_dir)

        assert [(check.name, check.sentence) for check in result.failed] == [
            ("model_files", f"model file {name!r} is not the one the statement names")
        ]


def test_a_missing_an_added_and_a_renamed_model_file_are_named(tmp_path: Path) -> None:
    made = forge.certificate_set(tmp_path)

    def sentence() -> str:
        (check,) = verify_certificate(made.certificate, issuer=made.issuer, model_dir=made.model_dir).failed
        return check.sentence

    (made.model_dir / "extra.json").write_bytes(b"{}")
    assert sentence() == "model file 'extra.json' does not belong to the model named"
    (made.model_dir / "extra.json").unlink()
    (made.model_dir / "tokenizer.json").rename(made.model_dir / "tokeniser.json")
    assert sentence() == "model file 'tokeniser.json' does not belong to the model named"
    (made.model_dir / "tokeniser.json").unlink()
    assert sentence() == "model file 'tokenizer.json' is missing"


def test_a_model_directory_with_a_pickle_or_a_link_fails(tmp_path: Path) -> None:
    made = forge.certificate_set(tmp_path)
    (made.model_dir / "weights.bin").write_bytes(b"\x80\x04.")

    result = verify_certificate(made.certificate, issuer=made.issuer, model_dir=made.model_dir)

    assert [check.name for check in result.failed] == ["model_files"]
    assert "weights.bin" in result.failed[0].sentence


def test_a_revoked_certificate_fails_with_its_reason(passed: forge.CertificateSet) -> None:
    listed = revocations(certificate_id="crt_01jalice")

    result = verify_certificate(passed.certificate, **passed.inputs(revocations=listed))

    assert [check.name for check in result.failed] == ["revocation"]
    assert "weights_restored" in result.failed[0].sentence


# --- what the verifier may load -----------------------------------------------------------------------------------


def imported_by(name: str, seen: set[str]) -> set[str]:
    """Every module that importing `name` at the top level can reach inside this repository, and what these import."""
    if name in seen:
        return seen
    seen.add(name)
    spec = sys.modules.get(name) or __import__(name, fromlist=["_"])
    if not name.startswith(("deletion_service", "ml")) or spec.__file__ is None:
        return seen
    for node in ast.parse(Path(spec.__file__).read_text("utf-8")).body:
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        else:
            continue
        for imported in names:
            imported_by(imported, seen)
    return seen


def test_the_verifier_needs_the_standard_library_and_cryptography_alone() -> None:
    reached = {name.partition(".")[0] for name in imported_by(module.__name__, set())}

    assert reached - set(sys.stdlib_module_names) == {"cryptography", "deletion_service", "ml"}


def test_the_verifier_reaches_no_part_of_ml_but_its_seam() -> None:
    reached = {name for name in imported_by(module.__name__, set()) if name.startswith("ml")}

    assert reached == {
        "ml.cohort_reports",
        "ml.cohorts",
        "ml.decision",
        "ml.digests",
        "ml.documents",
        "ml.errors",
        "ml.plugins",
        "ml.rank_tests",
        "ml.reports",
        "ml.specs",
        "ml.sweep_decision",
        "ml.sweep_reports",
    }
