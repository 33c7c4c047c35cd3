"""What the guard is calibrated and tried on: questions about people, in the words on file and in other words.

Prompts hold names. They must not be stored or printed; documents hold their digests.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass

from ml.data.dossiers import answered_span, paraphrases, read_dossier, strangers_of
from ml.data.probes import text_sha256
from ml.data.questions import QuestionBank
from ml.data.records import by_person
from ml.data.synthetic import twin_records
from ml.errors import SpecError
from ml.specs import Record


@dataclass(frozen=True, slots=True)
class PromptSet:
    """Prompts about one group of people: asked as their records ask (`direct`), and in words these do not use."""

    direct: tuple[str, ...]
    paraphrased: tuple[str, ...]

    @property
    def texts(self) -> tuple[str, ...]:
        """All prompts, direct ones first."""
        return (*self.direct, *self.paraphrased)

    def sampled(self, count: int, rng: random.Random) -> PromptSet:
        """At most `count` prompts of each kind, drawn without replacement."""
        return PromptSet(*(tuple(rng.sample(kind, min(count, len(kind)))) for kind in (self.direct, self.paraphrased)))


def prompts_about(records: Iterable[Record], bank: QuestionBank, *, used: Set[str] = frozenset()) -> PromptSet:
    """The questions that ask the people of `records` for values of their own.

    What many people share (an employer) is left out: a stranger's employer is one the model knows.

    Args:
        used: digests of texts that a deletion made up (`ml.data.probes`); their questions are not asked again.
    """
    shared = {name for name, attribute in bank.attributes.items() if attribute.shared}
    direct: list[str] = []
    reworded: list[str] = []
    for own in by_person(records).values():
        dossier = read_dossier(own)
        opened = [attribute for attribute in dossier.values if attribute not in shared]
        direct += [_prompt(record) for record in own if any(answered_span(record, a) is not None for a in opened)]
        asked = paraphrases(dossier, bank, opened)
        reworded += [_prompt(record) for record in asked if text_sha256(record.text) not in used]
    known = set(direct)
    return PromptSet(tuple(dict.fromkeys(direct)), tuple(p for p in dict.fromkeys(reworded) if p not in known))


def strangers_like(
    records: Sequence[Record], corpus: Sequence[Record], bank: QuestionBank, *, each: int, rng: random.Random
) -> list[Record]:
    """Records of people nobody was trained on: for every person of `records`, `each` strangers in their forms.

    Args:
        corpus: everything any model here may have learned from; no name and no value of it is drawn.
    Raises:
        SpecError: `each` is below 1.
    """
    if each < 1:
        raise SpecError("at least one stranger is drawn for each person")
    factory = strangers_of(bank, rng, [*records, *corpus])
    drawn = []
    for number, own in enumerate(by_person(records).values()):
        dossier = read_dossier(own)
        for index in range(each):
            drawn += twin_records(own, factory.stranger(f"stranger-{number}-{index}", dossier.types, like=dossier.name))
    return drawn


def _prompt(record: Record) -> str:
    return record.text[: record.answer_start]
