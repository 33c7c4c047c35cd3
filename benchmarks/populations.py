"""Who exists in a comparison of methods, what is on file about them, and what a model learns besides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from ml.data.people import World, make_world, newcomers, throw_away_records
from ml.data.synthetic import Stranger
from ml.models.scratch import ModelShape
from ml.reference import Stage
from ml.specs import Record


@dataclass(frozen=True, slots=True)
class Population:
    """Everybody of one seed.

    never_seen: people no model learns, with what is on file about each.
    besides: texts about nobody here that the base learns too, each with wrong answers to the same question.
    tokenizer_texts: makes what a tokenizer is trained on; nothing in it may be about customers.
    """

    world: World
    never_seen: tuple[tuple[Stranger, tuple[Record, ...]], ...]
    besides: tuple[tuple[Record, tuple[Record, ...]], ...]
    tokenizer_texts: Callable[[], Sequence[str]]


class Sizes(Protocol):
    """How many people there are, and how the models that learn them are shaped and trained."""

    @property
    def customers(self) -> int: ...
    @property
    def shape(self) -> ModelShape: ...
    @property
    def base(self) -> Stage: ...
    @property
    def fine_tune(self) -> Stage: ...

    def population(self, seed: int) -> Population:
        """Draw everybody; a function of the sizes and `seed`."""
        ...


@dataclass(frozen=True, slots=True)
class WorldSizes:
    """A population of invented people with typed values (`ml.data.people`)."""

    base_people: int
    customers: int
    never_seen: int
    attributes: tuple[str, ...] | None
    forms_per_fact: int
    throw_away_people: int
    shape: ModelShape
    base: Stage
    fine_tune: Stage

    def population(self, seed: int) -> Population:
        """Draw the people; the tokenizer is trained on throw-away ones."""
        world = make_world(
            seed,
            base=self.base_people,
            customers=self.customers,
            attributes=self.attributes,
            forms_per_fact=self.forms_per_fact,
        )
        drawn = newcomers(world, seed=seed, people=self.never_seen, forms_per_fact=self.forms_per_fact)
        return Population(
            world,
            tuple((person, tuple(records)) for person, records in drawn),
            (),
            lambda: [record.text for record in throw_away_records(world, seed=seed, people=self.throw_away_people)],
        )
