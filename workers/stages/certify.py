"""Draft and sign the statement of a finished target; a person issues it."""

from __future__ import annotations

from deletion_service.certificates.custody import issuer_signer
from deletion_service.certificates.drafting import draft_certificate
from deletion_service.certificates.promotion import latest_decision, latest_evidence
from workers.jobs import Lease


def run(lease: Lease) -> None:
    """1. Take the decision that stands for the target, and its evidence.  2. Draft and sign under the fence."""
    job = lease.job()
    if job.target is None:
        raise ValueError("a certification job has a target")
    decision = latest_decision(job.target)
    evidence = latest_evidence(job.target)
    signer = issuer_signer()
    with lease.fenced():
        draft_certificate(job.target, decision, evidence=evidence, signer=signer)
        lease.finish()
