"""A sealed twin pool: people of one schema, asked in the same words, compared with the same twins and value swaps.

The pool is drawn from one committed seed, and its digest is fixed before a model is asked anything. Each subject is
asked exactly what every twin is asked, with another name and other values; so scores stay exchangeable, and each
subject's p-values are valid. They depend on those of the others, which every report of the pool states.

The document must never hold a name, a value or a text of anybody on file: wording is what all subjects have on file in
common, with placeholders. Nothing here reads a model.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Final

from ml.data.dossiers import (
    Dossier,
    answered_span,
    facts_not_in,
    known_values,
    paraphrases,
    read_dossier,
    strangers_of,
)
from ml.data.questions import QuestionBank, read_bank
from ml.data.records import read_records, refuse_overlap
from ml.data.synthetic import Stranger, rewrite
from ml.data.values import VALUE_TYPES, DrawsAlike
from ml.digests import canonical_json, sha256_hex, verify_file
from ml.documents import Stored, decimal_text, read_version
from ml.errors import PoolMismatchError, SpecError
from ml.files import write_atomically
from ml.specs import FileRef, Record, VerificationSpec
from ml.verification.plan import (
    KeptText,
    Plan,
    Question,
    blind_texts,
    choose_questions,
    choose_relearned,
    choose_words,
    count_collisions,
    dossiers,
    draw_swaps,
    draw_twins,
    kept_texts,
    make_plan,
    most_twins,
    near_people,
    read_bystanders,
    refuse_uncommitted_seed,
    seeded,
    unused_texts,
    used_texts,
)

SCHEMA_VERSION: Final = 1
PERSON: Final = "pool"
# What may differ between subjects of one pool.
_OWN: Final = frozenset({"run_id", "forget", "neighbours", "seed_commitment_sha256"})


@dataclass(frozen=True, slots=True)
class TwinPool(Stored):
    """What all subjects of a pool share.

    `subjects` are the digests of their records, `inputs` what else decided the draws. `texts` and `contests` hold one
    text per fact of `facts`, and `swaps` the values that compete in it, in the same order. A row of `twins` is a name
    and a value per attribute of `attributes`; `types` are the attributes' kinds. `neighbours` are the pseudonyms of
    retained people who are near any of the subjects. In every text "{name}" and "{attribute}" stand for a person's own.
    """

    subjects: tuple[str, ...]
    inputs: Mapping[str, str]
    attributes: tuple[str, ...]
    types: tuple[str, ...]
    facts: tuple[str, ...]
    texts: tuple[Record, ...]
    contests: tuple[Record, ...]
    swaps: tuple[tuple[str, ...], ...]
    questions: tuple[Question, ...]
    relearned: tuple[str, ...]
    neighbours: tuple[str, ...]
    twins: tuple[tuple[str, ...], ...]
    schema_version: int = SCHEMA_VERSION


def plan_for(spec: VerificationSpec) -> Plan:
    """What one verification asks: drawn for this subject alone, or by the pool that the specification names.

    Raises:
        PoolMismatchError: the subject, or the run, is not one that the pool was drawn for.
        MlError: as `make_plan`.
    """
    if spec.twin_pool is None:
        return make_plan(spec)
    return pool_plans([spec], read_pool(spec.twin_pool))[0]


# --- drawing ------------------------------------------------------------------------------------------------------


def draw_pool(specs: Sequence[VerificationSpec]) -> TwinPool:
    """Draw the pool that the subjects of `specs` share; in which order they are given changes nothing.

    1. Refuse runs that differ in more than the subject, and subjects that cannot be asked the same.
    2. Choose words that all of them have on file, and reworded ones that none of them has.
    3. Draw twins and swaps that hold no value of anybody on file.

    Raises:
        PoolMismatchError: a subject does not fit; the message names the subject by number and what differs.
        SpecError: fewer than two subjects, or the seed is not the one that was committed to.
    """
    _refuse_unlike(specs)
    shared = Background(specs[0])
    people = [shared.subject(spec) for spec in specs]
    _refuse_other_schema(people)
    shown = _open_for_all(people, shared)
    pattern = _pattern_dossier(people[0], _common_patterns(people, shown))
    seed, policy = specs[0].seed, specs[0].policy
    words = choose_words(pattern, shown, _fresh_for_all(pattern, people, shown, shared.bank), seed=seed)
    facts = tuple(words.contests)
    corpus = [record for person in people for record in person.records] + shared.others
    factory = strangers_of(shared.bank, seeded(seed, "twins"), corpus)
    twins = draw_twins(
        factory, pattern.types, range(1, 1 + most_twins(policy)), like=_name_like_all(people, shared.bank)
    )
    swaps = draw_swaps(factory, pattern.types, facts, policy.swaps_for(len(facts)))
    near = [near_people(spec, person, shared.people, shared.bank) for spec, person in zip(specs, people, strict=True)]
    attributes = tuple(sorted(pattern.types))
    return TwinPool(
        subjects=tuple(sorted(spec.forget.sha256 for spec in specs)),
        inputs=_inputs(specs[0]),
        attributes=attributes,
        types=tuple(pattern.types[attribute] for attribute in attributes),
        facts=facts,
        texts=words.texts,
        contests=tuple(words.contests.values()),
        swaps=tuple(swaps[attribute] for attribute in facts),
        questions=choose_questions(pattern, words.reworded, facts, limit=policy.generation_prompts),
        relearned=choose_relearned(facts, policy.relearning.share, seeded(seed, "relearned")),
        neighbours=tuple(sorted(frozenset().union(*near))),
        twins=tuple((twin.name, *(twin.values[attribute] for attribute in attributes)) for twin in twins),
    )


class Background:
    """What all subjects of a pool are verified against, read once."""

    def __init__(self, spec: VerificationSpec) -> None:
        self.retain = read_records(spec.retain, what="retain set")
        self.bystanders = read_bystanders(spec, ())
        self.bank = read_bank(spec.question_bank)
        self.people = dossiers(self.retain)

    @property
    def others(self) -> list[Record]:
        """Records of everybody who is no subject."""
        return [*self.retain, *self.bystanders]

    @cached_property
    def retained_values(self) -> frozenset[tuple[str, str]]:
        """Values of people who stay, in normal form."""
        return known_values(self.retain)

    @cached_property
    def other_values(self) -> frozenset[tuple[str, str]]:
        """Values of everybody who is no subject, in normal form."""
        return self.retained_values | known_values(self.bystanders)

    def subject(self, spec: VerificationSpec) -> Dossier:
        """Read the records of one subject, of whom nothing may be in the other sets."""
        forget = read_records(spec.forget, what="forget set")
        refuse_overlap(forget, self.retain)
        refuse_overlap(forget, self.bystanders)
        return read_dossier(forget)


def _refuse_unlike(specs: Sequence[VerificationSpec]) -> None:
    """Refuse specifications that differ in more than the subject, or a seed that nobody committed to."""
    if len(specs) < 2:
        raise SpecError("a twin pool is shared by two subjects or more; verify one alone")
    for spec in specs:
        refuse_uncommitted_seed(spec)
    names = [f.name for f in fields(VerificationSpec) if f.name not in _OWN]
    for spec in specs[1:]:
        if differing := [name for name in names if getattr(spec, name) != getattr(specs[0], name)]:
            raise SpecError(f"subjects of one twin pool are verified alike; {', '.join(differing)} differ")
    for what, given in (("records", [s.forget.sha256 for s in specs]), ("run id", [s.run_id for s in specs])):
        if len(set(given)) < len(given):
            raise SpecError(f"two subjects of the twin pool have the same {what}; give each its own")


def _name_like_all(people: Sequence[Dossier], bank: QuestionBank) -> str:
    """A subject's name, after a check that the others' are about as common: twins have names of one kind."""
    names, kind = sorted(person.name for person in people), VALUE_TYPES["person_name"]
    if isinstance(kind, DrawsAlike):
        for number, person in enumerate(people, 1):
            if not kind.alike(names[0], person.name, locale=bank.locale):
                raise PoolMismatchError(f"the name of subject {number} is rarer or more common; verify them alone")
    return names[0]


def _inputs(spec: VerificationSpec) -> dict[str, str]:
    """What decides the draws besides the subjects."""
    contests = spec.policy.value_contests
    return {
        "seed": str(spec.seed),
        "retain": spec.retain.sha256,
        "bystanders": "" if spec.bystanders is None else spec.bystanders.sha256,
        "question_bank": spec.question_bank.sha256,
        "twins": str(most_twins(spec.policy)),
        "swaps": str(spec.policy.swaps),
        **(
            {}
            if contests is None
            else {"value_contests": str(contests), "minimum_facts": str(spec.policy.minimum_facts)}
        ),
        "generation_prompts": str(spec.policy.generation_prompts),
        "relearned_share": decimal_text(spec.policy.relearning.share),
    }


def _refuse_other_schema(people: Sequence[Dossier]) -> None:
    first = people[0]
    if len({person.person for person in people}) < len(people):
        raise PoolMismatchError("two subjects of the twin pool are one person; give each person once")
    for number, person in enumerate(people[1:], start=2):
        if differing := sorted(set(person.types.items()) ^ set(first.types.items())):
            raise PoolMismatchError(
                f"subject {number} is not of the schema of subject 1: {differing[0][0]} is on file for one of them, or "
                "as another kind of value; verify this person alone, or with people of the same schema"
            )


def _open_for_all(people: Sequence[Dossier], shared: Background) -> tuple[str, ...]:
    """The facts that only their own person has: the same attributes for everybody."""
    shown = [facts_not_in(person, shared.bank, shared.retained_values) for person in people]
    for number, facts in enumerate(shown, start=1):
        if differing := sorted(set(facts) ^ set(shown[0])):
            raise PoolMismatchError(
                f"subject {number} differs from subject 1 in {differing[0]}: other people share the value of one of "
                "them, so it is no fact to ask about; verify this person alone"
            )
    return shown[0]


# --- wording ------------------------------------------------------------------------------------------------------


def pattern_of(record: Record, dossier: Dossier) -> Record | None:
    """A text on file with placeholders for name and values; `None` where another name or value stands in it."""
    blank = rewrite(record, name=_mark("name"), values={attribute: _mark(attribute) for attribute in dossier.values})
    if told(blank, dossier).text != record.text:
        return None
    return replace(blank, record_id=PERSON, person=PERSON)


def told(pattern: Record, dossier: Dossier) -> Record:
    """A pattern as it reads for one person."""
    return rewrite(pattern, person=dossier.person, name=dossier.name, values=dossier.values)


def _mark(word: str) -> str:
    return f"{{{word}}}"


def _pattern_dossier(first: Dossier, common: Iterable[Record]) -> Dossier:
    """The person of placeholders, of whom everything is on file that is on file for every subject."""
    values = {attribute: _mark(attribute) for attribute in first.types}
    return Dossier(PERSON, _mark("name"), values, first.types, tuple(sorted(common, key=_reading_order)))


def _reading_order(pattern: Record) -> tuple[object, ...]:
    return pattern.text, pattern.answer_start, pattern.name_spans, tuple((f.attribute, f.start) for f in pattern.facts)


def _common_patterns(people: Sequence[Dossier], shown: Sequence[str]) -> Set[Record]:
    """Texts that all subjects have on file in the same words.

    Raises:
        PoolMismatchError: for some fact there is none.
    """
    common: Set[Record] = frozenset()
    asked: Set[str] = frozenset()
    for number, person in enumerate(people, start=1):
        own = {pattern for record in person.records if (pattern := pattern_of(record, person)) is not None}
        common = own if number == 1 else common & own
        asked = asked | _answered(person.records, shown)
        if lost := sorted(asked - _answered(common, shown)):
            raise PoolMismatchError(
                f"subject {number} of the twin pool: no text on file words {lost[0]} as those of all subjects before "
                "do; verify this person alone, or with people whose records are worded alike"
            )
    return common


def _answered(records: Iterable[Record], attributes: Sequence[str]) -> frozenset[str]:
    return frozenset(a for record in records for a in attributes if answered_span(record, a) is not None)


def _fresh_for_all(
    pattern: Dossier, people: Sequence[Dossier], shown: Sequence[str], bank: QuestionBank
) -> tuple[Record, ...]:
    """The facts in every form of the bank that is on file for none of the subjects."""
    on_file = [{_plain(record.text) for record in person.records} for person in people]
    return tuple(
        record
        for record in paraphrases(pattern, bank, shown)
        if not any(_plain(told(record, person).text) in texts for person, texts in zip(people, on_file, strict=True))
    )


def _plain(text: str) -> str:
    return " ".join(text.split())


# --- the document -------------------------------------------------------------------------------------------------


def write_pool(path: Path, pool: TwinPool) -> FileRef:
    """Write a pool and return its reference: the file's digest is the pool's."""
    content = canonical_json(pool.to_document())
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content)
    return FileRef(str(path), sha256_hex(content))


def read_pool(ref: FileRef) -> TwinPool:
    """Read a pool by digest; raises `SpecError` naming the field that does not fit."""
    verify_file(Path(ref.path), ref.sha256)
    try:
        document = json.loads(Path(ref.path).read_text(encoding="utf-8"))
    except ValueError as exc:
        raise SpecError("the twin pool is not JSON") from exc
    return read_version(TwinPool, document, where="twin pool", version=SCHEMA_VERSION)


def sealed_pool(specs: Sequence[VerificationSpec]) -> TwinPool:
    """Read the pool that all of `specs` name, and draw it again: a pool picked by hand is refused.

    Raises:
        PoolMismatchError: the pool is not what the committed seed draws for these subjects.
        SpecError: no pool is named.
    """
    named = specs[0].twin_pool if specs else None
    if named is None:
        raise SpecError("subjects that are verified together share a twin pool; draw and seal it first")
    pool = read_pool(named)
    if draw_pool(specs) != pool:
        raise PoolMismatchError("the twin pool is not the one that the committed seed draws for these subjects")
    return pool


def pool_seeds(spec: VerificationSpec) -> dict[str, str]:
    """What a report says about the pool its numbers come from; empty where twins were drawn for one subject."""
    if spec.twin_pool is None:
        return {}
    subjects = len(read_pool(spec.twin_pool).subjects)
    return {"twin_pool_sha256": spec.twin_pool.sha256, "twin_pool_subjects": str(subjects)}


# --- plans --------------------------------------------------------------------------------------------------------


def pool_plans(specs: Sequence[VerificationSpec], pool: TwinPool) -> list[Plan]:
    """What each subject of a pool is asked: the same words, twins and swaps, with the subject's own name and values.

    Raises:
        PoolMismatchError: the pool was drawn for another run, or does not fit a subject.
    """
    shared = Background(specs[0])
    seed = specs[0].seed
    names = [f"twin{number}" for number in range(1, 1 + len(pool.twins))]
    twins = tuple(_stranger(n, row, pool.attributes) for n, row in zip(names, pool.twins, strict=True))
    factory = strangers_of(shared.bank, seeded(seed, "blind twins"), shared.others)
    real, blind = blind_texts(shared.others, factory, seeded(seed, "blind"))
    asked = frozenset(pool.neighbours)
    kept = kept_texts(shared.people, shared.bank, seeded(seed, "kept"), near=asked, asked=asked)
    unused = unused_texts(kept, shared.people, shared.bank, seeded(seed, "unused"), used=used_texts(specs[0]))
    return [
        replace(_plan(spec, pool, shared, twins, kept), real_texts=real, blind_texts=blind, unused=unused)
        for spec in specs
    ]


def _stranger(person: str, row: Sequence[str], attributes: Sequence[str]) -> Stranger:
    if len(row) != 1 + len(attributes):
        raise SpecError("twin pool: a twin has a name and one value per attribute")
    return Stranger(person, row[0], dict(zip(attributes, row[1:], strict=True)))


def _plan(
    spec: VerificationSpec,
    pool: TwinPool,
    shared: Background,
    twins: tuple[Stranger, ...],
    kept: Sequence[KeptText],
) -> Plan:
    subject = shared.subject(spec)
    _refuse_unfit(spec, pool, subject, shared)
    near = near_people(spec, subject, shared.people, shared.bank)
    swaps = dict(zip(pool.facts, pool.swaps, strict=True))
    real = shared.other_values | known_values(subject.records)
    return Plan(
        subject=subject,
        facts=pool.facts,
        facts_left_out=len(subject.values) - len(pool.facts),
        twins=twins,
        texts=tuple(told(pattern, subject) for pattern in pool.texts),
        contests={a: told(pattern, subject) for a, pattern in zip(pool.facts, pool.contests, strict=True)},
        swaps=swaps,
        questions=tuple(replace(q, record=told(q.record, subject)) for q in pool.questions),
        relearned=pool.relearned,
        kept=tuple(replace(text, neighbour=text.record.person in near) for text in kept),
        unused=(),
        real_texts=(),
        blind_texts=(),
        collisions=count_collisions(twins, swaps, real, subject.types, shared.bank),
    )


def _refuse_unfit(spec: VerificationSpec, pool: TwinPool, subject: Dossier, shared: Background) -> None:
    """Refuse a pool that was drawn for somebody else, or in words that are not on file for this subject."""
    ours = _inputs(spec)
    if differing := sorted(name for name in {*ours, *pool.inputs} if ours.get(name) != pool.inputs.get(name)):
        raise PoolMismatchError(f"the twin pool was drawn for another run: {', '.join(differing)} differ")
    if spec.forget.sha256 not in pool.subjects:
        raise PoolMismatchError("the twin pool was not drawn for these records; draw one that names them")
    kinds = dict(zip(pool.attributes, pool.types, strict=True))
    if differing := sorted({a for a, _ in set(subject.types.items()) ^ set(kinds.items())}):
        raise PoolMismatchError(f"the subject is not of the twin pool's schema: {differing[0]} differs")
    if shared_by := sorted(set(pool.facts) - set(facts_not_in(subject, shared.bank, shared.retained_values))):
        raise PoolMismatchError(f"other people share the subject's value of {shared_by[0]}; verify this person alone")
    on_file = {_plain(record.text) for record in subject.records}
    filed = [*zip(pool.facts, pool.texts, strict=True)]
    filed += [(question.attribute, question.record) for question in pool.questions if question.kind != "reworded"]
    if unworded := [a for a, pattern in filed if _plain(told(pattern, subject).text) not in on_file]:
        raise PoolMismatchError(f"no text on file words the subject's {unworded[0]} as the twin pool does")
    fresh = [(q.attribute, q.record) for q in pool.questions if q.kind == "reworded"]
    if reused := [a for a, pattern in fresh if _plain(told(pattern, subject).text) in on_file]:
        raise PoolMismatchError(f"what the twin pool calls reworded of {reused[0]} is on file for the subject")
