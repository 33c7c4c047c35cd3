"""The evidence behind a verdict, as one document: policy, report, verdict. Standard library and `ml`'s seam only.

Must never hold a text, a value or a number about a single record; `ml.reports` keeps them out. Sealing, storing and
issuing belong to the service; this is only the document's one shape.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from deletion_service.certificates.canonical import DocumentFormError, read_canonical
from deletion_service.certificates.published import published_schema, schema_fault
from ml.decision import Verdict, judge
from ml.digests import canonical_json, document_sha256
from ml.errors import SpecError
from ml.reports import UnlearningReport, VerificationReport
from ml.specs import VerdictPolicy

SCHEMA_VERSION: Final = 1
LARGEST_EVIDENCE: Final = 64 << 20
_SCHEMA: Final = "evidence-v1"
_MEMBERS: Final = ("schema_version", "target", "attempt", "policy", "report", "verdict", "unlearning")


@dataclass(frozen=True, slots=True)
class EvidenceDocument:
    """What was measured on one target at one attempt, by which policy, and what was made of it.

    `stated_verdict` is the verdict as the document states it; `judged_again()` is what its report carries.
    """

    target: str
    attempt: int
    policy: VerdictPolicy
    policy_sha256: str
    report: VerificationReport
    stated_verdict: Mapping[str, Any]
    unlearning: UnlearningReport | None

    def judged_again(self) -> Verdict:
        """Judge the report by the policy, both as they stand here."""
        return judge(self.report, self.policy)


def evidence_bytes(
    *, target: str, policy: VerdictPolicy, report: VerificationReport, unlearning: UnlearningReport | None
) -> bytes:
    """Judge a report and return the canonical bytes of the evidence: what is sealed, stored and handed out.

    Raises:
        DocumentFormError: the document breaks its published schema, such as by a bar that holds fewer than five.
    """
    document = {
        "schema_version": SCHEMA_VERSION,
        "target": target,
        "attempt": report.attempt,
        "policy": policy.to_document(),
        "report": report.to_document(),
        "verdict": judge(report, policy).to_document(),
        "unlearning": None if unlearning is None else unlearning.to_document(),
    }
    validate_evidence(document)
    return canonical_json(document)


def validate_evidence(document: Mapping[str, Any]) -> None:
    """Check evidence against the published JSON Schema: its form, not whether its numbers are possible.

    Raises:
        DocumentFormError: the message names the member and the rule, never the content.
    """
    if fault := schema_fault(document, _SCHEMA):
        raise DocumentFormError(f"evidence {fault}")


def evidence_schema() -> dict[str, Any]:
    """Return the published JSON Schema of the evidence."""
    return published_schema(_SCHEMA)


def read_evidence(data: bytes) -> EvidenceDocument:
    """Read evidence strictly.

    Raises:
        DocumentFormError: not canonical JSON, or a member is unknown, missing or malformed.
    """
    document = read_canonical(data, what="the evidence", largest=LARGEST_EVIDENCE)
    if not isinstance(document, dict) or set(document) != set(_MEMBERS):
        raise DocumentFormError(f"the evidence needs exactly the members {', '.join(_MEMBERS)}")
    if document["schema_version"] != SCHEMA_VERSION or not isinstance(document["target"], str):
        raise DocumentFormError(f"the evidence needs schema_version {SCHEMA_VERSION} and a target")
    if not isinstance(document["verdict"], dict) or type(document["attempt"]) is not int:
        raise DocumentFormError("the evidence needs a verdict and a whole attempt number")
    try:
        return EvidenceDocument(
            target=document["target"],
            attempt=document["attempt"],
            policy=VerdictPolicy.from_document(document["policy"]),
            policy_sha256=document_sha256(document["policy"]),
            report=VerificationReport.from_document(document["report"]),
            stated_verdict=document["verdict"],
            unlearning=None
            if document["unlearning"] is None
            else UnlearningReport.from_document(document["unlearning"]),
        )
    except SpecError as exc:
        raise DocumentFormError(f"the evidence is malformed: {exc}") from None
