"""Look once more that nothing is left, destroy the payload and identity keys, wipe what runs left behind, and owe the
statements. After the keys nothing can be searched or repaired, so whatever speaks against a statement comes first."""

from __future__ import annotations

from deletion_service.certificates.custody import sign_disposal
from deletion_service.certificates.drafting import check_statement
from deletion_service.certificates.promotion import latest_decision, latest_evidence
from deletion_service.errors import ErasureIncompleteError, PayloadDestroyedError
from deletion_service.requests.codes import DataClass
from deletion_service.requests.payload import destroy_class, record_wiped
from deletion_service.targets.jobs import owe
from deletion_service.targets.models import ErasureTarget, UnlearningRun
from deletion_service.targets.statuses import JobKind, TargetStatus
from workers.clearing import clear, record_cleared, what_remains
from workers.jobs import Lease
from workers.workspace import check_wiped, wipe_orphans, wipe_run

# Once written, this step stays: a later try may find the keys gone, and then knows that an earlier one had looked.
_DESTROYING = "destroy_keys"


def run(lease: Lease) -> None:
    """1. Clear and probe again; see that a statement can be made.  2. Wipe the work directory (class F) and look.
    3. Destroy the keys of classes A and B, with signed proof.  4. Owe a statement for every target."""
    job = lease.job()
    targets = list(job.case.targets.exclude(status=TargetStatus.CANCELLED).select_related("model", "batch__before"))
    try:
        for target in targets:
            _check_again(lease, target)
    except PayloadDestroyedError:
        if job.step != _DESTROYING:
            raise
        # The key went and its record did not come: an earlier try had looked, and nothing can be looked for now.
    for unlearning in UnlearningRun.objects.filter(batch__targets__request=job.case).distinct():
        wipe_run(unlearning)
    wipe_orphans()
    record_wiped(job.case, check_wiped(job.case), actor="worker", sign=sign_disposal)
    lease.record(step=_DESTROYING)
    for data_class in (DataClass.PAYLOAD, DataClass.IDENTITY):
        destroy_class(job.case, data_class, actor="worker", sign=sign_disposal)
    with lease.fenced():
        for target in targets:
            owe(JobKind.CERTIFY, job.case, target=target, round_=job.round)
        lease.finish()


def _check_again(lease: Lease, target: ErasureTarget) -> None:
    cleared = clear(lease, target)
    with lease.fenced():
        record_cleared(target, cleared)
        remains = what_remains(target, cleared)
    if remains is not None and target.status == TargetStatus.RELEASED:
        raise ErasureIncompleteError(f"{target.pk}: {remains.label}; remove them, then try the job again")
    check_statement(target, latest_decision(target), evidence=latest_evidence(target))
