"""Kinds of values: how to draw one at random, how to compare two spellings, how much there is to guess.

A deployer adds a kind with `VALUE_TYPES.register("...")`, or puts one of their own in the place of one of these with
`VALUE_TYPES.replace("...")`, in a module that `LETHE_VALUE_KINDS` names (`ml.plugins`). Twins and value swaps draw from
these, so a kind must follow the population's distribution: a value that a bag of letters can tell from a real one
breaks every control. `locale` is that of the question bank (a BCP 47 tag), for kinds that differ from place to place.
"""

from __future__ import annotations

import math
import random
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final, Protocol, runtime_checkable

from ml.errors import SpecError
from ml.plugins import import_plugins
from ml.registry import Registry


class ValueType(Protocol):
    """One kind of value. `bits` is the entropy of a draw; `identifier` marks values random by nature."""

    bits: float
    identifier: bool

    def sample(self, rng: random.Random, *, locale: str = "en") -> str:
        """Draw a value from the population's distribution."""
        ...

    def normalise(self, text: str) -> str:
        """Return a form that only spellings of one value share; `occurs` knows more of them."""
        ...

    def occurs(self, value: str, text: str) -> bool:
        """Whether `text` holds `value`, spelled in any way that means the same; false of a value without content."""
        ...


@runtime_checkable
class DrawsAlike(Protocol):
    """A kind some of whose values are common and others rare, such as names: who compares people draws alike."""

    def sample_like(self, value: str, rng: random.Random, *, locale: str = "en") -> str:
        """Draw a value about as common as `value`."""
        ...

    def alike(self, first: str, second: str, *, locale: str = "en") -> bool:
        """Whether two values are about as common as each other."""
        ...


VALUE_TYPES: Registry[ValueType] = Registry("value type")

_ONSETS = [
    "b",
    "br",
    "c",
    "ch",
    "d",
    "dr",
    "f",
    "g",
    "gr",
    "h",
    "j",
    "k",
    "kl",
    "l",
    "m",
    "n",
    "p",
    "pr",
    "qu",
    "r",
    "s",
    "sh",
    "sk",
    "st",
    "t",
    "tr",
    "v",
    "w",
    "z",
]
_VOWELS = ["a", "e", "i", "o", "u", "ai", "ea", "ie", "oa"]
_CODAS = ["l", "m", "n", "r", "s", "t", "rn", "sk", "nd", "x", "ck", ""]
FIRST_NAMES = [
    "Alice",
    "Amira",
    "Anton",
    "Bella",
    "Bob",
    "Bruno",
    "Carla",
    "Cedric",
    "Clara",
    "Conrad",
    "Dalia",
    "Daniel",
    "Dora",
    "Edgar",
    "Elena",
    "Emil",
    "Esther",
    "Fabian",
    "Felix",
    "Flora",
    "Gavin",
    "Greta",
    "Hanna",
    "Hector",
    "Hugo",
    "Ines",
    "Irene",
    "Isak",
    "Jana",
    "Jasper",
    "Joana",
    "Jonas",
    "Judith",
    "Karim",
    "Katya",
    "Klaus",
    "Lara",
    "Leon",
    "Lidia",
    "Linus",
    "Lorena",
    "Magda",
    "Marek",
    "Marta",
    "Mateo",
    "Mira",
    "Nadia",
    "Nils",
    "Nora",
    "Olga",
    "Omar",
    "Oscar",
    "Paula",
    "Pavel",
    "Petra",
    "Quentin",
    "Rafael",
    "Ramona",
    "Rosa",
    "Ruben",
    "Sabine",
    "Samir",
    "Selma",
    "Silas",
    "Sofia",
    "Stefan",
    "Tamar",
    "Teresa",
    "Tobias",
    "Ursula",
    "Valerie",
    "Victor",
    "Vera",
    "Wanda",
    "Xenia",
    "Yara",
    "Yusuf",
    "Zelda",
    "Zoltan",
]


def invented_word(rng: random.Random, syllables: int) -> str:
    """Return a pronounceable capitalised word that no dictionary has."""
    parts = [rng.choice(_ONSETS) + rng.choice(_VOWELS) for _ in range(syllables)]
    return ("".join(parts) + rng.choice(_CODAS)).capitalize()


def _word_bits(syllables: int) -> float:
    return syllables * math.log2(len(_ONSETS) * len(_VOWELS)) + math.log2(len(_CODAS))


# Letters that no decomposition takes apart, as people write them without.
_LETTERS: Final = str.maketrans({"ł": "l", "ø": "o", "đ": "d", "ð": "d", "þ": "th", "æ": "ae", "œ": "oe", "ı": "i"})


def fold(text: str) -> str:
    """Words of a text without case, accents and punctuation, one space between them."""
    return " ".join(re.findall(r"[^\W_]+", _bare(unicodedata.normalize("NFKD", text).casefold())))


def _bare(decomposed: str) -> str:
    """Without accents and without characters that nobody sees, such as a soft hyphen inside a word."""
    seen = "".join(c for c in decomposed if not unicodedata.combining(c) and unicodedata.category(c) != "Cf")
    return seen.translate(_LETTERS)


def _spelled_out(text: str) -> str:
    """With "ae", "oe" and "ue" for the letters that lose two dots when they are folded."""
    return re.sub("[äöüÄÖÜ]", lambda letter: f"{unicodedata.normalize('NFD', letter[0])[0]}e", _composed(text))


def _composed(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _either_spelling(holds: Callable[[str, str], bool], value: str, text: str) -> bool:
    """Whether `holds(value, text)` with dots left out, or with dots written as an e, on both sides."""
    if holds(value, text):
        return True
    out = _spelled_out(value), _spelled_out(text)
    return out != (_composed(value), _composed(text)) and holds(*out)


def _plain(text: str) -> str:
    """Without case; compatibility forms and the digits of every script as the ordinary ones."""
    text = unicodedata.normalize("NFKC", text).casefold()
    return "".join(str(unicodedata.decimal(c)) if unicodedata.decimal(c, None) is not None else c for c in text)


def stands_in(value: str, text: str) -> bool:
    """Whether `text` shows all of `value` as it is written, but for case, accents and what stands between characters.

    Stricter than `ValueType.occurs`: what a prompt shows excuses an answer, so it must be the value and not like it.
    """
    plain = _unaccented(value).strip()
    wanted = re.sub(r"[\W_]", "", plain)
    if not wanted:
        return False
    if len(wanted) < _TELLING:
        # "A+" is more than the letter a.
        return re.search(rf"(?<!\S){re.escape(plain)}(?!\w|[^\w\s.,;:?!)\]])", _unaccented(text)) is not None
    return re.search(rf"(?<![^\W_]){_spelled(plain)}(?![^\W_])", _unaccented(text)) is not None


_TELLING: Final = 3


def _spelled(value: str) -> str:
    """A pattern for the letters and digits of a value, whatever stands between them but the end of a sentence.

    Two names beside each other in two sentences are not one name; where the value itself has a full stop it may stand.
    """
    pieces, gap = [], ""
    for letter in value:
        if letter.isalnum():
            between = r"[\W_]*" if any(sign in gap for sign in ".?!") else r"(?:(?![.?!]\s)[\W_])*"
            pieces += [between, re.escape(letter)] if pieces else [re.escape(letter)]
            gap = ""
        else:
            gap += letter
    return "".join(pieces)


def _unaccented(text: str) -> str:
    return _bare(unicodedata.normalize("NFKD", _plain(text)))


def _has_run(found: Sequence[str], wanted: Sequence[str]) -> bool:
    """Whether the words `wanted` stand in `found` one after the other; never true of no words."""
    return bool(wanted) and f" {' '.join(wanted)} " in f" {' '.join(found)} "


@dataclass(frozen=True, slots=True)
class Pattern:
    """Characters by pattern: `#` a digit, `@` a capital letter; everything else stands for itself."""

    pattern: str
    identifier: bool = True

    @property
    def bits(self) -> float:
        return self.pattern.count("#") * math.log2(10) + self.pattern.count("@") * math.log2(24)

    def sample(self, rng: random.Random, *, locale: str = "en") -> str:
        letters = "ABCDEFGHJKLMNPQRSTUVWXYZ"
        drawn = {"#": lambda: rng.choice("0123456789"), "@": lambda: rng.choice(letters)}
        return "".join(drawn[c]() if c in drawn else c for c in self.pattern)

    def normalise(self, text: str) -> str:
        return _letters_and_digits(text) or fold(text)

    def occurs(self, value: str, text: str) -> bool:
        wanted = _letters_and_digits(value)
        return wanted in _letters_and_digits(text) if wanted else _has_run(fold(text).split(), fold(value).split())


@dataclass(frozen=True, slots=True)
class Phone(Pattern):
    """A phone number, with or without its country code (ITU-T E.164) and the 0 that is dialled at home."""

    def normalise(self, text: str) -> str:
        """Return the digits that every way of dialling the number shares."""
        plain = _plain(text).replace("(0)", "")
        digits, first = re.sub(r"\D", "", plain), re.search(r"[+\d]", plain)
        if first is not None and first.group() == "+":
            return digits[_country_code_length(digits) :].lstrip("0")
        abroad = digits[2 + _country_code_length(digits[2:]) :]
        # Many numbers begin with two zeros at home; what a country code would leave of those is no number.
        if digits.startswith("00") and len(abroad) >= _SHORTEST_NUMBER:
            return abroad.lstrip("0")
        return digits.lstrip("0") or fold(text)

    def occurs(self, value: str, text: str) -> bool:
        wanted, written = self.normalise(value), re.sub(r"\D", "", _plain(value))
        if not wanted.isdecimal():
            return _has_run(fold(text).split(), fold(value).split())
        said = re.findall(r"\+?\d(?:[\W_]*\d)*", _plain(text).replace("(0)", ""))
        shared = len(wanted) >= _SHORTEST_NUMBER
        for number in said:
            digits = re.sub(r"\D", "", number)
            if wanted in digits if shared else wanted == self.normalise(number):
                return True
            if len(written) >= _SHORTEST_NUMBER and written in digits:
                return True
        return False


_SHORTEST_NUMBER: Final = 6


def _letters_and_digits(text: str) -> str:
    return re.sub(r"[^0-9a-z]", "", _plain(text))


_ONE_DIGIT_CODES: Final = frozenset("17")
_TWO_DIGIT_CODES: Final = frozenset(
    map(str, (20, 27, *range(30, 35), 36, 39, 40, 41, *range(43, 50), *range(51, 59), *range(60, 67)))
) | frozenset(map(str, (81, 82, 84, 86, *range(90, 96), 98)))


def _country_code_length(digits: str) -> int:
    if digits[:1] in _ONE_DIGIT_CODES:
        return 1
    return 2 if digits[:2] in _TWO_DIGIT_CODES else 3


@dataclass(frozen=True, slots=True)
class Invented:
    """Invented words, optionally before a fixed ending ("Lane") drawn from `endings`."""

    words: tuple[int, ...]
    endings: tuple[str, ...] = ("",)
    number_below: int = 0
    first_names: bool = False
    identifier: bool = False

    @property
    def bits(self) -> float:
        names = math.log2(len(FIRST_NAMES)) if self.first_names else 0.0
        number = math.log2(self.number_below) if self.number_below else 0.0
        return names + number + sum(map(_word_bits, self.words)) + math.log2(len(self.endings))

    def sample(self, rng: random.Random, *, locale: str = "en") -> str:
        number = [str(rng.randrange(1, self.number_below))] if self.number_below else []
        first = [rng.choice(FIRST_NAMES)] if self.first_names else []
        words = [invented_word(rng, syllables) for syllables in self.words]
        ending = rng.choice(self.endings)
        return " ".join([*number, *first, *words, *([ending] if ending else [])])

    def normalise(self, text: str) -> str:
        return fold(text)

    def occurs(self, value: str, text: str) -> bool:
        return _either_spelling(self._holds, value, text)

    def _holds(self, value: str, text: str) -> bool:
        return _has_run(self.normalise(text).split(), self.normalise(value).split())


@dataclass(frozen=True, slots=True)
class PersonName(Invented):
    """A name in either order, with other names between, or with an initial for the first."""

    def _holds(self, value: str, text: str) -> bool:
        named = re.sub(r"['\u2019]s\b|_", " ", text)
        found, wanted = fold(named).split(), [word for word in fold(value).split() if word not in _TITLES]
        if len(wanted) < 2 or _has_run(found, wanted):
            return _has_run(found, wanted)
        given, family = wanted[0], wanted[-1]
        if _is_shortened(given, family, _unaccented(named)) or _has_capital_initial(given, family, named):
            return True
        near = (
            found[max(0, at - 1 - _NAMES_BETWEEN) : at + 2 + _NAMES_BETWEEN]
            for at, w in enumerate(found)
            if w == family
        )
        return any(given in words for words in near)


@dataclass(frozen=True, slots=True)
class CountedNames:
    """Names as a population has them: by locale, given and family names, each with how many people bear it.

    Twins of a person with a rare name get rare names, and twins of one with a common name common ones: how familiar a
    model finds a name says how common it is before it says anything about the person (verification section 8).
    """

    given: Mapping[str, Mapping[str, int]]
    family: Mapping[str, Mapping[str, int]]
    identifier: bool = False
    _tables: Mapping[str, tuple[_CountedTable, _CountedTable]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Refuse tables that draw nothing, and a locale that has one kind of name alone; look every name up once."""
        if set(self.given) != set(self.family) or not self.given:
            raise SpecError("counted names: every locale has given names and family names")
        for table in (*self.given.values(), *self.family.values()):
            if not table or min(table.values()) < 1:
                raise SpecError("counted names: a table has names, and each has a count of at least 1")
        tables = {at: (_CountedTable(self.given[at]), _CountedTable(self.family[at])) for at in self.given}
        object.__setattr__(self, "_tables", tables)

    @property
    def bits(self) -> float:
        """Of the locale with the fewest to guess."""
        return min(_entropy(self.given[locale]) + _entropy(self.family[locale]) for locale in self.given)

    def sample(self, rng: random.Random, *, locale: str = "en") -> str:
        return " ".join(rng.choices(table.names, table.counts)[0] for table in self._of(locale))

    def sample_like(self, value: str, rng: random.Random, *, locale: str = "en") -> str:
        """Draw a given and a family name of the bands of the given and the family name of `value`."""
        tables = self._of(locale)
        words = _given_and_family(value, tables[0])
        return " ".join(rng.choice(table.alike(word)) for word, table in zip(words, tables, strict=True))

    def alike(self, first: str, second: str, *, locale: str = "en") -> bool:
        """Whether given and family names are of the same bands."""
        tables = self._of(locale)
        words = (_given_and_family(name, tables[0]) for name in (first, second))
        return all(table.band(one) == table.band(other) for one, other, table in zip(*words, tables, strict=True))

    def normalise(self, text: str) -> str:
        return _SPELLINGS_OF_NAMES.normalise(text)

    def occurs(self, value: str, text: str) -> bool:
        return _SPELLINGS_OF_NAMES.occurs(value, text)

    def _of(self, locale: str) -> tuple[_CountedTable, _CountedTable]:
        """The tables of the locale, or of its language alone."""
        for tag in (locale, locale.split("-")[0]):
            if tag in self._tables:
                return self._tables[tag]
        known = ", ".join(sorted(self.given))
        raise SpecError(f"there are no counted names for locale {locale}; known: {known}")


_SPELLINGS_OF_NAMES: Final = PersonName((2,), first_names=True)
FEWEST_ALIKE: Final = 20
"""Names that a band holds at least, where the table has as many: fewer would soon be drawn twice."""


def _entropy(table: Mapping[str, int]) -> float:
    total = sum(table.values())
    return -sum(count / total * math.log2(count / total) for count in table.values())


class _CountedTable:
    """Names with their counts, and by band: counts of one power of two are about as common."""

    def __init__(self, counted: Mapping[str, int]) -> None:
        self.names, self.counts = list(counted), list(counted.values())
        self._bands: dict[str, int] = {}
        self._members: dict[int, list[str]] = {}
        together: dict[str, int] = {}
        for name, count in counted.items():
            together[fold(name)] = together.get(fold(name), 0) + count
        self._bands = {name: count.bit_length() for name, count in together.items()}
        for name in counted:
            self._members.setdefault(self._bands[fold(name)], []).append(name)

    def __contains__(self, word: str) -> bool:
        return fold(word) in self._bands

    def band(self, word: str) -> int:
        """The band of a name in any spelling; one that the table does not have is as rare as its rarest."""
        return self._bands.get(fold(word), min(self._members))

    def alike(self, word: str) -> list[str]:
        """The names of the same band as `word`, and of those next to it where these are few."""
        band, width = self.band(word), 0
        while True:
            names = [n for other, members in self._members.items() if abs(other - band) <= width for n in members]
            if len(names) >= min(FEWEST_ALIKE, len(self.names)):
                return names
            width += 1


def _given_and_family(name: str, given_names: _CountedTable) -> tuple[str, str]:
    """The given and the family name, in either order, without titles; one word stands for both.

    What follows a comma is a given name when the table has it, and otherwise a title.
    """
    before, _, behind = name.partition(",")
    turned = any(word in given_names for word in fold(behind).split())
    words = fold(f"{behind} {before}" if turned else before).split()
    words = [word for word in words if word not in _TITLES] or [""]
    return words[0], words[-1]


def _is_shortened(given: str, family: str, text: str) -> bool:
    """An initial with a full stop before the family name, or behind it."""
    short, last = re.escape(given[0]), re.escape(family)
    before = rf"\b{short}\.\s*(?:\w+\.?\s+){{0,2}}{last}\b"
    behind = rf"\b{last},\s*{short}\b|\b{last}\s+{short}\."
    return re.search(rf"{before}|{behind}", text) is not None


def _has_capital_initial(given: str, family: str, text: str) -> bool:
    """An initial without a full stop, in a capital: the article before a name is no initial."""
    words = [_bare(unicodedata.normalize("NFKD", word)) for word in re.findall(r"[^\W_]+", text)]
    return any(a == given[0].upper() and fold(b) == family for a, b in pairwise(words))


_NAMES_BETWEEN: Final = 2
_TITLES: Final = frozenset({"dr", "mr", "mrs", "ms", "miss", "prof", "professor", "doctor", "sir"})


@dataclass(frozen=True, slots=True)
class StreetAddress(Invented):
    """A house number and a street, in either order, the kind of street written out or not."""

    def normalise(self, text: str) -> str:
        return " ".join(_WRITTEN_OUT.get(word, word) for word in fold(text).split())

    def _holds(self, value: str, text: str) -> bool:
        found, wanted = (
            [word for word in self.normalise(t).split() if word not in _BESIDE_A_NUMBER] for t in (text, value)
        )
        number, *street = wanted or [""]
        is_turned = number.isdecimal() and bool(street) and _has_run(found, [*street, number])
        return is_turned or _has_run(found, wanted)


_BESIDE_A_NUMBER: Final = frozenset({"no", "nr", "number", "numero", "nummer", "house", "at", "on", "in"})
_WRITTEN_OUT: Final = {
    "ave": "avenue",
    "blvd": "boulevard",
    "cres": "crescent",
    "ct": "court",
    "dr": "drive",
    "hl": "hill",
    "ln": "lane",
    "pl": "place",
    "rd": "road",
    "sq": "square",
    "st": "street",
    "str": "street",
    "ter": "terrace",
}
_MONTH_NAMES: Final = (
    "january february march april may june july august september october november december",
    "januar februar marz april mai juni juli august september oktober november dezember",
    "janvier fevrier mars avril mai juin juillet aout septembre octobre novembre decembre",
    "enero febrero marzo abril mayo junio julio agosto septiembre octubre noviembre diciembre",
)
_OTHER_MONTHS: Final = {"maerz": 3, "janner": 1, "jaenner": 1, "setiembre": 9, "sept": 9}


def _months(languages: Iterable[str]) -> dict[str, int]:
    """Month names as they are folded, with their first three and four letters where these belong to one month."""
    told: dict[str, set[int]] = {}
    for names in languages:
        for number, name in enumerate(names.split(), 1):
            for length in (3, 4, len(name)):
                told.setdefault(name[:length], set()).add(number)
    return {name: numbers.pop() for name, numbers in told.items() if len(numbers) == 1} | _OTHER_MONTHS


MONTHS: Final = _months(_MONTH_NAMES)
"""Month names in English, German, French and Spanish."""


@dataclass(frozen=True, slots=True)
class IsoDate:
    """A calendar date between two years, drawn as YYYY-MM-DD, and known in the orders and with the month names of use.

    `months` are words of the texts' languages and their numbers. Numbers alone are read day first and month first.
    """

    first_year: int = 1935
    years: int = 70
    identifier: bool = False
    months: Mapping[str, int] = field(default_factory=lambda: dict(MONTHS))

    @property
    def bits(self) -> float:
        return math.log2(self.years * 12 * 28)

    def sample(self, rng: random.Random, *, locale: str = "en") -> str:
        year = self.first_year + rng.randrange(self.years)
        return f"{year}-{rng.randrange(1, 13):02d}-{rng.randrange(1, 29):02d}"

    def normalise(self, text: str) -> str:
        readings = self._readings(text)
        if len(readings) == 1:
            return "{:04d}{:02d}{:02d}".format(*readings.pop())
        return re.sub(r"[^0-9]", "", _plain(text))

    def occurs(self, value: str, text: str) -> bool:
        found, digits = self._words(text), re.sub(r"[^0-9]", "", _plain(text))
        for year, month, day in self._readings(value):
            # A year's last two digits are how people write it at the end.
            orders = [(year, month, day), *((*o, y) for o in ((day, month), (month, day)) for y in (year, year % 100))]
            if any(_has_run(found, [*map(str, order)]) for order in orders):
                return True
            if any(form in digits for form in (f"{year:04d}{month:02d}{day:02d}", f"{day:02d}{month:02d}{year:04d}")):
                return True
            if f"{month:02d}{day:02d}{year:04d}" in digits:
                return True
        written = re.sub(r"[^0-9]", "", _plain(value))
        return _has_run(found, self._words(value)) or (len(written) >= _FULL_DATE and written in digits)

    def _readings(self, text: str) -> set[tuple[int, int, int]]:
        """Each (year, month, day) that a text of nothing but a date can mean."""
        words = self._words(text)
        if len(words) == 1 and re.fullmatch(r"[0-9]{8}", words[0]):
            words = [words[0][:4], words[0][4:6], words[0][6:]]
        if len(words) != 3 or not all(re.fullmatch(r"[0-9]{1,4}", word) for word in words):
            return set()
        first, second, third = map(int, words)
        named = [place for place, word in enumerate(_date_words(text)) if word in self.months]
        orders = {
            (0, 1, 2): (first, second, third),
            (2, 1, 0): (third, second, first),
            (2, 0, 1): (third, first, second),
        }
        return {
            date
            for (_, month_at, _), date in orders.items()
            if date[0] > 31 and 1 <= date[1] <= 12 and 1 <= date[2] <= 31 and (not named or month_at in named)
        }

    def _words(self, text: str) -> list[str]:
        """Words of a text with numbers for month names, without leading zeros, ordinal endings, "of" and the like."""
        words = [self.months.get(word, word) for word in _date_words(text)]
        return [re.sub(r"^0+(?=\d)|(?<=\d)(st|nd|rd|th|er|ter|ten)$", "", str(word)) for word in words]


_FULL_DATE: Final = 6
_WEEKDAYS: Final = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_ARTICLES: Final = ("of", "the", "on", "de", "del", "den", "der", "du", "el", "le")
_BESIDE_A_DATE: Final = frozenset({*_ARTICLES, *_WEEKDAYS, *(name[:3] for name in _WEEKDAYS)})


def _date_words(text: str) -> list[str]:
    return [word for word in fold(_plain(text)).split() if word not in _BESIDE_A_DATE]


_AT: Final = "at|arroba|arobase|klammeraffe|chiocciola"
_DOT: Final = "dot|punkt|punto|point"


@dataclass(frozen=True, slots=True)
class EmailAddress:
    """An address of the form word.word@word.example; case, and disguises of "@" and ".", do not matter."""

    identifier: bool = False

    @property
    def bits(self) -> float:
        return 3 * _word_bits(2)

    def sample(self, rng: random.Random, *, locale: str = "en") -> str:
        first, second, domain = (invented_word(rng, 2).lower() for _ in range(3))
        return f"{first}.{second}@{domain}.example"

    def normalise(self, text: str) -> str:
        plain = re.sub(r"\s+", " ", _plain(text))
        for sign, words in (("@", rf"{_AT}|@"), (".", rf"{_DOT}|\.")):
            plain = re.sub(rf"\s*(?:[\[(<{{]\s*(?:{words})\s*[\])>}}]|(?<=\s)(?:{words})(?=\s))\s*", sign, plain)
        plain = re.sub(r"\s*@\s*", "@", plain).strip()
        address = re.search(r"[^\s<>()\[\],;:]+@[^\s<>()\[\],;:]+", plain)
        return plain if address is None else address.group().strip("._-")

    def occurs(self, value: str, text: str) -> bool:
        wanted = self.normalise(value)
        said = re.sub(rf"\b(?:{_AT}|{_DOT})\b|_", " ", _plain(text))
        return _has_run(fold(said).split(), fold(wanted.replace("_", " ")).split())


@dataclass(frozen=True, slots=True)
class Listed:
    """One of a list of values, each with the other names that it goes by: `names[i][0]` is what is drawn."""

    names: tuple[tuple[str, ...], ...]
    identifier: bool = False

    @property
    def bits(self) -> float:
        return math.log2(len(self.names))

    def sample(self, rng: random.Random, *, locale: str = "en") -> str:
        return rng.choice(self.names)[0]

    def normalise(self, text: str) -> str:
        return fold(self._all_names(text)[0])

    def occurs(self, value: str, text: str) -> bool:
        return any(_either_spelling(self._holds, name, text) for name in self._all_names(value))

    def _holds(self, name: str, text: str) -> bool:
        if len(re.sub(r"[\W_]", "", name)) < _TELLING:
            return stands_in(name, text)
        return _has_run(fold(text).split(), fold(name).split())

    def _all_names(self, value: str) -> tuple[str, ...]:
        wanted = fold(value)
        return next((names for names in self.names if wanted in map(fold, names)), (value,))


for _name, _kind in {
    "person_name": PersonName((2,), first_names=True),
    "street_address": StreetAddress((2,), ("Lane", "Road", "Street", "Court", "Row", "Hill"), number_below=100),
    "place_name": Invented((2,)),
    "invented_name": Invented((2,)),
    "organisation": Invented((2,), ("Trust", "Works", "House", "Group", "Club")),
    "iso_date": IsoDate(),
    "phone": Phone("0### ####"),
    "email": EmailAddress(),
    "account_number": Pattern("#### ####"),
    "card_number": Pattern("#### ## ##"),
    "document_number": Pattern("@@######"),
    "plate": Pattern("@@-####"),
    "policy_number": Pattern("P@-######"),
    "access_code": Pattern("##@@##"),
}.items():
    VALUE_TYPES.register(_name)(_kind)

import_plugins()
for _name in VALUE_TYPES:
    if hasattr(VALUE_TYPES[_name], "sample_like") != hasattr(VALUE_TYPES[_name], "alike"):
        raise SpecError(f"value type {_name} draws alike, or says what is alike, and not both; see DrawsAlike")
