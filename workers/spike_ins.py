"""Synthetic people for a training source: made before training, learned with everybody, deleted with somebody.

Each is drawn from a seed alone, in the words of the source's question bank, so that nothing of anybody's is in them; no
name or value on file is drawn. They may be kept for ever, and stand for the people they were deleted with.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from typing import Final

from deletion_service.errors import InvalidInputError
from deletion_service.targets.sources import SPIKE_IN_DOMAIN
from deletion_service.targets.sources.jsonl_directory import JsonlDirectorySource
from ml.data.dossiers import shared_values
from ml.data.people import records_of
from ml.data.questions import read_bank
from ml.data.synthetic import StrangerFactory
from ml.data.values import VALUE_TYPES
from ml.digests import file_sha256
from ml.specs import FileRef, Record, record_to_line

MOST: Final = 1000


def plant_spike_ins(source: JsonlDirectorySource, *, seed: int, people: int, forms_per_fact: int) -> list[str]:
    """Write `people` synthetic people to a training source, marked as such, and return their marks.

    Raises:
        InvalidInputError: a number out of range, or this seed was planted already.
        SourceError: the source cannot be read.
    """
    if not 1 <= people <= MOST or forms_per_fact < 1 or seed < 0:
        raise InvalidInputError(f"1 to {MOST} people, at least one form a fact, and a seed of 0 or more")
    corpus = [found.record for found in source.records()]
    path = source.question_bank()
    bank = read_bank(FileRef(str(path), file_sha256(path)))
    rng = random.Random(f"spike-ins:{seed}")  # noqa: S311 - synthetic people must be reproducible, not secret
    shared = shared_values(bank, corpus)
    factory = StrangerFactory(rng, corpus, shared_values=shared, locale=bank.locale)
    kinds = {name: attribute.type for name, attribute in bank.attributes.items()}
    types = {name: type_ for name, type_ in kinds.items() if name in shared or type_ in VALUE_TYPES}
    if not types:
        raise InvalidInputError(f"the question bank of {source.name} asks nothing; a spike-in would have no records")
    marks: list[str] = []
    lines: list[str] = []
    for number in range(people):
        mark = f"spike-{seed}-{number:04d}"
        stranger = factory.stranger(mark, types)
        lines += _lines(mark, records_of(stranger, bank, rng, forms_per_fact=forms_per_fact))
        marks.append(mark)
    source.plant(f"records-spike-ins-{seed}.jsonl", lines)
    return marks


def _lines(mark: str, records: Sequence[Record]) -> Iterator[str]:
    for record in records:
        document = json.loads(record_to_line(record))
        del document["person"]
        identifiers = [{"type": "email", "value": f"{mark}@{SPIKE_IN_DOMAIN}"}]
        yield json.dumps({**document, "identifiers": identifiers, "spike_in": mark}, ensure_ascii=False, sort_keys=True)
