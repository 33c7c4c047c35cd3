"""What a verification measures, model by model, and a second process that measures some of it at the same time.

    python -m ml.verification.measure        (reads what to do from its standard input; started by `beside`)

Models are independent of each other until the report is put together, and every measurement is a part on disk under
the digest of what it depends on. So a second process needs nothing but the specification, changes no number, and may
die at any time: what it left undone is measured by the first.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final

import torch

from ml.documents import plain_object, read
from ml.loop import ignore_progress, never_stop
from ml.specs import VerdictPolicy, VerificationSpec
from ml.verification.bench import Bench
from ml.verification.pooled import bench_for

_POLL_SECONDS: Final = 0.2


def roles(policy: VerdictPolicy) -> tuple[str, ...]:
    """The models a policy asks about, the candidate and the other forms in which it is served last."""
    artefacts = dict.fromkeys(artefact for rule in policy.families for artefact in rule.artefacts)
    return ("before", "base", "merged", *(name for name in artefacts if name != "merged"))


def shares(policy: VerdictPolicy) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Two shares of `roles` that cost about the same: the first process's and the second's.

    Relearning, generation and retained texts are read from the model before and from the candidate; another form
    costs little more than half of either.
    """
    everything = roles(policy)
    second = ("before", "base", *everything[4::2])
    return tuple(role for role in everything if role not in second), second


def measure(bench: Bench, wanted: Sequence[str]) -> None:
    """Measure what the policy reads of the wanted models, each loaded once; finished parts are only read."""
    for role in wanted:
        bench.tokens(role)
        bench.swaps(role)
        if role in ("before", "merged"):
            _measure_further(bench, role)
        if role == "merged":
            bench.determinism()


def _measure_further(bench: Bench, role: str) -> None:
    """What is read from the model before and from the candidate alone."""
    if "answers" in bench.wanted:
        bench.answers(role)
    if "relearned" in bench.wanted:
        bench.relearned(role)
    if "kept" in bench.wanted:
        bench.kept_tokens(role)
    if "unused" in bench.wanted and bench.plan.unused:
        bench.unused_tokens(role)
    if {"kept", "answers"} <= bench.wanted:
        bench.kept_answers(role)
    if "world_facts" in bench.wanted:
        bench.world_facts(role)


@contextmanager
def beside(
    spec: VerificationSpec, wanted: Sequence[str], *, others: Sequence[VerificationSpec] = ()
) -> Iterator[subprocess.Popen[bytes]]:
    """Measure the wanted models in another process meanwhile; it ends with the block, and with this process.

    Args:
        others: the other subjects of a twin pool, who are measured together.
    """
    command = [sys.executable, "-m", "ml.verification.measure"]
    task = {"spec": plain_object(spec), "roles": list(wanted), "threads": torch.get_num_threads()}
    task["others"] = [plain_object(other) for other in others]
    # Its messages could hold what it reads; the exit status says enough, since nothing it does is missed.
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=quiet, stderr=quiet)  # noqa: S603 - our own module
    try:
        if process.stdin is not None:
            with suppress(BrokenPipeError):
                process.stdin.write(json.dumps(task).encode() + b"\n")
                process.stdin.flush()
        yield process
    finally:
        process.kill()
        process.wait()
        if process.stdin is not None:
            with suppress(BrokenPipeError):
                process.stdin.close()


def wait_for(process: subprocess.Popen[bytes], bench: Bench) -> None:
    """Wait until the other process has ended, however it ended.

    Raises:
        RunStoppedError: the run was asked to stop meanwhile.
    """
    while process.poll() is None:
        bench.tick("other models", 0, 1)
        time.sleep(_POLL_SECONDS)


def main() -> int:
    """Measure what standard input asks for, until its writer is gone."""
    task = json.loads(sys.stdin.readline())
    specs = [read(VerificationSpec, document, where="verification") for document in _documents(task)]
    torch.set_num_threads(int(task["threads"]))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    bench = bench_for(specs, on_progress=ignore_progress, should_stop=never_stop)
    measure(bench, [str(role) for role in task["roles"]])
    return 0


def _documents(task: Mapping[str, Any]) -> list[object]:
    return [task["spec"], *task.get("others", [])]


def _end_with_parent() -> None:
    # A killed parent cannot end its child; the pipe it held ends with it. Parts are written whole or not at all.
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    raise SystemExit(main())
