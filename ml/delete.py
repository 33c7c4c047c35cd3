"""Delete people from a model without the service: the command line of unlearning.

    python -m ml.delete --model DIR --forget FILE --retain FILE --out DIR [--bank FILE] [--neighbours FILE] [--base DIR]
        [--method NAME] [--settings FILE] [--budget N] [--locale TAG] [--seed N] [--threads N] [--processes N]
        [--device NAME] [--dtype NAME]

Below `--out`: `model`, the candidate; `checkpoint/report.json`; `checkpoint/training_probes.json`, the digests of all
texts that were drawn, for `ml.verify --training-probes`. A candidate is no evidence: `ml.verify` attacks and judges it.

`--budget N` tries up to N settings, the given ones first, keeps the best by what training may look at
(`ml.search`), and writes the trials to `search.json` and the best settings to `settings.json`. A run that was killed
goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml.command_line import USAGE_ERROR, file_ref, print_progress, shown_number, write_document
from ml.data.questions import make_bank
from ml.documents import plain_object
from ml.errors import MlError, SpecError
from ml.loop import use_threads
from ml.methods import METHODS
from ml.models.load import model_ref
from ml.search import Search, search
from ml.specs import FileRef, UnlearningSpec
from ml.unlearn import run_unlearning

RUN_ID = "delete"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write a candidate; 2 after a message when the request cannot be met."""
    options = _parser().parse_args(arguments)
    use_threads(options.threads, processes=options.processes)
    try:
        spec = _spec(options)
        if options.budget is not None:
            found = search(
                spec,
                budget=options.budget,
                work=options.out / "search",
                on_progress=print_progress,
                processes=options.processes,
            )
            write_document(options.out / "search.json", plain_object(found))
            write_document(options.out / "settings.json", plain_object(found.trials[found.best].settings))
            sys.stdout.write(search_table(found))
        else:
            run_unlearning(spec, on_progress=print_progress, processes=options.processes)
    except MlError as exc:
        sys.stderr.write(f"{exc.code}: {exc}\n")
        return USAGE_ERROR
    sys.stdout.write(f"candidate {model_ref(Path(spec.output_dir)).manifest_sha256}\n")
    return 0


def search_table(found: Search) -> str:
    """One line a trial; the best is marked."""
    names = ("value_gap", "energy_gap", "retained_rise")
    lines = ["trial   " + "".join(f"{name:>15}" for name in names) + f"{'score':>10}{'CPU s':>9}"]
    for trial in found.trials:
        mark = "*" if trial.number == found.best else " "
        numbers = "".join(shown_number(trial.numbers.get(name), 15, 3) for name in names)
        cost = shown_number(trial.cpu_seconds, 9, 1)
        lines.append(f"{trial.number:>5} {mark} {numbers}{shown_number(trial.score, 10, 3)}{cost}")
    return "\n".join([*lines, ""])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m ml.delete", description="Delete people from a model.")
    parser.add_argument("--model", type=Path, required=True, help="model directory, full weights")
    parser.add_argument("--forget", type=Path, required=True, help="records of the people to forget, JSON Lines")
    parser.add_argument("--retain", type=Path, required=True, help="everybody else's records, JSON Lines")
    parser.add_argument("--out", type=Path, required=True, help="directory for candidate, report and checkpoint")
    bank_help = "question bank; without one, the questions that several retained people are asked"
    parser.add_argument("--bank", type=Path, help=bank_help)
    parser.add_argument("--locale", default="en", help="of the people, a BCP 47 tag; a question bank states its own")
    parser.add_argument("--neighbours", type=Path, help="records of people like the forgotten, JSON Lines")
    parser.add_argument("--base", type=Path, help="model directory from before the training, where settings need it")
    parser.add_argument("--method", default="energy_boundary", choices=sorted(METHODS), help="deletion method")
    parser.add_argument("--settings", type=Path, help="the method's settings, JSON; its own where one is left out")
    parser.add_argument("--budget", type=int, help="try so many settings, and keep the best")
    parser.add_argument("--seed", type=int, default=0, help="decides adapters, order and invented people")
    parser.add_argument("--threads", type=int, default=0, help="of each process; 0: they share the cores")
    parser.add_argument("--processes", type=int, choices=(1, 2), default=1, help="2: share each step of training")
    parser.add_argument("--device", default="cpu", help="where torch computes: cpu, cuda, cuda:1, ...")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"), help="of the weights")
    return parser


def _spec(options: argparse.Namespace) -> UnlearningSpec:
    options.out.mkdir(parents=True, exist_ok=True)
    return UnlearningSpec(
        run_id=RUN_ID,
        model=model_ref(options.model),
        forget=file_ref(options.forget),
        retain=file_ref(options.retain),
        neighbours=None if options.neighbours is None else file_ref(options.neighbours),
        question_bank=_bank(options),
        method=options.method,
        settings={} if options.settings is None else _settings(options.settings),
        seed=options.seed,
        output_dir=str(options.out / "model"),
        checkpoint_dir=str(options.out / "checkpoint"),
        device=options.device,
        dtype=options.dtype,
        base=None if options.base is None else model_ref(options.base),
    )


def _settings(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise SpecError(f"settings file {path.name} cannot be read as JSON") from exc
    if not isinstance(document, dict):
        raise SpecError(f"settings file {path.name} is not a JSON object")
    return document


def _bank(options: argparse.Namespace) -> FileRef:
    if options.bank is not None:
        return file_ref(options.bank)
    return make_bank(options.out / "question_bank.json", file_ref(options.retain), locale=options.locale)


if __name__ == "__main__":
    raise SystemExit(main())
