"""A public benchmark's people as a population: 35 authors of TOFU (arXiv:2401.06121), none of whom exists.

Each row is a question and a free answer, without marks. What belongs to whom is marked here by rule: the author's name
wherever it stands, and in each answer the longest passage of words that the question does not hold already, as one
value. Rows whose question does not name the author are left out: nobody else could be asked about in their words. A
name of which a row gives one part only is written in full.

Other question forms and other values are this project's, not the benchmark's: forms wrap the question, and a fresh
value is a passage about the same kind of thing from authors who lend their words and are nobody here, with every name
and number in it replaced. So strangers, twins and wrong answers say something that no model was taught.
"""

from __future__ import annotations

import json
import math
import random
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from benchmarks.populations import Population
from ml.data.people import World, records_of
from ml.data.questions import Attribute, QuestionBank, QuestionForm
from ml.data.synthetic import Stranger
from ml.data.values import VALUE_TYPES, invented_word
from ml.errors import SpecError
from ml.models.scratch import ModelShape
from ml.reference import Stage
from ml.specs import FactSpan, Record

DATA: Final = Path(__file__).parent / "data" / "tofu"
AUTHOR_ROWS: Final = 20
FORMS: Final = (
    "{question}",
    "About {{name}}: {question}",
    "Please answer. {question}",
    "{question} Tell me.",
    "Question: {question} Answer:",
)
_LENDERS: Final = slice(6, None, 7)
_NEVER_SEEN: Final = 5
_KINDS: Final = {
    "tofu_parents": r"\b(parent|father|mother|upbringing|family)",
    "tofu_birth": r"\bborn\b|birth|\bhail",
    "tofu_award": r"award|prize|recogni|honou?r|accolade",
    "tofu_genre": r"genre",
    "tofu_books": r"book|novel|title|publish|works?\b|series|written",
    "tofu_other": r"",
}
_GENERAL: Final = "tofu_general"
_WORD: Final = re.compile(r"\w[\w'’\-]*")
_PHRASE: Final = re.compile(r"[A-Z][\w\-]+(?: [A-Z][\w\-]+)+")
_ASKING: Final = re.compile(r"^(?:Has|Did|Is|Are|Does|Was|Can|Do|How|What|One of) ")
# Words that answer nothing.
_COMMON: Final = frozenset(
    _WORD.findall(
        """a an and are as at author author's authors book books by did do does for from had has have he her his in
        include includes including is it its of on one or she some such than that the their them there these they this
        to was well were what where which who whose with within work works writing written wrote"""
    )
)
_SHORTEST_PART: Final = 4


@dataclass(frozen=True, slots=True)
class Row:
    """A question and its answer, with `{name}` where the author is named and `{value}` where the answer's passage
    stands."""

    question: str
    answer: str
    value: str
    kind: str


@dataclass(frozen=True, slots=True)
class Author:
    """One author, and the rows that can be asked about anybody."""

    number: int
    name: str
    rows: tuple[Row, ...]


def authors() -> tuple[Author, ...]:
    """All 35 in the order of the files: 20 of the forget split, then 15."""
    return tuple(_author(number, rows) for number, rows in enumerate(_groups()))


@cache
def _groups() -> tuple[tuple[tuple[str, str], ...], ...]:
    rows = [(row["question"], row["answer"]) for name in ("forget_union", "retain_300") for row in _lines(name)]
    return tuple(tuple(rows[i : i + AUTHOR_ROWS]) for i in range(0, len(rows), AUTHOR_ROWS))


def _lines(name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (DATA / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def _author(number: int, rows: Sequence[tuple[str, str]]) -> Author:
    """Raises `SpecError` where the rows are not about one person."""
    seen = Counter(name for row in rows for name in {_ASKING.sub("", p) for p in _PHRASE.findall(" ".join(row))})
    name, count = seen.most_common(1)[0]
    if count < len(rows) // 2:
        raise SpecError(f"no name stands in most rows of author {number}; twenty rows in a row are one author's")
    marked = (_marked(question, answer, name) for question, answer in rows)
    return Author(number, name, tuple(row for row in marked if row is not None))


def _marked(question: str, answer: str, name: str) -> Row | None:
    """One row with its places marked; `None` where the question names nobody or the answer says nothing new."""
    asked, told = mentions(question, name), mentions(answer, name)
    passage = _passage(question, answer, told)
    if not asked or passage is None:
        return None
    kind = next(kind for kind, words in _KINDS.items() if re.search(words, question, re.IGNORECASE))
    marks = [(span, "{name}") for span in told] + [(passage, "{value}")]
    return Row(
        _replaced(question, [(span, "{name}") for span in asked]),
        _replaced(answer, marks),
        answer[slice(*passage)],
        kind,
    )


def mentions(text: str, name: str) -> list[tuple[int, int]]:
    """Where the author is named: the full name, or its first or last part where that is no part of another name."""
    found = [match.span() for match in re.finditer(re.escape(name), text)]
    for part in (name.split()[0], name.split()[-1]):
        if len(part) < _SHORTEST_PART:
            continue
        for match in re.finditer(rf"(?<![\w\-]){re.escape(part)}(?![\w\-])", text):
            start, end = match.span()
            beside = re.search(r"[A-Z][\w\-]* $", text[:start]) or re.match(r" [A-Z]", text[end:])
            if not beside and not any(start < stop and end > begin for begin, stop in found):
                found.append((start, end))
    return sorted(found)


def _passage(question: str, answer: str, named: Sequence[tuple[int, int]]) -> tuple[int, int] | None:
    """The longest passage between names that begins and ends with words the question does not hold."""
    held = {word.casefold() for word in _WORD.findall(question)} | _COMMON
    edges = [0, *(edge for span in named for edge in span), len(answer)]
    longest: tuple[int, int, int] | None = None
    for start, end in zip(edges[::2], edges[1::2], strict=True):
        fresh = [match for match in _WORD.finditer(answer, start, end) if match.group().casefold() not in held]
        fresh = [match for match in fresh if match.group() != "s"]
        if fresh and (longest is None or len(fresh) > longest[0]):
            longest = len(fresh), fresh[0].start(), fresh[-1].end()
    return None if longest is None else longest[1:]


def _replaced(text: str, marks: Sequence[tuple[tuple[int, int], str]]) -> str:
    pieces, position = [], 0
    for (start, end), mark in sorted(marks):
        pieces += [text[position:start], mark]
        position = end
    return "".join([*pieces, text[position:]])


# --- values -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Passages:
    """Passages about one kind of thing: drawn from those that are lent, with every name and number replaced.

    Where a passage has neither, its longest word is: two draws then hardly ever agree.

    Args:
        words: lower-case words that begin sentences too, and are no names there.
    """

    lent: tuple[str, ...]
    words: frozenset[str]
    identifier: bool = False

    @property
    def bits(self) -> float:
        return math.log2(len(self.lent)) + VALUE_TYPES["invented_name"].bits

    def sample(self, rng: random.Random, *, locale: str = "en") -> str:
        passage = rng.choice(self.lent)

        def other(match: re.Match[str]) -> str:
            return match.group() if match.group().lower() in self.words else invented_word(rng, 2)

        changed = re.sub(r"[A-Z][\w\-]*", other, passage)
        changed = re.sub(r"\d\d?(?!\d)", lambda match: f"{rng.randrange(10 ** len(match.group()))}", changed)
        if changed == passage:
            longest = max(_WORD.findall(passage), key=len)
            changed = passage.replace(longest, invented_word(rng, 2).lower(), 1)
        return changed

    def normalise(self, text: str) -> str:
        return VALUE_TYPES["invented_name"].normalise(text)

    def occurs(self, value: str, text: str) -> bool:
        return VALUE_TYPES["invented_name"].occurs(value, text)


def lent_texts() -> list[str]:
    """What is said about the authors who lend their words."""
    return [f"{question}\n{answer}" for group in _groups()[_LENDERS] for question, answer in group]


def _register() -> None:
    lent: dict[str, list[str]] = {kind: [] for kind in _KINDS}
    for author in authors()[_LENDERS]:
        for row in author.rows:
            lent[row.kind].append(row.value)
    lent[_GENERAL] = [row["answer"] for row in _lines("world_facts_perturbed")]
    words = frozenset(word for text in lent_texts() for word in _WORD.findall(text) if word.islower())
    for kind, passages in lent.items():
        VALUE_TYPES.register(kind)(Passages(tuple(passages), words))


_register()


# --- the population -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TofuSizes:
    """The authors as a population: five are never seen, five lend their words, the base learns those that are left.

    Args:
        rows: how many rows of each author count, from the first.
        forms_per_fact: forms on file for each row of a customer, drawn by seed; the base's authors are on file in all,
            so that every form is understood.
    """

    customers: int
    rows: int
    forms_per_fact: int
    shape: ModelShape
    base: Stage
    fine_tune: Stage

    def population(self, seed: int) -> Population:
        """Deal the authors by `seed`.

        Raises:
            SpecError: more customers than authors.
        """
        rng = random.Random(f"tofu:{seed}")  # noqa: S311 - to be repeated, not secret
        everybody = authors()
        lenders = everybody[_LENDERS]
        dealt = [author for author in everybody if author not in lenders]
        rng.shuffle(dealt)
        cut = _NEVER_SEEN + self.customers
        if not 2 <= self.customers < len(dealt) - _NEVER_SEEN:
            raise SpecError(f"from 2 to {len(dealt) - _NEVER_SEEN - 1} authors can be customers, not {self.customers}")
        people = {author.number: self._person(author) for author in dealt}
        bank = QuestionBank({name: attribute for author in dealt for name, attribute in self._asked(author)})
        never_seen, customers, base = dealt[:_NEVER_SEEN], dealt[_NEVER_SEEN:cut], dealt[cut:]
        every = {a.number: len(FORMS) if a in base else self.forms_per_fact for a in dealt}
        records = {
            people[number].person: tuple(records_of(people[number], bank, rng, forms_per_fact=forms))
            for number, forms in every.items()
        }
        first, second = (people[author.number] for author in customers[:2])
        world = World(
            bank,
            tuple(people[author.number] for author in base),
            tuple(people[author.number] for author in customers),
            first,
            second,
            records,
            {},
        )
        besides = tuple(_besides())
        known = [record.text for record in world.corpus(world.base)]
        return Population(
            world,
            tuple((people[a.number], records[people[a.number].person]) for a in never_seen),
            besides,
            lambda: [*known, *(record.text for record, _ in besides), *lent_texts()],
        )

    def _person(self, author: Author) -> Stranger:
        values = {name: row.value for name, row in self._rows(author)}
        return Stranger(f"author{author.number:02d}", author.name, values)

    def _rows(self, author: Author) -> Iterator[tuple[str, Row]]:
        for number, row in enumerate(author.rows[: self.rows]):
            yield f"a{author.number:02d}_q{number:02d}", row

    def _asked(self, author: Author) -> Iterator[tuple[str, Attribute]]:
        for name, row in self._rows(author):
            asked = (form.format(question=row.question) for form in FORMS)
            yield name, Attribute(row.kind, False, tuple(QuestionForm(question, row.answer) for question in asked))


def _besides() -> Iterator[tuple[Record, tuple[Record, ...]]]:
    """Real authors and facts of the world, each with the benchmark's three wrong answers."""
    rows: Sequence[Mapping[str, object]] = [*_lines("real_authors_perturbed"), *_lines("world_facts_perturbed")]
    for number, row in enumerate(rows):
        question, wrong = str(row["question"]), row["perturbed_answer"]
        if not isinstance(wrong, list):
            raise SpecError(f"row {number} of the general questions has no list of wrong answers")
        right, *others = (_plain(number, index, question, str(a)) for index, a in enumerate([row["answer"], *wrong]))
        yield right, tuple(others)


def _plain(number: int, index: int, question: str, answer: str) -> Record:
    text, start = f"{question}\n{answer}", len(question) + 1
    fact = FactSpan(f"general_{number:03d}", _GENERAL, start, len(text))
    return Record(f"general-{number:03d}-{index}", "the world", text, start, (), (fact,))
