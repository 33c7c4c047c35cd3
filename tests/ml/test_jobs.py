"""Jobs of benchmarks: done once, whoever works beside, and what needs another waits for it."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
from filelock import FileLock

import benchmarks.jobs as module
from benchmarks.jobs import UnfinishedError, finished, run_jobs


@pytest.fixture(autouse=True)
def _look_again_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LOOK_AGAIN_S", 0.01)


def test_a_job_waits_for_what_somebody_else_is_doing(tmp_path: Path) -> None:
    locked, asked = threading.Event(), threading.Event()

    def somebody_else() -> None:
        with FileLock(tmp_path / "first.lock"):
            locked.set()
            asked.wait(timeout=60)
            (tmp_path / "first.json").write_text(json.dumps({"result": 3, "cpu_seconds": 1.0}))

    def second() -> int:
        asked.set()
        return 2 * int(finished(tmp_path, "first"))

    other = threading.Thread(target=somebody_else)
    other.start()
    locked.wait(timeout=60)
    outcomes = run_jobs({"first": lambda: pytest.fail("it is being done"), "second": second}, tmp_path)
    other.join()
    assert {name: outcome.result for name, outcome in outcomes.items()} == {"first": 3, "second": 6}


def test_what_nobody_does_is_not_waited_for(tmp_path: Path) -> None:
    with pytest.raises(UnfinishedError, match="job first is not finished"):
        run_jobs({"second": lambda: finished(tmp_path, "first")}, tmp_path)


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    assert run_jobs({"first": lambda: 3}, tmp_path)["first"].result == 3
    assert run_jobs({"first": lambda: pytest.fail("done")}, tmp_path)["first"].result == 3
