"""Which of our attacks deserve to gate? Each is tried on models of which it is known whom they learned.

    python -m benchmarks.meta_evaluation --work DIR --out DIR [--seed N] [--threads N] [--quick]

One base and many small fine-tunes (`benchmarks.pool`). Every attack of the registry scores people whom a model learned
and people whom it did not against never-trained twins, as the decision rule does; how well it tells them apart is its
faithfulness. Models that were rounded, that unlearned and relearned, and pretenders (`benchmarks.suppressed`) show what
else moves it, and the decision rule itself judges the pretenders. `ml.trust` turns the results into a policy.

`--work` holds models and finished jobs: a run that was killed continues there, and two runs may share one directory.
`--out` receives JSON, CSV, a table and a picture; `ml/trust` holds those of the last full run, by which policies go.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import torch

from benchmarks.jobs import Outcome, claim_directory, run_jobs
from benchmarks.meta_report import write_results
from benchmarks.meta_trial import Trial, TrialSizes
from benchmarks.pool import PoolSizes
from ml.documents import plain_object
from ml.errors import SpecError
from ml.models.scratch import ModelShape
from ml.reference import Stage

CODE_VERSION: Final = 4
"""Raise it whenever a change in `benchmarks` or `ml` changes a number that a finished job holds."""

_ATTRIBUTES: Final = (
    "home_address",
    "work_address",
    "phone_number",
    "mobile_number",
    "emergency_number",
    "bank_account",
    "pension_account",
    "customer_number",
    "credit_card",
    "library_card",
    "passport",
    "driving_licence",
    "number_plate",
    "home_policy",
    "door_code",
    "alarm_code",
    "date_of_birth",
    "birthplace",
    "doctor",
    "landlord",
    "boat",
    "dog",
    "medicine",
    "school",
    "employer",
)
FULL: Final = TrialSizes(
    pool=PoolSizes(
        base_people=24,
        group=16,
        groups=4,
        pairs=15,
        newcomers=60,
        attributes=_ATTRIBUTES,
        forms_per_fact=2,
        throw_away_people=3000,
        shape=ModelShape(hidden=96, layers=3, heads=4, feed_forward=256, vocabulary=1280, context=64),
        base=Stage(epochs=28, learning_rate=4e-3, rows=32),
        recipes=tuple(Stage(epochs=epochs, learning_rate=3e-3, rows=32, warmup_steps=50) for epochs in (3, 6, 14)),
    ),
    policy="reference-2",
    twins=39,
    swaps=39,
    prompts=96,
    rounded_pairs=4,
    relearned_pairs=3,
    judged_pairs=2,
    methods={"npo": {}, "grad_diff": {}, "energy_boundary": {}},
)
QUICK: Final = TrialSizes(
    pool=PoolSizes(
        base_people=8,
        group=8,
        groups=2,
        pairs=3,
        newcomers=4,
        attributes=("home_address", "phone_number", "passport", "doctor", "boat", "dog", "door_code", "employer"),
        forms_per_fact=2,
        throw_away_people=400,
        shape=ModelShape(hidden=64, layers=2, heads=4, feed_forward=160, vocabulary=768, context=96),
        base=Stage(epochs=24, learning_rate=1e-2, rows=32, warmup_steps=20),
        recipes=(Stage(epochs=10, learning_rate=1e-2, rows=32, warmup_steps=10),),
    ),
    policy="unit-1",
    twins=11,
    swaps=9,
    prompts=10,
    rounded_pairs=1,
    relearned_pairs=1,
    judged_pairs=1,
    methods={"npo": {}},
    kinds=("never learned (gold)", "nothing done", "output filtered", "adapter hidden"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run everything and write the results; 2 when the request cannot be met."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.meta_evaluation", description="Try our attacks.")
    parser.add_argument("--work", type=Path, required=True, help="directory for models and finished jobs")
    parser.add_argument("--out", type=Path, required=True, help="directory for the results")
    parser.add_argument("--seed", type=int, default=1, help="decides people, models and twins")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="a size for tests; its results let nothing gate")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    sizes = QUICK if options.quick else FULL
    try:
        claim(options.work, sizes, options.seed)
        outcomes, trial = run_all(options.work, sizes, options.seed)
    except SpecError as exc:
        sys.stderr.write(f"{exc}\n")
        return 2
    found = {name: outcome.result for name, outcome in outcomes.items()}
    seconds = sum(outcome.cpu_seconds for outcome in outcomes.values())
    results = trial.results(found, cpu_seconds=seconds)
    write_results(options.out, results, trial.table(found))
    sys.stdout.write(f"results of {len(outcomes)} jobs, {seconds / 60:.1f} CPU minutes, in {options.out}\n")
    return 0


def claim(work: Path, sizes: TrialSizes, seed: int) -> None:
    """Say what the directory is for; raises `SpecError` when it holds jobs of another size, seed or code version."""
    claim_directory(work, what="meta_evaluation", identity=[CODE_VERSION, plain_object(sizes), seed])


def run_all(work: Path, sizes: TrialSizes, seed: int) -> tuple[Mapping[str, Outcome], Trial]:
    """Do every job in order."""
    trial = Trial(work, sizes, seed=seed)
    return run_jobs(trial.jobs(), work / "jobs"), trial


if __name__ == "__main__":
    raise SystemExit(main())
