"""Search the training sources and write down what was found; carry out an instruction without waiting for people."""

from __future__ import annotations

from deletion_service.certificates.policies import current_plan
from deletion_service.requests.codes import Capacity
from deletion_service.requests.models import ErasureRequest
from deletion_service.targets.batching import start_work
from deletion_service.targets.locate import close_nothing_found, fix_targets, record_search, search_sources
from workers.jobs import Lease


def run(lease: Lease) -> None:
    """1. Read the sources, outside any transaction.  2. Record matches under the fence.  3. Go on with instructions."""
    found = search_sources(lease.job().case)
    with lease.fenced() as job:
        record_search(job.case, found)
        lease.finish()
        if job.case.capacity == Capacity.PROCESSOR:
            _carry_out_instruction(job.case)


def _carry_out_instruction(request: ErasureRequest) -> None:
    """The sender has decided already (compliance section 1); what follows needs people again at the evidence."""
    if request.targets.filter(record_count__gt=0).exists():
        fix_targets(request, actor="instruction")
        start_work(request, starter=None, plan=current_plan(), actor="instruction")
    else:
        close_nothing_found(request, actor="instruction")
