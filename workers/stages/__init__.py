"""One stage a file: claim is done, the lease is held; do the work, write it under the fence, owe the next stage."""

from __future__ import annotations

from typing import Final

from deletion_service.targets.statuses import JobKind
from workers.jobs import Stage
from workers.stages import certify, dispose, locate, notify, promote, retire, sweep, unlearn, verify

STAGES: Final[dict[str, Stage]] = {
    JobKind.LOCATE: locate.run,
    JobKind.UNLEARN: unlearn.run,
    JobKind.VERIFY: verify.run,
    JobKind.SWEEP: sweep.run,
    JobKind.PROMOTE: promote.run,
    JobKind.RETIRE: retire.run,
    JobKind.DISPOSE: dispose.run,
    JobKind.CERTIFY: certify.run,
    JobKind.NOTIFY: notify.run,
}
