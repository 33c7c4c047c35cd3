"""Kinds of values: how to draw one at random, how to compare two spellings, how much there is to guess.

A deployer adds a kind with `@VALUE_TYPES.register("...")`. Twins and value swaps draw from these, so a kind must
follow the population's distribution: a value that a bag of letters can tell from a real one breaks every control.
"""

from __future__ import annotations

import math
import random
import re
import unicodedata
from dataclasses import dataclass
from typing import Protocol

from ml.registry import Registry


class ValueType(Protocol):
    """One kind of value. `bits` is the entropy of a draw; `identifier` marks values random by nature."""

    bits: float
    identifier: bool

    def sample(self, rng: random.Random, *, locale: str = "en") -> str:
        """Draw a value from the population's distribution."""
        ...

    def normalise(self, text: str) -> str:
        """Return the form in which two spellings of one value are equal."""
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


def _fold(text: str) -> str:
    decomposed = unicodedata.normalize("NFKD", text).casefold()
    return " ".join(re.findall(r"\w+", "".join(c for c in decomposed if not unicodedata.combining(c))))


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
        return re.sub(r"[^0-9a-z]", "", text.casefold())


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
        return _fold(text)


@dataclass(frozen=True, slots=True)
class IsoDate:
    """A calendar date between two years, written YYYY-MM-DD."""

    first_year: int = 1935
    years: int = 70
    identifier: bool = False

    @property
    def bits(self) -> float:
        return math.log2(self.years * 12 * 28)

    def sample(self, rng: random.Random, *, locale: str = "en") -> str:
        year = self.first_year + rng.randrange(self.years)
        return f"{year}-{rng.randrange(1, 13):02d}-{rng.randrange(1, 29):02d}"

    def normalise(self, text: str) -> str:
        return re.sub(r"[^0-9]", "", text)


for _name, _kind in {
    "person_name": Invented((2,), first_names=True),
    "street_address": Invented((2,), ("Lane", "Road", "Street", "Court", "Row", "Hill"), number_below=100),
    "place_name": Invented((2,)),
    "invented_name": Invented((2,)),
    "organisation": Invented((2,), ("Trust", "Works", "House", "Group", "Club")),
    "iso_date": IsoDate(),
    "phone": Pattern("0### ####"),
    "account_number": Pattern("#### ####"),
    "card_number": Pattern("#### ## ##"),
    "document_number": Pattern("@@######"),
    "plate": Pattern("@@-####"),
    "policy_number": Pattern("P@-######"),
    "access_code": Pattern("##@@##"),
}.items():
    VALUE_TYPES.register(_name)(_kind)
