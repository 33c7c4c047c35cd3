"""Publish the certificates, put them beside the weights, and complete the request."""

from __future__ import annotations

from deletion_service.certificates.custody import issuer_signer
from deletion_service.certificates.issuing import outcome_of, publish_certificate
from deletion_service.certificates.models import ISSUED_STATUSES, Certificate, LogEntry
from deletion_service.certificates.revoking import publish_revocations
from deletion_service.certificates.sweeps import swept_bytes
from deletion_service.requests.clocks import stop_clocks
from deletion_service.requests.codes import ReasonCode
from deletion_service.requests.lifecycle import move
from deletion_service.requests.statuses import RequestStatus
from deletion_service.targets.registries import open_registry
from deletion_service.targets.statuses import TargetStatus, Verdict
from ml.digests import canonical_json, sha256_hex
from workers.jobs import Lease


def run(lease: Lease) -> None:
    """1. Sign the log's checkpoint, attach proofs, sign the list of revocations.  2. Store certificate and evidence in
    the registry.  3. Stop the clocks and complete; the move itself owes the letter."""
    job = lease.job()
    issued = Certificate.objects.filter(target__request=job.case, status__in=ISSUED_STATUSES)
    signer = issuer_signer()
    certificates = list(issued.select_related("target__model", "evidence__run__candidate"))
    with lease.fenced():
        for certificate in certificates:
            publish_certificate(certificate)
        publish_revocations(signer)
    for certificate in certificates:
        _store(certificate)
    with lease.fenced():
        stop_clocks(job.case)
        move(
            job.case,
            RequestStatus.COMPLETED,
            actor="worker",
            reason=ReasonCode.NO_RECIPIENTS_RECORDED,
            outcome=outcome_of(job.case),
        )
        lease.finish()


def _store(certificate: Certificate) -> None:
    """Put certificate, proof and evidence beside the released weights. Writing the same bytes again is harmless."""
    candidate = certificate.evidence.run.candidate
    if certificate.target.status != TargetStatus.RELEASED or candidate is None:
        return
    if certificate.verdict != Verdict.PASS or not LogEntry.objects.filter(certificate=certificate).exists():
        return
    registry = open_registry(certificate.target.model.registry)
    envelope = bytes(certificate.envelope)
    registry.attach(candidate.number, "certificate.dsse.json", envelope)
    registry.attach(candidate.number, "certificate.log.json", canonical_json(certificate.log_proof))
    registry.attach(candidate.number, "evidence.json", bytes(certificate.evidence.document))
    if (sweep := swept_bytes(candidate)) is not None:
        registry.attach(candidate.number, "sweep.json", sweep)
    tags = {
        "erasure.certificate_id": certificate.pk,
        "erasure.certificate_sha256": sha256_hex(envelope),
        "erasure.verdict": certificate.verdict,
    }
    registry.tag(candidate.number, tags)
