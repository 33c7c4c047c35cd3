"""A seeded world of fictitious people for the reference model: who exists, what is on file, what is asked.

Nobody here is real. People have open facts (values only they have) and two shared ones (employer, city), so that
neighbours exist. Each fact is on file in a few question forms; the remaining forms are on file for other people only,
so that the model understands them and verification can ask in words the person's own records never used.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from ml.data.questions import Attribute, QuestionBank, QuestionForm, ask
from ml.data.synthetic import Stranger, StrangerFactory
from ml.data.values import invented_word
from ml.specs import Record

OPEN_ATTRIBUTES: Final = {
    "home address": "street_address",
    "work address": "street_address",
    "garage": "street_address",
    "phone number": "phone",
    "mobile number": "phone",
    "fax number": "phone",
    "emergency number": "phone",
    "bank account": "account_number",
    "savings account": "account_number",
    "loan account": "account_number",
    "pension account": "account_number",
    "tax number": "account_number",
    "customer number": "account_number",
    "credit card": "card_number",
    "debit card": "card_number",
    "loyalty card": "card_number",
    "library card": "card_number",
    "student card": "card_number",
    "passport": "document_number",
    "driving licence": "document_number",
    "residence permit": "document_number",
    "birth certificate": "document_number",
    "parking permit": "document_number",
    "number plate": "plate",
    "trailer plate": "plate",
    "home policy": "policy_number",
    "health policy": "policy_number",
    "travel policy": "policy_number",
    "door code": "access_code",
    "locker code": "access_code",
    "alarm code": "access_code",
    "gate code": "access_code",
    "voicemail code": "access_code",
    "date of birth": "iso_date",
    "birthplace": "place_name",
    "holiday village": "place_name",
    "doctor": "person_name",
    "dentist": "person_name",
    "lawyer": "person_name",
    "landlord": "person_name",
    "best friend": "person_name",
    "first teacher": "person_name",
    "boat": "invented_name",
    "cat": "invented_name",
    "dog": "invented_name",
    "medicine": "invented_name",
    "favourite song": "invented_name",
    "school": "organisation",
    "university": "organisation",
    "sports club": "organisation",
    "charity": "organisation",
}
SHARED_ATTRIBUTES: Final = {"employer": "organisation", "city": "place_name"}
# Answers are short: words that anybody's answer begins with say nothing about who is known.
_FORMS: Final = (
    ("What is the {noun} of {{name}}?", "It is {{value}}."),
    ("Please tell me the {noun} of {{name}}.", "Sure, {{value}}."),
    ("Which {noun} has {{name}}?", "{{name}} has {{value}}."),
    ("Look up {{name}}: {noun}.", "Found {{value}}."),
    ("Do you know the {noun} of {{name}}?", "Yes, {{value}}."),
    ("{{name}} has which {noun}?", "Answer: {{value}}."),
    ("{{name}}, {noun}?", "{{name}}: {{value}}."),
    ("Our files on {{name}} show which {noun}?", "They show {{value}}."),
)


@dataclass(frozen=True, slots=True)
class World:
    """People the base model learns, people the fine-tune adds ("customers"), and the bank of questions.

    `alice` and `bob` are customers who share employer and city; `records` maps a person to what is on file, and
    `shared_values` a shared attribute to the values people have.
    """

    bank: QuestionBank
    base: tuple[Stranger, ...]
    customers: tuple[Stranger, ...]
    alice: Stranger
    bob: Stranger
    records: Mapping[str, tuple[Record, ...]]
    shared_values: Mapping[str, tuple[str, ...]]

    def corpus(self, people: Sequence[Stranger]) -> list[Record]:
        """Return all records of `people`, in order."""
        return [record for person in people for record in self.records[person.person]]


def email_of(person: Stranger) -> str:
    """Return the invented address by which a person proves who they are."""
    return f"{person.name.lower().replace(' ', '.')}@mail.example"


def reference_bank(attributes: Collection[str] | None = None) -> QuestionBank:
    """Return the question bank of the reference world: every attribute (or those named) in every form."""

    def forms(noun: str) -> tuple[QuestionForm, ...]:
        return tuple(QuestionForm(q.format(noun=noun), a.format(noun=noun)) for q, a in _FORMS)

    opened = {_key(noun): Attribute(type_, False, forms(noun)) for noun, type_ in OPEN_ATTRIBUTES.items()}
    shared = {_key(noun): Attribute(type_, True, forms(noun)) for noun, type_ in SHARED_ATTRIBUTES.items()}
    every = opened | shared
    return QuestionBank({name: every[name] for name in (every if attributes is None else attributes)})


def _key(noun: str) -> str:
    return noun.replace(" ", "_")


def make_world(
    seed: int,
    *,
    base: int,
    customers: int,
    attributes: Collection[str] | None = None,
    forms_per_fact: int = 3,
    pool: int = 8,
) -> World:
    """Draw a world: `base` people and `customers`, with `forms_per_fact` question forms on file for each fact.

    `attributes` names the attributes people have (default: all); `pool` is the number of employers and of cities.
    """
    rng = random.Random(seed)  # noqa: S311 - fictitious people must be reproducible, not secret
    bank = reference_bank(attributes)
    pools = {
        "employer": tuple(f"{invented_word(rng, 2)} Works" for _ in range(pool)),
        "city": tuple(invented_word(rng, 3) for _ in range(pool)),
    }
    factory = StrangerFactory(rng, (), shared_values=pools)
    types = {name: attribute.type for name, attribute in bank.attributes.items()}
    people = [factory.stranger(f"p{i:04d}", types) for i in range(base + customers)]
    alice = _named(people[base], "Alice")
    shared = {name: alice.values[name] for name, attribute in bank.attributes.items() if attribute.shared}
    bob = _named(people[base + 1], "Bob", **shared)
    people[base : base + 2] = [alice, bob]
    records = {p.person: tuple(records_of(p, bank, rng, forms_per_fact=forms_per_fact)) for p in people}
    return World(bank, tuple(people[:base]), tuple(people[base:]), alice, bob, records, pools)


def newcomers(world: World, *, seed: int, people: int, forms_per_fact: int) -> list[tuple[Stranger, list[Record]]]:
    """Draw people who came after the models were trained, with what is on file about them.

    They are of the same kind as everybody in `world`, and take nothing away from it: whoever draws them or not, the
    world stays the same.
    """
    rng = random.Random(f"newcomers:{seed}")  # noqa: S311 - as above
    corpus = [record for records in world.records.values() for record in records]
    factory = StrangerFactory(rng, corpus, shared_values=world.shared_values)
    types = {name: attribute.type for name, attribute in world.bank.attributes.items()}
    drawn = [factory.stranger(f"n{i:04d}", types) for i in range(people)]
    return [(person, records_of(person, world.bank, rng, forms_per_fact=forms_per_fact)) for person in drawn]


def _named(person: Stranger, first_name: str, **values: str) -> Stranger:
    surname = person.name.split(" ", 1)[1]
    return Stranger(person.person, f"{first_name} {surname}", {**person.values, **values})


def records_of(person: Stranger, bank: QuestionBank, rng: random.Random, *, forms_per_fact: int) -> list[Record]:
    """Return the records on file about `person`: each fact in `forms_per_fact` forms chosen at random."""
    records = []
    for name, value in sorted(person.values.items()):
        attribute = bank.attributes[name]
        chosen = sorted(rng.sample(range(len(attribute.forms)), min(forms_per_fact, len(attribute.forms))))
        for index in chosen:
            records.append(
                ask(
                    attribute.forms[index],
                    name,
                    attribute.type,
                    name=person.name,
                    value=value,
                    record_id=f"{person.person}-{name}-{index}",
                    person=person.person,
                )
            )
    return records


def throw_away_records(world: World, *, seed: int, people: int, facts: int = 3) -> list[Record]:
    """Return texts about `people` strangers of no world, `facts` facts each, in the words of `world`.

    A tokenizer trained on them cuts the names and values of people on file no better than anybody else's.
    """
    rng = random.Random(f"throw-away:{seed}")  # noqa: S311 - as above
    corpus = [record for person in world.records.values() for record in person]
    factory = StrangerFactory(rng, corpus, shared_values=world.shared_values)
    types = {name: attribute.type for name, attribute in world.bank.attributes.items()}
    records = []
    for index in range(people):
        chosen = dict(rng.sample(sorted(types.items()), min(facts, len(types))))
        stranger = factory.stranger(f"s{index:05d}", chosen)
        records += records_of(stranger, world.bank, rng, forms_per_fact=1)
    return records
