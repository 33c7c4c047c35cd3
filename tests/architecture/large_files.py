"""Refuse files over 1 MB in a commit: weights and datasets do not belong into the repository."""

from __future__ import annotations

import sys
from pathlib import Path

LIMIT_BYTES = 1_000_000


def too_large(names: list[str]) -> list[str]:
    """Return the named files that are over the limit."""
    return [name for name in names if Path(name).is_file() and Path(name).stat().st_size > LIMIT_BYTES]


if __name__ == "__main__":
    found = too_large(sys.argv[1:])
    sys.stderr.writelines(f"{name} is over {LIMIT_BYTES} bytes\n" for name in found)
    sys.exit(1 if found else 0)
