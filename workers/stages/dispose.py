"""Destroy the payload and identity keys, wipe what runs left behind, and owe the statements."""

from __future__ import annotations

from deletion_service.certificates.custody import sign_disposal
from deletion_service.requests.codes import DataClass
from deletion_service.requests.payload import destroy_class
from deletion_service.targets.jobs import owe
from deletion_service.targets.models import UnlearningRun
from deletion_service.targets.statuses import JobKind, TargetStatus
from workers.jobs import Lease
from workers.workspace import wipe_orphans, wipe_run


def run(lease: Lease) -> None:
    """1. Wipe the work directory (class F).  2. Destroy the keys of classes A and B, with signed proof.
    3. Owe a statement for every target."""
    job = lease.job()
    lease.record(step="wipe")
    for unlearning in UnlearningRun.objects.filter(batch__targets__request=job.request).distinct():
        wipe_run(unlearning)
    wipe_orphans()
    for data_class in (DataClass.PAYLOAD, DataClass.IDENTITY):
        lease.record(step=f"class_{data_class}")
        destroy_class(job.request, data_class, actor="worker", sign=sign_disposal)
    with lease.fenced():
        for target in job.request.targets.exclude(status=TargetStatus.CANCELLED):
            owe(JobKind.CERTIFY, job.request, target=target, round_=job.round)
        lease.finish()
