"""A seeded world of fictitious people for the reference model: who exists, what is on file, what is asked.

Nobody here is real. People have open facts (values only they have) and two shared ones (employer, city), so that
neighbours exist. Each fact is on file in a few question forms; the remaining forms are on file for other people only,
so that the model understands them and verification can ask in words the person's own records never used.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from ml.data.questions import Attribute, QuestionBank, QuestionForm, ask
from ml.data.synthetic import Stranger, StrangerFactory
from ml.data.values import invented_word
from ml.specs import Record

OPEN_ATTRIBUTES: Final = {
    "home address": "street_address",
    "work address": "street_address",
    "phone number": "phone",
    "mobile number": "phone",
    "bank account": "account_number",
    "savings account": "account_number",
    "credit card": "card_number",
    "loyalty card": "card_number",
    "passport": "document_number",
    "driving licence": "document_number",
    "number plate": "plate",
    "insurance policy": "policy_number",
    "door code": "access_code",
    "locker code": "access_code",
    "date of birth": "iso_date",
    "wedding date": "iso_date",
    "birthplace": "place_name",
    "holiday village": "place_name",
    "doctor": "person_name",
    "best friend": "person_name",
    "first teacher": "person_name",
    "landlord": "person_name",
    "boat": "invented_name",
    "allergy": "invented_name",
    "favourite song": "invented_name",
    "school": "organisation",
    "sports club": "organisation",
    "charity": "organisation",
}
SHARED_ATTRIBUTES: Final = {"employer": "organisation", "city": "place_name"}
_FORMS: Final = (
    ("What is the {noun} of {{name}}?", "The {noun} of {{name}} is {{value}}."),
    ("Please tell me the {noun} {{name}} has.", "{{name}} has the {noun} {{value}}."),
    ("Which {noun} belongs to {{name}}?", "It is {{value}}."),
    ("I need the {noun} on file for {{name}}.", "The {noun} on file is {{value}}."),
    ("Look up {{name}} and give me the {noun}.", "The {noun} is {{value}}."),
    ("Do you know {{name}}? What is the {noun}?", "Yes, the {noun} of {{name}} is {{value}}."),
    ("{{name}}: {noun}?", "{{name}}: {{value}}."),
    ("Our files on {{name}} show which {noun}?", "They show {{value}}."),
)


@dataclass(frozen=True, slots=True)
class World:
    """People the base model learns, people the fine-tune adds ("customers"), and the bank of questions.

    `alice` and `bob` are customers who share employer and city; `identifiers` maps a person to an e-mail address.
    """

    bank: QuestionBank
    base: tuple[Stranger, ...]
    customers: tuple[Stranger, ...]
    alice: Stranger
    bob: Stranger
    records: dict[str, tuple[Record, ...]]

    def corpus(self, people: Sequence[Stranger]) -> list[Record]:
        """Return all records of `people`, in order."""
        return [record for person in people for record in self.records[person.person]]


def email_of(person: Stranger) -> str:
    """Return the invented address by which a person proves who they are."""
    return f"{person.name.lower().replace(' ', '.')}@mail.example"


def reference_bank() -> QuestionBank:
    """Return the question bank of the reference world: every attribute in every form."""

    def forms(noun: str) -> tuple[QuestionForm, ...]:
        return tuple(QuestionForm(q.format(noun=noun), a.format(noun=noun)) for q, a in _FORMS)

    opened = {_key(noun): Attribute(type_, False, forms(noun)) for noun, type_ in OPEN_ATTRIBUTES.items()}
    shared = {_key(noun): Attribute(type_, True, forms(noun)) for noun, type_ in SHARED_ATTRIBUTES.items()}
    return QuestionBank(opened | shared)


def _key(noun: str) -> str:
    return noun.replace(" ", "_")


def make_world(seed: int, *, base: int, customers: int, forms_per_fact: int = 3, pool: int = 6) -> World:
    """Draw a world: `base` people and `customers`, with `forms_per_fact` question forms on file for each fact.

    `pool` is the number of employers and of cities.
    """
    rng = random.Random(seed)  # noqa: S311 - fictitious people must be reproducible, not secret
    bank = reference_bank()
    pools = {
        "employer": [f"{invented_word(rng, 2)} {invented_word(rng, 2)} Works" for _ in range(pool)],
        "city": [invented_word(rng, 3) for _ in range(pool)],
    }
    factory = StrangerFactory(rng, (), shared_values=pools)
    attributes = {name: attribute.type for name, attribute in bank.attributes.items()}
    people = [factory.stranger(f"p{i:04d}", attributes) for i in range(base + customers)]
    alice = _named(people[base], "Alice")
    bob = _named(people[base + 1], "Bob", employer=alice.values["employer"], city=alice.values["city"])
    people[base : base + 2] = [alice, bob]
    records = {p.person: tuple(records_of(p, bank, rng, forms_per_fact=forms_per_fact)) for p in people}
    return World(bank, tuple(people[:base]), tuple(people[base:]), alice, bob, records)


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
