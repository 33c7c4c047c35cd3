"""Seal what a verification showed: canonical bytes, digest, verdict; then immutable."""

from __future__ import annotations

from deletion_service.audit import trail
from deletion_service.certificates.canonical import DocumentFormError
from deletion_service.certificates.evidence_document import EvidenceDocument, evidence_bytes, read_evidence
from deletion_service.certificates.models import Evidence
from deletion_service.certificates.policies import record_policy
from deletion_service.errors import EvidenceMissingError
from deletion_service.targets.models import ErasureTarget, UnlearningRun
from ml.decision import judge
from ml.digests import sha256_hex
from ml.reports import UnlearningReport, VerificationReport
from ml.specs import VerdictPolicy


def seal_evidence(
    target: ErasureTarget, run: UnlearningRun, *, report: VerificationReport, policy: VerdictPolicy
) -> Evidence:
    """Judge a report and keep both, once per target and run; a repetition returns what was sealed first.

    The worker calls this inside its fenced transaction, so that a replaced worker seals nothing.
    """
    if sealed := Evidence.objects.filter(target=target, run=run).first():
        return sealed
    unlearning = None if run.report is None else UnlearningReport.from_document(run.report)
    content = evidence_bytes(target=target.pk, policy=policy, report=report, unlearning=unlearning)
    evidence = Evidence.objects.create(
        target=target,
        run=run,
        policy=record_policy(policy),
        attempt=report.attempt,
        verdict=judge(report, policy).result,
        document=content,
        sha256=sha256_hex(content),
    )
    trail.record(
        actor="worker", action="evidence.sealed", obj=evidence, reason=evidence.verdict, request_id=target.request_id
    )
    return evidence


def open_evidence(evidence: Evidence) -> EvidenceDocument:
    """Return an evidence document after checking it: digest, form, target, and the verdict judged again.

    Raises:
        EvidenceMissingError: the bytes are not those that were sealed, or do not carry the verdict they name.
    """
    content = bytes(evidence.document)
    if sha256_hex(content) != evidence.sha256:
        raise EvidenceMissingError(f"evidence {evidence.pk} does not match its digest; restore it from a backup")
    try:
        document = read_evidence(content)
    except DocumentFormError as exc:
        raise EvidenceMissingError(f"evidence {evidence.pk} is malformed; verify the target again") from exc
    again = document.judged_again()
    if again.to_document() != document.stated_verdict or again.result != evidence.verdict:
        raise EvidenceMissingError(f"evidence {evidence.pk} does not carry the verdict it names; verify again")
    if document.target != evidence.target_id:
        raise EvidenceMissingError(f"evidence {evidence.pk} is about another target; verify again")
    return document
