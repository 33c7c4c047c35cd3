"""The append-only log in the database: leaves, signed checkpoints, proofs. Digests only, nothing personal, ever."""

from __future__ import annotations

from django.conf import settings
from django.db import IntegrityError, transaction

from deletion_service.certificates.merkle import (
    Checkpoint,
    LogProof,
    certificate_leaf,
    prove_certificate,
    root_hash,
    sign_checkpoint,
)
from deletion_service.certificates.models import Certificate, LogCheckpoint, LogEntry
from deletion_service.certificates.signing import Signer
from deletion_service.errors import StaleStateError
from ml.digests import canonical_json


def append_certificate(certificate: Certificate, envelope: bytes) -> LogEntry:
    """Append the leaf of an issued certificate.

    Raises:
        StaleStateError: another entry took the index; try again.
    """
    return _append(certificate, LogEntry.Kind.CERTIFICATE, envelope)


def append_revocation(certificate: Certificate, *, reason: str) -> LogEntry:
    """Append the leaf of a revocation: the digest of `{"reason": ..., "revokes": ...}` in canonical JSON.

    Raises:
        StaleStateError: another entry took the index; try again.
    """
    content = canonical_json({"reason": reason, "revokes": certificate.pk})
    return _append(certificate, LogEntry.Kind.REVOCATION, content)


def _append(certificate: Certificate, kind: str, content: bytes) -> LogEntry:
    """Append a leaf; the unique index makes a rival lose instead of forking the log."""
    last = LogEntry.objects.order_by("-index").values_list("index", flat=True).first()
    try:
        with transaction.atomic():
            return LogEntry.objects.create(
                index=0 if last is None else last + 1,
                kind=kind,
                certificate=certificate,
                leaf_sha256=certificate_leaf(content).hex(),
            )
    except IntegrityError as exc:
        raise StaleStateError("the log grew at the same moment; nothing was written, try again") from exc


def publish_checkpoint(signer: Signer) -> LogCheckpoint:
    """Sign the root over all leaves, once per size."""
    leaves = _leaves()
    if done := LogCheckpoint.objects.filter(size=len(leaves)).first():
        return done
    checkpoint = Checkpoint(origin=settings.LOG_ORIGIN, size=len(leaves), root=root_hash(leaves))
    return LogCheckpoint.objects.create(
        size=checkpoint.size, root_sha256=checkpoint.root.hex(), note=sign_checkpoint(checkpoint, signer=signer)
    )


def proof_for(entry: LogEntry, checkpoint: LogCheckpoint) -> LogProof:
    """Return the proof that a leaf is in the log as signed."""
    return prove_certificate(_leaves()[: checkpoint.size], index=entry.index, checkpoint=checkpoint.note)


def _leaves() -> list[bytes]:
    return [bytes.fromhex(leaf) for leaf in LogEntry.objects.order_by("index").values_list("leaf_sha256", flat=True)]
