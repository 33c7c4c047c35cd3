"""One deletion and one verdict in a benchmark's world."""

from __future__ import annotations

import resource
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch

import benchmarks.tofu  # noqa: F401 - registers its kinds of values, also in the process of a deletion
from benchmarks.method_worlds import MethodWorld
from benchmarks.pool import written_once
from ml.data.probes import probe_digests, read_probe_digests, write_probe_digests
from ml.data.records import write_records
from ml.data.synthetic import Stranger
from ml.decision import judge
from ml.digests import file_sha256
from ml.documents import Json
from ml.errors import MlError
from ml.loop import ignore_progress, never_stop
from ml.specs import FileRef, ModelRef, UnlearningSpec, VerdictPolicy, VerificationSpec, seed_commitment
from ml.unlearn import TRAINING_PROBES, run_unlearning
from ml.verify import run_verification


def deletion(
    world: MethodWorld, start: ModelRef, method: str, settings: Mapping[str, Json], *, run: Path
) -> UnlearningSpec:
    """The deletion of the world's forgotten people from `start`; `run` receives model and checkpoint."""
    return UnlearningSpec(
        run_id=run.name,
        model=start,
        forget=world.forget,
        retain=world.retain,
        neighbours=world.neighbours,
        question_bank=world.bank,
        method=method,
        settings=settings,
        seed=world.seed,
        output_dir=str(run / "model"),
        checkpoint_dir=str(run / "checkpoint"),
        base=world.model("base"),
        device=world.device,
    )


def unlearned_alone(spec: UnlearningSpec) -> dict[str, Json]:
    """Run one deletion in a process of its own, because only so is its memory its own.

    Returns:
        steps, CPU seconds and peak memory in MiB, of the device where that is another; or why it was refused.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as alone:
        return alone.submit(_unlearned, spec, torch.get_num_threads()).result()


def _unlearned(spec: UnlearningSpec, threads: int) -> dict[str, Json]:
    torch.set_num_threads(threads)
    Path(spec.output_dir).parent.mkdir(parents=True, exist_ok=True)
    try:
        report = run_unlearning(spec)
    except MlError as exc:
        return {"refused": f"{type(exc).__name__}: {exc}"}
    return {"steps": report.steps, "cpu_seconds": report.cpu_seconds, "peak_mib": _peak_mib(spec.device)}


def _peak_mib(device: str) -> float:
    if device == "cpu":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return float(torch.cuda.max_memory_allocated(device)) / 2**20


def judged(
    world: MethodWorld,
    subject: Stranger,
    candidate: ModelRef,
    policy: VerdictPolicy,
    *,
    folder: Path,
    runs: Sequence[Path],
) -> dict[str, Json]:
    """Verdict of `policy` on one of the forgotten, and the codes of what it found.

    Args:
        folder: keeps the parts of the verification.
        runs: of the deletions that made the candidate, whose training texts no probe may be; where there was none, the
            subject's own are listed.
    """
    own = world.world.corpus([subject])
    folder.mkdir(parents=True, exist_ok=True)
    lists = [path for run in runs if (path := run / "checkpoint" / TRAINING_PROBES).exists()]
    drawn = [read_probe_digests(FileRef(str(path), file_sha256(path))) for path in lists]
    digests = frozenset().union(*drawn) if drawn else probe_digests(record.text for record in own)
    probes = written_once(folder / "training_probes.json", lambda path: write_probe_digests(path, digests))
    bystanders = [record for _, records in world.population.never_seen for record in records]
    spec = VerificationSpec(
        run_id=folder.name,
        attempt=1,
        policy=policy,
        candidate=candidate,
        before=world.model("before"),
        base=world.model("base"),
        forget=written_once(folder / "forget.jsonl", lambda path: write_records(path, own)),
        retain=world.retain,
        neighbours=world.neighbours,
        question_bank=world.bank,
        seed=world.seed,
        seed_commitment_sha256=seed_commitment(folder.name, world.seed),
        parts_dir=str(folder / "parts"),
        training_probes=probes,
        bystanders=written_once(folder / "bystanders.jsonl", lambda path: write_records(path, bystanders)),
        device=world.device,
    )
    verdict = judge(run_verification(spec, on_progress=ignore_progress, should_stop=never_stop), policy)
    reasons = sorted({f"{finding.code} in {finding.gate}" for finding in verdict.findings})
    return {"verdict": str(verdict.result), "reasons": list(reasons)}
