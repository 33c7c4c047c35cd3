"""Small models that know a person fully, not at all, or to any degree between: what error rates are measured on.

A base model learns some people and a fine-tune adds customers, as in the reference model. Half of the customers are
then left out of a second fine-tune (their gold model), and training on their rows goes on from there, step by step,
until they are known: every stop on the way is a model in which some part of their influence remains, and so is every
mixture of two stops, for a part in between.

All customers of a world are on file in the same words, so that one set of twins serves every one of them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from ml.attacks.exposure import ValueContest, contests, exposure, same_context_difference, value_log_probs
from ml.attacks.extraction import extraction_strength
from ml.attacks.fused import fused_pass
from ml.data.collate import EncodedText, encode_records
from ml.data.people import OPEN_ATTRIBUTES, SHARED_ATTRIBUTES, make_world, throw_away_records
from ml.data.questions import ask
from ml.data.synthetic import Stranger, StrangerFactory
from ml.finetune import finetune
from ml.loop import LoopSettings
from ml.models.load import LoadedModel, load_model, model_ref
from ml.models.save import publish_model
from ml.models.scratch import ModelShape, train_tokenizer, untrained_llama
from ml.reference import PRESETS, Stage
from ml.specs import Record

STATISTICS: Final = ("same_context_difference", "exposure", "extraction_strength")
HALVES: Final = 2


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is trained and asked. The `graded_` numbers are those of the models that know a part."""

    base_people: int = 24
    customers: int = 40
    facts: int = 36
    forms: int = 3
    throw_away_people: int = 3000
    twins: int = 239
    swaps: int = 79
    shape: ModelShape = PRESETS["demo"].shape
    base: Stage = PRESETS["demo"].base
    fine_tune: Stage = PRESETS["demo"].fine_tune
    graded: Stage = Stage(epochs=3, learning_rate=1e-3, rows=32, warmup_steps=20)
    stops: int = 27
    graded_twins: int = 65
    graded_facts: int = 20


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is asked of one model: the first so many twins, swaps of each value, and facts."""

    twins: int
    swaps: int
    facts: int


Scores = Mapping[str, Tensor]
"""By statistic: (persons, facts) float32, customers first, then twins; larger is more familiar."""


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """A stop of a graded training, or a mixture of two stops' weights with `share` of the second."""

    first: int
    second: int = 0
    share: float = 0.0


class Way:
    """The stops of one graded training, gold first; the model is reused, so only the last one asked for is good."""

    def __init__(self, loaded: LoadedModel, states: Sequence[Mapping[str, Tensor]]) -> None:
        self._loaded, self._states = loaded, states

    def __len__(self) -> int:
        return len(self._states)

    def at(self, place: Place) -> LoadedModel:
        """The model at one place."""
        state = self._states[place.first]
        if place.share:
            other = self._states[place.second]
            state = {name: torch.lerp(tensor, other[name], place.share) for name, tensor in state.items()}
        self._loaded.model.load_state_dict(state)
        return self._loaded


def _state(loaded: LoadedModel) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()}


class Trial:
    """One world: its people, the words they are asked in, and its models below `root`."""

    def __init__(self, root: Path, *, seed: int, sizes: Sizes) -> None:
        self.root, self.seed, self.sizes = root, seed, sizes
        self.facts = _spread(tuple(noun.replace(" ", "_") for noun in OPEN_ATTRIBUTES), sizes.facts)
        shared = tuple(noun.replace(" ", "_") for noun in SHARED_ATTRIBUTES)
        self.world = make_world(
            seed,
            base=sizes.base_people,
            customers=sizes.customers,
            attributes=[*self.facts, *shared],
            forms_per_fact=sizes.forms,
        )
        self.filed, self.reworded = self._forms()
        corpus = self.corpus(self.world.base) + self.corpus(self.world.customers)
        factory = StrangerFactory(self._rng("twins"), corpus, shared_values=self.world.shared_values)
        types = {name: attribute.type for name, attribute in self.world.bank.attributes.items()}
        self.twins = tuple(factory.stranger(f"twin{i}", types) for i in range(sizes.twins))
        self.swaps = {a: tuple(factory.value("", types[a]) for _ in range(sizes.swaps)) for a in self.facts}

    def _rng(self, purpose: str) -> random.Random:
        return random.Random(f"{self.seed}:{purpose}")  # noqa: S311 - to be repeated, not secret

    def _forms(self) -> tuple[Mapping[str, tuple[int, ...]], Mapping[str, int]]:
        """Which forms of each attribute all customers have on file, and one that none has."""
        rng, filed, reworded = self._rng("forms"), {}, {}
        for name, attribute in self.world.bank.attributes.items():
            order = rng.sample(range(len(attribute.forms)), len(attribute.forms))
            filed[name], reworded[name] = tuple(order[: self.sizes.forms]), order[self.sizes.forms]
        return filed, reworded

    def half(self, number: int) -> tuple[Stranger, ...]:
        """The customers that are left out together."""
        size = len(self.world.customers) // HALVES
        return self.world.customers[number * size : (number + 1) * size]

    def told(self, person: Stranger, attribute: str, form: int) -> Record:
        """One fact of one person in one form."""
        kind = self.world.bank.attributes[attribute]
        return ask(
            kind.forms[form],
            attribute,
            kind.type,
            name=person.name,
            value=person.values[attribute],
            record_id=f"{person.person}-{attribute}-{form}",
            person=person.person,
        )

    def corpus(self, people: Sequence[Stranger]) -> list[Record]:
        """What is on file about `people`: base people in words of their own, customers all in the same."""
        base = {person.person for person in self.world.base}
        records: list[Record] = []
        for person in people:
            if person.person in base:
                records += self.world.records[person.person]
            else:
                records += [self.told(person, a, form) for a, forms in self.filed.items() for form in forms]
        return records

    # --- models ---

    @cached_property
    def tokenizer(self) -> Any:
        """Trained on throw-away people of the same words."""
        people = self.sizes.throw_away_people
        texts = [record.text for record in throw_away_records(self.world, seed=self.seed, people=people)]
        return train_tokenizer(texts, vocabulary=self.sizes.shape.vocabulary, context=self.sizes.shape.context)

    def base(self) -> LoadedModel:
        """Knows the base people."""
        return self._model("base", self.world.base, None, self.sizes.base)

    def before(self) -> LoadedModel:
        """Knows everybody."""
        return self._model("before", (*self.world.base, *self.world.customers), self.base, self.sizes.fine_tune)

    def gold(self, half: int) -> LoadedModel:
        """Never saw the customers of one half."""
        out = {person.person for person in self.half(half)}
        people = [p for p in (*self.world.base, *self.world.customers) if p.person not in out]
        return self._model(f"gold{half}", people, self.base, self.sizes.fine_tune)

    def _model(
        self, name: str, people: Sequence[Stranger], start: Callable[[], LoadedModel] | None, stage: Stage
    ) -> LoadedModel:
        directory = self.root / name
        if not directory.exists():
            if start is None:
                model = untrained_llama(self.sizes.shape, self.tokenizer, seed=self.seed)
            else:
                model = start().model
            rows = self._rows(self.corpus(people))
            steps = stage.epochs * -(-len(rows) // stage.rows)
            finetune(
                model,
                rows,
                LoopSettings(steps, stage.learning_rate, stage.warmup_steps, final_factor=0.05, report_every=steps),
                pad_id=int(self.tokenizer.pad_token_id),
                batch_rows=stage.rows,
                seed=self.seed,
            )
            publish_model(model, self.tokenizer, directory)
        return load_model(model_ref(directory))

    def _rows(self, records: Sequence[Record]) -> list[EncodedText]:
        return encode_records(self.tokenizer, records, context=self.sizes.shape.context)

    def way(self, half: int) -> Way:
        """From knowing nothing of one half of the customers to knowing them."""
        loaded, stage = self.gold(half), self.sizes.graded
        learned = self._rows(self.corpus(self.half(half)))
        kept = [p for p in self.world.customers if p not in self.half(half)]
        others = self._rows(self.corpus(kept))
        rows = [row for pair in zip(learned, others, strict=True) for row in pair]
        steps = stage.epochs * -(-len(rows) // stage.rows)
        every = max(1, steps // self.sizes.stops)
        states = [_state(loaded)]
        finetune(
            loaded.model,
            rows,
            LoopSettings(steps, stage.learning_rate, stage.warmup_steps, final_factor=1.0, report_every=every),
            pad_id=loaded.pad_id,
            batch_rows=stage.rows,
            seed=self.seed,
            on_progress=lambda _: states.append(_state(loaded)),
        )
        loaded.model.requires_grad_(False)
        return Way(loaded, states)

    # --- measurements ---

    def scores(
        self,
        loaded: LoadedModel,
        customers: Sequence[Stranger],
        scale: Scale,
        statistics: Sequence[str] = STATISTICS,
    ) -> Scores:
        """Score customers and twins on `statistics`."""
        persons, facts = self.persons(customers, scale.twins), self.facts[: scale.facts]
        out: dict[str, Tensor] = {}
        if "extraction_strength" in statistics:
            out["extraction_strength"] = self.strengths(loaded, persons, facts)
        if set(statistics) - set(out):
            out |= value_statistics(self.competitions(loaded, persons, facts, scale.swaps))
        return {statistic: out[statistic] for statistic in statistics}

    def persons(self, customers: Sequence[Stranger], twins: int) -> tuple[Stranger, ...]:
        """Customers, and the first so many twins."""
        return (*customers, *self.twins[:twins])

    def strengths(self, loaded: LoadedModel, persons: Sequence[Stranger], facts: Sequence[str]) -> Tensor:
        """Extraction strength of one text a fact: (persons, facts)."""
        texts = self._rows([self.told(person, a, self.filed[a][0]) for person in persons for a in facts])
        return extraction_strength(fused_pass(loaded, texts)).reshape(len(persons), -1)

    def competitions(
        self, loaded: LoadedModel, persons: Sequence[Stranger], facts: Sequence[str], swaps: int
    ) -> Tensor:
        """Log-probabilities of values, each own one before those that compete: (persons, facts, 1 + swaps)."""
        asked = [contest for fact in facts for contest in self._contests(persons, fact, swaps)]
        return value_log_probs(loaded, asked).reshape(len(facts), len(persons), -1).transpose(0, 1)

    def _contests(self, persons: Sequence[Stranger], fact: str, swaps: int) -> list[ValueContest]:
        """One contest a person; half of the facts in words on file, half in words that no customer has on file."""
        form = self.reworded[fact] if self.facts.index(fact) % 2 else self.filed[fact][-1]
        records = [self.told(person, fact, form) for person in persons]
        context = self.sizes.shape.context
        return contests(self.tokenizer, records, fact, self.swaps[fact][:swaps], context=context)


def value_statistics(log_probs: Tensor) -> Scores:
    """The statistics that read value swaps: (persons, facts) each, from (persons, facts, 1 + swaps)."""
    flat = log_probs.flatten(0, 1)
    found = {"same_context_difference": same_context_difference(flat), "exposure": exposure(flat)}
    return {statistic: scores.reshape(log_probs.shape[:2]) for statistic, scores in found.items()}


def _spread(names: Sequence[str], count: int) -> tuple[str, ...]:
    """`count` of `names`, evenly over all kinds of value, in an order whose beginnings are spread as well."""
    rng = random.Random(0)  # noqa: S311 - the same facts in every world
    return tuple(rng.sample(list(names), count))


def quick(sizes: Sizes) -> Sizes:
    """Sizes for a test of the machinery: they say nothing about error rates."""
    return replace(
        sizes,
        base_people=6,
        customers=4,
        facts=6,
        throw_away_people=300,
        twins=39,
        swaps=9,
        base=Stage(epochs=4, learning_rate=4e-3, rows=32, warmup_steps=10),
        fine_tune=Stage(epochs=6, learning_rate=4e-3, rows=32, warmup_steps=10),
        graded=Stage(epochs=4, learning_rate=2e-3, rows=8, warmup_steps=4),
        stops=8,
        graded_twins=39,
        graded_facts=6,
    )
