"""What a statement says about earlier deletions: no more than the sweep shows, and everything that it does not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deletion_service.certificates.evaluation import DigestSet
from deletion_service.certificates.facts import LaterTests, Sustainability
from deletion_service.certificates.signing import IssuerDocument
from deletion_service.certificates.statement import StatementError, build_statement, contradictions, read_statement
from deletion_service.certificates.sweep_document import read_sweep, request_of, sweep_bytes, vault_entry
from deletion_service.certificates.verify import verify_certificate
from deletion_service.certificates.wording import words_of
from ml.digests import sha256_hex
from ml.policies import load_policy
from ml.specs import DeletionLedger, FileRef, LedgerEntry, ModelRef, RecordedScores, SweepSpec
from tests.certificates import forge
from tests.ml.swept import swept

RELEASED = Path(__file__).with_name("released")
POLICY = replace(load_policy("reference-1"), name="forged")
BEFORE = dict.fromkeys(("same_context_difference", "exposure", "extraction_strength"), RecordedScores(9.0, (0.0,) * 19))
FILE = FileRef("probes", "0" * 64)
ALICE, BOB, CAROL = "req_01jalice", "req_01jbob", "req_01jcarol"
ENTRIES = (
    LedgerEntry(ALICE, "spike_in", 1, FILE, None, BEFORE),
    LedgerEntry(BOB, "spike_in", 2, FILE, None, BEFORE),
    LedgerEntry(vault_entry(BOB), "vault", 2, FILE, "2027-05-01", BEFORE),
)
UNCOVERED = LedgerEntry(CAROL, "spike_in", 3, None)


def sweep(manifest_sha256: str, *entries: LedgerEntry, back: tuple[str, ...] = ()) -> bytes:
    """The sealed report of a sweep over a ledger, on one version."""
    spec = SweepSpec(
        run_id="run_02",
        policy=POLICY,
        candidate=ModelRef("candidate", manifest_sha256),
        base=ModelRef("base", "1" * 64),
        ledger=FILE,
        retain=FILE,
        question_bank=FILE,
        seed=1,
        seed_commitment_sha256="2" * 64,
        as_of="2027-03-01",
        parts_dir="parts",
    )
    return sweep_bytes(POLICY, swept(spec, DeletionLedger(entries), back=back))


def stated(content: bytes, **changes: Any) -> Sustainability:
    """What an honest statement says of a sweep."""
    document = read_sweep(content)
    shown = document.coverage
    said = Sustainability(
        document.judged_again().result.value,  # type: ignore[arg-type]
        None,
        str(shown.earlier),
        str(shown.by_spike_in),
        str(shown.by_vault),
        str(shown.not_tested),
        DigestSet(sha256_hex(content)),
        LaterTests(spike_in=True, vault_until="2027-05-01"),
    )
    return replace(said, **changes)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> forge.CertificateSet:
    return forge.certificate_set(tmp_path_factory.mktemp("plain"), judged_by=forge.policy())


def issued(plain: forge.CertificateSet, content: bytes, **changes: Any) -> dict[str, Any]:
    """The set's statement, signed again with what a sweep showed: arguments of the check."""
    policy = replace(plain.facts.evaluation.policy, digest=DigestSet(POLICY.sha256), name=POLICY.name)
    evaluation = replace(plain.facts.evaluation, policy=policy)
    facts = replace(plain.facts, evaluation=evaluation, sustainability=stated(content, **changes))
    certificate = forge.signed(build_statement(facts))
    return {"certificate": certificate, "issuer": forge.issuer_document(POLICY), "sweep": content}


def failures(**given: Any) -> list[tuple[str, str]]:
    certificate = given.pop("certificate")
    return [(check.name, check.sentence) for check in verify_certificate(certificate, **given).failed]


# --- earlier wordings ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["passed", "failed", "declined"])
def test_a_statement_in_the_first_wording_verifies_for_ever(name: str) -> None:
    folder = RELEASED / "wording-1" / name
    result = verify_certificate(
        (folder / "certificate.dsse.json").read_bytes(),
        issuer=IssuerDocument.from_bytes((folder / "issuer.json").read_bytes()),
        log_proof=(folder / "certificate.log.json").read_bytes(),
        evidence=(folder / "evidence.json").read_bytes(),
    )
    assert result.failed == ()
    assert result.statement is not None
    assert (result.statement.words.wording_version, result.statement.facts.sustainability) == ("1", None)
    assert {check.outcome for check in result.checks if check.name == "sweep"} == {"ok"}


# --- the check ----------------------------------------------------------------------------------------------------


def test_a_sweep_is_judged_again_and_counts_deletions_by_what_tested_them(plain: forge.CertificateSet) -> None:
    content = sweep(plain.manifest.manifest_sha256, *ENTRIES)
    document = read_sweep(content)
    shown = document.coverage
    assert (shown.earlier, shown.by_spike_in, shown.by_vault, shown.not_tested) == (2, 2, 1, 0)
    assert document.judged_again().result == "PASS"
    given = issued(plain, content)
    certificate = given.pop("certificate")
    (check,) = [c for c in verify_certificate(certificate, **given).checks if c.name == "sweep"]
    assert check.outcome == "ok"
    assert check.sentence.endswith("2 of 2 earlier deletions tested")


def test_without_the_sweep_it_is_said_that_nothing_shows_it(plain: forge.CertificateSet) -> None:
    given = issued(plain, sweep(plain.manifest.manifest_sha256, *ENTRIES)) | {"sweep": None}
    certificate = given.pop("certificate")
    result = verify_certificate(certificate, **given)
    assert result.ok
    assert any("no sweep was given" in text for text in result.not_shown)
    assert [name for name, _ in failures(certificate=certificate, **given, complete=True) if name == "sweep"]


@pytest.mark.parametrize(
    ("other", "fault"),
    [
        (lambda content, digest: content.replace(b"req_01jbob", b"req_01jeve"), "not the one"),
        (lambda content, digest: sweep("f" * 64, *ENTRIES), "not the one"),
        (lambda content, digest: b"{}", "not the one"),
    ],
)
def test_another_sweep_than_the_one_named_is_refused(
    plain: forge.CertificateSet, other: Callable[[bytes, str], bytes], fault: str
) -> None:
    content = sweep(plain.manifest.manifest_sha256, *ENTRIES)
    given = issued(plain, content) | {"sweep": other(content, plain.manifest.manifest_sha256)}
    assert [(name, fault in said) for name, said in failures(**given)] == [("sweep", True)]


@pytest.mark.parametrize(
    ("make", "changes", "fault"),
    [
        (lambda digest: sweep("f" * 64, *ENTRIES), {}, "version"),
        (lambda digest: sweep(digest, *ENTRIES), {"result": "INCONCLUSIVE"}, "verdict"),
        (lambda digest: sweep(digest, *ENTRIES), {"earlier": "3", "by_spike_in": "3"}, "counts"),
        (lambda digest: sweep(digest, *ENTRIES), {"by_vault": "0"}, "counts"),
        (
            lambda digest: sweep(digest, *ENTRIES, UNCOVERED),
            {"result": "PASS", "earlier": "2", "not_tested": "0"},
            "verdict and counts",
        ),
    ],
)
def test_a_statement_that_says_more_than_its_sweep_is_refused(
    plain: forge.CertificateSet, make: Callable[[str], bytes], changes: dict[str, str], fault: str
) -> None:
    given = issued(plain, make(plain.manifest.manifest_sha256), **changes)
    assert [(name, said.endswith(fault)) for name, said in failures(**given)] == [("sweep", True)]


def test_a_verdict_painted_into_the_sweep_is_judged_again(plain: forge.CertificateSet) -> None:
    content = sweep(plain.manifest.manifest_sha256, *ENTRIES, UNCOVERED)
    painted = content.replace(b'"result":"INCONCLUSIVE"}', b'"result":"PASS"}')
    assert painted != content
    given = issued(plain, content) | {"sweep": painted}
    assert [name for name, _ in failures(**given)] == ["sweep"]
    claimed = issued(plain, painted, result="INCONCLUSIVE")
    assert [name for name, _ in failures(**claimed)] == ["sweep"]


# --- consistency --------------------------------------------------------------------------------------------------

NOTHING = {"sweep_digest": None, "result": "NOT_RUN"}


@pytest.mark.parametrize(
    "changes",
    [
        {"result": "FAIL"},
        {"not_tested": "1"},
        {"by_spike_in": "3"},
        {"sweep_digest": None},
        {"reason": "error"},
        {**NOTHING},
        {**NOTHING, "reason": "no_earlier_deletions"},
        {**NOTHING, "reason": "error", "by_spike_in": "0", "by_vault": "0", "not_tested": "2"},
    ],
)
def test_a_certificate_cannot_contradict_itself_about_earlier_deletions(
    plain: forge.CertificateSet, changes: dict[str, Any]
) -> None:
    said = stated(sweep(plain.manifest.manifest_sha256, *ENTRIES), **changes)
    with pytest.raises(StatementError):
        build_statement(replace(plain.facts, sustainability=said))


def test_a_statement_must_say_something_about_earlier_deletions(plain: forge.CertificateSet) -> None:
    with pytest.raises(StatementError, match="nothing is said"):
        build_statement(replace(plain.facts, sustainability=None))
    assert contradictions(read_statement(plain.statement)) == ()


# --- words --------------------------------------------------------------------------------------------------------


def words(plain: forge.CertificateSet, said: Sustainability) -> str:
    return " ".join(words_of(replace(plain.facts, sustainability=said)).limitations)


def test_the_words_say_how_many_were_tested_by_what_and_how_many_were_not(plain: forge.CertificateSet) -> None:
    told = words(plain, stated(sweep(plain.manifest.manifest_sha256, *ENTRIES, UNCOVERED)))
    assert "Of 3 earlier deletions of this model, 2 were tested again" in told
    assert "1 by the persons' own sealed probes" in told
    assert "1 of 3 earlier deletions could not be tested" in told
    assert "inconclusive" in told
    assert not [name for name in (ALICE, BOB, CAROL) if name in told]


def test_the_words_say_what_stands_for_this_deletion_and_until_when(plain: forge.CertificateSet) -> None:
    nobody = forge.NOBODY_EARLIER
    both = words(plain, replace(nobody, later=LaterTests(spike_in=True, vault_until="2027-05-01")))
    assert "by a synthetic person who was deleted along" in both
    assert "Until 2027-05-01 the person's own records are kept sealed" in both
    vault_alone = words(plain, replace(nobody, later=LaterTests(spike_in=False, vault_until="2027-05-01")))
    assert "Nothing stands for this deletion after 2027-05-01" in vault_alone
    none = words(plain, replace(nobody, later=LaterTests(spike_in=False, vault_until=None)))
    assert "Nothing stands for this deletion: later versions cannot be tested for it." in none
    assert "No earlier deletion of this model was on record" in none


def test_a_report_on_a_version_that_brought_somebody_back_says_so_and_claims_nothing(tmp_path: Path) -> None:
    declined = forge.certificate_set(tmp_path, declined=True)
    content = sweep(declined.manifest.manifest_sha256, *ENTRIES, back=(BOB,))
    said = stated(content, later=LaterTests(spike_in=False, vault_until=None))
    assert said.result == "FAIL"
    told = words_of(replace(declined.facts, sustainability=said))
    assert told.claim.startswith("No erasure is claimed: every gate passed, but the version that was evaluated brings")
    assert build_statement(replace(declined.facts, sustainability=said))["predicate"]["claim"] == told.claim


def test_an_id_in_a_ledger_leads_back_to_its_request() -> None:
    assert request_of(vault_entry(BOB)) == request_of(BOB) == BOB
