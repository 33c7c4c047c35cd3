"""`lethe evidence rerun`: measure again what evidence claims, and say whether the same comes out.

Must never import the machine-learning stack: the verification runs in a process of its own, and only if the stack is
installed. Nothing personal is printed; where personal inputs are needed, whoever runs the command holds them already.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from deletion_service.certificates.canonical import DocumentFormError, read_json
from deletion_service.certificates.evidence_document import LARGEST_EVIDENCE, read_evidence
from deletion_service.certificates.rerun import compared, rerun_lines
from deletion_service.terminal import FAILED_CHECK, OK, CommandError, UsageError, print_json, visible
from ml.documents import plain
from ml.errors import MlError
from ml.manifest import RunManifest, find_inputs
from ml.reports import VerificationReport
from ml.specs import VerificationSpec

_STACK: Final = ("torch", "transformers", "peft", "safetensors")
RED_TEAM: Final = "red_team.json"
_LARGEST_SEED: Final = 2**63 - 1
_WHEN: Final = (
    "A rerun needs the very inputs, found in --inputs by digest: the three models, the records of the person and of "
    "the others, the question bank. What `python -m ml.verify` measured can be repeated as long as somebody keeps its "
    "inputs; benchmarks and made-up people for ever. A person's own records are destroyed when their case closes: "
    "before that, the operator or an auditor inside can rerun their evidence, with `manage.py rerun_evidence`; "
    "afterwards nobody can, by design. "
    f"What a red team found ({RED_TEAM}) is not measured again, and may have lowered the verdict in verdict.json. "
    "Exit status: 0 reproduced (with --seed: the same verdict), 1 not, 2 it could not be run."
)


def rerun_arguments(parser: argparse.ArgumentParser) -> None:
    """What was claimed, where the inputs lie, where the repeated report goes."""
    parser.epilog = _WHEN
    parser.add_argument(
        "--evidence",
        type=Path,
        required=True,
        metavar="FILE",
        help="the evidence of a target, or report.json of python -m ml.verify",
    )
    parser.add_argument("--manifest", type=Path, metavar="FILE", help="run manifest (default: manifest.json beside it)")
    parser.add_argument("--inputs", type=Path, required=True, metavar="DIR", help="where the inputs lie, in any order")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="new directory for the repeated report")
    parser.add_argument("--seed", type=_seed, metavar="N", help="your own seed: compares verdicts instead of numbers")
    parser.add_argument("--device", metavar="NAME", help="measure on another device than the recorded one")


def rerun(options: argparse.Namespace) -> int:
    """Measure again and compare.

    1. Read the claim and the manifest, which must be about one run.  2. Find every input by its digest.  3. Measure in
    a process of its own, in an empty directory, so that nothing measured before can be taken up.  4. Compare.
    """
    manifest, recorded = _claim(options.evidence, options.manifest)
    _refuse_without_stack()
    spec = _spec(manifest, options)
    _measure(spec, options.out, threads=manifest.threads)
    written = options.out / "report.json"
    repeated = _report(_json(written), where=written)
    red_team = options.evidence.with_name(RED_TEAM).exists()
    result = compared(manifest, recorded, repeated, seed=spec.seed, red_team=red_team)
    if options.json:
        print_json(result.to_document())
    else:
        sys.stdout.write("\n".join(visible(line) for line in rerun_lines(result)) + "\n")
    return OK if result.holds else FAILED_CHECK


def _seed(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and int(text) <= _LARGEST_SEED):
        raise argparse.ArgumentTypeError("a seed is a whole number from 0")
    return int(text)


# --- the claim ----------------------------------------------------------------------------------------------------


def _claim(evidence: Path, manifest_file: Path | None) -> tuple[RunManifest, VerificationReport]:
    """Read what was claimed and how it was measured, both about one run."""
    path = manifest_file or evidence.with_name("manifest.json")
    document = _json(evidence)
    try:
        manifest = RunManifest.from_document(_json(path))
    except MlError as exc:
        raise UsageError(f"{path}: {exc.code}: {exc}") from None
    if isinstance(document, dict) and "report" in document:
        report = _evidence_report(evidence)
    else:
        report = _report(document, where=evidence)
    try:
        manifest.refuse_other(report)
    except MlError as exc:
        raise UsageError(f"{evidence}: {exc.code}: {exc}") from None
    return manifest, report


def _evidence_report(path: Path) -> VerificationReport:
    """Read a service's evidence strictly, and take its report only if the verdict it states follows from it."""
    try:
        document = read_evidence(_bytes(path))
    except DocumentFormError as exc:
        raise UsageError(f"{path}: {exc}") from None
    if document.judged_again().to_document() != document.stated_verdict:
        raise CommandError(f"{path}: judged again, the evidence does not carry the verdict it states")
    return document.report


def _report(document: object, *, where: Path) -> VerificationReport:
    try:
        return VerificationReport.from_document(document)
    except MlError as exc:
        raise UsageError(f"{where}: {exc.code}: {exc}") from None


def _json(path: Path) -> Any:
    try:
        return read_json(_bytes(path), what=str(path), largest=LARGEST_EVIDENCE)
    except DocumentFormError as exc:
        raise UsageError(str(exc)) from None


def _bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(LARGEST_EVIDENCE + 1)
    except OSError as exc:
        raise UsageError(f"{path}: {exc.strerror}") from None


# --- measuring again ----------------------------------------------------------------------------------------------


def _refuse_without_stack() -> None:
    if missing := [name for name in _STACK if importlib.util.find_spec(name) is None]:
        raise UsageError(f"{', '.join(missing)} not installed; measuring again needs pip install 'lethe[worker]'")


def _spec(manifest: RunManifest, options: argparse.Namespace) -> VerificationSpec:
    if not options.inputs.is_dir():
        raise UsageError(f"{options.inputs}: not a directory")
    out: Path = options.out
    try:
        inputs = find_inputs(manifest, options.inputs)
        out.mkdir(mode=0o700, parents=True, exist_ok=True)
        if any(out.iterdir()):
            raise UsageError(f"{out}: not empty; parts of an earlier run would be taken up instead of measured again")
    except MlError as exc:
        raise UsageError(f"{exc.code}: {exc}") from None
    except OSError as exc:
        raise UsageError(f"{exc.filename or out}: {exc.strerror}") from None
    return manifest.spec(inputs, parts_dir=out / "parts", seed=options.seed, device=options.device)


def _measure(spec: VerificationSpec, out: Path, *, threads: int) -> None:
    """Run the verification in its own process and pass its progress on."""
    task = json.dumps({"spec": plain(spec), "threads": threads, "out": str(out)})
    command = [sys.executable, "-m", "ml.rerun"]
    # A traceback could hold what was read; expected failures come on standard output.
    pipe, quiet = subprocess.PIPE, subprocess.DEVNULL
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=quiet, text=True) as process:  # noqa: S603 - our own module
        last = _follow(process, task)
    if process.returncode:
        failure = last.removeprefix("error: ") if last.startswith("error: ") else f"status {process.returncode}"
        raise UsageError(f"the verification could not be run: {failure}")


def _follow(process: subprocess.Popen[str], task: str) -> str:
    """Hand over the task, show each line on standard error, and return the last one."""
    last = ""
    if process.stdin is None or process.stdout is None:
        return last
    try:
        process.stdin.write(task + "\n")
        process.stdin.close()
    except BrokenPipeError:
        return last  # it ended before it read; its status says so
    for line in process.stdout:
        last = line.rstrip("\n")
        sys.stderr.write(f"{visible(last)}\n")
    return last
