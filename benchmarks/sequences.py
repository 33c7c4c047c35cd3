"""Deletions one after another, many at once, and what both cost beside training again without the forgotten.

    python -m benchmarks.sequences --work DIR --out DIR [--size full|quick] [--threads N] [--parts NAME ...]

One world: customers are deleted one by one, each run starting from the version before it, whose forgotten people are
never retained again. On every version, what is kept is compared with the first release, and everybody deleted so far is
asked again; the gate judges each person on the version that deleted them and on the last. Other runs delete several
people in one batch from the first release, and the gate judges the first of them. Training again is gold's: both steps
from nothing, each stopped at the first look at which 99 % of its people's values come back. What a batch costs beside
that is measured on models of the same shape that learned more and more people.

`--work` holds models and finished jobs: a run that was killed continues there. `--out` receives JSON, a table and a
picture. `--parts` (row, batches, growth) leaves the others out; parts may run side by side in one `--work`, and a last
run of all of them joins what they found.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias, get_args

import torch

from benchmarks.jobs import Job, claim_directory, finished, run_jobs
from benchmarks.method_columns import Questions, known, value_hits
from benchmarks.method_runs import deletion, judged, unlearned_alone
from benchmarks.method_worlds import MethodWorld
from benchmarks.methods import SMALL_WORLD, TINY_WORLD, settings_for
from benchmarks.populations import WorldSizes
from benchmarks.sequence_report import batch_name, write_results
from ml.data.collate import encode_records
from ml.data.people import reference_bank
from ml.data.synthetic import Stranger
from ml.documents import Json, plain_object
from ml.errors import SpecError
from ml.finetune import finetune
from ml.loop import LoopSettings
from ml.methods import METHODS
from ml.metrics.truth_ratio import true_better
from ml.metrics.utility import model_utility
from ml.models.load import LoadedModel, load_model, model_ref
from ml.policies import load_policy
from ml.reference import Stage
from ml.specs import ModelRef
from ml.verification.tiers import fast_tier

CODE_VERSION: Final = 4
"""Raise it whenever a change in `benchmarks` or `ml` changes a number that a finished job holds."""

MEMORISED: Final = 0.99
_METHOD: Final = "energy_boundary"
_STEPS: Final = METHODS[_METHOD].settings().training.steps
_ASKED: Final = 400


Part: TypeAlias = Literal["row", "batches", "growth"]
PARTS: Final[tuple[Part, ...]] = get_args(Part)


@dataclass(frozen=True, slots=True)
class Sizes:
    """`in_a_row` people one by one, and each of `batches` people at once, in `steps` steps a run.

    growth: base people of the worlds on which a batch of `grown_batch` is compared with training again.
    look_every: after how many epochs of training again, or what part of one, the model is asked whether it knows.
    """

    world: WorldSizes
    seed: int
    in_a_row: int
    batches: tuple[int, ...]
    growth: tuple[int, ...]
    grown_batch: int
    steps: int
    people: int
    look_every: float
    policy: str


_OPEN, _SHARED = ([n for n, a in reference_bank().attributes.items() if a.shared == which] for which in (False, True))
# Room for twenty people in one batch and others who stay; half the facts each, so that they fit the small model.
SEQUENCE_WORLD: Final = replace(SMALL_WORLD, customers=30, attributes=(*_OPEN[::2], *_SHARED))
SIZES: Final = {
    "full": Sizes(SEQUENCE_WORLD, 1, 10, (1, 5, 20), (24, 72, 216), 5, _STEPS, 6, 0.5, "reference-2"),
    "quick": Sizes(TINY_WORLD, 1, 2, (1, 2), (4, 6), 2, 8, 2, 4.0, "unit-1"),
}


class Row:
    """Deletions in a row, in batches, and on worlds of other sizes, below `work`."""

    def __init__(self, work: Path, sizes: Sizes, parts: Sequence[Part] = PARTS) -> None:
        self.work, self.sizes, self.parts = work, sizes, parts
        self.policy = fast_tier(load_policy(sizes.policy))
        self.settings = settings_for(_METHOD, steps=sizes.steps)

    def world(self, *, forgotten: int, earlier: int = 0, base_people: int | None = None) -> MethodWorld:
        """The people as they are when `earlier` customers are gone and `forgotten` more are to go."""
        sizes = self.sizes.world if base_people is None else replace(self.sizes.world, base_people=base_people)
        root = self.work / f"world-{sizes.base_people}"
        return MethodWorld(root, sizes, seed=self.sizes.seed, forgotten=forgotten, earlier=earlier)

    def jobs(self) -> dict[str, Job]:
        """Everything there is to do, in order."""
        planned: dict[str, Job] = {}
        if "row" in self.parts:
            planned |= self._row_jobs()
        if "batches" in self.parts:
            for size in self.sizes.batches:
                planned |= self._batch_jobs(size, self.sizes.world.base_people)
        if "growth" in self.parts:
            for base_people in self.sizes.growth:
                planned |= self._batch_jobs(self.sizes.grown_batch, base_people)
        return planned

    def _row_jobs(self) -> dict[str, Job]:
        count = self.sizes.in_a_row
        planned: dict[str, Job] = {}
        for number in range(1, count + 1):
            planned[f"delete-{number}"] = partial(self._deleted, number)
        for number in range(count + 1):
            planned[f"kept-{number}"] = partial(self._kept, number)
        for number in range(1, count + 1):
            planned[f"own-{number}"] = partial(self._judged, number, number)
            planned[f"last-{number}"] = partial(self._judged, number, count)
        return planned

    def _batch_jobs(self, size: int, base_people: int) -> dict[str, Job]:
        name = batch_name(size, base_people)
        return {
            f"batch-{name}": partial(self._batch, size, base_people),
            f"batch_kept-{name}": partial(self._batch_kept, size, base_people),
            f"batch_judged-{name}": partial(self._batch_judged, size, base_people),
            f"retrain-{name}": partial(self._retrained, size, base_people),
        }

    # --- models ---

    def version(self, number: int) -> ModelRef:
        """What the first `number` deletions in a row left; 0 is the first release.

        Raises:
            UnfinishedError: the deletion was not run.
            SpecError: it was refused, so there is no such version.
        """
        if number == 0:
            return self.world(forgotten=1).model("before")
        return self._left(f"delete-{number}", self._run(number))

    def _left(self, job: str, run: Path) -> ModelRef:
        """The model that a finished job left in the directory of its run."""
        finished(self.work / "jobs", job)
        path = run / "model"
        if not path.exists():
            raise SpecError(f"job {job} left no model; look into it for the reason")
        return model_ref(path)

    def _run(self, number: int) -> Path:
        return self.work / "runs" / f"row-{number}"

    def _deleted(self, number: int) -> dict[str, Json]:
        world = self.world(forgotten=1, earlier=number - 1)
        return unlearned_alone(deletion(world, self.version(number - 1), _METHOD, self.settings, run=self._run(number)))

    def _batch_run(self, size: int, base_people: int) -> Path:
        return self.work / "runs" / f"batch-{batch_name(size, base_people)}"

    def _batch(self, size: int, base_people: int) -> dict[str, Json]:
        world = self.world(forgotten=size, base_people=base_people)
        run = self._batch_run(size, base_people)
        return unlearned_alone(deletion(world, world.model("before"), _METHOD, self.settings, run=run))

    # --- measurements ---

    def _questions(self) -> Questions:
        """Questions about everybody deleted in the whole row, and about people kept throughout."""
        return Questions(self.world(forgotten=self.sizes.in_a_row), people=self.sizes.people)

    def _kept(self, number: int) -> dict[str, Any]:
        ref = self.version(number)
        gone = [self._about(ref, person) for person in range(number)]
        return {**self._utility(ref, self._questions()), "forgotten": gone}

    def _batch_kept(self, size: int, base_people: int) -> dict[str, Any]:
        ref = self._left(f"batch-{batch_name(size, base_people)}", self._batch_run(size, base_people))
        gone = [self._about(ref, person, base_people=base_people) for person in range(size)]
        questions = Questions(self.world(forgotten=size, base_people=base_people), people=self.sizes.people)
        first = self._utility(questions.world.model("before"), questions)
        return {
            **self._utility(ref, questions),
            **{f"{name}_before": value for name, value in first.items()},
            "forgotten": gone,
        }

    def _utility(self, ref: ModelRef, questions: Questions) -> dict[str, float]:
        loaded = load_model(ref)
        kept, other, general = (known(loaded, g) for g in (questions.kept, questions.kept_other, questions.general))
        parts = [
            part
            for group in (kept, other, general)
            for part in (group.probability, group.rouge, true_better(group.truth_ratios))
        ]
        return {
            "utility": model_utility(parts),
            "retain_hit": kept.value_hit,
            "retain_other_hit": other.value_hit,
            "general_hit": general.value_hit,
        }

    def _about(self, ref: ModelRef, person: int, *, base_people: int | None = None) -> dict[str, float]:
        """What one model still knows of one customer who was deleted."""
        loaded = load_model(ref)
        world = self.world(forgotten=1, earlier=person, base_people=base_people)
        questions = Questions(world, people=self.sizes.people)
        trained = known(loaded, questions.trained)
        return {
            "hit": trained.value_hit,
            "other_hit": value_hits(loaded, questions.other),
            "extraction_strength": trained.extraction_strength,
        }

    def _judged(self, number: int, version: int) -> dict[str, Json]:
        """Verdict on the person of one deletion, on a version: their own or a later one."""
        # Whoever was deleted meanwhile is not retained: what became of them is judged on its own.
        world = self.world(forgotten=version)
        subject: Stranger = world.forgotten[number - 1]
        folder = self.work / "judged" / f"{number}-on-{version}"
        runs = [self._run(earlier) for earlier in range(1, version + 1)]
        return judged(world, subject, self.version(version), self.policy, folder=folder, runs=runs)

    def _batch_judged(self, size: int, base_people: int) -> dict[str, Json]:
        """Verdict on the first person of a batch."""
        world, run = self.world(forgotten=size, base_people=base_people), self._batch_run(size, base_people)
        folder = self.work / "judged" / run.name
        return judged(world, world.forgotten[0], self._left(run.name, run), self.policy, folder=folder, runs=[run])

    # --- training again ---

    def _retrained(self, size: int, base_people: int) -> dict[str, float]:
        """CPU seconds of both training steps without the batch, each stopped when it knows its people."""
        world = self.world(forgotten=size, base_people=base_people)
        untrained = load_model(world.untrained())
        stages, look_every = self.sizes.world, self.sizes.look_every
        base = _taught(untrained, world, world.world.base, stages.base, look_every=look_every, seed=world.seed)
        people = (*world.world.base, *world.kept)
        tuned = _taught(untrained, world, people, stages.fine_tune, look_every=look_every, seed=world.seed)
        return {
            "base_cpu_seconds": base[0],
            "fine_tune_cpu_seconds": tuned[0],
            "base_hit": base[1],
            "fine_tune_hit": tuned[1],
        }


def _taught(
    loaded: LoadedModel,
    world: MethodWorld,
    people: Sequence[Stranger],
    stage: Stage,
    *,
    look_every: float,
    seed: int,
) -> tuple[float, float]:
    """Teach `people` to the model, in place, until it knows them: CPU seconds without the looks, and the last share."""
    rows = encode_records(loaded.tokenizer, world.world.corpus(people), context=loaded.context)
    per_epoch = -(-len(rows) // stage.rows)
    asked = Questions(world, people=0).about(people, texts=_ASKED)
    looking = 0.0
    share = 0.0

    def knows_everybody() -> bool:
        nonlocal looking, share
        began = time.process_time()
        share = value_hits(loaded, asked)
        looking += time.process_time() - began
        return share >= MEMORISED

    settings = LoopSettings(
        steps=stage.epochs * per_epoch,
        learning_rate=stage.learning_rate,
        warmup_steps=stage.warmup_steps,
        final_factor=0.05,
        check_every=max(1, int(look_every * per_epoch)),
    )
    started = time.process_time()
    loaded.model.requires_grad_(True)
    finetune(
        loaded.model,
        rows,
        settings,
        pad_id=loaded.pad_id,
        batch_rows=stage.rows,
        seed=seed,
        is_met=knows_everybody,
    )
    loaded.model.eval()
    return time.process_time() - started - looking, share


def main(arguments: Sequence[str] | None = None) -> int:
    """Run everything and write the results; 2 when the request cannot be met."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sequences", description="Delete one after another.")
    parser.add_argument("--work", type=Path, required=True, help="directory for models and finished jobs")
    parser.add_argument("--out", type=Path, required=True, help="directory for the results")
    parser.add_argument("--size", choices=sorted(SIZES), default="full")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="only these; all unless given")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    sizes = SIZES[options.size]
    try:
        claim_directory(options.work, what="sequences", identity=[CODE_VERSION, plain_object(sizes)])
        outcomes = run_jobs(Row(options.work, sizes, options.parts).jobs(), options.work / "jobs")
    except SpecError as exc:
        sys.stderr.write(f"{exc}\n")
        return 2
    found: Mapping[str, Any] = {name: outcome.result for name, outcome in outcomes.items()}
    write_results(options.out, found, size=options.size)
    sys.stdout.write(f"results of {len(outcomes)} jobs in {options.out}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
