"""Exact deletion from the command line.

    python -m ml.exact train --store DIR --base DIR --records FILE (--slices N [--orders N] | --separate) [...]
    python -m ml.exact delete --store DIR --record ID [ID ...]
    python -m ml.exact serve --store DIR --base DIR --out DIR [--person PSEUDONYM]

`train` again, without further options, goes on where it was stopped, and after a deletion adds what can be added again
from a file without the deleted records. Exit codes: 0, or 2 when the request cannot be met.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ml.command_line import USAGE_ERROR
from ml.errors import InputsMissingError, MlError
from ml.exact.deletion import delete_records
from ml.exact.results import DeletionResult
from ml.exact.store import ExactManifest, ExactSettings, deletion_path, read_manifest


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, delete or serve; returns 0, or 2 after a message when the request cannot be met."""
    options = _parser().parse_args(arguments)
    try:
        options.command(options)
    except MlError as exc:
        sys.stderr.write(f"{exc.code}: {exc}\n")
        return USAGE_ERROR
    return 0


def _train(options: argparse.Namespace) -> None:
    from ml.exact.commands import train_command  # loads libraries that a deletion must not need

    train_command(options)


def _serve(options: argparse.Namespace) -> None:
    from ml.exact.commands import serve_command  # as above

    serve_command(options)


def _delete(options: argparse.Namespace) -> None:
    ids = set(options.record)
    if options.records is not None:
        ids |= _ids(options.records)
    result = delete_records(options.store, ids)
    sys.stdout.write(result_text(result, read_manifest(options.store)))


def _ids(path: Path) -> set[str]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # other separators may stand in an id
    except (OSError, UnicodeDecodeError) as exc:
        raise InputsMissingError(f"file {path.name} of record ids cannot be read; nothing was deleted") from exc
    return {line.strip() for line in lines} - {""}


def result_text(result: DeletionResult, manifest: ExactManifest) -> str:
    """A deletion by numbers and digests, no name of a slice: that of a person's can be guessed from their pseudonym."""
    serving = ", ".join(f"order {one.order} position {one.position}" for one in result.serves)
    lines = [
        f"guarantee: {result.guarantee}",
        f"result: deletions/{deletion_path(Path(), result.number).name}",
        f"records deleted: {len(result.record_sha256)}, from {len(result.hit)} slices",
        f"adapters deleted: {len(result.dropped)}, left: {len(manifest.adapters)}",
        f"serves: {serving or 'the base alone'}",
        f"further training may add: {sum(map(len, result.may_add))} adapters",
        *(f"destroy every copy with manifest sha256 {digest}" for digest in result.copies_to_destroy),
        *result.notes,
    ]
    return "\n".join([*lines, ""])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m ml.exact", description="Train slices, and delete them exactly.")
    commands = parser.add_subparsers(required=True)
    _add_train(commands.add_parser("train", help="train every adapter that is not on file"))
    delete = commands.add_parser("delete", help="delete records, and every adapter that depends on them")
    delete.add_argument("--store", type=Path, required=True, help="directory of the adapters")
    delete.add_argument("--record", nargs="+", default=[], help="ids of records to delete")
    delete.add_argument("--records", type=Path, default=None, help="file of such ids, one a line")
    delete.set_defaults(command=_delete)
    serve = commands.add_parser("serve", help="write a model directory with the surviving adapters folded in")
    serve.add_argument("--store", type=Path, required=True, help="directory of the adapters")
    serve.add_argument("--base", type=Path, required=True, help="model directory they were trained on")
    serve.add_argument("--out", type=Path, required=True, help="directory to make; destroy it with its adapters")
    serve.add_argument("--person", default=None, help="pseudonym of whose adapter, where each person has one")
    serve.set_defaults(command=_serve)
    return parser


def _add_train(train: argparse.ArgumentParser) -> None:
    begun = ExactSettings()
    train.set_defaults(command=_train)
    train.add_argument("--store", type=Path, required=True, help="directory of the adapters")
    train.add_argument("--base", type=Path, required=True, help="model directory to train on")
    train.add_argument("--records", type=Path, required=True, help="training records, JSON Lines")
    train.add_argument("--threads", type=int, default=None, help="the same number every time: it decides last digits")
    first = train.add_argument_group("to begin a store", "A store that is there keeps what it began with.")
    first.add_argument("--separate", action="store_true", default=None, help="one adapter per person")
    first.add_argument("--slices", type=int, help="slices that the records are split into, by person")
    first.add_argument("--orders", type=int, help="orders in which they are trained; as many as slices if left out")
    first.add_argument("--probabilities", type=float, nargs="+", help="of each slice, that it must go: matched orders")
    first.add_argument("--layers-per-slice", type=int, help="as many as fit if left out")
    first.add_argument("--seed", type=int, help="decides the split and every adapter's own seed; 0 if left out")
    first.add_argument("--device", help="cpu if left out")
    first.add_argument("--rank", type=int, help=f"of the adapters; {begun.rank} if left out")
    first.add_argument("--alpha", type=float, help=f"updates are scaled by alpha / rank; {begun.alpha} if left out")
    first.add_argument("--epochs", type=int, help=f"{begun.epochs} if left out")
    first.add_argument("--batch-rows", type=int, help=f"{begun.batch_rows} if left out")
    first.add_argument("--learning-rate", type=float, help=f"{begun.learning_rate} if left out")
    first.add_argument("--warmup-steps", type=int, help=f"{begun.warmup_steps} if left out")


if __name__ == "__main__":
    raise SystemExit(main())
