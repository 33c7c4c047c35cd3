"""Retire what still holds the data: contaminated weights, rejected candidates, rows at the source. Then probe."""

from __future__ import annotations

from deletion_service.certificates.promotion import return_to_review, send_back
from deletion_service.requests.models import ErasureRequest
from deletion_service.targets import lifecycle
from deletion_service.targets.batching import close_batch
from deletion_service.targets.jobs import owe
from deletion_service.targets.ledger import enter
from deletion_service.targets.models import ErasureTarget
from deletion_service.targets.statuses import JobKind, TargetStatus
from workers.clearing import clear, record_cleared, what_remains
from workers.jobs import Lease
from workers.workspace import wipe_run

_SETTLED = (TargetStatus.RELEASED, TargetStatus.NOT_RELEASED, TargetStatus.CANCELLED)


def run(lease: Lease) -> None:
    """1. Erase and probe the source rows, retire and probe weights.  2. Record under the fence; owe disposal.

    A target that is not released loses its source rows and its candidate, while the model that serves stays.
    """
    job = lease.job()
    if job.target is None:
        raise ValueError("a retirement job has a target")
    target = job.target
    cleared = clear(lease, target)
    with lease.fenced():
        record_cleared(target, cleared)
        complaint = what_remains(target, cleared)
        if complaint is not None and target.status == TargetStatus.RELEASING:
            send_back(target, reason=complaint)
        else:
            _settle(target)
        lease.finish()


def _settle(target: ErasureTarget) -> None:
    if target.status == TargetStatus.RELEASING:
        lifecycle.move(target, TargetStatus.RELEASED, actor="worker", reason="retired")
        enter(target)
    if target.batch is not None:
        close_batch(target.batch)
        for unlearning in target.batch.runs.all():
            wipe_run(unlearning)
    return_to_review(target.request)
    _owe_disposal(target.request)


def _owe_disposal(request: ErasureRequest) -> None:
    """Once no target needs the payload any more, it goes."""
    if not request.targets.exclude(status__in=_SETTLED).exists():
        owe(JobKind.DISPOSE, request, round_=request.evidence_decisions.count())
