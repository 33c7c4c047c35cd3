"""Calibrated stranger distillation, the data side: whom a forgotten person should come to resemble, and in what.

A *stand-in* is an invented person nobody was trained on. The forgotten person is asked about in their own records'
words, but with values nobody has; the target is what the model before deletion says about the stand-in there. The true
values' later tokens are never a teacher's: the model before deletion recognises them even in a stranger's mouth. They
are held to the log-probabilities that random values of the same kind have for a stranger.

Strangers and values come from the run's seed; verification draws its own later, from another.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import torch
from torch import Tensor

from ml.attacks.generation import continuations, most_likely
from ml.data.alignment import AlignedPair, align
from ml.data.collate import EncodedText, chosen_log_probs, encode_record
from ml.data.dossiers import Dossier, answered_span, open_facts, read_dossier, strangers_of
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
    """All forgetting rows of a run, and every text that was drawn to make them."""

    contrast: tuple[ContrastRow, ...]
    strangers: tuple[ContrastRow, ...]
    held: tuple[HeldRow, ...]
    texts: tuple[str, ...]


def forget_rows(task: UnlearningTask, *, draws: int) -> ForgetRows:
    """Build the forgetting rows of every person in the forget set.

    1. Draw strangers; for each forgotten person choose a stand-in.
    2. Contrast rows: each record `draws` times, with fresh values, about the person and about the stand-in.
    3. Stranger rows: each record once about another stranger, to be left as it is.
    4. Held rows: each record as it is, about the person and about a stranger.

    Raises:
        RecordError: a record of the forget set marks no name, or no value to forget.
        UnknownMemberError: a value type that cannot be drawn from.
    """
    cast = Cast(task)
    contrast: list[ContrastRow] = []
    strangers: list[ContrastRow] = []
    held: list[HeldRow] = []
    with reference_model(task.model):
        for dossier in cast.dossiers:
            stand_in = cast.stand_in(dossier)
            for turn in range(draws):
                contrast += [cast.contrast(record, stand_in) for record in dossier.records if record.facts or turn == 0]
            strangers += [cast.unchanged(record, index) for index, record in enumerate(dossier.records)]
            held += cast.held_rows(dossier, stand_in)
    return ForgetRows(tuple(contrast), tuple(strangers), tuple(held), tuple(cast.texts))


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

    def _name(self, like: str) -> str:
        return self.factory.value("", "person_name", like=like)

    def encode(self, record: Record) -> EncodedText:
        """Tokenise a text that was made up, and remember it."""
        self.texts.append(record.text)
        return encode_record(self.task.tokenizer, record, context=self.task.context)

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

    def stand_in(self, dossier: Dossier) -> Stranger:
        """An ordinary stranger who does not know the person's values: what the person is to become.

        Of the strangers whose energy on the dossier's forms lies in the middle half, and of these the quarter whose
        answers begin with the most ordinary doubt, the one whose preference for the true values is nearest to none. The
        model before deletion begins a stranger's answer as it begins those it knows, this person's among them; what a
        stand-in prefers, the person would be taught to keep, and as sure as answers about a stand-in are, answers about
        the person will be: a guard would answer about somebody who resembles one of the surest strangers. Strangers
        whose best guess at a shared attribute (employer, city) happens to be the person's own are passed over: the
        person would seem remembered.
        """
        blank = [s for s in self.candidates if not self._guesses_right(dossier, s)] or self.candidates
        ordinary = _most_ordinary(blank, [self._energy(dossier, stranger) for stranger in blank], share=0.5)
        if doubts := self.doubts(dossier, ordinary):
            ordinary = _most_ordinary(ordinary, doubts, share=0.25)
        preference = Preference(self, dossier)
        return min(ordinary, key=lambda stranger: abs(preference.of(stranger)))

    def _guesses_right(self, dossier: Dossier, stranger: Stranger) -> bool:
        shared = [r for r in dossier.records if any(self._is_shared(fact) for fact in r.facts)]
        asked = [rewrite(record, name=stranger.name, values={}) for record in shared]
        return any(self._greedy(record) for record in asked)

    def _is_shared(self, fact: FactSpan) -> bool:
        return fact.attribute in self.task.bank.attributes and self.task.bank.attributes[fact.attribute].shared

    def _greedy(self, record: Record) -> bool:
        """True when the model before deletion, asked this, answers with the value that stands there."""
        text = self.encode(record)
        positions = [p for start, end in text.values for p in range(start, end)]
        logits = self.task.reference_logits([text], [positions])
        return logits.argmax(dim=-1).tolist() == [text.ids[p] for p in positions]

    def _energy(self, dossier: Dossier, stranger: Stranger) -> float:
        """Mean answer energy of the dossier's texts about `stranger`, in nats, with the stranger's own values."""
        once = {topic(record): record for record in dossier.records}.values()
        texts = [self.encode(rewrite(record, name=stranger.name, values=stranger.values)) for record in once]
        scored = self.scores(texts, [answer_positions(text) for text in texts])
        return statistics.fmean(statistics.fmean(energy for _, energy in tokens) for tokens in scored)

    def doubts(self, dossier: Dossier, strangers: Sequence[Stranger]) -> list[float]:
        """How unsure the model before deletion is of its answers about each stranger, in [0, 1]: the share of questions
        that a guard would refuse, averaged over its thresholds from 0 to 1 nat. Empty where the dossier asks nobody.

        Asked are the dossier's open questions, one of each topic; answers are greedy, and read as far as a guard reads.
        """
        asking = _asking(dossier, self.task.bank)
        texts = [self.encode(rewrite(r, name=s.name, values=s.values)) for s in strangers for r in asking]
        if not texts:
            return []
        highest = torch.zeros(len(texts), device=self.task.device)

        def watch(logits: Tensor, prompts: Tensor, given: int) -> Tensor:
            energies = token_energy(
                logits, vocabulary=self.task.vocabulary, temperature=RELATIVE_TEMPERATURE, index="relative"
            )
            # No number is no answer to be sure of.
            highest[prompts] = torch.maximum(highest[prompts], energies.nan_to_num(nan=math.inf))
            return most_likely(logits, prompts, given)

        prompts = [text.ids[: text.first_label] for text in texts]
        with reference_model(self.task.model) as before:
            asked = LoadedModel(before.get_base_model(), self.task.tokenizer, self.task.context, manifest_sha256="")
            continuations(asked, prompts, choose=watch, new_tokens=FIRST_TOKENS)
        return highest.clamp(max=1.0).reshape(len(strangers), -1).mean(dim=1).tolist()

    def held_rows(self, dossier: Dossier, stand_in: Stranger) -> list[HeldRow]:
        """Each record with its true values, about the person and about another stranger.

        The person's tokens are held to what the stand-in's have, the stranger's to what they have already; the later
        tokens of an open value to what random values of its kind have.
        """
        references = _References(self, dossier)
        rows = []
        for index, record in enumerate(dossier.records):
            other = self.strangers[index * 7 % len(self.strangers)]
            rows += self._held_row(record, record, stand_in, references)
            rows += self._held_row(rewrite(record, name=other.name, values={}), record, other, references)
        return rows

    def _held_row(self, text: Record, record: Record, stranger: Stranger, references: _References) -> list[HeldRow]:
        told = rewrite(record, name=stranger.name, values={})
        self.texts += [text.text, told.text]
        pair = align(self.task.tokenizer, text, told, context=self.task.context)
        held = dict(zip(pair.first_names, self.scores([pair.second], [pair.second_names])[0], strict=True))
        for index, fact in enumerate(record.facts):
            if fact.start < record.answer_start:
                continue
            own, theirs = (range(*encoded.values[index]) for encoded in (pair.first, pair.second))
            scores = self.scores([pair.second], [theirs])[0]
            if fact.attribute in references.facts and len(own) > 1:
                scores = [scores[0], *references.rest(told, index, tokens=len(own))]
            held |= dict(zip(own, scores, strict=True))
        if not held:
            return []
        positions = sorted(held)
        targets, energies = zip(*(held[position] for position in positions), strict=True)
        return [HeldRow(pair.first, topic(record), tuple(positions), targets, energies)]

    def scores(
        self, texts: Sequence[EncodedText], positions: Sequence[Sequence[int]]
    ) -> list[list[tuple[float, float]]]:
        """(log p, energy) of each text's tokens at `positions` under the model before deletion, in nats."""
        if not any(positions):
            return [[] for _ in texts]
        found = []
        for logits, text, wanted in zip(self.task.reference_passes(texts, positions), texts, positions, strict=True):
            labels = torch.tensor([text.ids[p] for p in wanted], device=logits.device)
            log_probs = chosen_log_probs(logits, labels).tolist()
            found.append(list(zip(log_probs, self.boundary.energies(logits).tolist(), strict=True)))
        return found


class _References:
    """What random values of the open facts' kinds have, for one dossier.

    Each fact takes one place in the order of its random values, the places evenly spread over the facts: chance then
    does not leave one person's values more or less likely than a stranger's as a whole.
    """

    def __init__(self, cast: Cast, dossier: Dossier) -> None:
        self.cast = cast
        self.facts = open_facts(dossier, cast.task.bank, cast.task.retain)
        order = list(self.facts)
        cast.rng.shuffle(order)
        self._place = {attribute: (index + 0.5) / len(order) for index, attribute in enumerate(order)}
        self._values = {
            a: [cast.factory.value(a, dossier.types[a]) for _ in range(_REFERENCE_DRAWS)] for a in self.facts
        }

    def rest(self, told: Record, index: int, *, tokens: int) -> list[tuple[float, float]]:
        """(log p, energy) of a random value's tokens after the first, in the place of fact `index` of `told`.

        Raises:
            RecordError: the kind's values are single tokens while the true one is not.
        """
        fact = told.facts[index]
        drawn = [self.cast.encode(rewrite(told, values={fact.attribute: v})) for v in self._values[fact.attribute]]
        lengths = [end - start for start, end in (text.values[index] for text in drawn)]
        same = [text for text, length in zip(drawn, lengths, strict=True) if length == tokens]
        if len(same) < _FEWEST_OF_LENGTH:
            same = [text for text, length in zip(drawn, lengths, strict=True) if length > 1]
        if not same:
            raise RecordError(f"random values of type {fact.type} have one token, the true one has more")
        chosen = same[:REFERENCE_VALUES]
        spans = [text.values[index] for text in chosen]
        scored = self.cast.scores(chosen, [range(start + 1, end) for start, end in spans])
        ordered = sorted(scored, key=lambda rows: sum(log_prob for log_prob, _ in rows))
        return _stretched(ordered[int(self._place[fact.attribute] * len(ordered))], tokens - 1)


class Preference:
    """How strangers begin answers about one dossier's open facts: as the true values begin, or as random ones do."""

    def __init__(self, cast: Cast, dossier: Dossier) -> None:
        self.cast = cast
        opened = open_facts(dossier, cast.task.bank, cast.task.retain)
        self._asked: dict[str, tuple[Record, int]] = {}
        for record in dossier.records:
            for index, fact in enumerate(record.facts):
                if fact.attribute in opened and fact.start >= record.answer_start:
                    self._asked.setdefault(fact.attribute, (record, index))
        self._random = {a: self._first_tokens(record, index) for a, (record, index) in self._asked.items()}

    def _first_tokens(self, record: Record, index: int) -> list[int]:
        fact, told = record.facts[index], rewrite(record, name=self.cast.strangers[0].name, values={})
        drawn = [self.cast.factory.value(fact.attribute, fact.type) for _ in range(REFERENCE_VALUES)]
        texts = [self.cast.encode(rewrite(told, values={fact.attribute: value})) for value in drawn]
        return [text.ids[text.values[index][0]] for text in texts]

    def of(self, stranger: Stranger) -> float:
        """Mean log p of the true values' first tokens minus that of random values', in nats; 0 without open facts."""
        if not self._asked:
            return 0.0
        asked = [(rewrite(record, name=stranger.name, values={}), index) for record, index in self._asked.values()]
        texts = [self.cast.encode(record) for record, _ in asked]
        places = [[text.values[index][0]] for text, (_, index) in zip(texts, asked, strict=True)]
        passes = self.cast.task.reference_passes(texts, places)
        gaps = []
        for logits, text, (place,), others in zip(passes, texts, places, self._random.values(), strict=True):
            log_probs = torch.log_softmax(logits[0].float(), dim=-1)
            gaps.append(float(log_probs[text.ids[place]] - log_probs[others].mean()))
        return statistics.fmean(gaps)


def _asking(dossier: Dossier, bank: QuestionBank) -> list[Record]:
    """Records whose question asks for a value that is not shared by design: one of each topic."""
    shared = {name for name, attribute in bank.attributes.items() if attribute.shared}
    chosen: dict[Topic, Record] = {}
    for record in dossier.records:
        own = {fact.attribute for fact in record.facts} - shared
        if record.text[: record.answer_start].strip() and any(answered_span(record, name) is not None for name in own):
            chosen.setdefault(topic(record), record)
    return list(chosen.values())


def _most_ordinary(strangers: Sequence[Stranger], scores: Sequence[float], *, share: float) -> list[Stranger]:
    """The share of the strangers whose scores are nearest to their median, nearest first; at least one."""
    middle = statistics.median_low(scores)
    ordered = sorted(zip(scores, strangers, strict=True), key=lambda pair: abs(pair[0] - middle))
    return [stranger for _, stranger in ordered[: math.ceil(share * len(ordered))]]


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
