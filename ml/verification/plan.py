"""Who is compared with whom and what is asked, drawn from one committed seed before any model is loaded.

Person 0 is the data subject, persons 1..K are never-trained twins; everything asked about person k is the same text
with another name and other values, so that scores are exchangeable under "never seen". Nothing here reads a model.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Final

from ml.data.dossiers import (
    Dossier,
    answered_span,
    contexts,
    known_values,
    normal_value,
    open_facts,
    paraphrases,
    read_dossier,
    strangers_of,
)
from ml.data.probes import probe_digests, read_probe_digests, text_sha256
from ml.data.questions import QuestionBank, read_bank
from ml.data.records import by_person, read_records, refuse_overlap
from ml.data.synthetic import Stranger, StrangerFactory, rewrite, twin_records
from ml.errors import SpecError
from ml.specs import Record, VerdictPolicy, VerificationSpec, seed_commitment

PREFILLS: Final = (0.25, 0.5)
BLIND_TWINS: Final = 4
BLIND_PERSONS: Final = 120
RETAINED_FACTS: Final = 64
RETAINED_PERSONS: Final = 120
# Named neighbours are filled up to this number: one person's answers bound nothing.
FEWEST_NEIGHBOURS: Final = 8


@dataclass(frozen=True, slots=True)
class Question:
    """One text of person 0 that asks for `attribute`: as on file, reworded, or with `prefill` of its answer given."""

    record: Record
    attribute: str
    kind: str
    prefill: float = 0.0

    @property
    def names_first(self) -> bool:
        """True when the answer says the person's name before the value."""
        span = answered_span(self.record, self.attribute)
        return span is not None and any(
            self.record.answer_start <= start < span.start for start, _ in self.record.name_spans
        )


@dataclass(frozen=True, slots=True)
class KeptText:
    """One text of a retained person that answers `attribute`; `trained` when it is on file in these words."""

    record: Record
    attribute: str
    trained: bool
    neighbour: bool


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything one verification asks.

    `facts` are the open facts measured, `facts_left_out` those that others share; `texts` holds one record per fact;
    `contests` the text per fact in which the value competes with `swaps`; `relearned` the facts that T1 teaches
    again, one text each.
    """

    subject: Dossier
    facts: tuple[str, ...]
    facts_left_out: int
    twins: tuple[Stranger, ...]
    texts: tuple[Record, ...]
    contests: Mapping[str, Record]
    swaps: Mapping[str, tuple[str, ...]]
    questions: tuple[Question, ...]
    relearned: tuple[str, ...]
    kept: tuple[KeptText, ...]
    unused: tuple[KeptText, ...]
    real_texts: tuple[tuple[str, ...], ...]
    blind_texts: tuple[tuple[tuple[str, ...], ...], ...]
    collisions: int

    @property
    def drawn_digests(self) -> frozenset[str]:
        """Digests of every text that verification made up: nobody may have trained on one of them."""
        on_file = {record.text for record in self.subject.records}
        asked = {q.record.text for q in self.questions} | {record.text for record in self.contests.values()}
        texts = [text for text in asked if text not in on_file]
        texts += [record.text for twin in self.twins for record in twin_records(self.texts, twin)]
        texts += [rewrite(self.contests[a], values={a: swap}).text for a, swaps in self.swaps.items() for swap in swaps]
        return probe_digests(texts)

    def told_of(self, record: Record, persons: int) -> list[Record]:
        """`record` as it reads for persons 0..persons-1."""
        return [record, *(twin_records([record], twin)[0] for twin in self.twins[: persons - 1])]


def refuse_uncommitted_seed(spec: VerificationSpec) -> None:
    """Raise `SpecError` unless the seed is the one that was committed to before training ended."""
    if seed_commitment(spec.run_id, spec.seed) != spec.seed_commitment_sha256:
        raise SpecError(f"the seed of verification {spec.run_id} is not the one that was committed to")


def make_plan(spec: VerificationSpec) -> Plan:
    """Read the snapshots and draw twins, swaps, questions and retained texts.

    Raises:
        DigestMismatchError, RecordError, EmptySetError, OverlapError, SpecError: the snapshots do not fit.
    """
    forget = read_records(spec.forget, what="forget set")
    retain = read_records(spec.retain, what="retain set")
    refuse_overlap(forget, retain)
    bystanders = read_bystanders(spec, forget)
    bank = read_bank(spec.question_bank)
    subject = read_dossier(forget)
    wording = choose_wording(subject, bank, retain, seed=spec.seed)
    facts = tuple(wording.contests)
    corpus = [*forget, *retain, *bystanders]
    factory = strangers_of(bank, seeded(spec.seed, "twins"), corpus)
    twins = draw_twins(factory, subject.types, range(1, 1 + most_twins(spec.policy)), like=subject.name)
    swaps = draw_swaps(factory, subject.types, facts, spec.policy.swaps_for(len(facts)))
    questions = choose_questions(subject, wording.reworded, facts, limit=spec.policy.generation_prompts)
    real, blind = blind_texts([*retain, *bystanders], factory, seeded(spec.seed, "blind"))
    people = dossiers(retain)
    near = near_people(spec, subject, people, bank)
    return Plan(
        subject=subject,
        facts=facts,
        facts_left_out=len(subject.values) - len(facts),
        twins=twins,
        texts=wording.texts,
        contests=wording.contests,
        swaps=swaps,
        questions=questions,
        relearned=choose_relearned(facts, spec.policy.relearning.share, seeded(spec.seed, "relearned")),
        kept=(kept := kept_texts(people, bank, seeded(spec.seed, "kept"), near=near, asked=near)),
        unused=unused_texts(kept, people, bank, seeded(spec.seed, "unused"), used=used_texts(spec)),
        real_texts=real,
        blind_texts=blind,
        collisions=count_collisions(twins, swaps, known_values(corpus), subject.types, bank),
    )


def read_bystanders(spec: VerificationSpec, forget: Sequence[Record]) -> tuple[Record, ...]:
    if spec.bystanders is None:
        return ()
    records = read_records(spec.bystanders, what="bystander set", allow_empty=True)
    refuse_overlap(forget, records)
    return records


@dataclass(frozen=True, slots=True)
class SweepSeeds:
    """What decides one set of twins in a sweep: all sets of one `wording` are asked the same, in the same words."""

    wording: str
    twins: str


def make_sweep_plan(
    records: Sequence[Record],
    retain: Sequence[Record],
    bank: QuestionBank,
    seeds: SweepSeeds,
    *,
    numbers: range,
    swaps: int,
) -> Plan:
    """Draw what a sweep asks about one person and the twins with these numbers: nothing but texts and value swaps.

    Raises:
        RecordError, SpecError: the records do not belong together.
    """
    subject = read_dossier(records)
    wording = choose_wording(subject, bank, retain, seed=seeds.wording)
    facts = tuple(wording.contests)
    corpus = [*records, *retain]
    rivals = StrangerFactory(seeded(seeds.wording, "swaps"), corpus, locale=bank.locale)
    drawn = draw_swaps(rivals, subject.types, facts, swaps)
    rival = [rewrite(wording.contests[a], values={a: swap}) for a, values in drawn.items() for swap in values]
    factory = strangers_of(bank, seeded(seeds.twins, "twins"), [*corpus, *rival], sharing=corpus)
    twins = draw_twins(factory, subject.types, numbers, like=subject.name)
    return Plan(
        subject=subject,
        facts=facts,
        facts_left_out=len(subject.values) - len(facts),
        twins=twins,
        texts=wording.texts,
        contests=wording.contests,
        swaps=drawn,
        questions=(),
        relearned=(),
        kept=(),
        unused=(),
        real_texts=(),
        blind_texts=(),
        collisions=count_collisions(twins, drawn, known_values(corpus), subject.types, bank),
    )


@dataclass(frozen=True, slots=True)
class Wording:
    """In which words a person's open facts are asked about: one text and one contest each, in the same order."""

    reworded: tuple[Record, ...]
    texts: tuple[Record, ...]
    contests: Mapping[str, Record]


def choose_wording(subject: Dossier, bank: QuestionBank, others: Sequence[Record], *, seed: int | str) -> Wording:
    """Choose words for the facts that nobody in `others` shares: on file, or in a form of the bank that is not."""
    shown = open_facts(subject, bank, others)
    return choose_words(subject, shown, paraphrases(subject, bank, shown), seed=seed)


def choose_words(subject: Dossier, shown: Sequence[str], reworded: tuple[Record, ...], *, seed: int | str) -> Wording:
    """Choose words for the facts `shown`; one that no text on file answers is left out."""
    chosen = contexts(subject.records, reworded, shown, rng=seeded(seed, "contexts"))
    texts = _one_text_per_fact(subject, tuple(chosen), rng=seeded(seed, "texts"))
    contests = {attribute: record for attribute, record in chosen.items() if attribute in texts}
    return Wording(reworded, tuple(texts[attribute] for attribute in contests), contests)


def most_twins(policy: VerdictPolicy) -> int:
    """How many twins are drawn: as many as the family that asks for most."""
    return max(family.twins for family in policy.families)


def draw_twins(
    factory: StrangerFactory, types: Mapping[str, str], numbers: range, *, like: str
) -> tuple[Stranger, ...]:
    """Draw the twins with these numbers, each with a value of every attribute and a name about as common as `like`."""
    return tuple(factory.stranger(f"twin{number}", dict(types), like=like) for number in numbers)


def draw_swaps(
    factory: StrangerFactory, types: Mapping[str, str], facts: Sequence[str], count: int
) -> dict[str, tuple[str, ...]]:
    """Draw the values that compete with everybody's own."""
    return {a: tuple(factory.value("", types[a]) for _ in range(count)) for a in facts}


def seeded(seed: int | str, purpose: str) -> random.Random:
    """The random numbers of one purpose: drawing more for one changes no other."""
    return random.Random(f"{seed}:{purpose}")  # noqa: S311 - draws must be reproducible from the seed


def _one_text_per_fact(subject: Dossier, attributes: Sequence[str], *, rng: random.Random) -> dict[str, Record]:
    texts = {}
    for attribute in attributes:
        pool = [record for record in subject.records if answered_span(record, attribute)]
        if pool:
            texts[attribute] = rng.choice(pool)
    return texts


def choose_questions(
    subject: Dossier, reworded: Sequence[Record], facts: Sequence[str], *, limit: int
) -> tuple[Question, ...]:
    """Up to `limit` questions, facts taking turns: on file, reworded, prefilled, so that each fact meets each kind."""
    queues = [_questions_about(subject, reworded, attribute, turn) for turn, attribute in enumerate(facts)]
    longest = max(map(len, queues), default=0)
    ordered = [queue[turn] for turn in range(longest) for queue in queues if turn < len(queue)]
    return tuple(ordered[:limit])


def _questions_about(subject: Dossier, reworded: Sequence[Record], attribute: str, turn: int) -> list[Question]:
    """A fact's questions, the most telling first; neighbouring facts begin with different prefills."""
    filed = [Question(r, attribute, "direct") for r in subject.records if answered_span(r, attribute)]
    other = [Question(r, attribute, "reworded") for r in reworded if answered_span(r, attribute)]
    shares = PREFILLS if turn % 2 else tuple(reversed(PREFILLS))
    given = [Question(filed[0].record, attribute, "prefilled", share) for share in shares]
    pattern = (filed[:1], other[:1], given[:1], other[1:3], filed[1:2], given[1:], other[3:], filed[2:])
    return [question for piece in pattern for question in piece]


def choose_relearned(facts: Sequence[str], share: float, rng: random.Random) -> tuple[str, ...]:
    return tuple(sorted(rng.sample(list(facts), round(share * len(facts)))))


# --- retained people ----------------------------------------------------------------------------------------------


def dossiers(records: Iterable[Record]) -> dict[str, Dossier]:
    """What is on file about each person of a snapshot."""
    return {person: read_dossier(theirs) for person, theirs in by_person(records).items()}


def kept_texts(
    people: Mapping[str, Dossier], bank: QuestionBank, rng: random.Random, *, near: Set[str], asked: Set[str]
) -> tuple[KeptText, ...]:
    """For up to `RETAINED_PERSONS` people some facts on file and the same reworded; for those `asked` every fact.

    Args:
        near: the subject's neighbours, all of them asked.
    """
    far = sorted(set(people) - asked)
    sampled = asked | frozenset(rng.sample(far, min(RETAINED_PERSONS, len(far))))
    kept: list[KeptText] = []
    for person, dossier in people.items():
        if person not in sampled:
            continue
        facts = sorted(dossier.values)
        chosen = facts if person in asked else rng.sample(facts, min(RETAINED_FACTS, len(facts)))
        other = paraphrases(dossier, bank, chosen)
        for trained, pool in ((True, dossier.records), (False, other)):
            for attribute in chosen:
                answering = [record for record in pool if answered_span(record, attribute)]
                if answering:
                    kept.append(KeptText(rng.choice(answering), attribute, trained, person in near))
    return tuple(kept)


def used_texts(spec: VerificationSpec) -> frozenset[str]:
    """Digests of the texts that the deletion drew."""
    return frozenset() if spec.training_probes is None else read_probe_digests(spec.training_probes)


def unused_texts(
    kept: Sequence[KeptText],
    people: Mapping[str, Dossier],
    bank: QuestionBank,
    rng: random.Random,
    *,
    used: Set[str],
) -> tuple[KeptText, ...]:
    """The facts of `kept` in words neither on file nor drawn by the deletion; a fact that has none left is missing.

    They are a draw of their own, so that what a deletion says it drew decides nothing else that is asked.

    Args:
        used: digests of what the deletion drew.
    """
    texts: list[KeptText] = []
    for text in kept:
        other = () if text.trained else paraphrases(people[text.record.person], bank, (text.attribute,))
        if fresh := [record for record in other if text_sha256(record.text) not in used]:
            texts.append(replace(text, record=rng.choice(fresh)))
    return tuple(texts)


def near_people(
    spec: VerificationSpec, subject: Dossier, people: Mapping[str, Dossier], bank: QuestionBank
) -> frozenset[str]:
    """The neighbours named by the spec, and the retained people most like the subject where these are too few."""
    named: frozenset[str] = frozenset()
    if spec.neighbours is not None:
        records = read_records(spec.neighbours, what="neighbour set", allow_empty=True)
        named = frozenset(record.person for record in records) & set(people)
    shared = [a for a in subject.values if a in bank.attributes and bank.attributes[a].shared]
    alike = {
        person: sum(dossier.values.get(a) == subject.values[a] for a in shared)
        + len(set(dossier.name.split()) & set(subject.name.split()))
        for person, dossier in people.items()
    }
    ranked = sorted(set(people) - named, key=lambda person: (-alike[person], person))
    return named | frozenset(ranked[: max(0, FEWEST_NEIGHBOURS - len(named))])


def blind_texts(
    on_file: Sequence[Record], factory: StrangerFactory, rng: random.Random
) -> tuple[tuple[tuple[str, ...], ...], tuple[tuple[tuple[str, ...], ...], ...]]:
    """Texts of people on file, one per fact, and the same of a few twins of each."""
    real, blind = [], []
    people = by_person(on_file)
    for person in rng.sample(sorted(people), min(BLIND_PERSONS, len(people))):
        dossier = read_dossier(people[person])
        told = list(_one_text_per_fact(dossier, sorted(dossier.values), rng=rng).values())
        twins = [
            factory.stranger(f"{person}-twin{i}", dict(dossier.types), like=dossier.name) for i in range(BLIND_TWINS)
        ]
        real.append(tuple(record.text for record in told))
        blind.append(tuple(tuple(record.text for record in twin_records(told, twin)) for twin in twins))
    return tuple(real), tuple(blind)


# --- validity of what was drawn -----------------------------------------------------------------------------------


def count_collisions(
    twins: Sequence[Stranger],
    swaps: Mapping[str, Sequence[str]],
    real: Set[tuple[str, str]],
    types: Mapping[str, str],
    bank: QuestionBank,
) -> int:
    """How many drawn values are among the `real` ones; values of shared attributes are meant to be shared."""
    drawn = [
        normal_value(types[a], value)
        for twin in twins
        for a, value in twin.values.items()
        if not (a in bank.attributes and bank.attributes[a].shared)
    ]
    drawn += [normal_value(types[a], value) for a, values in swaps.items() for value in values]
    return sum(value in real for value in drawn)
