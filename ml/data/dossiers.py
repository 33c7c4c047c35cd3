"""What is on file about one person, which of it only that person has, and in which other words it can be asked."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass

from ml.data.questions import QuestionBank, ask
from ml.data.synthetic import StrangerFactory
from ml.data.values import VALUE_TYPES
from ml.errors import RecordError, SpecError
from ml.specs import FactSpan, Record


@dataclass(frozen=True, slots=True)
class Dossier:
    """One person's records, the name used most in them, and by attribute the value and its type.

    An attribute that stands with several values keeps the first; a twin's dossier then has one value for it.
    """

    person: str
    name: str
    values: Mapping[str, str]
    types: Mapping[str, str]
    records: tuple[Record, ...]


def read_dossier(records: Sequence[Record]) -> Dossier:
    """Gather the records of one person.

    Raises:
        SpecError: the records are of several persons; each is verified on their own.
        RecordError: no record says where the person's name stands.
    """
    persons = {record.person for record in records}
    if len(persons) != 1:
        raise SpecError(f"a forget set to be verified is one person's; this one has {len(persons)}")
    names = Counter(record.text[start:end] for record in records for start, end in record.name_spans)
    if not names:
        raise RecordError("no record marks the person's name; twins cannot be drawn without it")
    values: dict[str, str] = {}
    types: dict[str, str] = {}
    for record in records:
        for fact in record.facts:
            values.setdefault(fact.attribute, record.value(fact))
            types.setdefault(fact.attribute, fact.type)
    return Dossier(persons.pop(), names.most_common(1)[0][0], values, types, tuple(records))


def open_facts(dossier: Dossier, bank: QuestionBank, others: Iterable[Record]) -> tuple[str, ...]:
    """Attributes whose value only this person has, in sorted order.

    A value that others share, by design or by coincidence, is learned from them too: how likely the model finds it
    says nothing about this person.
    """
    return facts_not_in(dossier, bank, known_values(others))


def facts_not_in(dossier: Dossier, bank: QuestionBank, elsewhere: Set[tuple[str, str]]) -> tuple[str, ...]:
    """As `open_facts`, where other people's values are already known in normal form."""
    return tuple(
        attribute
        for attribute, value in sorted(dossier.values.items())
        if not (attribute in bank.attributes and bank.attributes[attribute].shared)
        and dossier.types[attribute] in VALUE_TYPES
        and normal_value(dossier.types[attribute], value) not in elsewhere
    )


def normal_value(type_: str, value: str) -> tuple[str, str]:
    """A value with its type, in the form in which two spellings of it are equal."""
    return type_, VALUE_TYPES[type_].normalise(value)


def known_values(records: Iterable[Record]) -> frozenset[tuple[str, str]]:
    """Every value of a known type that stands in `records`, in normal form."""
    return frozenset(normal_value(f.type, r.value(f)) for r in records for f in r.facts if f.type in VALUE_TYPES)


def shared_values(bank: QuestionBank, corpus: Iterable[Record]) -> dict[str, tuple[str, ...]]:
    """By shared attribute, the values that people of the corpus have: what a twin may have too."""
    pools: dict[str, set[str]] = {}
    for record in corpus:
        for fact in record.facts:
            if fact.attribute in bank.attributes and bank.attributes[fact.attribute].shared:
                pools.setdefault(fact.attribute, set()).add(record.value(fact))
    return {attribute: tuple(sorted(values)) for attribute, values in pools.items()}


def strangers_of(
    bank: QuestionBank, rng: random.Random, corpus: Sequence[Record], *, sharing: Sequence[Record] | None = None
) -> StrangerFactory:
    """A factory of people such as the bank asks about, none of whose own values stand in the corpus.

    Args:
        sharing: records whose people's shared values strangers may have too; those of the corpus if none are named.
    """
    shared = shared_values(bank, corpus if sharing is None else sharing)
    return StrangerFactory(rng, corpus, shared_values=shared, locale=bank.locale)


def paraphrases(dossier: Dossier, bank: QuestionBank, attributes: Collection[str]) -> tuple[Record, ...]:
    """The facts in every form of the bank that the dossier's own records do not use."""
    on_file = {" ".join(record.text.split()) for record in dossier.records}
    asked = [
        ask(
            form,
            attribute,
            dossier.types[attribute],
            name=dossier.name,
            value=dossier.values[attribute],
            record_id=f"{dossier.person}-{attribute}-form{index}",
            person=dossier.person,
        )
        for attribute in sorted(attributes)
        if attribute in bank.attributes
        for index, form in enumerate(bank.attributes[attribute].forms)
    ]
    return tuple(record for record in asked if " ".join(record.text.split()) not in on_file)


def answered_span(record: Record, attribute: str) -> FactSpan | None:
    """The first span of the attribute's value when it stands in the answer and nowhere in the question."""
    spans = [fact for fact in record.facts if fact.attribute == attribute]
    if not spans or min(fact.start for fact in spans) < record.answer_start:
        return None
    return min(spans, key=lambda fact: fact.start)


def contexts(
    records: Sequence[Record], reworded: Sequence[Record], attributes: Sequence[str], *, rng: random.Random
) -> dict[str, Record]:
    """Choose one text per fact in which its value is answered: half from the records, half reworded.

    Where a fact has only one of the two, that one is taken; a fact that no text answers is left out.
    """
    order = list(attributes)
    rng.shuffle(order)
    chosen: dict[str, Record] = {}
    for index, attribute in enumerate(order):
        pools = [[r for r in pool if answered_span(r, attribute)] for pool in (records, reworded)]
        pool = pools[index % 2] or pools[1 - index % 2]
        if pool:
            chosen[attribute] = rng.choice(pool)
    return {attribute: chosen[attribute] for attribute in attributes if attribute in chosen}
