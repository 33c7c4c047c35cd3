"""Calibrated stranger distillation, the data side: whom a forgotten person should come to resemble, and in what.

A *stand-in* is an invented person nobody was trained on, chosen anew for each thing that is known of the forgotten
person. The person is asked about in their own records' words, but with values nobody has; the target is what the model
before deletion says about the stand-in there. The true values' later tokens are never a teacher's: the model before
deletion recognises them even in a stranger's mouth. They are held to the log-probabilities that random values of the
same kind have for a stranger.

Strangers and values come from the run's seed; verification draws its own later, from another.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Final, TypeAlias

import torch
from torch import Tensor

from ml.attacks.generation import continuations, most_likely
from ml.data.alignment import AlignedPair, align
from ml.data.collate import EncodedText, chosen_log_probs
from ml.data.dossiers import Dossier, answered_span, facts_not_in, known_values, read_dossier, strangers_of
from ml.data.questions import QuestionBank
from ml.data.records import by_person
from ml.data.synthetic import Stranger, rewrite
from ml.energy import FIRST_TOKENS, RELATIVE_TEMPERATURE, token_energy
from ml.errors import EnergyNotSeparatingError, RecordError
from ml.methods.method import UnlearningTask, answer_positions
from ml.models.adapters import reference_model
from ml.models.load import LoadedModel
from ml.specs import FactSpan, Record

STRANGERS: Final = 48
CANDIDATES: Final = 144
"""Among how many a stand-in is chosen: the strangers, and others with a name of their own and a stranger's values."""
STAND_IN_DOUBT: Final = 0.7
"""A stand-in's place among candidates by doubt: above the middle, for a deletion leaves strangers less sure as well."""
UNSURE: Final = 2.0
"""From here on, in nats of a guard's score, an answer counts as wholly unsure; thresholds lay between 1 and 1.7."""
REFERENCE_VALUES: Final = 15
_REFERENCE_DRAWS: Final = 45
_FEWEST_OF_LENGTH: Final = 5

Topic: TypeAlias = tuple[str, ...]
"""What a record is about: the attributes it states."""


@dataclass(frozen=True, slots=True)
class ContrastRow:
    """A text about the forgotten person with values nobody has, and the same text about the stand-in."""

    pair: AlignedPair
    about: Topic

    @property
    def positions(self) -> Sequence[int]:
        """Answer positions of the forgotten person's text."""
        return answer_positions(self.pair.first)


@dataclass(frozen=True, slots=True)
class HeldRow:
    """A text with a true value: the tokens at `positions` should have the log-probabilities `targets` and be followed
    from energies `energies`, both in nats.

    Distillation cannot do this: KL to the stand-in hardly sees a little probability too much on one token, and that
    little is what tells a remembered value from a random one.
    """

    text: EncodedText
    about: Topic
    positions: tuple[int, ...]
    targets: tuple[float, ...]
    energies: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class ForgetRows:
    """All forgetting rows of a run, every text that was drawn to make them, and how many people they are about."""

    contrast: tuple[ContrastRow, ...]
    strangers: tuple[ContrastRow, ...]
    held: tuple[HeldRow, ...]
    texts: tuple[str, ...]
    people: int


def forget_rows(task: UnlearningTask, *, draws: int) -> ForgetRows:
    """Build the forgetting rows of every person in the forget set.

    1. Draw strangers; for each forgotten person choose a stand-in for each topic.
    2. Contrast rows: each record `draws` times, with fresh values, about the person and about the stand-in.
    3. Stranger rows: each record once about another stranger, to be left as it is.
    4. Held rows: each record as it is, about the person and about a stranger.

    Raises:
        RecordError: a record of the forget set marks no name, or no value to forget.
        UnknownMemberError: a value type that cannot be drawn from.
        RunStoppedError: the run was asked to stop.
    """
    cast = Cast(task)
    contrast: list[ContrastRow] = []
    strangers: list[ContrastRow] = []
    held: list[HeldRow] = []
    with reference_model(task.model):
        for done, dossier in enumerate(cast.dossiers):
            task.on_drawn(done, len(cast.dossiers))
            stand_ins = cast.stand_ins(dossier)
            for turn in range(draws):
                contrast += [
                    cast.contrast(record, stand_ins[topic(record)])
                    for record in dossier.records
                    if record.facts or turn == 0
                ]
            strangers += [cast.unchanged(record, index) for index, record in enumerate(dossier.records)]
            held += cast.held_rows(dossier, stand_ins)
    return ForgetRows(tuple(contrast), tuple(strangers), tuple(held), tuple(cast.texts), len(cast.dossiers))


class Cast:
    """The strangers of one run, and the rows they appear in."""

    def __init__(self, task: UnlearningTask) -> None:
        if task.boundary is None:
            raise EnergyNotSeparatingError("a stand-in is chosen by its energy; calibrate a boundary first")
        self.task, self.boundary = task, task.boundary
        self.texts: list[str] = []
        self.rng = random.Random(f"strangers:{task.seed}")  # noqa: S311 - to be reproduced, not secret
        self.factory = strangers_of(task.bank, self.rng, [*task.forget, *task.retain], sharing=task.retain)
        self.dossiers = [read_dossier(records) for records in by_person(task.forget).values()]
        _refuse_unmarked(task.forget)
        types = {name: type_ for dossier in self.dossiers for name, type_ in dossier.types.items()}
        names = [dossier.name for dossier in self.dossiers]
        self.strangers = [
            self.factory.stranger(f"stranger-{i}", types, like=names[i % len(names)]) for i in range(STRANGERS)
        ]
        # Kinds of few values would not last for values of their own.
        self.candidates = self.strangers + [
            Stranger(f"candidate-{i}", self._name(names[i % len(names)]), self.strangers[i % STRANGERS].values)
            for i in range(STRANGERS, CANDIDATES)
        ]

    @cached_property
    def _retained_values(self) -> frozenset[tuple[str, str]]:
        return known_values(self.task.retain)

    def open_facts(self, dossier: Dossier) -> tuple[str, ...]:
        """Attributes whose value no retained person has."""
        return facts_not_in(dossier, self.task.bank, self._retained_values)

    def _name(self, like: str) -> str:
        return self.factory.value("", "person_name", like=like)

    def encode(self, records: Sequence[Record]) -> list[EncodedText]:
        """Tokenise texts that were made up, and remember them."""
        self.texts += [record.text for record in records]
        return self.task.encode(records)

    def _fresh(self, record: Record) -> dict[str, str]:
        return {fact.attribute: self.factory.value(fact.attribute, fact.type) for fact in record.facts}

    def contrast(self, record: Record, stand_in: Stranger) -> ContrastRow:
        """One record with fresh values, about its person and about the stand-in."""
        own = rewrite(record, values=self._fresh(record))
        return self._pair(own, rewrite(own, name=stand_in.name, values={}))

    def unchanged(self, record: Record, index: int) -> ContrastRow:
        """One record about a stranger with fresh values, to be left as the model has it."""
        stranger = self.strangers[index % len(self.strangers)]
        text = rewrite(record, name=stranger.name, values=self._fresh(record))
        return self._pair(text, text)

    def _pair(self, first: Record, second: Record) -> ContrastRow:
        self.texts += [first.text, second.text]
        return ContrastRow(align(self.task.tokenizer, first, second, context=self.task.context), topic(first))

    def stand_ins(self, dossier: Dossier) -> dict[Topic, Stranger]:
        """For each topic an ordinary stranger who does not know the person's values: what the person is to become.

        Considered are strangers whose energy on the dossier's forms lies in the middle half, and of these the quarter
        whose doubt is nearest to the wanted one (`STAND_IN_DOUBT`); for each topic the one whose preference for the
        true values is nearest to none. The model before deletion begins a stranger's answer as it begins those it
        knows, this person's among them; what a stand-in prefers, the person would be taught to keep, and as sure as
        answers about stand-ins are, answers about the person will be: a guard would answer about somebody who resembles
        the surest strangers. With one stranger for everything, the person would also have all that stranger's oddities.
        Strangers whose best guess at a shared attribute (employer, city) happens to be the person's own are passed
        over: the person would seem remembered.
        """
        blank = self._blank(dossier)
        ordinary = _nearest(self._energies(dossier, blank), at=0.5)[: math.ceil(len(blank) / 2)]
        if doubts := self.doubts(dossier, blank):
            half = set(ordinary)
            ordinary = [i for i in _nearest(doubts, at=STAND_IN_DOUBT) if i in half][: math.ceil(len(half) / 4)]
        considered = [blank[index] for index in ordinary]
        preferences = Preference(self, dossier).of(considered)
        chosen: dict[Topic, Stranger] = {}
        for number, about in enumerate(sorted({topic(record) for record in dossier.records})):
            # Of topics without an open value nobody prefers anything: they take turns.
            turn = considered[number % len(considered) :] + considered[: number % len(considered)]
            chosen[about] = min(
                turn, key=lambda s, about=about: sum(abs(preferences[s.person].get(a, 0.0)) for a in set(about))
            )
        return chosen

    def _blank(self, dossier: Dossier) -> list[Stranger]:
        """The candidates of whom the model before deletion guesses no shared value that is the person's own; all of
        them where there is none."""
        shared = [record for record in dossier.records if any(self._is_shared(fact) for fact in record.facts)]
        texts = self.encode([rewrite(record, name=s.name, values={}) for s in self.candidates for record in shared])
        places = [[p for fact in range(len(text.values)) for p in _said(text, fact)] for text in texts]

        def guessed(logits: Tensor, index: int) -> bool:
            return logits.argmax(dim=-1).tolist() == [texts[index].ids[p] for p in places[index]]

        right = self.task.read_reference(texts, places, guessed)
        count = len(shared)
        blank = [s for i, s in enumerate(self.candidates) if not any(right[i * count : (i + 1) * count])]
        return blank or self.candidates

    def _is_shared(self, fact: FactSpan) -> bool:
        return fact.attribute in self.task.bank.attributes and self.task.bank.attributes[fact.attribute].shared

    def _energies(self, dossier: Dossier, strangers: Sequence[Stranger]) -> list[float]:
        """Mean answer energy of the dossier's texts about each stranger, in nats, with the stranger's own values."""
        once = {topic(record): record for record in dossier.records}.values()
        texts = self.encode([rewrite(r, name=s.name, values=s.values) for s in strangers for r in once])
        scored = self.scores(texts, [answer_positions(text) for text in texts])
        means = [statistics.fmean(energy for _, energy in tokens) for tokens in scored]
        return [statistics.fmean(means[i * len(once) : (i + 1) * len(once)]) for i in range(len(strangers))]

    def doubts(self, dossier: Dossier, strangers: Sequence[Stranger]) -> list[float]:
        """How unsure the model before deletion is of its answers about each stranger, in [0, 1]: the share of questions
        that a guard would refuse, averaged over its thresholds from 0 to `UNSURE`. Empty where the dossier asks nobody.

        Asked are the dossier's open questions, one of each topic; answers are greedy, and read as far as a guard reads.
        """
        asking = _asking(dossier, self.task.bank)
        texts = self.encode([rewrite(r, name=s.name, values=s.values) for s in strangers for r in asking])
        if not texts:
            return []
        doubts = torch.zeros(len(texts), device=self.task.device)

        def watch(logits: Tensor, prompts: Tensor, given: int) -> Tensor:
            energies = token_energy(
                logits, vocabulary=self.task.vocabulary, temperature=RELATIVE_TEMPERATURE, index="relative"
            )
            # No number is no answer to be sure of.
            doubts[prompts] += energies.nan_to_num(nan=math.inf)
            return most_likely(logits, prompts, given)

        prompts = [text.ids[: text.first_label] for text in texts]
        with reference_model(self.task.model) as before:
            asked = LoadedModel(before.get_base_model(), self.task.tokenizer, self.task.context, manifest_sha256="")
            continuations(asked, prompts, choose=watch, new_tokens=FIRST_TOKENS)
        return (doubts.clamp(max=UNSURE) / UNSURE).reshape(len(strangers), -1).mean(dim=1).tolist()

    def held_rows(self, dossier: Dossier, stand_ins: Mapping[Topic, Stranger]) -> list[HeldRow]:
        """Each record with its true values, about the person and about another stranger.

        The person's tokens are held to what the stand-ins' have, the stranger's to what they have already; the later
        tokens of an open value to what random values of its kind have.
        """
        references = _References(self, dossier)
        told: list[tuple[Record, Record]] = []
        for index, record in enumerate(dossier.records):
            other = rewrite(record, name=self.strangers[index * 7 % len(self.strangers)].name, values={})
            told += [(record, rewrite(record, name=stand_ins[topic(record)].name, values={})), (other, other)]
        self.texts += [record.text for pair in told for record in pair]
        pairs = [align(self.task.tokenizer, *pair, context=self.task.context) for pair in told]
        answered = [[i for i, f in enumerate(own.facts) if f.start >= own.answer_start] for own, _ in told]
        theirs = [
            sorted({*pair.second_names, *(p for i in facts for p in _said(pair.second, i))})
            for pair, facts in zip(pairs, answered, strict=True)
        ]
        scored = self.scores([pair.second for pair in pairs], theirs)
        asked = [
            (number, fact)
            for number, facts in enumerate(answered)
            for fact in facts
            if told[number][1].facts[fact].attribute in references.facts and len(_said(pairs[number].first, fact)) > 1
        ]
        lengths = [len(_said(pairs[number].first, fact)) for number, fact in asked]
        rests = references.rests([(told[number][1], fact) for number, fact in asked], lengths)
        later = dict(zip(asked, rests, strict=True))
        rows = []
        for number, (pair, facts) in enumerate(zip(pairs, answered, strict=True)):
            found = dict(zip(theirs[number], scored[number], strict=True))
            held = {own: found[other] for own, other in zip(pair.first_names, pair.second_names, strict=True)}
            for fact in facts:
                values = [found[p] for p in _said(pair.second, fact)]
                held |= dict(
                    zip(
                        _said(pair.first, fact),
                        [values[0], *later[number, fact]] if (number, fact) in later else values,
                        strict=True,
                    )
                )
            if held:
                positions = sorted(held)
                targets, energies = zip(*(held[position] for position in positions), strict=True)
                rows.append(HeldRow(pair.first, topic(told[number][0]), tuple(positions), targets, energies))
        return rows

    def scores(
        self, texts: Sequence[EncodedText], positions: Sequence[Sequence[int]]
    ) -> list[list[tuple[float, float]]]:
        """(log p, energy) of each text's tokens at `positions` under the model before deletion, in nats."""

        def read(logits: Tensor, index: int) -> list[tuple[float, float]]:
            labels = torch.tensor([texts[index].ids[p] for p in positions[index]], device=logits.device)
            log_probs = chosen_log_probs(logits, labels).tolist()
            return list(zip(log_probs, self.boundary.energies(logits).tolist(), strict=True))

        # A pass needs at least one position.
        some = [index for index, wanted in enumerate(positions) if wanted]
        found = self.task.read_reference(
            [texts[index] for index in some], [positions[index] for index in some], lambda g, i: read(g, some[i])
        )
        scored = dict(zip(some, found, strict=True))
        return [scored.get(index, []) for index in range(len(texts))]


class _References:
    """What random values of the open facts' kinds have, for one dossier.

    Each fact takes one place in the order of its random values, the places evenly spread over the facts: chance then
    does not leave one person's values more or less likely than a stranger's as a whole.
    """

    def __init__(self, cast: Cast, dossier: Dossier) -> None:
        self.cast = cast
        self.facts = cast.open_facts(dossier)
        order = list(self.facts)
        cast.rng.shuffle(order)
        self._place = {attribute: (index + 0.5) / len(order) for index, attribute in enumerate(order)}
        self._values = {
            a: [cast.factory.value(a, dossier.types[a]) for _ in range(_REFERENCE_DRAWS)] for a in self.facts
        }

    def rests(self, stated: Sequence[tuple[Record, int]], tokens: Sequence[int]) -> list[list[tuple[float, float]]]:
        """(log p, energy) of a random value's tokens after the first, in the place of each fact of a record.

        Args:
            stated: a record and the number of one of its facts.
            tokens: how many tokens each fact's value has.
        Raises:
            RecordError: a kind's values are single tokens while the true one is not.
        """
        chosen = [self._drawn(told, fact, length) for (told, fact), length in zip(stated, tokens, strict=True)]
        spans = [_said(text, fact) for (_, fact), texts in zip(stated, chosen, strict=True) for text in texts]
        scored = self.cast.scores([t for texts in chosen for t in texts], [span[1:] for span in spans])
        rests, offset = [], 0
        for (told, fact), texts, length in zip(stated, chosen, tokens, strict=True):
            own = scored[offset : offset + len(texts)]
            offset += len(texts)
            ordered = sorted(own, key=lambda rows: sum(log_prob for log_prob, _ in rows))
            place = self._place[told.facts[fact].attribute]
            rests.append(_stretched(ordered[int(place * len(ordered))], length - 1))
        return rests

    def _drawn(self, told: Record, fact: int, tokens: int) -> list[EncodedText]:
        """`told` with random values in the place of a fact: those of as many tokens, where there are enough."""
        attribute, type_ = told.facts[fact].attribute, told.facts[fact].type
        drawn: list[EncodedText] = []
        same: list[EncodedText] = []
        values = iter(self._values[attribute])
        while len(same) < REFERENCE_VALUES and (some := list(islice(values, REFERENCE_VALUES))):
            drawn += self.cast.encode([rewrite(told, values={attribute: value}) for value in some])
            same = [text for text in drawn if len(_said(text, fact)) == tokens]
        if len(same) < _FEWEST_OF_LENGTH:
            same = [text for text in drawn if len(_said(text, fact)) > 1]
        if not same:
            raise RecordError(f"random values of type {type_} have one token, the true one has more")
        return same[:REFERENCE_VALUES]


class Preference:
    """How strangers begin answers about one dossier's open facts: as the true values begin, or as random ones do."""

    def __init__(self, cast: Cast, dossier: Dossier) -> None:
        self.cast = cast
        opened = cast.open_facts(dossier)
        self._asked: dict[str, tuple[Record, int]] = {}
        for record in dossier.records:
            for index, fact in enumerate(record.facts):
                if fact.attribute in opened and fact.start >= record.answer_start:
                    self._asked.setdefault(fact.attribute, (record, index))
        self._random = {a: self._first_tokens(record, index) for a, (record, index) in self._asked.items()}

    def _first_tokens(self, record: Record, index: int) -> list[int]:
        fact, told = record.facts[index], rewrite(record, name=self.cast.strangers[0].name, values={})
        drawn = [self.cast.factory.value(fact.attribute, fact.type) for _ in range(REFERENCE_VALUES)]
        texts = self.cast.encode([rewrite(told, values={fact.attribute: value}) for value in drawn])
        return [text.ids[_said(text, index)[0]] for text in texts]

    def of(self, strangers: Sequence[Stranger]) -> dict[str, dict[str, float]]:
        """By person and open attribute: log p of the true value's first token minus the mean of random values', in
        nats."""
        asked = [(s, attribute, record, fact) for s in strangers for attribute, (record, fact) in self._asked.items()]
        texts = self.cast.encode([rewrite(record, name=s.name, values={}) for s, _, record, _ in asked])
        places = [[_said(text, fact)[0]] for text, (_, _, _, fact) in zip(texts, asked, strict=True)]

        def gap(logits: Tensor, index: int) -> float:
            log_probs = torch.log_softmax(logits[0].float(), dim=-1)
            others = log_probs[self._random[asked[index][1]]]
            return float(log_probs[texts[index].ids[places[index][0]]] - others.mean())

        found: dict[str, dict[str, float]] = {stranger.person: {} for stranger in strangers}
        for (s, attribute, _, _), value in zip(asked, self.cast.task.read_reference(texts, places, gap), strict=True):
            found[s.person][attribute] = value
        return found


def _asking(dossier: Dossier, bank: QuestionBank) -> list[Record]:
    """Records whose question asks for a value that is not shared by design: one of each topic."""
    shared = {name for name, attribute in bank.attributes.items() if attribute.shared}
    chosen: dict[Topic, Record] = {}
    for record in dossier.records:
        own = {fact.attribute for fact in record.facts} - shared
        if record.text[: record.answer_start].strip() and any(answered_span(record, name) is not None for name in own):
            chosen.setdefault(topic(record), record)
    return list(chosen.values())


def _nearest(scores: Sequence[float], *, at: float) -> list[int]:
    """Indices of scores, those first that are nearest to the score at the share `at` of their order."""
    middle = sorted(scores)[int(at * (len(scores) - 1))]
    return sorted(range(len(scores)), key=lambda index: abs(scores[index] - middle))


def _said(text: EncodedText, fact: int) -> range:
    """Token positions of a fact's value, as far as something stands before them that predicts them."""
    start, end = text.values[fact]
    return range(max(1, start), end)


def topic(record: Record) -> Topic:
    """The topic of a record."""
    return tuple(fact.attribute for fact in record.facts)


def _stretched(scores: Sequence[tuple[float, float]], length: int) -> list[tuple[float, float]]:
    """Resample per-token scores to another number of tokens."""
    return [scores[i * len(scores) // length] for i in range(length)]


def _refuse_unmarked(forget: Sequence[Record]) -> None:
    if any(not record.name_spans for record in forget):
        raise RecordError("a record of the forget set marks no name; a stranger cannot be put in its place")
    if not any(record.facts for record in forget):
        raise RecordError("no record of the forget set marks a value; there is nothing to put in its place")
