"""A complete, small, valid set for certificate tests: keys, evidence that really judges PASS, log, model directory.

Everything is deterministic, so that a test may compare bytes. Rhea's approver key and the workers' issuer key differ;
Mallory has a key of her own that no issuer document lists.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from deletion_service.certificates.envelope import IN_TOTO_PAYLOAD_TYPE, sign_envelope
from deletion_service.certificates.evaluation import DECLINED, DigestSet, Unmet, evaluation_of
from deletion_service.certificates.evidence_document import evidence_bytes
from deletion_service.certificates.facts import (
    Approval,
    Disposal,
    ErasureFacts,
    LaterTests,
    MethodFacts,
    ModelBefore,
    NamedDigest,
    Pending,
    RequestFacts,
    Retirement,
    Scope,
    SourceResult,
    Sustainability,
    Validity,
    manifest_rows,
)
from deletion_service.certificates.merkle import (
    Checkpoint,
    certificate_leaf,
    prove_certificate,
    root_hash,
    sign_checkpoint,
)
from deletion_service.certificates.signing import (
    Ed25519Signer,
    IssuerDocument,
    KnownPolicy,
    LogDescription,
    issuer_key,
)
from deletion_service.certificates.statement import build_statement, statement_bytes
from ml.decision import judge
from ml.digests import ModelManifest, model_manifest, sha256_hex
from ml.rank_tests import smallest_p
from ml.reports import ProbeSet, UnlearningReport, VerificationReport
from ml.specs import VerdictPolicy, seed_commitment
from tests.ml.passing import GENERATION, MEMBERSHIP, POLICY, edited, passing_report

ORIGIN = "log.lethe.example/erasure"
ISSUED_AT = "2027-03-05T12:00:00Z"
BEFORE_SHA256 = sha256_hex(b"the model before")
BASE_SHA256 = sha256_hex(b"the base model")
NOBODY_EARLIER = Sustainability(
    "NOT_RUN", "no_earlier_deletions", "0", "0", "0", "0", None, LaterTests(spike_in=True, vault_until=None)
)
SEED = 20270305
SEED_COMMITMENT = seed_commitment("run_01", SEED)
MODEL_FILES = {
    "config.json": b'{"model_type":"llama"}',
    "model.safetensors": b"\x08\x00\x00\x00\x00\x00\x00\x00{}      ",
    "tokenizer.json": b"{}",
}


def signer(name: str) -> Ed25519Signer:
    """A key that always has the same bytes for the same name."""
    return Ed25519Signer(Ed25519PrivateKey.from_private_bytes(hashlib.sha256(name.encode()).digest()))


ISSUER, APPROVER, LOG, MALLORY = (signer(name) for name in ("issuer", "approver", "log", "mallory"))


def policy(*, name: str = "forged", purpose: Literal["release", "test"] = "release") -> VerdictPolicy:
    """The small policy of the decision rule's tests, for release and with two different bounds."""
    membership = replace(MEMBERSHIP, detection=("mean_loss",))
    generation = replace(GENERATION, rho=0.3)
    return replace(POLICY, name=name, purpose=purpose, families=(membership, generation))


def small_policy() -> VerdictPolicy:
    """One attack, one hard rule, one score: a certificate short enough to alter at every byte."""
    membership = replace(MEMBERSHIP, detection=(), artefacts=("merged",), guards=())
    changes = {"families": (membership,), "utility": POLICY.utility[:1], "hard_rules": ("lineage",), "not_tested": ()}
    return replace(POLICY, name="small", purpose="release", **changes)  # type: ignore[arg-type]


def report(judged_by: VerdictPolicy, *, candidate: str) -> VerificationReport:
    """A report that `judge` finds a PASS in, about the model with this manifest digest."""
    models = {"candidate": candidate, "before": BEFORE_SHA256, "base": BASE_SHA256}
    seeds = {"verification": str(SEED), "commitment_sha256": SEED_COMMITMENT}
    return replace(passing_report(judged_by), run_id="run_01", models=models, seeds=seeds)


def leaking_report(judged_by: VerdictPolicy, *, candidate: str) -> VerificationReport:
    """A report in which the person is still recognised: FAIL(residual)."""
    found = {"p_detect": smallest_p(239), "p_low": 1.0}
    leak = edited(report(judged_by, candidate=candidate), "attacks", 0, p_residual=0.9, residual_upper=None, **found)
    return edited(leak, "joint", 0, **found)


def unlearning_report(manifest: ModelManifest) -> UnlearningReport:
    """The run that made the candidate."""
    return UnlearningReport(
        run_id="run_01",
        method="energy_boundary",
        method_version="1",
        guarantee="empirical_approximate",
        seed=7,
        steps=240,
        stopped_early=False,
        resumed_from_step=0,
        candidate_root_sha256=manifest.root_sha256,
        candidate_manifest_sha256=manifest.manifest_sha256,
        adapter_sha256=sha256_hex(b"adapter"),
        config_sha256=sha256_hex(b"config"),
        code_sha256=sha256_hex(b"code"),
        forget_records=84,
        retain_records=1000,
        boundary={"margin": 0.5},
        losses={"total": 0.25},
        training_probes=ProbeSet("training", 84, sha256_hex(b"probes")),
        environment={"python": "3.11"},
        cpu_seconds=12.5,
    )


def model_directory(directory: Path, *, files: dict[str, bytes] | None = None) -> Path:
    """Write a model directory of a few small files."""
    directory.mkdir(parents=True)
    for name, content in (files or MODEL_FILES).items():
        (directory / name).write_bytes(content)
    return directory


def issuer_document(*policies: VerdictPolicy) -> IssuerDocument:
    """The issuer's public keys, all valid in 2027, its log and its policies."""
    begin, end = datetime(2027, 1, 1, tzinfo=UTC), datetime(2028, 1, 1, tzinfo=UTC)
    roles = (("issuer", ISSUER), ("approver", APPROVER), ("log", LOG))
    return IssuerDocument(
        issuer="Lethe test issuer",
        keys=tuple(issuer_key(key, role=role, not_before=begin, not_after=end) for role, key in roles),  # type: ignore[arg-type]
        log=LogDescription(ORIGIN),
        policies=tuple(KnownPolicy(p.name, str(p.version), p.purpose, p.sha256) for p in policies),
    )


def facts(
    manifest: ModelManifest, *, evidence: bytes, shown: VerificationReport, judged_by: VerdictPolicy, **changes: Any
) -> ErasureFacts:
    """The facts of Alice's erasure request, as a service would collect them."""
    verdict = judge(shown, judged_by)
    collected = ErasureFacts(
        certificate_id="crt_01jalice",
        issued_at=ISSUED_AT,
        verdict=verdict.result.value,  # type: ignore[arg-type]
        capacity="controller",
        request=RequestFacts(
            id="req_01jalice",
            regime="gdpr",
            received_on="2027-02-20",
            subject_commitment="sha256:" + sha256_hex(b"subject/v1 nonce"),
            upstream_id=None,
        ),
        target_id="tgt_01jalice",
        attempt=str(shown.attempt),
        model_name="support-assistant",
        manifest=manifest_rows(manifest),
        model_before=ModelBefore("support-assistant", DigestSet(sha256_hex(b"root before")), BEFORE_SHA256),
        method=MethodFacts(
            name="energy_boundary",
            version="1",
            guarantee="empirical_approximate",
            code_digest="sha256:" + sha256_hex(b"code"),
            config_digest="sha256:" + sha256_hex(b"config"),
            image_digest=None,
            seeds=("7",),
        ),
        scope=Scope(
            layers=("finetuning", "weights"),
            record_count="11-100",
            datasets=(NamedDigest("letters", DigestSet(sha256_hex(b"letters"))),),
            descendants=(),
        ),
        evaluation=evaluation_of(
            verdict,
            report=shown,
            policy=judged_by,
            candidate_manifest_sha256=manifest.manifest_sha256,
            evidence_sha256=sha256_hex(evidence),
            policy_uri=None,
        ),
        verification_seed_commitment=f"sha256:{SEED_COMMITMENT}",
        verification_seed_origin="drawn",
        retirement=(
            Retirement(DigestSet(sha256_hex(b"root before")), "deleted", None, "gone", "2027-03-05T11:30:00Z"),
        ),
        sources=(SourceResult("letters", "deleted", "gone", "2027-03-05T11:31:00Z"),),
        recipients=None,
        disposal=Disposal("dek_destroyed", ("A", "B", "F"), "2027-03-05T11:40:00Z", "none"),
        approvals=(Approval("privacy", "2027-03-05T11:00:00Z"), Approval("ml", "2027-03-05T11:05:00Z")),
        pending=(Pending("dispose_contact_data", "2027-04-04"),),
        key_custody="one_host",
        validity=Validity("2028-03-05", ("weights changed", "adapter added", "quantised build not listed")),
        supersedes=None,
        sustainability=NOBODY_EARLIER,
    )
    return replace(collected, **changes)


def signed(payload: dict[str, Any], *, signers: Sequence[Any] = (ISSUER, APPROVER)) -> bytes:
    """Sign a statement that follows the schema."""
    return sign_envelope(statement_bytes(payload), signers=signers).to_bytes()


def signed_raw(
    payload: bytes, *, signers: Sequence[Any] = (ISSUER, APPROVER), kind: str = IN_TOTO_PAYLOAD_TYPE
) -> bytes:
    """Sign any bytes, as an issuer whose own checks are broken would."""
    return sign_envelope(payload, signers=signers, payload_type=kind).to_bytes()


def log_proof(envelopes: Sequence[bytes], *, index: int, origin: str = ORIGIN, log: Any = LOG) -> bytes:
    """Enter envelopes into a log and prove the one at `index`."""
    leaves = [certificate_leaf(envelope) for envelope in envelopes]
    note = sign_checkpoint(Checkpoint(origin, len(leaves), root_hash(leaves)), signer=log)
    return prove_certificate(leaves, index=index, checkpoint=note).to_bytes()


@dataclass(frozen=True)
class CertificateSet:
    """Everything that a check of one certificate can be given."""

    policy: VerdictPolicy
    issuer: IssuerDocument
    manifest: ModelManifest
    facts: ErasureFacts
    statement: dict[str, Any]
    certificate: bytes
    evidence: bytes
    log_proof: bytes
    model_dir: Path

    def inputs(self, **changes: Any) -> dict[str, Any]:
        """Keyword arguments of `verify_certificate`, all given."""
        given = {
            "issuer": self.issuer,
            "log_proof": self.log_proof,
            "evidence": self.evidence,
            "model_dir": self.model_dir,
        }
        return {**given, **changes}

    def write(self, directory: Path) -> Path:
        """Write the set as files and return the certificate's path."""
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "issuer.json").write_bytes(self.issuer.to_bytes())
        (directory / "certificate.log.json").write_bytes(self.log_proof)
        (directory / "evidence.json").write_bytes(self.evidence)
        (directory / "certificate.dsse.json").write_bytes(self.certificate)
        return directory / "certificate.dsse.json"


def certificate_set(
    directory: Path,
    *,
    leaking: bool = False,
    judged_by: VerdictPolicy | None = None,
    files: dict[str, bytes] | None = None,
    run: bool = True,
    declined: bool = False,
    **changes: Any,
) -> CertificateSet:
    """Build a valid set below `directory`.

    Args:
        leaking: make an attempt report with verdict FAIL instead of a certificate.
        files: the model's files.
        run: put the unlearning report into the evidence.
        declined: make the attempt report of a PASS that nobody released.
        changes: fields of `ErasureFacts`.
    """
    judged_by = judged_by or policy()
    model_dir = model_directory(directory / "model", files=files)
    manifest = model_manifest(model_dir)
    shown = (leaking_report if leaking else report)(judged_by, candidate=manifest.manifest_sha256)
    evidence = evidence_bytes(
        target=changes.get("target_id", "tgt_01jalice"),
        policy=judged_by,
        report=shown,
        unlearning=unlearning_report(manifest) if run else None,
    )
    collected = facts(manifest, evidence=evidence, shown=shown, judged_by=judged_by, **changes)
    if declined:
        finding = Unmet(DECLINED, "release", None, None, "INCONCLUSIVE")
        evaluation = replace(collected.evaluation, unmet=(finding,))
        collected = replace(collected, verdict="INCONCLUSIVE", evaluation=evaluation, retirement=())
    statement = build_statement(collected)
    certificate = signed(statement)
    others = [hashlib.sha256(b"certificate %d" % number).digest() for number in range(6)]
    entries = [*others[:3], certificate, *others[3:]]
    return CertificateSet(
        policy=judged_by,
        issuer=issuer_document(judged_by),
        manifest=manifest,
        facts=collected,
        statement=statement,
        certificate=certificate,
        evidence=evidence,
        log_proof=log_proof(entries, index=3),
        model_dir=model_dir,
    )
