"""A runner process that kills itself, as `kill -9` does, at one point of one stage; then it is only a runner.

    python -m tests.flow.crash_runner --candidate DIR --die KIND:POINT --done FILE

Points: `start` (lease held, nothing done), `fence-N` (just before the N-th write under the fence), `commit` (all
written, process dies before it knows). `--done` remembers that the point was reached, so that the next start lives.
The candidate is a model directory made beforehand: what is under test is the service, not the unlearning.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import django

django.setup()

import workers.stages.unlearn as unlearn_stage  # noqa: E402 - models need the apps that setup() loads
from ml.data.probes import write_probe_digests  # noqa: E402
from ml.digests import model_manifest  # noqa: E402
from ml.reports import ProbeSet, UnlearningReport  # noqa: E402
from ml.specs import UnlearningSpec  # noqa: E402
from ml.unlearn import TRAINING_PROBES  # noqa: E402
from workers.jobs import Lease  # noqa: E402
from workers.stages import STAGES  # noqa: E402


class Death:
    """Kills this process once, at the point it was told."""

    def __init__(self, point: str, done: Path) -> None:
        self._kind, _, self._where = point.partition(":")
        self._done = done
        self._writes = 0
        self._stage = ""

    def entered(self, kind: str) -> None:
        self._stage, self._writes = kind, 0
        self._reach("start")

    def writes(self) -> None:
        self._writes += 1
        self._reach(f"fence-{self._writes}")

    def committed(self) -> None:
        self._reach("commit")

    def _reach(self, where: str) -> None:
        if (self._stage, where) == (self._kind, self._where) and not self._done.exists():
            self._done.touch()
            os.kill(os.getpid(), signal.SIGKILL)


def install(death: Death) -> None:
    """Put the points of death around every stage and every fenced write."""
    hold = Lease._hold

    def held(self: Lease, **changes: Any) -> None:
        death.writes()
        hold(self, **changes)

    Lease._hold = held  # type: ignore[method-assign]
    for kind, stage in list(STAGES.items()):

        def wrapped(lease: Lease, stage: Any = stage, kind: str = kind) -> None:
            death.entered(kind)
            stage(lease)
            death.committed()

        STAGES[kind] = wrapped


def use_candidate(directory: Path) -> None:
    """Let the unlearning stage return a candidate that was made beforehand."""

    def copy(spec: UnlearningSpec, **_: Any) -> UnlearningReport:
        output = Path(spec.output_dir)
        shutil.rmtree(output, ignore_errors=True)
        shutil.copytree(directory, output)
        write_probe_digests(Path(spec.checkpoint_dir) / TRAINING_PROBES, [])
        manifest = model_manifest(output)
        return UnlearningReport(
            run_id=spec.run_id,
            method=spec.method,
            method_version="cached",
            guarantee="exact_retrain",
            seed=spec.seed,
            steps=0,
            stopped_early=False,
            resumed_from_step=0,
            candidate_root_sha256=manifest.root_sha256,
            candidate_manifest_sha256=manifest.manifest_sha256,
            adapter_sha256="0" * 64,
            config_sha256="0" * 64,
            code_sha256="0" * 64,
            forget_records=1,
            retain_records=1,
            boundary={},
            losses={},
            training_probes=ProbeSet("training", 0, "0" * 64),
            environment={},
            cpu_seconds=0.0,
            notes=("a candidate made beforehand, for a test",),
        )

    unlearn_stage.run_unlearning = copy


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--candidate", type=Path)
    parser.add_argument("--die", default="")
    parser.add_argument("--done", type=Path, required=True)
    options = parser.parse_args()
    install(Death(options.die, options.done))
    if options.candidate:
        use_candidate(options.candidate)
    from django.core.management import call_command

    call_command("run_jobs")


if __name__ == "__main__":
    main()
