"""The verification that tests of `ml` ask for: a candidate of the tiny world under `unit-1`, unless told otherwise."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from ml.data.probes import probe_digests, write_probe_digests
from ml.policies import load_policy
from ml.specs import ModelRef, VerificationSpec, seed_commitment
from tests.tiny import TinyWorld


def verification_spec(world: TinyWorld, candidate: ModelRef, root: Path, **changes: Any) -> VerificationSpec:
    """A verification of `candidate` with `changes`, its seed committed to; `root` keeps parts and probes."""
    spec = VerificationSpec(
        run_id="run-1",
        attempt=1,
        policy=load_policy("unit-1"),
        candidate=candidate,
        before=world.before,
        base=world.base,
        forget=world.forget,
        retain=world.retain,
        neighbours=world.neighbours,
        question_bank=world.bank,
        seed=5,
        seed_commitment_sha256="",
        parts_dir=str(root / "parts"),
        training_probes=write_probe_digests(root / "training_probes.json", probe_digests(["a text nobody asks"])),
    )
    spec = replace(spec, **changes)
    return replace(spec, seed_commitment_sha256=seed_commitment(spec.run_id, spec.seed))
