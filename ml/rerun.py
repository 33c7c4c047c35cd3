"""Repeat one verification in a process of its own: what `lethe evidence rerun` starts.

    python -m ml.rerun        (reads what to do from its standard input)

Parts hold scores and answers about one person: they lie below the output directory only until the report is written.
Standard output is progress; an expected failure is its last line, after `error: `. No message holds what was read.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Final

import torch

from ml.command_line import print_progress
from ml.decision import judge
from ml.documents import read
from ml.errors import MlError
from ml.loop import never_stop
from ml.specs import VerificationSpec
from ml.verify import record, run_verification

FAILED: Final = 2


def main() -> int:
    """Measure what standard input asks for and write report, verdict and manifest; 2 when it cannot be measured."""
    task = json.loads(sys.stdin.readline())
    out = Path(task["out"])
    torch.set_num_threads(int(task["threads"]))
    try:
        spec = read(VerificationSpec, task["spec"], where="verification")
        report = run_verification(spec, on_progress=print_progress, should_stop=never_stop)
        record(out, spec, report, judge(report, spec.policy))
    except MlError as exc:
        sys.stdout.write(f"error: {exc.code}: {exc}\n")
        return FAILED
    finally:
        shutil.rmtree(out / "parts", ignore_errors=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
