"""`python -m demo.serve [--out DIR]`: open the pages of a demonstration that was played."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from demo.__main__ import MARKER
from demo.deployment import ROOT, DemoError, Deployment


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until interrupted; 2 when there is nothing to serve."""
    parser = argparse.ArgumentParser(prog="python -m demo.serve", description="Serve the demonstration's data.")
    parser.add_argument("--out", type=Path, default=ROOT / "var" / "demo")
    out = parser.parse_args(arguments).out.resolve()
    if not (out / "summary.json").is_file():
        sys.stderr.write(f"{out} holds no finished demonstration; run: make demo\n")
        return 2
    marker = json.loads((out / MARKER).read_text(encoding="utf-8"))
    deployment = Deployment(out, marker["port"], marker["settings"])
    stopping = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopping.set())
    try:
        deployment.start()
        sys.stdout.write(
            f"portal   {deployment.url}/\nconsole  {deployment.url}/console/  (accounts: {out / 'accounts.txt'})\n"
            f"REST     {deployment.url}/v1/docs\nCtrl-C stops.\n"
        )
        sys.stdout.flush()
        while not stopping.wait(2):
            deployment.check()
    except DemoError as exc:
        sys.stderr.write(f"{exc}\n")
        return 2
    finally:
        deployment.stop()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
