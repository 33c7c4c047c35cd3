"""What tests of `ml` ask for unless told otherwise: Alice's deletion in the tiny world, judged by `unit-1`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from ml.data.probes import probe_digests, write_probe_digests
from ml.policies import load_policy
from ml.specs import ModelRef, UnlearningSpec, VerificationSpec, seed_commitment
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


def unlearning_spec(world: TinyWorld, directory: Path, **changes: Any) -> UnlearningSpec:
    """A deletion with `changes`; `directory` receives the candidate and keeps the checkpoints."""
    spec = UnlearningSpec(
        run_id="run-1",
        model=world.before,
        forget=world.forget,
        retain=world.retain,
        neighbours=world.neighbours,
        question_bank=world.bank,
        method="energy_boundary",
        settings={},
        seed=11,
        output_dir=str(directory / "candidate"),
        checkpoint_dir=str(directory / "work"),
    )
    return replace(spec, **changes)
