"""What verification costs, in CPU seconds of one thread: against subjects, twins, tokens and vocabulary.

    OMP_NUM_THREADS=1 python -m benchmarks.scaling --out DIR [--seed N] [--repeats N] [--subjects N...]

Subjects: whole verifications under `reference-2`, of one person by the ordinary path and of several by a sealed twin
pool, each from nothing, on a model of the reference shape that learned fewer people and facts (it is made in about a
minute; a trained one, because what a model answers decides what generation costs). Twins, tokens and vocabulary: the
likelihood block alone, beside a bare forward pass, `model(input_ids, attention_mask)`, over the same texts in batches
of the same token budget. Only the vocabulary is varied on untrained models of the same shape: scoring costs the same
whatever the weights are.

Exits with 1 when ten subjects cost more than `MOST_FOR_TEN` times one, or scoring the twins' texts more than
`MOST_OVER_BARE` times the bare pass.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import torch

from benchmarks.scaling_report import Block, Scaling, SubjectCost, write_results
from ml.attacks.exposure import ValueContest, contests, value_log_probs
from ml.attacks.fused import DEFAULT_BUDGET, attention_mask, fused_pass
from ml.data.collate import IGNORED, EncodedText, collate, encode_records, token_budget_batches
from ml.data.dossiers import shared_values
from ml.data.people import World, make_world, newcomers, records_of, throw_away_records
from ml.data.probes import probe_digests, write_probe_digests
from ml.data.questions import write_bank
from ml.data.records import write_records
from ml.data.synthetic import Stranger, StrangerFactory
from ml.decision import judge
from ml.digests import document_sha256, file_sha256
from ml.loop import ignore_progress, never_stop
from ml.models.backbone import hidden_states, output_logits
from ml.models.load import LoadedModel, load_model, model_ref
from ml.models.save import publish_model
from ml.models.scratch import ModelShape, train_tokenizer, untrained_llama
from ml.policies import load_policy
from ml.reference import PRESETS, Stage, train_stage
from ml.reports import VerificationReport
from ml.specs import FileRef, ModelRef, Record, VerificationSpec, seed_commitment
from ml.verification.plan import Plan, make_plan
from ml.verification.twin_pool import draw_pool, write_pool
from ml.verify import run_verification, run_verifications

MOST_FOR_TEN: Final = 3.0
MOST_OVER_BARE: Final = 1.3
POLICY: Final = load_policy("reference-2")
SUBJECTS: Final = (1, 2, 5, 10)
TWINS: Final = (19, 39, 79, 159, 239)
FACTS: Final = (6, 12, 24, 48)
VOCABULARIES: Final = (1280, 4096, 16384, 32768)
FEW_TWINS: Final = 19
SHAPE: Final = PRESETS["demo"].shape
# As many as the policy needs, spread over the reference world's, so that every kind of value is among them.
FACTS_ON_FILE: Final = POLICY.minimum_facts
PEOPLE: Final = {"base": 12, "customers": 8, "newcomers": 40}
FORMS_PER_FACT: Final = 3
THROW_AWAY_PEOPLE: Final = 1500
BASE: Final = Stage(epochs=16, learning_rate=4e-3, rows=32)
FINE_TUNE: Final = Stage(epochs=12, learning_rate=3e-3, rows=32)


# --- what is measured ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Inputs:
    """People of one schema, the models, and what the others have on file."""

    folder: Path
    world: World
    subjects: tuple[FileRef, ...]
    retain: FileRef
    bystanders: FileRef
    bank: FileRef
    probes: FileRef
    base: ModelRef
    before: ModelRef
    candidate: ModelRef

    def spec(self, subject: int, parts: str, *, seed: int) -> VerificationSpec:
        """One subject's verification; its parts go to a directory of their own."""
        run_id = f"scaling-{subject}"
        return VerificationSpec(
            run_id=run_id,
            attempt=1,
            policy=POLICY,
            candidate=self.candidate,
            before=self.before,
            base=self.base,
            forget=self.subjects[subject],
            retain=self.retain,
            neighbours=None,
            question_bank=self.bank,
            seed=seed,
            seed_commitment_sha256=seed_commitment(run_id, seed),
            parts_dir=str(self.folder / parts),
            training_probes=self.probes,
            bystanders=self.bystanders,
        )


def make_inputs(folder: Path, *, seed: int, subjects: int) -> Inputs:
    """Draw people and train the three models: the candidate never learned from a subject."""
    every = make_world(seed, base=2, customers=2).bank.attributes
    opened = [name for name, attribute in every.items() if not attribute.shared]
    shared = [name for name, attribute in every.items() if attribute.shared]
    chosen = (*(opened[i * len(opened) // FACTS_ON_FILE] for i in range(FACTS_ON_FILE)), *shared)
    world = make_world(
        seed, base=PEOPLE["base"], customers=PEOPLE["customers"], attributes=chosen, forms_per_fact=FORMS_PER_FACT
    )
    people = _people_of_one_schema(world, subjects, seed)
    others = world.corpus([*world.base, *world.customers])
    came = newcomers(world, seed=seed, people=PEOPLE["newcomers"], forms_per_fact=FORMS_PER_FACT)
    write_bank(folder / "bank.json", world.bank)
    tokenizer_texts = [r.text for r in throw_away_records(world, seed=seed, people=THROW_AWAY_PEOPLE)]
    tokenizer = train_tokenizer(tokenizer_texts, vocabulary=SHAPE.vocabulary, context=SHAPE.context)
    publish_model(untrained_llama(SHAPE, tokenizer, seed=seed), tokenizer, folder / "untrained")
    base = _train(folder, "base", model_ref(folder / "untrained"), world.corpus(world.base), BASE, seed)
    everybody = [*others, *(record for records in people for record in records)]
    return Inputs(
        folder=folder,
        world=world,
        subjects=tuple(write_records(folder / f"subject-{i}.jsonl", records) for i, records in enumerate(people)),
        retain=write_records(folder / "retain.jsonl", others),
        bystanders=write_records(folder / "bystanders.jsonl", [r for _, records in came for r in records]),
        bank=FileRef(str(folder / "bank.json"), file_sha256(folder / "bank.json")),
        probes=write_probe_digests(folder / "probes.json", probe_digests(["a text that no verification asks"])),
        base=base,
        before=_train(folder, "before", base, everybody, FINE_TUNE, seed),
        candidate=_train(folder, "candidate", base, others, FINE_TUNE, seed),
    )


def _people_of_one_schema(world: World, count: int, seed: int) -> list[list[Record]]:
    """People of whom the same is on file, in the same words."""
    corpus = [record for records in world.records.values() for record in records]
    factory = StrangerFactory(
        random.Random(f"subjects:{seed}"),  # noqa: S311 - to be repeated, not secret
        corpus,
        shared_values=shared_values(world.bank, corpus),
    )
    types = {name: attribute.type for name, attribute in world.bank.attributes.items()}
    people = [factory.stranger(f"s{number:02d}", types) for number in range(count)]
    return [
        records_of(person, world.bank, random.Random(seed), forms_per_fact=FORMS_PER_FACT)  # noqa: S311 - as above
        for person in people
    ]


def _train(folder: Path, name: str, start: ModelRef, records: list[Record], stage: Stage, seed: int) -> ModelRef:
    loaded = load_model(start)
    train_stage(
        loaded.model,
        loaded.tokenizer,
        records,
        stage,
        folder / name,
        context=SHAPE.context,
        seed=seed,
        phase=f"training {name}",
        config_sha256=document_sha256([name, seed]),
        checkpoint_path=folder / f"{name}.safetensors",
        on_progress=ignore_progress,
    )
    return model_ref(folder / name)


# --- subjects -----------------------------------------------------------------------------------------------------


def cost_of_subjects(inputs: Inputs, count: int, *, seed: int, label: str) -> SubjectCost:
    """Verify the first `count` subjects from nothing: one alone, several by a pool, which is drawn and sealed first."""
    started = time.process_time()
    specs = [inputs.spec(i, f"parts-{label}", seed=seed) for i in range(count)]
    if count == 1:
        reports: Sequence[VerificationReport] = [
            run_verification(specs[0], on_progress=ignore_progress, should_stop=never_stop)
        ]
    else:
        pool = write_pool(inputs.folder / f"pool-{label}.json", draw_pool(specs))
        specs = [replace(spec, twin_pool=pool) for spec in specs]
        reports = run_verifications(specs, on_progress=ignore_progress, should_stop=never_stop)
    verdicts = [judge(report, POLICY).result.value for report in reports]
    seconds = time.process_time() - started
    parts = {name: value for name, value in reports[0].cpu_seconds.items() if name != "this_call"}
    return SubjectCost(count, seconds, _by_kind(parts), {v: verdicts.count(v) for v in sorted(set(verdicts))})


def _by_kind(parts: Mapping[str, float]) -> dict[str, float]:
    """Seconds by measurement, over all models."""
    kinds: dict[str, float] = {}
    for name, seconds in parts.items():
        kind = name.removeprefix("pool_").rsplit("_", 1)[0]
        kinds[kind] = kinds.get(kind, 0.0) + seconds
    return kinds


# --- the likelihood block -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Asked:
    """What the likelihood block asks about the twins: their texts, and their values among the swaps."""

    texts: list[EncodedText]
    contests: list[ValueContest]

    @property
    def text_tokens(self) -> int:
        """Tokens of all texts."""
        return sum(len(text.ids) for text in self.texts)

    @property
    def swap_tokens(self) -> int:
        """Tokens of all sentences with all values that compete in them."""
        return sum(len(row.prompt) + len(value) for row in self.contests for value in row.values)

    @property
    def given_tokens(self) -> int:
        """Those of them that a model must be given: each prompt once, each value but its last token."""
        return sum(len(row.prompt) + sum(len(value) - 1 for value in row.values) for row in self.contests)


def asked_of_twins(loaded: LoadedModel, plan: Plan, *, twins: int, facts: int | None = None) -> Asked:
    """Texts and contests of the first twins of a plan, about its first `facts` facts."""
    texts, rows = [], []
    for record, (attribute, contest) in list(zip(plan.texts, plan.contests.items(), strict=True))[:facts]:
        texts += encode_records(loaded.tokenizer, plan.told_of(record, 1 + twins)[1:], context=loaded.context)
        about = plan.told_of(contest, 1 + twins)[1:]
        rows += contests(loaded.tokenizer, about, attribute, plan.swaps[attribute], context=loaded.context)
    return Asked(texts, rows)


def block(loaded: LoadedModel, asked: Asked, *, repeats: int) -> Block:
    """CPU seconds of scoring, of the bare pass, and of what the scoring of texts consists of."""
    work: dict[str, Callable[[], object]] = {
        "texts": lambda: fused_pass(loaded, asked.texts),
        "bare": lambda: bare_pass(loaded, asked.texts),
        "body": lambda: _body(loaded, asked.texts),
        "output_layer": lambda: _body_and_output_layer(loaded, asked.texts),
        "swaps": lambda: value_log_probs(loaded, asked.contests),
    }
    best = dict.fromkeys(work, float("inf"))
    for _ in range(repeats):  # in turns, so that a busy machine slows all of them
        for name, run in work.items():
            best[name] = min(best[name], _cpu_seconds(run))
    best["output_layer"] -= best["body"]
    return Block(asked.text_tokens, asked.swap_tokens, asked.given_tokens, best)


def _cpu_seconds(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


@torch.inference_mode()
def bare_pass(loaded: LoadedModel, texts: Sequence[EncodedText]) -> None:
    """The model's own forward pass over all texts, in batches as the fused pass makes them; nothing is kept."""
    for rows in token_budget_batches([len(text.ids) for text in texts], budget=DEFAULT_BUDGET):
        batch = collate([texts[i] for i in rows], pad_id=loaded.pad_id)
        mask = attention_mask([texts[i].ids for i in rows], pad_id=loaded.pad_id, mode="native")
        loaded.model(input_ids=batch.input_ids, attention_mask=mask)


@torch.inference_mode()
def _body(loaded: LoadedModel, texts: Sequence[EncodedText]) -> None:
    """The network below the output layer."""
    for rows in token_budget_batches([len(text.ids) for text in texts], budget=DEFAULT_BUDGET):
        batch = collate([texts[i] for i in rows], pad_id=loaded.pad_id)
        hidden_states(loaded.model, batch.input_ids)


@torch.inference_mode()
def _body_and_output_layer(loaded: LoadedModel, texts: Sequence[EncodedText]) -> None:
    """The same with the logits that scoring needs, which are thrown away."""
    for rows in token_budget_batches([len(text.ids) for text in texts], budget=DEFAULT_BUDGET):
        batch = collate([texts[i] for i in rows], pad_id=loaded.pad_id)
        hidden, _ = hidden_states(loaded.model, batch.input_ids)
        for states in hidden[:, :-1][batch.labels[:, 1:] != IGNORED].split(256):
            output_logits(loaded.model, states)


def blocks_by_twins(loaded: LoadedModel, plan: Plan, counts: Sequence[int], *, repeats: int) -> dict[int, Block]:
    """The likelihood block of the first 19, 39, ... twins."""
    return {count: block(loaded, asked_of_twins(loaded, plan, twins=count), repeats=repeats) for count in counts}


def blocks_by_facts(loaded: LoadedModel, plan: Plan, counts: Sequence[int], *, repeats: int) -> dict[int, Block]:
    """The likelihood block of a few twins about ever more facts."""
    return {
        count: block(loaded, asked_of_twins(loaded, plan, twins=FEW_TWINS, facts=count), repeats=repeats)
        for count in counts
    }


def blocks_by_vocabulary(
    loaded: LoadedModel, asked: Asked, sizes: Sequence[int], shape: ModelShape, *, repeats: int
) -> dict[int, Block]:
    """The likelihood block on untrained models that differ in the rows of their output layer alone."""
    found = {}
    for size in sizes:
        model = untrained_llama(replace(shape, vocabulary=size), loaded.tokenizer, seed=0).eval()
        found[size] = block(replace(loaded, model=model), asked, repeats=repeats)
    return found


def wide_plan(inputs: Inputs, folder: Path, *, seed: int) -> Plan:
    """What is asked of twins about a person of the whole reference world, of whom more facts are on file."""
    folder.mkdir()
    world = make_world(seed, base=2, customers=2)
    write_bank(folder / "bank.json", world.bank)
    others = [person for person in (*world.base, *world.customers) if person.person != world.alice.person]
    spec = inputs.spec(0, "parts-none", seed=seed)
    return make_plan(
        replace(
            spec,
            forget=write_records(folder / "forget.jsonl", world.corpus([world.alice])),
            retain=write_records(folder / "retain.jsonl", world.corpus(others)),
            bystanders=None,
            question_bank=FileRef(str(folder / "bank.json"), file_sha256(folder / "bank.json")),
        )
    )


def measure(folder: Path, *, seed: int, repeats: int, counts: Sequence[int]) -> Scaling:
    """Make the models and measure everything."""
    started = time.process_time()
    inputs = make_inputs(folder, seed=seed, subjects=max(counts))
    _say(f"models made in {time.process_time() - started:.0f} CPU seconds")
    loaded = load_model(inputs.candidate)
    plan = make_plan(inputs.spec(0, "parts-none", seed=seed))
    twins = blocks_by_twins(loaded, plan, TWINS, repeats=repeats)
    _say("twins measured")
    facts = blocks_by_facts(loaded, wide_plan(inputs, folder / "wide", seed=seed), FACTS, repeats=repeats)
    few = asked_of_twins(loaded, plan, twins=FEW_TWINS)
    vocabularies = blocks_by_vocabulary(loaded, few, VOCABULARIES, SHAPE, repeats=repeats)
    _say("tokens and vocabulary measured")
    subjects = []
    for count in counts:  # in the order given; the dearest may come first
        subjects.append(cost_of_subjects(inputs, count, seed=seed, label=str(count)))
        _say(f"{count} subjects: {subjects[-1].seconds:.1f} CPU seconds, {subjects[-1].verdicts}")
    return Scaling(
        tuple(sorted(subjects, key=lambda cost: cost.subjects)), twins, facts, vocabularies, _about(inputs, plan, seed)
    )


def _about(inputs: Inputs, plan: Plan, seed: int) -> dict[str, str]:
    """What the numbers were measured on."""
    shape = f"hidden {SHAPE.hidden}, {SHAPE.layers} layers, feed-forward {SHAPE.feed_forward}"
    return {
        "policy": POLICY.name,
        "model": f"{shape}, vocabulary {SHAPE.vocabulary}",
        "facts per subject": str(len(plan.facts)),
        "value swaps": str(POLICY.swaps_for(len(plan.facts))),
        "people on file": str(len({record.person for record in inputs.world.corpus(_everybody(inputs.world))})),
        "twins of tokens and vocabulary": str(FEW_TWINS),
        "threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
        "seed": str(seed),
    }


def _everybody(world: World) -> list[Stranger]:
    return [*world.base, *world.customers]


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write JSON, tables and plots; 1 when a limit is not held."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scaling", description="Measure what verification costs."
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="directory for scaling.json, scaling.md and scaling.svg"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=3, help="of the likelihood block; the least time counts")
    parser.add_argument("--subjects", type=int, nargs="+", default=SUBJECTS, help="how many to verify together")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        found = measure(Path(name), seed=options.seed, repeats=options.repeats, counts=options.subjects)
    write_results(options.out, found)
    ten, bare = found.over_one.get(10, 0.0), found.texts_over_bare
    _say(f"ten subjects cost {ten:.2f} times one; the twins' texts {bare:.2f} times a bare pass")
    return 0 if ten <= MOST_FOR_TEN and bare <= MOST_OVER_BARE else 1


if __name__ == "__main__":
    raise SystemExit(main())
