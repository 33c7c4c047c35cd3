"""The `lethe` command. Starts with the standard library and `cryptography` alone.

Must never import Django or the machine-learning stack at the top: a stranger who checks a certificate has neither.
Commands whose needs are larger import them inside `run`.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TextIO

from deletion_service import cli_evidence, cli_requests
from deletion_service.certificates.envelope import LARGEST_ENVELOPE
from deletion_service.certificates.evidence_document import LARGEST_EVIDENCE
from deletion_service.certificates.merkle import LARGEST_PROOF
from deletion_service.certificates.signing import LARGEST_ISSUER_DOCUMENT, IssuerDocument
from deletion_service.certificates.sweep_document import LARGEST_SWEEP
from deletion_service.certificates.verify import Check, VerificationResult, verify_certificate
from deletion_service.cli_doctor import doctor, doctor_arguments
from deletion_service.errors import DomainError
from deletion_service.terminal import FAILED_CHECK, OK, CommandError, UsageError, print_json, visible
from ml.digests import model_manifest
from ml.errors import MlError

_COLOURS: Final = {"ok": "\x1b[32m", "failed": "\x1b[31m", "not checked": "\x1b[33m"}
_PLAIN: Final = "\x1b[0m"


@dataclass(frozen=True, slots=True)
class Command:
    """One sub-command: the words that call it, what it says of itself, its arguments, and what it does.

    `run` returns the exit status and may raise a `CommandError`.
    """

    words: tuple[str] | tuple[str, str]
    summary: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `lethe` and return its exit status."""
    _never_fail_on_a_character(sys.stdout)
    options = _parser(COMMANDS).parse_args(arguments)
    command: Command = options.command
    try:
        status = command.run(options)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # Whoever read the output has gone. Python flushes once more at exit, and nobody has seen a result.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED_CHECK
    except CommandError as exc:
        sys.stderr.write("".join(f"lethe: {visible(line)}\n" for line in str(exc).splitlines()))
        return exc.status


def _parser(commands: Sequence[Command]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lethe", description="Verified deletion of a person from language models.")
    top = parser.add_subparsers(required=True, metavar="COMMAND")
    below: dict[tuple[str, ...], Any] = {(): top}
    for command in commands:
        *group, name = command.words
        place = tuple(group)
        if place not in below:
            below[place] = top.add_parser(place[0]).add_subparsers(required=True, metavar="ACTION")
        leaf = below[place].add_parser(name, help=command.summary, description=command.summary)
        command.add_arguments(leaf)
        leaf.add_argument("--json", action="store_true", help="print JSON")
        leaf.set_defaults(command=command)
    return parser


# --- cert verify --------------------------------------------------------------------------------------------------


def _verify_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("certificate", type=Path, metavar="FILE", help="the certificate, a DSSE envelope")
    parser.add_argument("--keys", type=Path, required=True, metavar="FILE", help="the issuer document you trust")
    parser.add_argument("--log", type=Path, metavar="FILE", help="log proof (default: <name>.log.json beside FILE)")
    parser.add_argument("--evidence", type=Path, metavar="FILE", help="evidence (default: evidence.json beside FILE)")
    parser.add_argument("--sweep", type=Path, metavar="FILE", help="sweep (default: sweep.json beside FILE)")
    parser.add_argument("--model", type=Path, metavar="DIR", help="model directory to compare with the certificate")
    parser.add_argument("--revocations", type=Path, metavar="FILE", help="signed list of revoked certificates")
    parser.add_argument("--expect", choices=("PASS", "FAIL", "INCONCLUSIVE"), help="fail unless this is the verdict")
    parser.add_argument("--complete", action="store_true", help="fail unless every check could be made")


def _verify(options: argparse.Namespace) -> int:
    certificate: Path = options.certificate
    stem = certificate.name.removesuffix(".json").removesuffix(".dsse")
    log = options.log or _beside(certificate, f"{stem}.log.json")
    evidence = options.evidence or _beside(certificate, "evidence.json")
    sweep = options.sweep or _beside(certificate, "sweep.json")
    result = verify_certificate(
        _read(certificate, LARGEST_ENVELOPE),
        issuer=_issuer(options.keys),
        log_proof=_read(log, LARGEST_PROOF) if log else None,
        evidence=_read(evidence, LARGEST_EVIDENCE) if evidence else None,
        sweep=_read(sweep, LARGEST_SWEEP) if sweep else None,
        model_dir=_directory(options.model) if options.model else None,
        revocations=_read(options.revocations, LARGEST_ENVELOPE) if options.revocations else None,
        expect=options.expect,
        complete=options.complete,
    )
    files = [("certificate", certificate), ("keys", options.keys), ("log", log), ("evidence", evidence)]
    files += [("sweep", sweep), ("model", options.model), ("revocations", options.revocations)]
    used = {name: str(path) for name, path in files if path is not None}
    if options.json:
        print_json({**result.to_document(), "files": used})
    else:
        sys.stdout.write("\n".join(_report(result, used, colour=sys.stdout.isatty())) + "\n")
    return OK if result.ok else FAILED_CHECK


def _report(result: VerificationResult, used: dict[str, str], *, colour: bool) -> list[str]:
    """Lay out the result: title and verdict, files used, one line a check, and always what was not shown."""
    lines = [_headline(result), ""]
    lines += [f"  {name:<12} {visible(path)}" for name, path in used.items()]
    lines += ["", "Checks", *(_check_line(check, colour=colour) for check in result.checks)]
    if result.statement and result.ok:
        lines += ["", "Limitations stated", *(f"  - {visible(text)}" for text in result.statement.words.limitations)]
    lines += ["", "Not shown", *(f"  - {visible(text)}" for text in result.not_shown)]
    return [*lines, "", _conclusion(result)]


def _headline(result: VerificationResult) -> str:
    if result.statement is None:
        return "NOT VERIFIED: nothing in this file can be relied on"
    facts, words = result.statement.facts, result.statement.words
    if not result.ok:
        return f"NOT VERIFIED: a check failed, although it calls itself {visible(words.title)}, {facts.verdict}"
    return f"{visible(words.title)}: {facts.verdict}\n{visible(words.claim)}"


def _check_line(check: Check, *, colour: bool) -> str:
    outcome = f"{check.outcome:<11}"
    painted = f"{_COLOURS[check.outcome]}{outcome}{_PLAIN}" if colour else outcome
    return f"  {painted} {check.name}: {visible(check.sentence)}"


def _conclusion(result: VerificationResult) -> str:
    if not result.ok:
        return f"Result: {len(result.failed)} of {len(result.checks)} checks failed, first {result.failed[0].name}."
    skipped = sum(check.outcome == "not checked" for check in result.checks)
    return f"Result: every check that was made holds; {skipped} of {len(result.checks)} were not made."


def _issuer(path: Path) -> IssuerDocument:
    try:
        return IssuerDocument.from_bytes(_read(path, LARGEST_ISSUER_DOCUMENT))
    except DomainError as exc:
        raise UsageError(f"{path}: {exc}") from None


def _beside(certificate: Path, name: str) -> Path | None:
    candidate = certificate.with_name(name)
    return candidate if candidate.is_file() else None


# --- model digest -------------------------------------------------------------------------------------------------


def _digest_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, metavar="DIR", help="model directory")


def _digest(options: argparse.Namespace) -> int:
    directory = _directory(options.model)
    try:
        manifest = model_manifest(directory)
        digests = {"sha256": manifest.root_sha256, "manifest_sha256": manifest.manifest_sha256}
    except MlError as exc:
        sys.stderr.write(f"lethe: {visible(str(exc))}\n")
        return FAILED_CHECK
    except OSError as exc:
        raise UsageError(f"{directory}: {exc.strerror}") from None
    if options.json:
        print_json({**digests, "files": manifest.to_document()})
    else:
        rows = [f"{entry.sha256}  {entry.size:>12}  {visible(entry.path)}" for entry in manifest.entries]
        names = [f"{name:<16} {value}" for name, value in digests.items()]
        sys.stdout.write("\n".join([*rows, "", *names]) + "\n")
    return OK


# --- reading and writing ------------------------------------------------------------------------------------------


def _read(path: Path, largest: int) -> bytes:
    """Read a file, one byte beyond `largest` at most: its reader refuses that, and /dev/zero ends."""
    try:
        with path.open("rb") as stream:
            return stream.read(largest + 1)
    except OSError as exc:
        raise UsageError(f"{path}: {exc.strerror}") from None


def _directory(path: Path) -> Path:
    if not path.is_dir():
        raise UsageError(f"{path}: not a directory")
    return path


def _never_fail_on_a_character(stream: TextIO) -> None:
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")


COMMANDS: Final[tuple[Command, ...]] = (
    Command(("cert", "verify"), "Check a certificate offline.", _verify_arguments, _verify),
    Command(
        ("evidence", "rerun"),
        "Measure evidence again and compare.",
        cli_evidence.rerun_arguments,
        cli_evidence.rerun,
    ),
    Command(("model", "digest"), "Digest a model directory.", _digest_arguments, _digest),
    Command(("request", "create"), "Send an instruction to erase.", cli_requests.create_arguments, cli_requests.create),
    Command(("request", "list"), "List requests.", cli_requests.list_arguments, cli_requests.list_requests),
    Command(("request", "show"), "Show a request.", cli_requests.one_argument, cli_requests.show),
    Command(("request", "withdraw"), "Withdraw a request.", cli_requests.one_argument, cli_requests.withdraw),
    Command(("doctor",), "Check whether this host can run the service.", doctor_arguments, doctor),
)

if __name__ == "__main__":
    sys.exit(main())
