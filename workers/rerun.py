"""Measure sealed evidence again, here, while the person's records can still be opened.

Must never leave a record outside the scratch folder: the sealed sets are opened there, measured, and wiped.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from deletion_service.audit import trail
from deletion_service.certificates.evidence import open_evidence
from deletion_service.certificates.models import Evidence
from deletion_service.certificates.rerun import Rerun, compared
from ml.specs import ProgressCallback, seed_commitment
from ml.verify import run_manifest, run_verification
from workers.bridge import naming, open_snapshots, verification_spec
from workers.workspace import rerun_scratch


def rerun_evidence(evidence: Evidence, *, seed: int | None, on_progress: ProgressCallback, actor: str) -> Rerun:
    """Measure again what a piece of evidence claims, and compare.

    1. Open the evidence, and the sealed sets in a folder of this rerun's own, so that no part measured before is taken
    up.  2. Measure on the recorded device with the recorded threads.  3. Compare, and note in the audit trail that it
    was done.

    Args:
        seed: the auditor's own; `None` repeats the recorded one.
    Raises:
        PayloadDestroyedError: the person's records were destroyed, as they must be when a case closes.
        SpecError: the evidence measured nothing, so there is nothing to repeat.
    """
    document, run, target = open_evidence(evidence), evidence.run, evidence.target
    with rerun_scratch(evidence.pk) as folder:
        recorded = verification_spec(target, run, open_snapshots(target, run, folder), document.policy)
        manifest = run_manifest(recorded, document.report)
        chosen = manifest.seed if seed is None else seed
        spec = replace(
            recorded,
            seed=chosen,
            seed_commitment_sha256=seed_commitment(run.pk, chosen),
            parts_dir=str(folder / "parts"),
            device=manifest.environment["device"],
            dtype=manifest.environment["dtype"],
        )
        torch.set_num_threads(manifest.threads)
        before = run.batch.before
        with naming(run.candidate, before, before.base):
            repeated = run_verification(spec, on_progress=on_progress, should_stop=lambda: False)
    result = compared(manifest, document.report, repeated, seed=chosen)
    came_out = "reproduced" if result.holds else "not_reproduced"
    trail.record(actor=actor, action="evidence.rerun", obj=evidence, reason=came_out, request_id=target.request_id)
    return result
