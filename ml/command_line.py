"""What the command lines of `ml` share: exit codes, files by digest, documents, progress and numbers in words.

Nothing here may print a name, a value or a text.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from ml.cohort_reports import CohortBound
from ml.decision import Finding, Result
from ml.digests import file_sha256
from ml.specs import FileRef, Progress

EXIT_CODES: Final[Mapping[Result, int]] = {Result.PASS: 0, Result.FAIL: 1, Result.INCONCLUSIVE: 3}
USAGE_ERROR: Final = 2


def file_ref(path: Path) -> FileRef:
    """Refer to a file by its digest; a file that is not there gets none, and is refused when it is read."""
    return FileRef(str(path), file_sha256(path) if path.is_file() else "")


def write_document(path: Path, document: object) -> None:
    """Write a document as indented JSON."""
    path.write_text(json.dumps(document, ensure_ascii=False, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def print_progress(progress: Progress) -> None:
    """Say when a phase begins and when it is done."""
    if progress.done in (0, progress.total):
        sys.stdout.write(f"{progress.phase}: {progress.done} of {progress.total}\n")
        sys.stdout.flush()


def shown_number(value: float | None, width: int, places: int) -> str:
    """A number in a column; a dash where there is none."""
    return f"{'-':>{width}}" if value is None else f"{value:>{width}.{places}f}"


def cohort_lines(bounds: Iterable[CohortBound]) -> list[str]:
    """Bounds on the average of several persons, a line each under their heading."""
    return [f"{'cohort':<40}{'persons':>8}{'d-':>8}{'rho':>8}{'upper':>8}{'p_res':>8}", *map(_cohort_line, bounds)]


def _cohort_line(row: CohortBound) -> str:
    name, shown = f"{row.family} {row.attack} {row.artefact}", row.certificate
    numbers = (shown.strength, shown.residual_ratio, shown.residual_upper, shown.p_residual)
    ended = "" if shown.reason is None else f"  not issued: {shown.reason}"
    return f"{name:<40}{shown.persons:>8}" + "".join(shown_number(number, 8, 3) for number in numbers) + ended


def finding_line(finding: Finding) -> str:
    """A finding in one line: result, code and where it arose."""
    place = (finding.result, finding.code, "in", finding.gate, finding.attack, finding.artefact)
    return " ".join(part for part in place if part)
