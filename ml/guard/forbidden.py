"""Keep a model from writing given token runs, without keeping the runs: suppression, never erasure.

GUARD-style blocking (arXiv:2505.13312), its exact part alone: the prompt classifier and the similarity penalty need a
copy of what was to be deleted. The model still knows the text, and says it in other words, in pieces, or to whoever
switches the filter off. Every result carries `filter_only`.

What is kept of a run of n tokens is a keyed digest of its first n-1 tokens, and its last token sealed by the same
prefix. Whoever has the list alone learns numbers and lengths. Whoever has the key as well can test guesses: what is
easily guessed (a date, a door code) is not hidden from them, so the key is kept apart, and short runs are refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final, Literal

import torch
from torch import Tensor
from transformers import LogitsProcessor

from ml.digests import sha256_hex
from ml.documents import Stored, read_version
from ml.errors import DigestMismatchError, EmptySetError, SpecError

SCHEMA_VERSION: Final = 1
SHORTEST_RUN: Final = 4
"""A shorter run is found by trying tokens; the first 3 of 4 take 10^9 tries with a vocabulary of 1,000."""
_KEY_BYTES: Final = range(16, 65)
_DIGEST_BYTES: Final = 16
_SEAL_BYTES: Final = 4


@dataclass(frozen=True, slots=True)
class ForbiddenRuns(Stored):
    """Runs that must not be written, by keyed digest: prefix digest -> sealed last tokens, and the runs' lengths.

    `vocabulary` is the number of token ids of the tokenizer that cut them; a list serves no other tokenizer.
    """

    entries: Mapping[str, tuple[int, ...]]
    lengths: tuple[int, ...]
    vocabulary: int
    key_sha256: str
    guarantee: Literal["filter_only"] = "filter_only"
    schema_version: int = SCHEMA_VERSION

    @classmethod
    def from_document(cls, document: object) -> ForbiddenRuns:
        """Read a list; raises `SpecError` naming the field that does not fit."""
        return read_version(cls, document, where="forbidden runs", version=SCHEMA_VERSION)


def forbid(
    sequences: Iterable[Sequence[int]],
    *,
    key: bytes,
    vocabulary: int,
    run: int | None = None,
    shortest: int = SHORTEST_RUN,
) -> ForbiddenRuns:
    """Make the list that keeps a model from writing `sequences` of token ids.

    Args:
        key: 16 to 64 secret random bytes, kept apart from the list.
        run: forbid every run of this many tokens of a longer sequence, so that it stops there and not at its end.
        shortest: refuse sequences of fewer tokens.
    Raises:
        EmptySetError: there is no sequence.
        SpecError: a key, a run or a sequence too short, or a token outside the vocabulary; no token is named.
    """
    if len(key) not in _KEY_BYTES:
        raise SpecError("the key of a list of forbidden runs has 16 to 64 bytes")
    if run is not None and run < max(1, shortest):
        raise SpecError(f"runs of {run} tokens are too short; forbid at least {max(1, shortest)} at a time")
    runs = {window for sequence in sequences for window in _windows(tuple(sequence), run)}
    if not runs:
        raise EmptySetError("there is no sequence to forbid")
    if min(map(len, runs)) < max(1, shortest):
        raise SpecError(
            f"a sequence has fewer than {max(1, shortest)} tokens and could be guessed; forbid a longer one"
        )
    if any(not 0 <= token < vocabulary for window in runs for token in window):
        raise SpecError("a forbidden sequence holds a token outside the vocabulary")
    last: dict[tuple[int, ...], list[int]] = {}
    for window in sorted(runs):
        last.setdefault(window[:-1], []).append(window[-1])
    entries = {
        _digest(key, prefix): tuple(token ^ _seal(key, prefix, place) for place, token in enumerate(tokens))
        for prefix, tokens in last.items()
    }
    lengths = tuple(sorted({len(window) for window in runs}))
    return ForbiddenRuns(dict(sorted(entries.items())), lengths, vocabulary, sha256_hex(key))


class BlockForbidden(LogitsProcessor):
    """Sets the logit of each token that would complete a forbidden run to minus infinity; all others stay as they are.

    A run counts from anywhere, the prompt included. Cost per step and row: one keyed digest for each distinct length,
    whatever the number of runs and the size of the vocabulary, and the last tokens are copied to the host. No state is
    kept, so batches, sampling and beams are all served.

    Raises:
        DigestMismatchError: the key is not the one the list was made with.
        SpecError: the model has fewer logits than the list's vocabulary.
    """

    def __init__(self, runs: ForbiddenRuns, *, key: bytes) -> None:
        if sha256_hex(key) != runs.key_sha256:
            raise DigestMismatchError("the list of forbidden runs was made with another key; nothing would be blocked")
        self._runs = runs
        self._key = key
        self._longest = max(runs.lengths) - 1

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores (rows, vocabulary rows) with what is forbidden after `input_ids` (rows, seq) blocked."""
        if scores.shape[-1] < self._runs.vocabulary:
            raise SpecError("the list of forbidden runs is for a larger vocabulary than this model's")
        written = input_ids[:, max(0, input_ids.shape[1] - self._longest) :].tolist()
        blocked = [(row, token) for row, tokens in enumerate(written) for token in self._after(tuple(tokens))]
        if not blocked:
            return scores
        rows, tokens = torch.tensor(blocked, device=scores.device).T
        return scores.index_put((rows, tokens), scores.new_tensor(float("-inf")))

    def _after(self, written: tuple[int, ...]) -> Iterable[int]:
        for length in self._runs.lengths:
            if len(written) >= length - 1:
                prefix = written[len(written) - (length - 1) :]
                sealed = self._runs.entries.get(_digest(self._key, prefix), ())
                yield from (token ^ _seal(self._key, prefix, place) for place, token in enumerate(sealed))


def _windows(sequence: tuple[int, ...], run: int | None) -> list[tuple[int, ...]]:
    if run is None or len(sequence) <= run:
        return [sequence]
    return [sequence[start : start + run] for start in range(len(sequence) - run + 1)]


def _digest(key: bytes, prefix: Sequence[int]) -> str:
    return blake2b(_bytes(prefix), key=key, digest_size=_DIGEST_BYTES, person=b"prefix").hexdigest()


def _seal(key: bytes, prefix: Sequence[int], place: int) -> int:
    sealing = blake2b(_bytes((*prefix, place)), key=key, digest_size=_SEAL_BYTES, person=b"last token")
    return int.from_bytes(sealing.digest(), "big")


def _bytes(numbers: Sequence[int]) -> bytes:
    return b"".join(number.to_bytes(_SEAL_BYTES, "big") for number in numbers)
