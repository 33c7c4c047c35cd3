"""Whom a guard refuses before every model of a comparison of methods, beside one before gold.

    python -m benchmarks.guarded --work DIR --out DIR [--size small|full|quick|...] [--seeds N ...] [--forgotten N ...]
        [--methods NAME ...] [--prompts N] [--budget R] [--device NAME] [--threads N]

`--work` is the directory in which `python -m benchmarks.methods` made the models; none is trained here. For each seed,
number of forgotten people and method one guard is calibrated on the method's model and one on gold, with margins
measured on the model before; both are tried on people and prompts that calibration did not use, in words that the
deletion did not use either (`benchmarks.guard`). `--out` receives JSON, a table and a picture. Exits with 1 when a
method misses a limit, which are those of `benchmarks.guard`, kept on the mean over all cells.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, Final

import torch

from benchmarks.guard import FEWEST_REFUSED, FURTHEST_APART, Tried, make_asking, shortcomings, tried
from benchmarks.jobs import finished, is_claimed
from benchmarks.method_report import printable
from benchmarks.methods import CLAIM, SIZES, Cell, Comparison, identity_of
from benchmarks.panels import DASHES, Panel
from ml.command_line import USAGE_ERROR, file_ref
from ml.data.probes import read_probe_digests
from ml.digests import canonical_json
from ml.errors import MlError, SpecError
from ml.files import write_atomically
from ml.guard.calibrate import BUDGET, Asked, Group, measure_margins
from ml.guard.reading import make_reading
from ml.methods import METHODS
from ml.models.load import load_model
from ml.pictures.svg import BLUE, GREEN, ORANGE, drawing, line, words
from ml.specs import ModelRef
from ml.unlearn import TRAINING_PROBES

NAME: Final = "guarded"
_GROUPS: Final[tuple[tuple[Group, Asked], ...]] = (
    ("retained", "direct"),
    ("retained", "paraphrased"),
    ("never_seen", "direct"),
    ("never_seen", "paraphrased"),
    ("deleted", "direct"),
    ("deleted", "paraphrased"),
)
_PANEL: Final = (620, 340)
_INSIDE: Final = (62, 44, 36, 60)  # left, top, right and bottom of the frame


@dataclass(frozen=True, slots=True)
class Guarded:
    """One cell of a comparison: the guard before a method's model and the one before gold."""

    cell: Cell
    candidate: Tried
    gold: Tried


class Trials:
    """Guards on the models of a comparison that is finished, as far as it is asked about.

    Raises:
        SpecError: the directory holds another comparison, or none.
    """

    def __init__(self, work: Path, size: str, *, device: str, prompts: int, budget: float) -> None:
        sizes = SIZES[size]
        if not is_claimed(work, what=CLAIM, identity=identity_of(sizes, device=device)):
            raise SpecError(f"{work.name} holds no comparison of size {size} made by this version on {device}")
        self.comparison = Comparison(work, sizes, device=device)
        self._prompts, self._budget = prompts, budget

    def of(self, cell: Cell) -> Guarded:
        """Calibrate and try both guards of a cell.

        Raises:
            SpecError: the comparison did not make the cell's model or a reference, or its method refused to.
            MlError: a guard cannot be calibrated on these prompts.
        """
        refs = {name: self._made(replace(cell, model=name)) for name in ("before", cell.model, "gold")}
        world = self.comparison.world(cell)
        people, besides = world.world, world.population.besides
        probes = self.comparison.run(cell) / "checkpoint" / TRAINING_PROBES
        asking = make_asking(
            forget=people.corpus(world.forgotten),
            retain=people.corpus((*people.base, *world.kept)),
            newcomers=[record for _, own in world.population.never_seen for record in own],
            bank=people.bank,
            prompts=self._prompts,
            seed=cell.seed,
            used=read_probe_digests(file_ref(probes)),
            besides=[record for record, _ in besides],
        )
        before, candidate, gold = (load_model(ref, device=world.device) for ref in refs.values())
        reading = make_reading(len(before.tokenizer))
        margins = measure_margins(before, reading, **asking.calibration)
        sides = [tried(side, reading, margins, asking, budget=self._budget) for side in (candidate, gold)]
        return Guarded(cell, *sides)

    def _made(self, cell: Cell) -> ModelRef:
        finished(self.comparison.work / "jobs", f"make-{cell.name}")
        ref = self.comparison.model(cell)
        if ref is None:
            raise SpecError(f"{cell.model} made no model of seed {cell.seed}; leave it out")
        return ref


def row_of(found: Guarded) -> dict[str, Any]:
    """One cell as a flat row: thresholds, status, refusal rates and AUROC of both guards."""
    row: dict[str, Any] = {"seed": found.cell.seed, "forgotten": found.cell.forgotten, "model": found.cell.model}
    for name, side in (("candidate", found.candidate), ("gold", found.gold)):
        row[f"{name}_status"] = side.calibration.status
        row[f"{name}_threshold"] = side.calibration.threshold
        row |= {f"{name}_{rate.group}_{rate.asked}": rate.rate for rate in side.rates}
        row |= {f"{name}_auroc_{asked}": area for asked, area in side.separation.items()}
    return row


def mean_row(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean of every number over rows; how many guards of each side are calibrated."""
    numbers = [name for name, value in rows[0].items() if isinstance(value, float)]
    mean: dict[str, Any] = {name: fmean(row[name] for row in rows) for name in numbers}
    for side in ("candidate", "gold"):
        mean[f"{side}_status"] = f"{sum(row[f'{side}_status'] == 'calibrated' for row in rows)} of {len(rows)}"
    return mean


def table(found: Sequence[Guarded]) -> str:
    """Markdown: a line for each cell, one of means for each method, gold's numbers in brackets, and what is lacking."""
    titles = [f"{group.replace('_', ' ')} {asked}" for group, asked in _GROUPS]
    lines = [
        "# Whom the guard refuses",
        "",
        f"Share of prompts refused (gold's in brackets). Limits, on the mean: at least {FEWEST_REFUSED:.0%} of prompts "
        f"about deleted and never-seen people, AUROC at most {FURTHEST_APART} from gold's.",
        "",
        f"| method | seed | forgotten | threshold | {' | '.join(titles)} | AUROC direct | AUROC paraphrased "
        "| calibrated |",
        "|---" * (len(titles) + 7) + "|",
    ]
    for method, own in _by_method(found).items():
        rows = [row_of(one) for one in own]
        lines += [_line(method, str(row["seed"]), str(row["forgotten"]), row) for row in rows]
        lines.append(_line(f"**{method}**", "mean", "", mean_row(rows)))
    for method, lacking in lacks(found).items():
        lines += ["", *(f"Short of the limit, {method}: {lack}." for lack in lacking)]
    return "\n".join([*lines, ""])


def _line(method: str, seed: str, forgotten: str, row: Mapping[str, Any]) -> str:
    names = ["threshold", *(f"{group}_{asked}" for group, asked in _GROUPS), "auroc_direct", "auroc_paraphrased"]
    cells = [f"{row[f'candidate_{name}']:.3f} ({row[f'gold_{name}']:.3f})" for name in names]
    status = f"{row['candidate_status']} ({row['gold_status']})"
    return f"| {' | '.join([method, seed, forgotten, *cells, status])} |"


def lacks(found: Sequence[Guarded]) -> dict[str, list[str]]:
    """What the guards of each method lack, over all its cells."""
    return {
        method: shortcomings([(one.candidate, one.gold) for one in own]) for method, own in _by_method(found).items()
    }


def _by_method(found: Sequence[Guarded]) -> dict[str, list[Guarded]]:
    methods = dict.fromkeys(one.cell.model for one in found)
    return {method: [one for one in found if one.cell.model == method] for method in methods}


def picture(rows: Sequence[Mapping[str, Any]]) -> str:
    """Share refused by group and wording: a dot for each cell, the methods' beside gold's, and the limit as a line."""
    width, height = _PANEL
    panel = Panel(_PANEL, _INSIDE, (float(len(_GROUPS)), 1.05))
    limit = [(0.0, FEWEST_REFUSED), (float(len(_GROUPS)), FEWEST_REFUSED)]
    parts = [
        words(_INSIDE[0], 22, "Whom the guard refuses", size=14, anchor="start", bold=True),
        words(_INSIDE[0] + 4, _INSIDE[1] - 4, "share of prompts refused", size=11, anchor="start"),
        line(_INSIDE[0], panel.floor, width - _INSIDE[2], panel.floor),
        panel.curve(limit, ORANGE, dashes=DASHES[1]),
        words(width - _INSIDE[2] + 4, panel.place(0.0, FEWEST_REFUSED)[1] + 4, f"{FEWEST_REFUSED:g}", anchor="start"),
        panel.key(4, "candidate (left)", BLUE),
        panel.key(5, "gold (right)", GREEN, dashes=DASHES[2]),
        panel.key(6, "at least of never seen and deleted", ORANGE, dashes=DASHES[1]),
    ]
    for number, (group, asked) in enumerate(_GROUPS):
        for offset, side, colour in ((0.35, "candidate", BLUE), (0.65, "gold", GREEN)):
            for row in rows:
                x, y = panel.place(number + offset, row[f"{side}_{group}_{asked}"])
                parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}" fill-opacity="0.7"/>')
        x, _ = panel.place(number + 0.5, 0.0)
        parts += [
            words(x, panel.floor + 20, group.replace("_", " "), size=11),
            words(x, panel.floor + 34, asked, size=11),
        ]
    means = mean_row(rows)
    text = "; ".join(
        f"{group.replace('_', ' ')} {asked}: {means[f'candidate_{group}_{asked}']:.2f}, gold "
        f"{means[f'gold_{group}_{asked}']:.2f}"
        for group, asked in _GROUPS
    )
    return drawing(
        "".join(parts), title="Whom the guard refuses", text=text, element_id=NAME, width=width, height=height
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write the results; 1 when a limit is not kept, 2 after a message when the request cannot be met."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.guarded", description="Whom a guard refuses.")
    parser.add_argument("--work", type=Path, required=True, help="directory of a comparison of methods")
    parser.add_argument("--out", type=Path, required=True, help="directory for the results")
    parser.add_argument("--size", choices=sorted(SIZES), default="small")
    for what in ("seeds", "forgotten"):
        parser.add_argument(f"--{what}", type=int, nargs="+", help="only these of the size's own; all unless given")
    parser.add_argument("--methods", nargs="+", choices=sorted(METHODS), default=["energy_boundary"])
    parser.add_argument("--prompts", type=int, default=500, help="at most so many of each group and wording")
    parser.add_argument("--budget", type=float, default=BUDGET, help="share of retained prompts that may be refused")
    parser.add_argument("--device", default="cpu", help="where the models were made, and are asked")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    sizes = SIZES[options.size]
    cells = [
        Cell(seed, count, method)
        for method in options.methods
        for seed in options.seeds or sizes.seeds
        for count in options.forgotten or sizes.forgotten
    ]
    found: list[Guarded] = []
    try:
        trials = Trials(
            options.work, options.size, device=options.device, prompts=options.prompts, budget=options.budget
        )
        for cell in cells:
            found.append(trials.of(cell))
            sys.stdout.write(f"{len(found)} of {len(cells)} models\n")
    except MlError as exc:
        sys.stderr.write(f"{exc.code}: {exc}\n")
        return USAGE_ERROR
    rows = [row_of(one) for one in found]
    options.out.mkdir(parents=True, exist_ok=True)
    contents = {
        "json": canonical_json({"size": options.size, "rows": [printable(row) for row in rows]}) + b"\n",
        "md": table(found).encode("utf-8"),
        "svg": picture(rows).encode("utf-8"),
    }
    for ending, data in contents.items():
        write_atomically(options.out / f"{NAME}-{options.size}.{ending}", data)
    sys.stdout.write(table(found))
    return 1 if any(lacks(found).values()) else 0


if __name__ == "__main__":
    raise SystemExit(main())
