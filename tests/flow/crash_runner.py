"""A runner that kills itself, as `kill -9` does, at the points it was told, and is started again after each death.

    python -m tests.flow.crash_runner --deaths FILE [--die everywhere] [--die KIND:POINT ...] [--candidate DIR]

Points of a stage: `start` (lease held, nothing done), `sync-N` (just before the N-th file is flushed to its disk),
`fence-N` (just before the N-th write under the fence), `commit` (all written, the process dies before it knows) and
`PHASE-N` (step N of that phase is reported). A step of the sweep beside the jobs has `sync-N` and `sent-LETTER`
(mailed, not yet noted). `everywhere` means all of them but `PHASE-N`. `--deaths` remembers where it died: no point
kills twice, so that each life gets one point further.

Each life is a process of its own, forked from one that has imported the libraries and done nothing else. The candidate
is a model directory made beforehand: what is under test is the service, not the unlearning.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, Final

import django

django.setup()

from django.core.mail import EmailMessage  # noqa: E402 - models need the apps that setup() loads

import workers.reconcile as sweep  # noqa: E402
import workers.stages.unlearn as unlearn_stage  # noqa: E402
from ml.data.probes import write_probe_digests  # noqa: E402
from ml.digests import model_manifest  # noqa: E402
from ml.reports import ProbeSet, UnlearningReport  # noqa: E402
from ml.specs import Progress, UnlearningSpec  # noqa: E402
from ml.unlearn import TRAINING_PROBES  # noqa: E402
from workers.jobs import Lease, Stage  # noqa: E402
from workers.stages import STAGES  # noqa: E402

EVERYWHERE: Final = "everywhere"


class Death(threading.local):
    """Kills this process at each point it was told, once. Each thread is in a stage of its own, or in none."""

    def __init__(self, points: Sequence[str], deaths: Path) -> None:
        self._points = frozenset(points)
        self._deaths = deaths
        self._stage = ""
        self._writes = self._syncs = 0

    @contextmanager
    def inside(self, stage: str) -> Iterator[None]:
        """Count the writes of a stage from here on."""
        self._stage, self._writes, self._syncs = stage, 0, 0
        yield
        self._stage = ""

    def writes(self) -> None:
        """A write under the fence comes next."""
        self._writes += 1
        self.reach(f"fence-{self._writes}")

    def syncs(self) -> None:
        """A file is about to be flushed."""
        self._syncs += 1
        self.reach(f"sync-{self._syncs}")

    def progressed(self, progress: Progress) -> None:
        """A step was reported; only points that were named are looked for."""
        point = f"{self._stage}:{progress.phase}-{progress.done}"
        if point in self._points:
            self._die(point)

    def reach(self, where: str) -> None:
        """Die here, if this is a point and it did not kill before."""
        point = f"{self._stage}:{where}"
        if self._stage and (point in self._points or EVERYWHERE in self._points):
            self._die(point)

    def _die(self, point: str) -> None:
        if point in read_deaths(self._deaths):
            return
        with self._deaths.open("a") as notes:
            notes.write(f"{point}\n")
        os.kill(os.getpid(), signal.SIGKILL)


def read_deaths(path: Path) -> list[str]:
    """Return where a runner died, in order."""
    return path.read_text().splitlines() if path.is_file() else []


def install(death: Death) -> None:
    """Put the points of death around every stage, fenced write, flush to disk, step of the sweep, and letter."""
    hold, progressed, sync, send = Lease._hold, Lease.on_progress, os.fsync, EmailMessage.send

    def held(self: Lease, **changes: Any) -> None:
        death.writes()
        hold(self, **changes)

    def on_progress(self: Lease, progress: Progress) -> None:
        progressed(self, progress)
        death.progressed(progress)

    def synced(descriptor: int) -> None:
        death.syncs()
        sync(descriptor)

    def sent(self: EmailMessage, *args: Any) -> int:
        count = send(self, *args)
        death.reach(f"sent-{self.extra_headers['Message-ID'].split('.')[0].strip('<')}")
        return count

    Lease._hold = held  # type: ignore[method-assign]
    Lease.on_progress = on_progress  # type: ignore[method-assign]
    os.fsync = synced
    EmailMessage.send = sent  # type: ignore[method-assign]
    for kind, stage in list(STAGES.items()):
        STAGES[kind] = _mortal(death, kind, stage)
    sweep.STEPS = tuple(_counted(death, step) for step in sweep.STEPS)  # type: ignore[misc]


def _mortal(death: Death, kind: str, stage: Stage) -> Stage:
    def run(lease: Lease) -> None:
        with death.inside(kind):
            death.reach("start")
            stage(lease)
            death.reach("commit")

    return run


def _counted(death: Death, step: Callable[[], int]) -> Callable[[], int]:
    @wraps(step)
    def run() -> int:
        with death.inside(step.__name__):
            return step()

    return run


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


def live_again_after_each_death(points: Sequence[str], deaths: Path) -> None:
    """Run lives until one ends otherwise than by SIGKILL; a SIGTERM to the group reaches the life that runs."""
    signal.signal(signal.SIGTERM, lambda *_: None)
    while True:
        life = os.fork()
        if life == 0:
            _live(points, deaths)
        _, status = os.waitpid(life, 0)
        if not os.WIFSIGNALED(status) or os.WTERMSIG(status) != signal.SIGKILL:
            return


def _live(points: Sequence[str], deaths: Path) -> None:
    from django.core.management import call_command

    install(Death(points, deaths))
    try:
        call_command("run_jobs")
    finally:
        os._exit(0)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--candidate", type=Path)
    parser.add_argument("--die", action="append", default=[])
    parser.add_argument("--deaths", type=Path, required=True)
    options = parser.parse_args()
    if options.candidate:
        use_candidate(options.candidate)
    live_again_after_each_death(options.die, options.deaths)


if __name__ == "__main__":
    main()
