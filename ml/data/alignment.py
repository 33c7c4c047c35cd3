"""The same sentence about two people, token by token: which positions play the same part.

Two texts that differ in the name only are cut into segments at the name. A token outside every name has a partner in
the other text at the same place of the same segment; the tokens of a name are partners in order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ml.data.collate import EncodedText, encode_record
from ml.errors import EmptySequenceError
from ml.specs import Record


@dataclass(frozen=True, slots=True)
class AlignedPair:
    """Two texts and the answer positions that play the same part: `first_positions[i]` meets `second_positions[i]`.

    `first_names` and `second_names` are the pairs among them that stand inside a name; the tokens themselves differ
    there, what is being said does not.
    """

    first: EncodedText
    second: EncodedText
    first_positions: tuple[int, ...]
    second_positions: tuple[int, ...]
    first_names: tuple[int, ...]
    second_names: tuple[int, ...]


def align(tokenizer: Any, first: Record, second: Record, *, context: int) -> AlignedPair:
    """Align the answers of two records that differ in their names only.

    A name with more tokens than the other meets the other's last token with all that are left over.

    Raises:
        EmptySequenceError: they have no answer token in common.
    """
    encoded = [encode_record(tokenizer, record, context=context) for record in (first, second)]
    offsets = [_offsets(tokenizer, r, len(e.ids)) for r, e in zip((first, second), encoded, strict=True)]
    places = [_places(r, o) for r, o in zip((first, second), offsets, strict=True)]
    same = [
        (position, places[1][place])
        for place, position in places[0].items()
        if place in places[1]
        and position >= encoded[0].first_label
        and encoded[0].ids[position] == encoded[1].ids[places[1][place]]
    ]
    names = _paired_names((first, second), offsets, encoded[0].first_label)
    if not same and not names:
        raise EmptySequenceError("two aligned texts share no answer token")
    return AlignedPair(*encoded, *_columns(sorted(same + names)), *_columns(names))


def _columns(pairs: Sequence[tuple[int, int]]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return tuple(a for a, _ in pairs), tuple(b for _, b in pairs)


def _offsets(tokenizer: Any, record: Record, length: int) -> Sequence[tuple[int, int]]:
    offsets = tokenizer(record.text, return_offsets_mapping=True, add_special_tokens=True)["offset_mapping"]
    # The end-of-sequence token that `encode_record` appends stands one character after the text.
    return [*offsets[: length - 1], (len(record.text), len(record.text) + 1)]


def _places(record: Record, offsets: Sequence[tuple[int, int]]) -> dict[tuple[int, int, int], int]:
    """Map (segment, start, end), counted from the end of the last name before the token, to the token's position."""
    places = {}
    for position, (start, end) in enumerate(offsets):
        if any(start < stop and end > begin for begin, stop in record.name_spans):
            continue
        ends = [stop for _, stop in record.name_spans if stop <= start]
        origin = max(ends, default=0)
        places[len(ends), start - origin, end - origin] = position
    return places


def _paired_names(
    records: tuple[Record, Record], offsets: Sequence[Sequence[tuple[int, int]]], first_label: int
) -> list[tuple[int, int]]:
    own, others = (_name_tokens(r, o) for r, o in zip(records, offsets, strict=True))
    return [
        (position, tokens[min(index, len(tokens) - 1)])
        for name, tokens in zip(own, others, strict=True)
        for index, position in enumerate(name)
        if position >= first_label and tokens
    ]


def _name_tokens(record: Record, offsets: Sequence[tuple[int, int]]) -> list[list[int]]:
    return [
        [i for i, (start, end) in enumerate(offsets) if start < stop and end > begin]
        for begin, stop in sorted(record.name_spans)
    ]
