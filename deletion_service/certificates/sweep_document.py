"""The evidence of a sweep over earlier deletions, as one document: policy, report, verdict. `ml`'s seam only.

Must never hold more than the ids of requests: whoever reads it learns how many deletions there were and whether one
came back, and nothing about anybody.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from deletion_service.certificates.canonical import DocumentFormError, read_canonical
from ml.decision import Result
from ml.digests import canonical_json, document_sha256
from ml.errors import SpecError
from ml.specs import VerdictPolicy
from ml.sweep_decision import SweepVerdict, judge_sweep
from ml.sweep_reports import SweepReport

SCHEMA_VERSION: Final = 1
LARGEST_SWEEP: Final = 64 << 20
_MEMBERS: Final = ("schema_version", "policy", "report", "verdict")
# The probes of one request's vault stand in a ledger beside its spike-in; an id names one set of probes.
_VAULT_SUFFIX: Final = "-vault"


@dataclass(frozen=True, slots=True)
class Coverage:
    """How many earlier deletions there were, how many were tested by what, and how many could not be."""

    earlier: int
    by_spike_in: int
    by_vault: int
    not_tested: int


@dataclass(frozen=True, slots=True)
class SweepDocument:
    """What was measured on one version, by which policy, and what was made of it."""

    policy: VerdictPolicy
    policy_sha256: str
    report: SweepReport
    stated_verdict: Mapping[str, Any]

    def judged_again(self) -> SweepVerdict:
        """Judge the report by the policy, both as they stand here."""
        return judge_sweep(self.report, self.policy)

    @property
    def coverage(self) -> Coverage:
        """Count deletions, not sets of probes: one may be tested by both."""
        measured = [row for row in self.report.entries if row.status == "measured"]
        earlier = {request_of(row.id) for row in self.report.entries}
        tested = {kind: {request_of(row.id) for row in measured if row.kind == kind} for kind in ("spike_in", "vault")}
        any_of = tested["spike_in"] | tested["vault"]
        return Coverage(len(earlier), len(tested["spike_in"]), len(tested["vault"]), len(earlier - any_of))

    @property
    def brought_back(self) -> tuple[str, ...]:
        """The requests whose deletions this version undid."""
        failed = (f.gate for f in self.judged_again().findings if f.result is Result.FAIL)
        return tuple(dict.fromkeys(request_of(gate) for gate in failed))


def vault_entry(request_id: str) -> str:
    """Return the id of a request's own probes in a ledger, where its spike-in stands beside them."""
    return f"{request_id}{_VAULT_SUFFIX}"


def request_of(entry_id: str) -> str:
    """Return the request that an entry of a ledger is about."""
    return entry_id.removesuffix(_VAULT_SUFFIX)


def sweep_bytes(policy: VerdictPolicy, report: SweepReport) -> bytes:
    """Judge a report and return the canonical bytes of the evidence: what is sealed, stored and handed out."""
    return canonical_json(
        {
            "schema_version": SCHEMA_VERSION,
            "policy": policy.to_document(),
            "report": report.to_document(),
            "verdict": judge_sweep(report, policy).to_document(),
        }
    )


def read_sweep(data: bytes) -> SweepDocument:
    """Read the evidence of a sweep strictly.

    Raises:
        DocumentFormError: not canonical JSON, or a member is unknown, missing or malformed.
    """
    document = read_canonical(data, what="the sweep", largest=LARGEST_SWEEP)
    if not isinstance(document, dict) or set(document) != set(_MEMBERS):
        raise DocumentFormError(f"the sweep needs exactly the members {', '.join(_MEMBERS)}")
    if document["schema_version"] != SCHEMA_VERSION or not isinstance(document["verdict"], dict):
        raise DocumentFormError(f"the sweep needs schema_version {SCHEMA_VERSION} and a verdict")
    try:
        return SweepDocument(
            policy=VerdictPolicy.from_document(document["policy"]),
            policy_sha256=document_sha256(document["policy"]),
            report=SweepReport.from_document(document["report"]),
            stated_verdict=document["verdict"],
        )
    except SpecError as exc:
        raise DocumentFormError(f"the sweep is malformed: {exc}") from None
