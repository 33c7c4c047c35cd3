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
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from deletion_service.certificates.canonical import DocumentFormError, read_json
from deletion_service.certificates.evidence_document import LARGEST_EVIDENCE, read_evidence
from deletion_service.terminal import FAILED_CHECK, OK, CommandError, UsageError, print_json, visible
from ml.decision import Verdict, judge
from ml.documents import plain
from ml.errors import MlError
from ml.manifest import RunManifest, find_inputs
from ml.reports import VerificationReport
from ml.reproduction import (
    Difference,
    GroupComparison,
    compare_reports,
    environment_differences,
    gate_differences,
)
from ml.specs import VerificationSpec

_STACK: Final = ("torch", "transformers", "peft", "safetensors")
_LARGEST_SEED: Final = 2**63 - 1
_SHOWN: Final = 20
_WHEN: Final = (
    "A rerun needs the very inputs, found in --inputs by digest: the three models, the records of the person and of "
    "the others, the question bank. What `python -m ml.verify` measured can be repeated as long as somebody keeps its "
    "inputs; benchmarks and made-up people for ever. A person's own records are destroyed when their case closes: "
    "before that, the operator or an auditor inside can rerun their evidence; afterwards nobody can, by design. "
    "Exit status: 0 reproduced (with --seed: the same verdict), 1 not, 2 it could not be run."
)


@dataclass(frozen=True, slots=True)
class Rerun:
    """What was claimed, what came out this time, and how they compare; `groups` is empty under another seed."""

    seed: int
    recorded_seed: int
    tolerance: float
    recorded: Verdict
    repeated: Verdict
    gates: tuple[Difference, ...]
    environment: tuple[Difference, ...]
    groups: tuple[GroupComparison, ...]

    @property
    def same_seed(self) -> bool:
        """True when every number must come out again; another seed draws other twins."""
        return self.seed == self.recorded_seed

    @property
    def holds(self) -> bool:
        """True when the evidence was reproduced: every number under its own seed, the verdict under another."""
        if not self.same_seed:
            return self.recorded.result == self.repeated.result
        return not self.gates and not any(group.differing for group in self.groups)

    def to_document(self) -> dict[str, Any]:
        """Return the result as plain JSON."""
        return {
            "reproduced": self.holds,
            "seed": str(self.seed),
            "recorded_seed": str(self.recorded_seed),
            "tolerance": str(self.tolerance),
            "recorded_verdict": self.recorded.result.value,
            "repeated_verdict": self.repeated.result.value,
            "gates": plain(self.gates),
            "environment": plain(self.environment),
            "groups": plain(self.groups),
        }


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
    manifest, report, recorded = _claim(options.evidence, options.manifest)
    _refuse_without_stack()
    spec = _spec(manifest, options)
    _measure(spec, options.out, threads=manifest.threads)
    repeated = _report(_json(options.out / "report.json"), where=options.out / "report.json")
    result = Rerun(
        seed=spec.seed,
        recorded_seed=manifest.seed,
        tolerance=manifest.policy.determinism_tolerance,
        recorded=recorded,
        repeated=judge(repeated, manifest.policy),
        gates=gate_differences(recorded, judge(repeated, manifest.policy)),
        environment=environment_differences(report.environment, repeated.environment),
        groups=()
        if spec.seed != manifest.seed
        else compare_reports(report, repeated, tolerance=manifest.policy.determinism_tolerance),
    )
    if options.json:
        print_json(result.to_document())
    else:
        sys.stdout.write("\n".join(visible(line) for line in _lines(result)) + "\n")
    return OK if result.holds else FAILED_CHECK


def _seed(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and int(text) <= _LARGEST_SEED):
        raise argparse.ArgumentTypeError("a seed is a whole number from 0")
    return int(text)


# --- the claim ----------------------------------------------------------------------------------------------------


def _claim(evidence: Path, manifest_file: Path | None) -> tuple[RunManifest, VerificationReport, Verdict]:
    """Read what was claimed: a service's evidence states its verdict, a report's follows from the policy."""
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
    return manifest, report, judge(report, manifest.policy)


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


# --- showing ------------------------------------------------------------------------------------------------------


def _lines(result: Rerun) -> Iterator[str]:
    yield f"recorded  {result.recorded.result:<14} seed {result.recorded_seed}"
    yield f"repeated  {result.repeated.result:<14} seed {result.seed}"
    for row in result.environment:
        yield f"  not as recorded: {row.place} {_or_absent(row.recorded)}, here {_or_absent(row.repeated)}"
    if result.groups:
        yield from _group_lines(result)
    for row in result.gates:
        yield f"gate {row.place}: {_or_absent(row.recorded)} recorded, {_or_absent(row.repeated)} now"
    yield ""
    yield f"Result: {_conclusion(result)}"


def _group_lines(result: Rerun) -> Iterator[str]:
    yield ""
    yield f"  {'part':<12}{'numbers':>8}{'largest difference':>20}  at"
    for group in result.groups:
        yield f"  {group.group:<12}{group.numbers:>8}{group.largest:>20.3g}  {group.place}"
    differing = [row for group in result.groups for row in group.differing]
    if differing:
        yield ""
        yield f"Not the same (tolerance {result.tolerance:g} of the larger number or of 1):"
    for row in differing[:_SHOWN]:
        yield f"  {row.place}: {_or_absent(row.recorded)} recorded, {_or_absent(row.repeated)} now"
    if len(differing) > _SHOWN:
        yield f"  and {len(differing) - _SHOWN} more"


def _or_absent(text: str | None) -> str:
    return "absent" if text is None else text


def _conclusion(result: Rerun) -> str:
    if result.same_seed:
        return "reproduced, every number within the tolerance." if result.holds else "not reproduced."
    if not result.holds:
        return "not the recorded verdict under this seed."
    return f"the recorded verdict again; {len(result.gates)} gates differ under this seed."
