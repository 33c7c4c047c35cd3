"""Calibrate the guard before a model, and try it.

    python -m ml.guard calibrate --model DIR (--before DIR | --report FILE) --retain FILE --bank FILE --out FILE
        [--deleted FILE --deleted-out FILE] [--training-probes FILE] [--read-at answer|prefill]
        [--pooling mean|highest|sum] [--index relative|centred|raw] [--budget R] [--prompts N] [--strangers N]
        [--seed N] [--device D] [--dtype T] [--threads N]
    python -m ml.guard try --model DIR --calibration FILE [--new-tokens N] [--device D] [--dtype T] [--threads N]

`calibrate` asks about retained people (`--retain`) and about strangers in their forms, and writes a calibration with
rates and digests: no name, no text, nothing about deleted people. Where these people's records are still at hand
(`--deleted`), it asks about them too and writes their rates to a file of its own, which does not belong beside the
model. It exits with 0 when the guard may be switched on, 1 when it may not. Margins come from the report of the
unlearning run that made this very model, or are measured by the guard's own reading on the model before deletion.

`try` reads one prompt a line from standard input, in which `\\n` stands for a line break, and writes one JSON object a
line: the prompt's number, whether it was refused, and the answer.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final, get_args

import torch

from ml.command_line import USAGE_ERROR, file_ref, write_document
from ml.data.probes import read_probe_digests
from ml.data.questions import read_bank
from ml.data.records import read_records, refuse_overlap
from ml.energy import EnergyIndex
from ml.errors import DigestMismatchError, MlError, SpecError
from ml.guard.calibrate import BUDGET, GuardCalibration, Margins, calibrate, measure_margins, try_deleted
from ml.guard.prompts import PromptSet, prompts_about, strangers_like
from ml.guard.reading import TOKENS, Pooling, Reading, left_padded, make_reading, prompt_ids
from ml.guard.refusal import Guard
from ml.models.backbone import model_device
from ml.models.load import LoadedModel, load_model, model_ref
from ml.reports import UnlearningReport

NOT_CALIBRATED: Final = 1
_TRIED_TOGETHER: Final = 32


def main(arguments: Sequence[str] | None = None) -> int:
    """Calibrate (0 calibrated, 1 not) or try (0); 2 after a message when the request cannot be met."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    try:
        return int(options.act(options))
    except MlError as exc:
        sys.stderr.write(f"{exc.code}: {exc}\n")
        return USAGE_ERROR


def _calibrate(options: argparse.Namespace) -> int:
    loaded = _load(options, options.model)
    reading = _reading(options, len(loaded.tokenizer))
    if (options.deleted is None) != (options.deleted_out is None):
        raise SpecError("--deleted and --deleted-out belong together: rates of deleted people have a file of their own")
    if options.deleted_out is not None and options.deleted_out.resolve() == options.out.resolve():
        raise SpecError("--deleted-out is the file that serves; name another")
    retained, never_seen, deleted = _groups(options)
    margins = _margins(options, loaded, reading, retained, never_seen)
    found = calibrate(
        loaded,
        reading,
        margins,
        retained=retained,
        never_seen=never_seen,
        budget=options.budget,
    )
    if deleted is not None:
        trial = try_deleted(loaded, found, deleted=deleted, retained=retained, never_seen=never_seen)
        write_document(options.deleted_out, trial.to_document())
    write_document(options.out, found.to_document())
    sys.stdout.write(calibration_table(found))
    return 0 if found.status == "calibrated" else NOT_CALIBRATED


def _reading(options: argparse.Namespace, vocabulary: int) -> Reading:
    """What was asked for; where nothing was, the best that the kind of margins allows."""
    stored = options.report is not None
    return make_reading(
        vocabulary,
        at=options.read_at,
        pooling=options.pooling or ("mean" if stored else "sum"),
        index=options.index or ("centred" if stored else "relative"),
    )


def _load(options: argparse.Namespace, directory: Path) -> LoadedModel:
    return load_model(model_ref(directory), device=options.device, dtype=options.dtype)


def _groups(options: argparse.Namespace) -> tuple[PromptSet, PromptSet, PromptSet | None]:
    """Prompts about retained people, about strangers like them, and about deleted people if there are records."""
    rng = random.Random(f"guard:{options.seed}")  # noqa: S311 - to be reproduced, not secret
    bank = read_bank(file_ref(options.bank))
    used = frozenset[str]()
    if options.training_probes is not None:
        used = read_probe_digests(file_ref(options.training_probes))
    retain = read_records(file_ref(options.retain), what="retain set")
    gone = () if options.deleted is None else read_records(file_ref(options.deleted), what="deleted set")
    refuse_overlap(gone, retain)
    strangers = strangers_like(retain, gone, bank, each=options.strangers, rng=rng)
    retained, never_seen, deleted = (
        prompts_about(records, bank, used=used).sampled(options.prompts, rng) for records in (retain, strangers, gone)
    )
    return retained, never_seen, deleted if gone else None


def _margins(
    options: argparse.Namespace, edited: LoadedModel, reading: Reading, retained: PromptSet, never_seen: PromptSet
) -> Margins:
    if options.before is not None:
        # Said here as well, for measuring takes minutes.
        if model_ref(options.before).manifest_sha256 == edited.manifest_sha256:
            raise DigestMismatchError("--before is the edited model itself; give the one from before the deletion")
        return measure_margins(_load(options, options.before), reading, retained=retained, never_seen=never_seen)
    try:
        document = json.loads(options.report.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise SpecError(f"{options.report.name} is not a report of an unlearning run") from exc
    return Margins.of_report(UnlearningReport.from_document(document))


def _try(options: argparse.Namespace) -> int:
    guard = Guard(_load(options, options.model), _read_calibration(options.calibration))
    prompts = [line.rstrip("\n").replace("\\n", "\n") for line in sys.stdin if line.strip()]
    for first in range(0, len(prompts), _TRIED_TOGETHER):
        group = prompts[first : first + _TRIED_TOGETHER]
        for number, (refused, answer) in enumerate(_answers(guard, group, options.new_tokens), start=first + 1):
            row = {"prompt": number, "refused": refused, "answer": answer}
            sys.stdout.write(json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n")
    return 0


def _answers(guard: Guard, prompts: Sequence[str], new_tokens: int) -> list[tuple[bool, str]]:
    loaded: LoadedModel = guard.loaded
    rows = prompt_ids(loaded.tokenizer, prompts)
    given = left_padded(rows, pad_id=loaded.pad_id, device=model_device(loaded.model))
    found = guard.generate(**given, max_new_tokens=new_tokens, do_sample=False)
    answers = found.sequences[:, given["input_ids"].shape[1] :]
    texts = loaded.tokenizer.batch_decode(answers, skip_special_tokens=True)
    return list(zip(found.refused, texts, strict=True))


def _read_calibration(path: Path) -> GuardCalibration:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise SpecError(f"{path.name} is not a guard calibration") from exc
    return GuardCalibration.from_document(document)


def calibration_table(found: GuardCalibration) -> str:
    """Threshold, margins and refusals by group and wording: plain text for a terminal."""
    edges = f"margins {found.margins.retained:.3f} to {found.margins.never_seen:.3f} ({found.margins.source})"
    lines = [f"threshold {found.threshold:.3f} nats, rank {found.rank}, budget {found.budget}; {edges}"]
    lines += [f"{'group':<12}{'asked':<13}{'prompts':>8}{'refused':>9}{'rate':>8}{'lower':>8}{'upper':>8}"]
    lines += [
        f"{row.group:<12}{row.asked:<13}{row.prompts:>8}{row.refused:>9}{row.rate:>8.3f}{row.lower:>8.3f}{row.upper:>8.3f}"
        for row in found.rates
    ]
    return "\n".join([*lines, found.status + ("" if found.reason is None else f": {found.reason}"), ""])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m ml.guard", description="Calibrate and try the guard.")
    acts = parser.add_subparsers(required=True, metavar="ACT")
    one = acts.add_parser("calibrate", help="set the threshold on an edited model")
    one.set_defaults(act=_calibrate)
    one.add_argument("--model", type=Path, required=True, help="directory of the edited model")
    edges = one.add_mutually_exclusive_group(required=True)
    edges.add_argument("--before", type=Path, help="model before deletion, on which the margins are measured")
    edges.add_argument("--report", type=Path, help="report of the unlearning run, whose boundary holds")
    one.add_argument("--retain", type=Path, required=True, help="records of retained people, JSON Lines")
    one.add_argument("--deleted", type=Path, help="records of deleted people, where they are still at hand")
    one.add_argument("--deleted-out", type=Path, help="file for their rates, kept apart from the calibration")
    one.add_argument("--bank", type=Path, required=True, help="question bank")
    one.add_argument("--training-probes", type=Path, help="digests of the texts that the deletion made up")
    one.add_argument("--out", type=Path, required=True, help="file for the calibration")
    one.add_argument("--read-at", choices=sorted(TOKENS), default="answer", help="which logits the score is read from")
    one.add_argument(
        "--pooling", choices=get_args(Pooling), help="sum is the default with --before, which all but mean need"
    )
    one.add_argument("--index", choices=get_args(EnergyIndex), help="relative, the default with --before, needs it")
    one.add_argument("--budget", type=float, default=BUDGET, help="share of retained prompts that may be refused")
    one.add_argument("--prompts", type=int, default=500, help="at most so many of each group and wording")
    one.add_argument("--strangers", type=int, default=1, help="drawn for each retained person")
    one.add_argument("--seed", type=int, default=0, help="decides strangers and prompts")
    two = acts.add_parser("try", help="answer prompts from standard input behind the guard")
    two.set_defaults(act=_try)
    two.add_argument("--model", type=Path, required=True, help="directory of the model that serves")
    two.add_argument("--calibration", type=Path, required=True, help="what `calibrate` wrote")
    two.add_argument("--new-tokens", type=int, default=40, help="longest answer, in tokens")
    for act in (one, two):
        act.add_argument("--device", default="cpu", help="where torch computes: cpu, cuda, cuda:1, ...")
        act.add_argument(
            "--dtype", default="float32", choices=("float32", "bfloat16", "float16"), help="of the weights"
        )
        act.add_argument("--threads", type=int, default=torch.get_num_threads())
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
