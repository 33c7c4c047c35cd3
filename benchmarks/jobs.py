"""Named jobs whose results stay: what was finished is never done again, and two runs may share one directory."""

from __future__ import annotations

import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

from filelock import FileLock, Timeout

from ml.digests import document_sha256
from ml.documents import Json
from ml.errors import SpecError
from ml.files import write_atomically

_LOOK_AGAIN_S: Final = 1.0

Job: TypeAlias = Callable[[], Any]


class UnfinishedError(SpecError):
    """Something is needed that another job has not finished."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one job found, and the processor seconds of the call that finished it."""

    result: Any
    cpu_seconds: float


class Jobs:
    """Finished jobs below one directory, by name: none is done twice, whoever was killed or works beside."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)

    def run(self, name: str, work: Job) -> Outcome | None:
        """Return what the job called `name` found, doing it unless it was done; `None` while another run does it."""
        path = self._directory / f"{name}.json"
        try:
            with FileLock(path.with_suffix(".lock"), timeout=0):
                if not path.exists():
                    _write(path, work)
        except Timeout:
            return None
        document = json.loads(path.read_text(encoding="utf-8"))
        return Outcome(document["result"], float(document["cpu_seconds"]))


def finished(directory: Path, name: str) -> Any:
    """What the finished job `name` found; raises `UnfinishedError` where it is not finished."""
    path = directory / f"{name}.json"
    if not path.exists():
        raise UnfinishedError(f"job {name} is not finished; run everything before it first")
    return json.loads(path.read_text(encoding="utf-8"))["result"]


def _write(path: Path, work: Job) -> None:
    started = time.process_time()
    result = work()
    seconds = time.process_time() - started
    write_atomically(path, json.dumps({"result": result, "cpu_seconds": seconds}).encode("utf-8"))


def claim_directory(work: Path, *, what: str, identity: Json) -> None:
    """Say what the directory is for; raises `SpecError` when it holds jobs of something else."""
    work.mkdir(parents=True, exist_ok=True)
    path = work / f"{what}.json"
    if not path.exists():
        write_atomically(path, json.dumps(_claim(identity)).encode("utf-8"))
    elif not is_claimed(work, what=what, identity=identity):
        raise SpecError(f"{work.name} holds another {what.replace('_', '-')}; name an empty directory")


def is_claimed(work: Path, *, what: str, identity: Json) -> bool:
    """Whether the directory holds jobs of just this."""
    path = work / f"{what}.json"
    return path.exists() and json.loads(path.read_text(encoding="utf-8")) == _claim(identity)


def _claim(identity: Json) -> dict[str, Json]:
    return {"key": document_sha256(identity)}


def run_jobs(planned: Mapping[str, Job], directory: Path) -> Mapping[str, Outcome]:
    """Do every job in order, telling how far the whole is; finished ones are only read, others' ones waited for, and so
    is what those need.

    Raises:
        UnfinishedError: a job needs something that nobody is doing.
    """
    jobs = Jobs(directory)
    outcomes: dict[str, Outcome] = {}
    while len(outcomes) < len(planned):
        before = len(outcomes)
        others_work = False
        lacking: UnfinishedError | None = None
        for name in [name for name in planned if name not in outcomes]:
            try:
                outcome = jobs.run(name, planned[name])
            except UnfinishedError as exc:
                lacking = exc
                continue
            if outcome is None:
                others_work = True
                continue
            outcomes[name] = outcome
            _tell(name, outcomes, list(planned))
        if len(outcomes) == before:
            if lacking is not None and not others_work:
                raise lacking
            time.sleep(_LOOK_AGAIN_S)
    return {name: outcomes[name] for name in planned}


def _tell(name: str, outcomes: Mapping[str, Outcome], planned: Sequence[str]) -> None:
    """One line a job: the share done, and the CPU minutes that are left if jobs cost what others of their kind did."""
    costs: defaultdict[str, list[float]] = defaultdict(list)
    for done, outcome in outcomes.items():
        costs[_kind(done)].append(outcome.cpu_seconds)
    every = [seconds for kind in costs.values() for seconds in kind]
    means = {kind: sum(seconds) / len(seconds) for kind, seconds in costs.items()}
    left = sum(means.get(_kind(other), sum(every) / len(every)) for other in planned if other not in outcomes)
    sys.stdout.write(
        f"{len(outcomes)} of {len(planned)} jobs ({sum(every) / (sum(every) + left):.0%})  "
        f"{name}: {outcomes[name].cpu_seconds:.1f} s  so far {sum(every) / 60:.1f}, left {left / 60:.1f} CPU minutes\n"
    )
    sys.stdout.flush()


def _kind(name: str) -> str:
    return name.split("-", 1)[0]
