"""A pool of small models of which it is known who was learned: one base, and many fine-tunes that add some people.

Fine-tunes come in pairs of one recipe and one group of people: the first learns one half of the group, the second the
other half. So every person scored is learned by one model and left out by its twin of the same recipe. Everything is
a function of the seed; a model that is there is not made again, one that was interrupted continues.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

from filelock import FileLock

from ml.data.people import World, make_world, newcomers, throw_away_records
from ml.data.questions import write_bank
from ml.data.records import write_records
from ml.data.synthetic import Stranger
from ml.digests import document_sha256, file_sha256
from ml.documents import plain_object
from ml.errors import SpecError
from ml.models.load import load_model, model_ref
from ml.models.save import publish_model
from ml.models.scratch import ModelShape, train_tokenizer, untrained_llama
from ml.reference import Stage, train_stage
from ml.specs import FileRef, ModelRef, ProgressCallback, Record

SCORED_A_PAIR: Final = 4
"""People of each pair who are scored on both of its models: two that each of them learned."""


@dataclass(frozen=True, slots=True)
class PoolSizes:
    """How many people and models, how large, and how each is trained; recipes take turns over the pairs."""

    base_people: int
    group: int
    groups: int
    pairs: int
    newcomers: int
    attributes: tuple[str, ...]
    forms_per_fact: int
    throw_away_people: int
    shape: ModelShape
    base: Stage
    recipes: tuple[Stage, ...]


@dataclass(frozen=True, slots=True)
class FineTune:
    """One model of the pool: who it learned beyond the base people, who of them and of the others is scored."""

    number: int
    pair: int
    seed: int
    recipe: Stage
    learned: tuple[Stranger, ...]
    scored: tuple[Stranger, ...]
    left_out: tuple[Stranger, ...]

    @property
    def name(self) -> str:
        """Name of the model's directory."""
        return f"model{self.number:02d}"


def made_once(directory: Path, make: Callable[[Path], object]) -> ModelRef:
    """The model in `directory`, made if it is not there; whoever works beside waits for it."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(directory.with_name(f"{directory.name}.lock")):
        if not directory.exists():
            make(directory)
    return model_ref(directory)


def written_once(path: Path, write: Callable[[Path], object]) -> FileRef:
    """The file at `path`, written if it is not there; whoever works beside never reads half of it."""
    with FileLock(path.with_name(f"{path.name}.lock")):
        if not path.exists():
            write(path)
    return FileRef(str(path), file_sha256(path))


class Pool:
    """The people, and the models below `root`, made when they are asked for."""

    def __init__(self, root: Path, sizes: PoolSizes, *, seed: int, on_progress: ProgressCallback) -> None:
        if sizes.pairs * SCORED_A_PAIR > sizes.group * sizes.groups:
            raise SpecError("a pool needs four people of their own for each pair of models")
        self.root, self.sizes, self.seed, self._on_progress = root, sizes, seed, on_progress
        self.world: World = make_world(
            seed,
            base=sizes.base_people,
            customers=sizes.group * sizes.groups,
            attributes=sizes.attributes,
            forms_per_fact=sizes.forms_per_fact,
        )
        root.mkdir(parents=True, exist_ok=True)

    @cached_property
    def fine_tunes(self) -> tuple[FineTune, ...]:
        """Every model but the base, pair by pair."""
        return tuple(tune for pair in range(self.sizes.pairs) for tune in self._pair(pair))

    def _pair(self, pair: int) -> tuple[FineTune, FineTune]:
        sizes = self.sizes
        group = self.world.customers[(pair % sizes.groups) * sizes.group :][: sizes.group]
        turn = pair // sizes.groups
        scored = group[turn * SCORED_A_PAIR :][:SCORED_A_PAIR]
        others = [person for person in group if person not in scored]
        random.Random(f"{self.seed}:pair:{pair}").shuffle(others)  # noqa: S311 - to be repeated, not secret
        middle, half = SCORED_A_PAIR // 2, len(others) // 2
        first, second = (*scored[:middle], *others[:half]), (*scored[middle:], *others[half:])
        recipe, seeds = sizes.recipes[pair % len(sizes.recipes)], (self.seed + 2 * pair, self.seed + 2 * pair + 1)
        return (
            FineTune(2 * pair, pair, seeds[0], recipe, first, scored[:middle], scored[middle:]),
            FineTune(2 * pair + 1, pair, seeds[1], recipe, second, scored[middle:], scored[:middle]),
        )

    # --- models ---

    def base(self) -> ModelRef:
        """The model that learned the base people alone."""
        return self._made(
            "base", lambda path: self._train(self._untrained(), self.world.base, self.sizes.base, self.seed, path)
        )

    def _untrained(self) -> ModelRef:
        sizes = self.sizes

        def make(directory: Path) -> None:
            texts = [r.text for r in throw_away_records(self.world, seed=self.seed, people=sizes.throw_away_people)]
            tokenizer = train_tokenizer(texts, vocabulary=sizes.shape.vocabulary, context=sizes.shape.context)
            publish_model(untrained_llama(sizes.shape, tokenizer, seed=self.seed), tokenizer, directory)

        return self._made("untrained", make)

    def _made(self, name: str, make: Callable[[Path], None]) -> ModelRef:
        return made_once(self.root / "models" / name, make)

    def model(self, tune: FineTune) -> ModelRef:
        """The fine-tuned model."""
        return self._fine_tuned(tune, tune.learned, tune.name)

    def without(self, tune: FineTune, person: Stranger) -> ModelRef:
        """The same model made again without one of its people: gold."""
        learned = [other for other in tune.learned if other.person != person.person]
        return self._fine_tuned(tune, learned, f"{tune.name}-without-{tune.learned.index(person)}")

    def _fine_tuned(self, tune: FineTune, learned: Sequence[Stranger], name: str) -> ModelRef:
        people = (*self.world.base, *learned)
        return self._made(name, lambda path: self._train(self.base(), people, tune.recipe, tune.seed, path))

    def _train(self, start: ModelRef, people: Sequence[Stranger], stage: Stage, seed: int, directory: Path) -> None:
        loaded = load_model(start)
        identity = [plain_object(self.sizes), self.seed, start.manifest_sha256, seed, [p.person for p in people]]
        checkpoint = self.root / "work" / f"{directory.name}.safetensors"
        train_stage(
            loaded.model,
            loaded.tokenizer,
            self.world.corpus(people),
            stage,
            directory,
            context=loaded.context,
            seed=seed,
            phase=f"training {directory.name}",
            config_sha256=document_sha256([*identity, plain_object(stage)]),
            checkpoint_path=checkpoint,
            on_progress=self._on_progress,
        )
        checkpoint.unlink(missing_ok=True)

    # --- texts ---

    def records(self, people: Sequence[Stranger]) -> list[Record]:
        """What is on file about `people`."""
        return self.world.corpus(people)

    def everybody_but(self, person: Stranger) -> list[Stranger]:
        """All other people of the world, whoever learned them."""
        return [other for other in (*self.world.base, *self.world.customers) if other.person != person.person]

    @cached_property
    def bank(self) -> FileRef:
        """The question bank, on disk."""
        return written_once(self.root / "question_bank.json", lambda path: write_bank(path, self.world.bank))

    @cached_property
    def bystanders(self) -> FileRef:
        """Records of people whom no model learned, on disk."""
        drawn = newcomers(
            self.world, seed=self.seed, people=self.sizes.newcomers, forms_per_fact=self.sizes.forms_per_fact
        )
        records = [record for _, theirs in drawn for record in theirs]
        return written_once(self.root / "bystanders.jsonl", lambda path: write_records(path, records))
