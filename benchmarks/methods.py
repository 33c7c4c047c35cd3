"""Which deletion method comes closest to never having learned? Methods beside gold on the same small models.

    python -m benchmarks.methods --work DIR --out DIR [--size small|full|large|tofu|quick|quick-tofu] [--processes N]
        [--threads N] [--device NAME] [--seeds N ...] [--forgotten N ...] [--methods NAME ...] [--whole-gate]

For each seed and number of people to forget: a base, a model that learned everybody, a gold model that never learned
the forgotten and a second one from another seed (`benchmarks.method_worlds`); every method deletes the same people at
an equal number of steps; every model is asked the same (`benchmarks.method_columns`), and the gate judges one of the
forgotten on each, in its fast tier; `--whole-gate` adds a verdict by all families on gold and on what methods made.
Settings are each method's own defaults: nothing is tuned on these people.

`--work` holds models and finished jobs: a run that was killed continues there, and several may share one directory.
`--out` receives CSV, JSON, a table and a picture. Rows that lie there stay, so that a long comparison can be made in
parts, by seeds, numbers of forgotten people and methods, also on machines that share nothing else. Sizes: "small" is
one seed and four methods, "full" every method, three seeds and three numbers of people, "large" the same on larger
models (for `--device cuda`), "tofu" the same as "full" for authors of a public benchmark (`benchmarks.tofu`), whose
answers are free text; "quick" and "quick-tofu" are for tests.
"""

from __future__ import annotations

import argparse
import subprocess  # nosec B404
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Final

import torch

from benchmarks.jobs import Job, Outcome, claim_directory, finished, run_jobs
from benchmarks.method_columns import Questions, measure
from benchmarks.method_report import SPENT, read_rows, rows_of, write_results
from benchmarks.method_runs import deletion, judged, unlearned_alone
from benchmarks.method_worlds import REFERENCES, MethodWorld
from benchmarks.populations import Sizes as PopulationSizes
from benchmarks.populations import WorldSizes
from benchmarks.tofu import TofuSizes
from ml.digests import code_sha256, document_sha256
from ml.documents import Json, plain_object
from ml.errors import SpecError
from ml.methods import METHODS
from ml.models.load import model_ref
from ml.models.scratch import ModelShape
from ml.policies import load_policy
from ml.reference import PRESETS, Stage
from ml.specs import ModelRef, UnlearningSpec, VerdictPolicy
from ml.verification.tiers import fast_tier

CODE_VERSION: Final = 4
"""Raise it whenever a change in `benchmarks` or `ml` changes a number that a finished job holds."""

CLAIM: Final = "methods"
"""Under this name a directory says that it holds a comparison (`benchmarks.jobs`)."""

_DEMO: Final = PRESETS["demo"]
SMALL_WORLD: Final = WorldSizes(
    base_people=_DEMO.base_people,
    customers=_DEMO.customers,
    never_seen=12,
    attributes=_DEMO.attributes,
    forms_per_fact=_DEMO.forms_per_fact,
    throw_away_people=_DEMO.throw_away_people,
    shape=_DEMO.shape,
    base=_DEMO.base,
    fine_tune=_DEMO.fine_tune,
)
# For a GPU: fifty times the weights, and the slower rate that so many need.
LARGE_WORLD: Final = replace(
    SMALL_WORLD,
    shape=ModelShape(hidden=512, layers=8, heads=8, feed_forward=1408, vocabulary=1280, context=64),
    base=replace(_DEMO.base, learning_rate=1e-3),
    fine_tune=replace(_DEMO.fine_tune, learning_rate=7e-4),
)
# Free answers are longer than typed ones and need more words.
TOFU: Final = TofuSizes(
    customers=22,
    rows=20,
    forms_per_fact=2,
    shape=ModelShape(hidden=128, layers=4, heads=4, feed_forward=352, vocabulary=2048, context=512),
    base=Stage(epochs=30, learning_rate=4e-3, rows=32),
    fine_tune=Stage(epochs=30, learning_rate=4e-3, rows=32),
)
TINY_TOFU: Final = TofuSizes(
    customers=4,
    rows=4,
    forms_per_fact=2,
    shape=ModelShape(hidden=64, layers=2, heads=4, feed_forward=160, vocabulary=768, context=512),
    base=Stage(epochs=4, learning_rate=1e-2, rows=32, warmup_steps=20),
    fine_tune=Stage(epochs=40, learning_rate=1e-2, rows=32, warmup_steps=10),
)
TINY_WORLD: Final = WorldSizes(
    base_people=6,
    customers=4,
    never_seen=3,
    attributes=("home_address", "phone_number", "passport", "doctor", "boat", "dog", "employer"),
    forms_per_fact=2,
    throw_away_people=300,
    shape=ModelShape(hidden=64, layers=2, heads=4, feed_forward=160, vocabulary=768, context=96),
    base=Stage(epochs=24, learning_rate=1e-2, rows=32, warmup_steps=20),
    fine_tune=Stage(epochs=12, learning_rate=1e-2, rows=32, warmup_steps=10),
)


@dataclass(frozen=True, slots=True)
class Sizes:
    """What is compared: for every seed and every number of forgotten people, every method at `steps` steps.

    people: how many people of each other group are asked about. The gate is the fast tier of `policy`.
    """

    world: PopulationSizes
    seeds: tuple[int, ...]
    forgotten: tuple[int, ...]
    methods: tuple[str, ...]
    steps: int
    people: int
    policy: str


SIZES: Final = {
    "small": Sizes(SMALL_WORLD, (1,), (1,), ("energy_boundary", "npo", "simnpo", "grad_diff"), 500, 6, "reference-2"),
    "full": Sizes(
        SMALL_WORLD, (1, 2, 3), (1, 2, 4), tuple(name for name in METHODS if name != "none"), 500, 6, "reference-2"
    ),
    "tofu": Sizes(
        TOFU, (1, 2, 3), (2, 10, 20), tuple(name for name in METHODS if name != "none"), 500, 5, "reference-2"
    ),
    "large": Sizes(
        LARGE_WORLD, (1, 2, 3), (1, 2, 4), tuple(name for name in METHODS if name != "none"), 500, 6, "reference-2"
    ),
    "quick-tofu": Sizes(TINY_TOFU, (1,), (1,), ("energy_boundary",), 8, 2, "unit-1"),
    "quick": Sizes(TINY_WORLD, (1,), (1,), ("grad_diff", "ssd"), 8, 2, "unit-1"),
}
# Which layers a method trains is a question of the model: these fit models of two or three blocks.
_BLOCKS: Final[Mapping[str, Mapping[str, Json]]] = {
    "layered_grad_diff": {"training": {"blocks": [0, 1]}},
    "rmu": {"block": 1, "training": {"blocks": [0, 1]}},
}


@dataclass(frozen=True, slots=True)
class Cell:
    """One model of one world: a reference or what a method made of `before`."""

    seed: int
    forgotten: int
    model: str

    @property
    def name(self) -> str:
        """Name of the cell's jobs and directories."""
        return f"{self.seed}-{self.forgotten}-{self.model.replace(' ', '_')}"


def identity_of(sizes: Sizes, *, device: str) -> list[Json]:
    """What the jobs of one directory have in common, whichever part of a comparison they are."""
    return [CODE_VERSION, plain_object(sizes), device]


def _cells(sizes: Sizes) -> list[Cell]:
    models = (*REFERENCES, *sizes.methods)
    return [Cell(seed, count, m) for seed in sizes.seeds for count in sizes.forgotten for m in models]


class Comparison:
    """The cells of `chosen`, or of everything that `sizes` compares, below `work`."""

    def __init__(
        self, work: Path, sizes: Sizes, chosen: Sizes | None = None, *, device: str = "cpu", whole_gate: bool = False
    ) -> None:
        self.chosen = chosen or sizes
        self.work, self.sizes, self.device, self.whole_gate = work, sizes, device, whole_gate
        self.policy = load_policy(sizes.policy)
        self._worlds: dict[tuple[int, int], MethodWorld] = {}

    @cached_property
    def cells(self) -> list[Cell]:
        """References first, so that methods find them made."""
        return _cells(self.chosen)

    def jobs(self) -> dict[str, Job]:
        """Everything there is to do, in order: models are made, then measured, then judged."""
        planned: dict[str, Job] = {}
        for cell in self.cells:
            planned[f"make-{cell.name}"] = partial(self._made, cell)
        for cell in self.cells:
            planned[f"measure-{cell.name}"] = partial(self._measured, cell)
        for cell in self.cells:
            if cell.model != "base":
                planned[f"judge-{cell.name}"] = partial(self._judged, cell, fast_tier(self.policy), "judged")
        for cell in self.cells:
            # A verdict that is there is not lost because a later run does not ask for it.
            wanted = self.whole_gate or (self.work / "jobs" / f"gate-{cell.name}.json").exists()
            if wanted and (cell.model == "gold" or cell.model not in REFERENCES):
                planned[f"gate-{cell.name}"] = partial(self._judged, cell, self.policy, "gated")
        return planned

    def world(self, cell: Cell) -> MethodWorld:
        """The cell's people and reference models; worlds of one seed share a directory."""
        key = cell.seed, cell.forgotten
        if key not in self._worlds:
            root = self.work / f"world-{cell.seed}"
            self._worlds[key] = MethodWorld(
                root, self.sizes.world, seed=cell.seed, forgotten=cell.forgotten, device=self.device
            )
        return self._worlds[key]

    def model(self, cell: Cell) -> ModelRef | None:
        """The cell's model, or `None` where its method refused to make one. A reference is made if it is not there.

        Raises:
            SpecError: a method's model was not made yet, or is gone.
        """
        if cell.model in REFERENCES:
            return self.world(cell).model(cell.model)
        if "refused" in finished(self.work / "jobs", f"make-{cell.name}"):
            return None
        path = self.run(cell) / "model"
        if not path.exists():
            raise SpecError(f"the model of {cell.name} is gone; remove the job make-{cell.name} to make it again")
        return model_ref(path)

    # --- jobs ---

    def _made(self, cell: Cell) -> dict[str, Json]:
        """Make the cell's model; what a method's run cost, and why it refused if it did."""
        if cell.model in REFERENCES:
            return {"manifest_sha256": self.world(cell).model(cell.model).manifest_sha256}
        self.world(cell).model("before")
        return unlearned_alone(self._unlearning(cell))

    def _measured(self, cell: Cell) -> dict[str, Any]:
        ref = self.model(cell)
        if ref is None:
            return {}
        questions = Questions(self.world(cell), people=self.sizes.people)
        return measure(ref, self.world(cell).model("base"), questions, seed=cell.seed)

    def _judged(self, cell: Cell, policy: VerdictPolicy, folder: str) -> dict[str, Json]:
        """Verdict of a policy on the first of the forgotten; `folder` keeps its parts."""
        ref = self.model(cell)
        if ref is None:
            return {}
        world = self.world(cell)
        return judged(
            world, world.forgotten[0], ref, policy, folder=self.work / folder / cell.name, runs=[self.run(cell)]
        )

    # --- parts of jobs ---

    def run(self, cell: Cell) -> Path:
        """Where the deletion of a cell left its model and its checkpoint directory."""
        return self.work / "runs" / cell.name

    def _unlearning(self, cell: Cell) -> UnlearningSpec:
        world = self.world(cell)
        settings = settings_for(cell.model, steps=self.sizes.steps)
        return deletion(world, world.model("before"), cell.model, settings, run=self.run(cell))


def settings_for(method: str, *, steps: int) -> dict[str, Json]:
    """A method's own defaults at `steps` steps, on blocks that the compared models have."""
    settings = METHODS[method].settings
    blocks = _BLOCKS.get(method, {})
    training = settings().training
    chosen = blocks.get("training", {})
    if "blocks" in chosen:
        training = replace(training, blocks=tuple(chosen["blocks"]))
    own = {name: value for name, value in blocks.items() if name != "training"}
    document: dict[str, Json] = plain_object(settings(training=replace(training, steps=steps), **own))
    return document


def main(arguments: Sequence[str] | None = None) -> int:
    """Run everything and write the results; 2 when the request cannot be met."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.methods", description="Compare deletion methods.")
    parser.add_argument("--work", type=Path, required=True, help="directory for models and finished jobs")
    parser.add_argument("--out", type=Path, required=True, help="directory for the results")
    parser.add_argument("--size", choices=sorted(SIZES), default="small")
    parser.add_argument("--processes", type=int, default=1, help="how many share the jobs")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", help="where models are trained, edited and asked")
    for what in ("seeds", "forgotten"):
        parser.add_argument(f"--{what}", type=int, nargs="+", help="only these of the size's own; all unless given")
    parser.add_argument("--methods", nargs="+", help="only these of the size's own; all unless given")
    parser.add_argument(
        "--whole-gate", action="store_true", help="judge by all families too, not by the fast tier alone"
    )
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    sizes, name = SIZES[options.size], _name(options)
    identity = identity_of(sizes, device=options.device)
    key = document_sha256(identity)
    try:
        chosen = _chosen(sizes, options)
        earlier = read_rows(options.out, size=name, key=key)
        claim_directory(options.work, what=CLAIM, identity=identity)
        helpers = [_helper(options) for _ in range(options.processes - 1)]
        comparison = Comparison(options.work, sizes, chosen, device=options.device, whole_gate=options.whole_gate)
        outcomes = run_jobs(comparison.jobs(), options.work / "jobs")
    except SpecError as exc:
        sys.stderr.write(f"{exc}\n")
        return 2
    for helper in helpers:
        helper.wait()
    found = {job: outcome.result for job, outcome in outcomes.items()}
    code = code_sha256()[:12]
    made = [row | {"code": code} for row in rows_of(comparison.cells, found, _spent(comparison.cells, outcomes))]
    rows = {_place(row): row for row in (*earlier, *made)}
    order = [(cell.seed, cell.forgotten, cell.model) for cell in _cells(sizes)]
    write_results(options.out, [rows[place] for place in order if place in rows], size=name, key=key)
    spent = sum(row[SPENT] for row in made) / 60
    sys.stdout.write(f"{len(made)} rows of {len(order)}, {spent:.1f} CPU minutes, in {options.out}\n")
    return 0


def _chosen(sizes: Sizes, options: argparse.Namespace) -> Sizes:
    """The part of a comparison that was asked for; raises `SpecError` for what it does not have."""
    asked = {
        what: tuple(getattr(options, what)) for what in ("seeds", "forgotten", "methods") if getattr(options, what)
    }
    for what, wanted in asked.items():
        if unknown := [str(one) for one in wanted if one not in getattr(sizes, what)]:
            known = ", ".join(map(str, getattr(sizes, what)))
            raise SpecError(f"size {options.size} has no {what} {', '.join(unknown)}; it has {known}")
    return replace(sizes, **asked)


def _spent(cells: Sequence[Cell], outcomes: Mapping[str, Outcome]) -> dict[str, float]:
    """CPU seconds by cell: of its jobs, and of the process of its own in which a method ran."""
    spent: dict[str, float] = {}
    for cell in cells:
        jobs = [
            outcomes[f"{kind}-{cell.name}"]
            for kind in ("make", "measure", "judge", "gate")
            if f"{kind}-{cell.name}" in outcomes
        ]
        own = jobs[0].result.get("cpu_seconds", 0.0)
        spent[cell.name] = own + sum(job.cpu_seconds for job in jobs)
    return spent


def _place(row: Mapping[str, Any]) -> tuple[int, int, str]:
    return int(row["seed"]), int(row["forgotten"]), str(row["model"])


def _name(options: argparse.Namespace) -> str:
    """What results are called: another device costs another kind of seconds and memory."""
    return str(options.size) if options.device == "cpu" else f"{options.size}-{options.device.replace(':', '-')}"


def _helper(options: argparse.Namespace) -> subprocess.Popen[bytes]:
    """Another process that takes what this one has not begun; its own results are written where nobody looks."""
    command = [sys.executable, "-m", "benchmarks.methods", "--size", options.size, "--threads", str(options.threads)]
    aside = options.work / "helper"
    for what in ("seeds", "forgotten", "methods"):
        command += [f"--{what}", *map(str, getattr(options, what))] if getattr(options, what) else []
    command += ["--whole-gate"] if options.whole_gate else []
    return subprocess.Popen(  # noqa: S603  # nosec B603
        [*command, "--device", options.device, "--work", str(options.work), "--out", str(aside)],
        stdout=subprocess.DEVNULL,
    )


if __name__ == "__main__":
    raise SystemExit(main())
