"""The offline check of a certificate: standard library, `cryptography` and the pure modules beside this one.

Must never import Django, open a connection or trust a byte that no signature covers, and must always say what a
passed check does not show. Everything it is given may come from Mallory, but for the issuer document.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias, TypeVar

from deletion_service.certificates.canonical import read_canonical, time_from_text
from deletion_service.certificates.envelope import (
    IN_TOTO_PAYLOAD_TYPE,
    LARGEST_ENVELOPE,
    Envelope,
    EnvelopeError,
    read_envelope,
    signers_of,
)
from deletion_service.certificates.evaluation import Evaluation, evaluation_of
from deletion_service.certificates.evidence_document import EvidenceDocument, read_evidence
from deletion_service.certificates.facts import Sustainability, VerdictText
from deletion_service.certificates.merkle import Checkpoint, LogProof, check_inclusion, open_checkpoint
from deletion_service.certificates.revocation import open_revocations
from deletion_service.certificates.signing import IssuerDocument, IssuerKey
from deletion_service.certificates.statement import Statement, StatementError, contradictions, read_statement
from deletion_service.certificates.sweep_document import read_sweep
from deletion_service.certificates.wording import Words, is_declined, words_of
from deletion_service.errors import DomainError
from ml.digests import ModelManifest, model_manifest, sha256_hex
from ml.errors import MlError
from ml.reports import VerificationReport
from ml.specs import seed_commitment

T = TypeVar("T")
Outcome: TypeAlias = Literal["ok", "failed", "not checked"]
# In the order in which they are made: nothing below a failed signature is looked at.
CHECKS: Final = (
    "envelope",
    "payload_type",
    "signatures",
    "payload",
    "statement",
    "key_validity",
    "title",
    "claim",
    "limitations",
    "consistency",
    "policy",
    "log_checkpoint",
    "log_inclusion",
    "evidence_digest",
    "evidence_verdict",
    "evidence_numbers",
    "evidence_origin",
    "sweep",
    "model_files",
    "revocation",
    "expected_verdict",
)
_LONGEST_SEED: Final = 20
_NEVER_SHOWN: Final = (
    "that the statement is true: signatures show who states it, not that it is so",
    "that the issuer document is genuine: it was believed as given",
    "when anything happened: times are claimed by the issuer",
    "what an attack that is not listed would recover",
    "which model is in use anywhere, or that no copy of the older weights is left",
    "whom it is about: only the person's own nonce opens the subject commitment",
    "that the log shows everybody the same entries",
)


@dataclass(frozen=True, slots=True)
class Check:
    """One named check, what came of it, and a sentence about it."""

    name: str
    outcome: Outcome
    sentence: str


@dataclass(frozen=True, slots=True)
class VerificationResult:
    """What a check of one certificate found.

    `statement` is present only when both signatures hold, by keys that counted. `not_shown` is never empty. `ok`
    means that no check failed; whoever needs one that was not made looks for it in `checks`.
    """

    statement: Statement | None
    checks: tuple[Check, ...]
    not_shown: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """True when no check failed."""
        return not self.failed

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that failed, in order."""
        return tuple(check for check in self.checks if check.outcome == "failed")

    def to_document(self) -> dict[str, Any]:
        """Return the result as plain JSON; unless every check that was made holds, nothing claimed is repeated."""
        relied_on = self.statement if self.ok else None
        return {
            "ok": self.ok,
            "title": relied_on.words.title if relied_on else None,
            "verdict": relied_on.facts.verdict if relied_on else None,
            "claim": relied_on.words.claim if relied_on else None,
            "limitations": list(relied_on.words.limitations) if relied_on else None,
            "certificate_id": relied_on.facts.certificate_id if relied_on else None,
            "issued_at": relied_on.facts.issued_at if relied_on else None,
            "model_sha256": relied_on.manifest.root_sha256 if relied_on else None,
            "checks": [{"name": c.name, "outcome": c.outcome, "sentence": c.sentence} for c in self.checks],
            "not_shown": list(self.not_shown),
        }


def verify_certificate(
    certificate: bytes,
    *,
    issuer: IssuerDocument,
    log_proof: bytes | None = None,
    evidence: bytes | None = None,
    sweep: bytes | None = None,
    model_dir: Path | None = None,
    revocations: bytes | None = None,
    expect: VerdictText | None = None,
    complete: bool = False,
    draft: bool = False,
    accept_test_policy: bool = False,
) -> VerificationResult:
    """Check a certificate against whatever is at hand; what is not given is reported as not checked.

    1. The envelope, its two signatures, that the signed bytes are a statement, and that both keys counted when it was
    issued.  2. The statement: title, claim, limitations, consistency, policy.  3. The log.  4. The evidence, judged
    again.  5. The sweep over earlier deletions, judged again.  6. The model directory.  7. Revocation, and the verdict
    asked for.

    Args:
        issuer: the root of trust.
        expect: a verdict without which the check fails.
        complete: let a check fail for which nothing was given.
        draft: take what the issuer alone has signed: what an approver looks at before signing.
        accept_test_policy: take a verdict by a policy made for tests; for tests.
    """
    ledger = _Ledger(missing="failed" if complete else "not checked")
    try:
        statement = _opened(ledger, certificate, issuer, draft=draft)
    except _StoppedError:
        ledger.skip_rest("nothing in it can be relied on, since an earlier check failed")
        return VerificationResult(None, tuple(ledger.checks), _NEVER_SHOWN)
    _check_statement(ledger, statement, issuer, accept_test_policy=accept_test_policy)
    _check_log(ledger, certificate, log_proof, issuer)
    _check_evidence(ledger, statement, evidence)
    _check_sweep(ledger, statement, sweep)
    _check_model(ledger, statement, model_dir)
    _check_revocation(ledger, statement, revocations, issuer)
    _check_expectation(ledger, statement, expect)
    return VerificationResult(statement, tuple(ledger.checks), _not_shown(ledger))


class _StoppedError(Exception):
    """A check failed without which the following ones mean nothing."""


class _FailedError(DomainError):
    """A check of this module did not hold."""


class _Ledger:
    """The checks made so far, in order."""

    def __init__(self, *, missing: Outcome) -> None:
        self.checks: list[Check] = []
        self._missing: Outcome = missing
        self._not_given: set[str] = set()

    def need(self, name: str, check: Callable[[], T], say: Callable[[T], str]) -> T:
        """Make a check and return its value; raise `_StoppedError` when it fails."""
        try:
            value = check()
        except (DomainError, MlError) as exc:
            self.checks.append(Check(name, "failed", str(exc)))
            raise _StoppedError from exc
        except OSError as exc:
            self.checks.append(Check(name, "failed", f"a file cannot be read: {exc.strerror}"))
            raise _StoppedError from exc
        self.checks.append(Check(name, "ok", say(value)))
        return value

    def make(self, name: str, check: Callable[[], str]) -> None:
        """Make a check that others do not depend on; it returns its sentence."""
        try:
            self.need(name, check, lambda sentence: sentence)
        except _StoppedError:
            return

    def lack(self, names: tuple[str, ...], why: str) -> None:
        """Note checks for which nothing was given."""
        self.checks += [Check(name, self._missing, why) for name in names]
        self._not_given.update(names)

    def skip(self, names: tuple[str, ...], why: str) -> None:
        """Note checks that mean nothing after one that failed."""
        self.checks += [Check(name, "not checked", why) for name in names]

    def skip_rest(self, why: str) -> None:
        self.skip(CHECKS[len(self.checks) :], why)

    def lacks(self, name: str) -> bool:
        return name in self._not_given


# --- envelope and signatures --------------------------------------------------------------------------------------


def _opened(ledger: _Ledger, certificate: bytes, issuer: IssuerDocument, *, draft: bool) -> Statement:
    """Verify the bytes, then parse those bytes, then ask whether the keys counted at the time they name."""
    envelope = ledger.need("envelope", lambda: read_envelope(certificate), lambda _: "the envelope is in strict form")
    ledger.need("payload_type", lambda: _payload_type(envelope), lambda kind: f"the payload is {kind}")
    signers = _one_signer if draft else _two_signers
    keys = ledger.need("signatures", lambda: signers(envelope, issuer), _signed_by)
    document = ledger.need(
        "payload",
        lambda: read_canonical(envelope.payload, what="the payload", largest=LARGEST_ENVELOPE),
        lambda _: "the signed bytes are canonical JSON",
    )
    statement = ledger.need(
        "statement",
        lambda: read_statement(document),
        lambda read: f"a model-erasure statement about {len(read.manifest.entries)} model files",
    )
    ledger.need("key_validity", lambda: _key_validity(statement, keys), lambda sentence: sentence)
    return statement


def _payload_type(envelope: Envelope) -> str:
    if envelope.payload_type != IN_TOTO_PAYLOAD_TYPE:
        raise EnvelopeError(f"the payload type is not {IN_TOTO_PAYLOAD_TYPE}")
    return envelope.payload_type


def _two_signers(envelope: Envelope, issuer: IssuerDocument) -> tuple[IssuerKey, ...]:
    if len(envelope.signatures) != 2:
        raise EnvelopeError("a certificate carries exactly two signatures, the issuer's and the approver's")
    # Two key ids are two keys: an id is the digest of its key (`IssuerKey`) and stands once (`Envelope`).
    keys = signers_of(envelope, issuer=issuer)
    if {key.role for key in keys} != {"issuer", "approver"}:
        raise EnvelopeError("the two signatures are not by one issuer key and one approver key")
    return keys


def _one_signer(envelope: Envelope, issuer: IssuerDocument) -> tuple[IssuerKey, ...]:
    keys = signers_of(envelope, issuer=issuer)
    if [key.role for key in keys] != ["issuer"]:
        raise EnvelopeError("a draft carries exactly one signature, by an issuer key")
    return keys


def _signed_by(keys: tuple[IssuerKey, ...]) -> str:
    return "signed by " + " and ".join(f"{key.role} key {_short(key.keyid)}" for key in keys)


def _key_validity(statement: Statement, keys: tuple[IssuerKey, ...]) -> str:
    issued_at = time_from_text(statement.facts.issued_at)
    for key in keys:
        if reason := key.why_not_valid_at(issued_at):
            raise _FailedError(f"the {key.role} key {_short(key.keyid)} {reason}")
    later = [f"the {key.role} key was revoked later, at {key.revoked_at}" for key in keys if key.revoked_at]
    return "; ".join([f"the keys were valid at the time claimed, {statement.facts.issued_at}", *later])


# --- statement ----------------------------------------------------------------------------------------------------


def _check_statement(
    ledger: _Ledger, statement: Statement, issuer: IssuerDocument, *, accept_test_policy: bool
) -> None:
    ledger.make("title", lambda: _title(statement))
    ledger.make("claim", lambda: _claim(statement))
    ledger.make("limitations", lambda: _limitations(statement))
    ledger.make("consistency", lambda: _consistency(statement))
    ledger.make("policy", lambda: _policy(statement, issuer, accept_test_policy=accept_test_policy))


def _expected_words(statement: Statement) -> Words:
    return words_of(statement.facts, version=statement.words.wording_version)


def _title(statement: Statement) -> str:
    if statement.words.title != _expected_words(statement).title:
        raise _FailedError(f"the title does not agree with the verdict {statement.facts.verdict}")
    return f"{statement.words.title} agrees with the verdict {statement.facts.verdict}"


def _claim(statement: Statement) -> str:
    if statement.words.claim != _expected_words(statement).claim:
        raise _FailedError("the claim is not the sentence that the facts carry")
    return f"the claim is the one that the facts carry, in wording {statement.words.wording_version}"


def _limitations(statement: Statement) -> str:
    if statement.words.limitations != _expected_words(statement).limitations:
        raise _FailedError("the limitations are not those that the facts carry")
    return f"{len(statement.words.limitations)} limitations are stated, those that the facts carry"


def _consistency(statement: Statement) -> str:
    if faults := contradictions(statement):
        raise StatementError("; ".join(faults))
    return "gates, findings, retirement, sources and times fit the verdict"


def _policy(statement: Statement, issuer: IssuerDocument, *, accept_test_policy: bool) -> str:
    stated = statement.facts.evaluation.policy
    known = issuer.policy(stated.digest.sha256)
    named = (stated.name, stated.version, stated.purpose)
    if known is None or (known.name, known.version, known.purpose) != named:
        raise _FailedError("the verdict policy is not one that the issuer document lists")
    if known.purpose == "test" and not accept_test_policy:
        raise _FailedError("the verdict policy was made for tests; the verdict has no evidential value")
    return f"judged by policy {known.name}, version {known.version}, which the issuer document lists"


# --- log ----------------------------------------------------------------------------------------------------------


def _check_log(ledger: _Ledger, certificate: bytes, log_proof: bytes | None, issuer: IssuerDocument) -> None:
    if log_proof is None:
        ledger.lack(("log_checkpoint", "log_inclusion"), "no log proof was given")
        return
    try:
        proof, checkpoint = ledger.need(
            "log_checkpoint",
            lambda: _checkpoint_of(log_proof, issuer),
            lambda read: f"a checkpoint of {issuer.log.origin} over {read[1].size} entries, signed by the log",
        )
    except _StoppedError:
        ledger.skip(("log_inclusion",), "the log proof cannot be relied on")
        return

    def included() -> str:
        check_inclusion(certificate, proof=proof, checkpoint=checkpoint)
        return f"the certificate is entry {proof.leaf_index} of that log"

    ledger.make("log_inclusion", included)


def _checkpoint_of(log_proof: bytes, issuer: IssuerDocument) -> tuple[LogProof, Checkpoint]:
    proof = LogProof.from_bytes(log_proof)
    # A revoked log key could have signed yesterday's tree today; the log hands out fresh proofs under its new key.
    keys = [key.raw_public_key for key in issuer.keys if key.role == "log" and key.revoked_at is None]
    return proof, open_checkpoint(proof.checkpoint, origin=issuer.log.origin, public_keys=keys)


# --- evidence -----------------------------------------------------------------------------------------------------


def _check_evidence(ledger: _Ledger, statement: Statement, evidence: bytes | None) -> None:
    names = ("evidence_digest", "evidence_verdict", "evidence_numbers", "evidence_origin")
    if evidence is None:
        ledger.lack(names, "no evidence was given")
        return
    try:
        document = ledger.need(
            "evidence_digest",
            lambda: _evidence_of(statement, evidence),
            lambda _: "the evidence is the one the statement names",
        )
    except _StoppedError:
        ledger.skip(names[1:], "the evidence cannot be relied on")
        return
    ledger.make("evidence_verdict", lambda: _judged_again(statement, document))
    ledger.make("evidence_numbers", lambda: _numbers(statement, document))
    ledger.make("evidence_origin", lambda: _origin(statement, document))


def _evidence_of(statement: Statement, evidence: bytes) -> EvidenceDocument:
    if sha256_hex(evidence) != statement.facts.evaluation.evidence_digest.sha256:
        raise _FailedError("the evidence is not the one the statement names, or was altered")
    return read_evidence(evidence)


def _judged_again(statement: Statement, evidence: EvidenceDocument) -> str:
    named = statement.facts.evaluation.policy.digest.sha256
    if not named == evidence.policy_sha256 == evidence.policy.sha256 == evidence.report.policy_sha256:
        raise _FailedError("statement, evidence and report do not name the same verdict policy")
    verdict = evidence.judged_again()
    declined = is_declined(statement.facts.evaluation)
    carries = "PASS" if declined else statement.facts.verdict
    if verdict.result.value != carries or verdict.to_document() != evidence.stated_verdict:
        raise _FailedError(f"judged again, the evidence carries {verdict.result.value}, not what is stated")
    more = ", and its release was declined" if declined else ""
    return f"judged again by the policy, the evidence carries {verdict.result.value}{more}"


def _numbers(statement: Statement, evidence: EvidenceDocument) -> str:
    stated = statement.facts.evaluation
    derived = evaluation_of(
        evidence.judged_again(),
        report=evidence.report,
        policy=evidence.policy,
        candidate_manifest_sha256=statement.manifest.manifest_sha256,
        evidence_sha256=stated.evidence_digest.sha256,
        policy_uri=stated.policy.uri,
        declined=is_declined(stated),
    )
    differing = [f.name for f in fields(Evaluation) if getattr(stated, f.name) != getattr(derived, f.name)]
    if differing:
        raise _FailedError(f"the statement's {' and '.join(differing)} are not those of the evidence")
    return f"all {len(stated.gates)} rows of the gate table follow from the evidence"


def _commitment_of(report: VerificationReport) -> str:
    """What a report's seed opens to; a report that drew nothing has none to open."""
    seed = report.seeds.get("verification")
    if seed is None:
        return f"sha256:{report.seeds.get('commitment_sha256')}"
    if not (seed.isascii() and seed.isdecimal() and len(seed) <= _LONGEST_SEED):
        return "malformed"
    return f"sha256:{seed_commitment(report.run_id, int(seed))}"


def _origin(statement: Statement, evidence: EvidenceDocument) -> str:
    """The evidence is about this target, this attempt, these two models and this run."""
    facts, run, seeds = statement.facts, evidence.unlearning, evidence.report.seeds
    pairs: list[tuple[str, object, object]] = [
        ("target", facts.target_id, evidence.target),
        ("attempt", (facts.attempt, facts.attempt), (str(evidence.attempt), str(evidence.report.attempt))),
        ("new model", statement.manifest.manifest_sha256, evidence.report.models.get("candidate")),
        ("model before", facts.model_before.manifest_sha256, evidence.report.models.get("before")),
        ("seed commitment", facts.verification_seed_commitment, f"sha256:{seeds.get('commitment_sha256')}"),
        ("verification seed", facts.verification_seed_commitment, _commitment_of(evidence.report)),
    ]
    method = facts.method
    if run is None:
        if facts.verdict == "PASS":
            raise _FailedError("the evidence names no unlearning run, without which nothing can PASS")
        pairs += [
            ("guarantee", method.guarantee, "unchanged"),
            ("code and configuration", (method.code_digest, method.config_digest), (None, None)),
        ]
    else:
        pairs += [
            ("method", (method.name, method.version), (run.method, run.method_version)),
            ("guarantee", method.guarantee, run.guarantee),
            ("code digest", method.code_digest, f"sha256:{run.code_sha256}"),
            ("configuration digest", method.config_digest, f"sha256:{run.config_sha256}"),
            ("seed", True, str(run.seed) in method.seeds),
            ("model the run made", statement.manifest.manifest_sha256, run.candidate_manifest_sha256),
        ]
    if differing := [name for name, stated, shown in pairs if stated != shown]:
        raise _FailedError(f"the evidence is about another {' and '.join(differing)}")
    return "the evidence is about this target, attempt and model" + (
        "" if run is None else ", and the run that made it"
    )


# --- earlier deletions --------------------------------------------------------------------------------------------


def _check_sweep(ledger: _Ledger, statement: Statement, sweep: bytes | None) -> None:
    stated = statement.facts.sustainability
    if stated is None:
        ledger.make("sweep", lambda: "the statement is of a wording that says nothing about earlier deletions")
    elif stated.sweep_digest is None:
        ledger.make("sweep", lambda: "the statement names no sweep: no earlier deletion was tested")
    elif sweep is None:
        ledger.lack(("sweep",), "no sweep was given")
    else:
        digest = stated.sweep_digest.sha256
        ledger.make("sweep", lambda: _swept(statement, stated, sweep, digest))


def _swept(statement: Statement, stated: Sustainability, sweep: bytes, digest: str) -> str:
    """The sweep is the one named, about this version, and carries what is stated when it is judged again."""
    if sha256_hex(sweep) != digest:
        raise _FailedError("the sweep is not the one the statement names, or was altered")
    document = read_sweep(sweep)
    again, coverage = document.judged_again(), document.coverage
    counted = (coverage.earlier, coverage.by_spike_in, coverage.by_vault, coverage.not_tested)
    pairs: list[tuple[str, object, object]] = [
        ("version", statement.manifest.manifest_sha256, document.report.models.get("candidate")),
        ("policy", statement.facts.evaluation.policy.digest.sha256, document.policy_sha256),
        ("verdict", (stated.result, again.to_document()), (again.result.value, document.stated_verdict)),
        ("counts", (stated.earlier, stated.by_spike_in, stated.by_vault, stated.not_tested), tuple(map(str, counted))),
    ]
    if differing := [name for name, said, shown in pairs if said != shown]:
        raise _FailedError(f"the sweep carries another {' and '.join(differing)}")
    tested = coverage.earlier - coverage.not_tested
    return f"judged again, the sweep carries {stated.result}: {tested} of {coverage.earlier} earlier deletions tested"


# --- model, revocation, expectation -------------------------------------------------------------------------------


def _check_model(ledger: _Ledger, statement: Statement, model_dir: Path | None) -> None:
    if model_dir is None:
        ledger.lack(("model_files",), "no model directory was given")
        return
    ledger.make("model_files", lambda: _model_files(statement.manifest, model_manifest(model_dir)))


def _model_files(stated: ModelManifest, found: ModelManifest) -> str:
    if difference := first_difference(stated, found):
        raise _FailedError(difference)
    return f"all {len(stated.entries)} files are those of the model named, {stated.root_sha256[:16]}..."


def first_difference(stated: ModelManifest, found: ModelManifest) -> str | None:
    """Name the first file, in path order, in which a directory differs from a manifest; `None` if none does."""
    expected, present = ({entry.path: entry for entry in manifest.entries} for manifest in (stated, found))
    for path in sorted(expected.keys() | present.keys()):
        if path not in present:
            return f"model file {path!r} is missing"
        if path not in expected:
            return f"model file {path!r} does not belong to the model named"
        if expected[path] != present[path]:
            return f"model file {path!r} is not the one the statement names"
    return None


def _check_revocation(ledger: _Ledger, statement: Statement, revocations: bytes | None, issuer: IssuerDocument) -> None:
    if revocations is None:
        ledger.lack(("revocation",), "no revocation list was given")
        return

    def not_revoked() -> str:
        listed = open_revocations(revocations, issuer=issuer)
        if entry := listed.entry(statement.facts.certificate_id):
            raise _FailedError(f"the certificate was revoked at {entry.revoked_at}: {entry.reason}")
        return f"not revoked by the list of {listed.issued_at}"

    ledger.make("revocation", not_revoked)


def _check_expectation(ledger: _Ledger, statement: Statement, expect: VerdictText | None) -> None:
    if expect is None:
        ledger.lack(("expected_verdict",), "no verdict was asked for")
        return

    def as_expected() -> str:
        if statement.facts.verdict != expect:
            raise _FailedError(f"the verdict is {statement.facts.verdict}, not {expect}")
        return f"the verdict is {expect}, as asked for"

    ledger.make("expected_verdict", as_expected)


_SHOWN_ONLY_BY: Final = {
    "log_inclusion": "that the certificate is in the issuer's log: no log proof was given",
    "evidence_verdict": "that the verdict follows from the evidence: no evidence was given",
    "sweep": "that earlier deletions were tested again as stated: no sweep was given",
    "model_files": "that the model at hand is the one named: no model directory was given",
    "revocation": "that the certificate still stands: no revocation list was given",
}


def _not_shown(ledger: _Ledger) -> tuple[str, ...]:
    return (*_NEVER_SHOWN, *(text for name, text in _SHOWN_ONLY_BY.items() if ledger.lacks(name)))


def _short(keyid: str) -> str:
    return f"{keyid[:23]}..."
