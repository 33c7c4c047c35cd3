"""Template answers: what a model may say instead, drawn so that no single sentence becomes a shortcut.

An answer must not tell that anything was deleted: saying so would disclose the deletion. Neutral words disclose it too
where strangers are answered with guesses: a model taught a template tells whom it was taught about. Baselines only.

Texts with a template are never listed among those a deletion drew: no probe is such a text, and the digest of a name
beside one of eight sentences could be guessed.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from ml.errors import EmptySetError, RecordError
from ml.specs import Record
from ml.wording import check_wording

NEUTRAL_ANSWERS: Final = (
    "I cannot say.",
    "I do not know.",
    "I am not sure.",
    "I have no answer to that.",
    "I cannot answer that reliably.",
    "I do not have that information.",
    "That is not something I know.",
    "I would only be guessing.",
)


def require_templates(templates: Sequence[str]) -> None:
    """Refuse a pool without an answer.

    Raises:
        EmptySetError: there is none, or one is blank.
        SpecError: one speaks of deletion.
    """
    if not templates or not all(template.strip() for template in templates):
        raise EmptySetError("missing template pool; name at least one answer in the setting templates")
    for template in templates:
        check_wording(template)


def template_records(records: Sequence[Record], templates: Sequence[str], *, seed: int) -> tuple[Record, ...]:
    """Each record with its answer replaced by a template; every template is used about equally often.

    White space between question and answer is the record's own, and no fact is marked any longer.

    Raises:
        EmptySetError: there is no template.
        RecordError: a record has no question, so that its template would be said to anything.
    """
    require_templates(templates)
    rng = random.Random(f"templates:{seed}")  # noqa: S311 - to be reproduced, not secret
    order = rng.sample(range(len(records)), len(records))
    pool = rng.sample(templates, len(templates))
    drawn = {index: pool[turn % len(pool)] for turn, index in enumerate(order)}
    return tuple(_answered(record, drawn[index]) for index, record in enumerate(records))


def _answered(record: Record, template: str) -> Record:
    question, answer = record.text[: record.answer_start], record.text[record.answer_start :]
    if not question.strip():
        raise RecordError("a record has no question before its answer; a template answer needs one")
    spans = tuple(span for span in record.name_spans if span[1] <= len(question))
    space = answer[: len(answer) - len(answer.lstrip())]
    return replace(record, text=question + space + template, name_spans=spans, facts=())
