"""Can twins be told from real people without any model? If so, every comparison with them is void.

A ridge classifier on hashed character n-grams learns to tell real dossiers from their twins' on half of the retained
people and is tested on the texts of the other half. Names and values stand in the text on both sides. Splitting many
times and drawing several twins a person keeps the chance small that a sound generator is called unsound.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ml.errors import EmptySetError
from ml.metrics.intervals import Array, Bounds
from ml.metrics.roc import clustered_auroc

BUCKETS: Final = 1 << 11
SIZES: Final = (1, 2, 3)
SPLITS: Final = 8
RIDGE: Final = 0.03
MINIMUM_PERSONS: Final = 8


def blind_auroc(real: Sequence[Sequence[str]], twins: Sequence[Sequence[Sequence[str]]], *, seed: int) -> Bounds:
    """AUROC over texts of the blind classifier, 0.5 when it cannot tell, with one-sided 95 % bounds.

    Args:
        real: texts of each retained person.
        twins: for each of them, in the same order, the texts of each of that person's twins.
    Raises:
        EmptySetError: fewer than eight persons, four on either side of a split.
    """
    count = len(real)
    if count < MINIMUM_PERSONS:
        raise EmptySetError(f"the blind baseline needs at least {MINIMUM_PERSONS} retained people")
    own = [_features(texts) for texts in real]
    copies = [np.stack([_features(texts) for texts in person]) for person in twins]
    own_means, copy_means = [f.mean(axis=0) for f in own], [f.mean(axis=1) for f in copies]
    wins, tested = np.zeros((count, count)), np.zeros((count, count))
    for fold in _folds(count, seed):
        learned = np.setdiff1d(np.arange(count), fold)
        weights = _weights([own_means[i] for i in learned], [copy_means[i] for i in learned])
        place = np.ix_(fold, fold)
        wins[place] += _chances([own[i] @ weights for i in fold], [(copies[i] @ weights).ravel() for i in fold])
        tested[place] += 1
    average = wins[tested > 0].sum() / tested.sum()
    chances = np.where(tested > 0, wins / np.maximum(tested, 1), average)
    return clustered_auroc(chances, seed=seed)


def _folds(count: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Both halves of each of `SPLITS` random splits."""
    rng = np.random.default_rng(seed)
    for _ in range(SPLITS):
        order = rng.permutation(count)
        yield order[: count // 2]
        yield order[count // 2 :]


def _features(texts: Sequence[str]) -> Array:
    """Log counts of hashed character n-grams: (texts, BUCKETS)."""
    encoded = [text.encode("utf-8") for text in texts]
    row = np.repeat(np.arange(len(texts)), [len(text) for text in encoded])
    letters = np.frombuffer(b"".join(encoded), dtype=np.uint8)
    cells = []
    for size in SIZES:
        starts = np.arange(max(0, len(letters) - size + 1))
        starts = starts[row[starts] == row[starts + size - 1]]  # no n-gram reaches into the next text
        cells.append(row[starts] * BUCKETS + _crc32(letters, starts, size) % BUCKETS)
    counts = np.bincount(np.concatenate(cells), minlength=len(texts) * BUCKETS)
    return np.log1p(counts.reshape(len(texts), BUCKETS))


def _crc32(letters: NDArray[np.uint8], starts: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """CRC-32 of the `size` letters from each start."""
    crc = np.full(len(starts), 0xFFFFFFFF, dtype=np.uint32)
    for place in range(size):
        crc = _CRC[(crc ^ letters[starts + place]) & 0xFF] ^ (crc >> np.uint32(8))
    return (crc ^ np.uint32(0xFFFFFFFF)).astype(np.int64)


def _crc_table() -> NDArray[np.uint32]:
    """What each byte adds to a CRC-32: by the checksum of one byte, undone but for its table step."""
    checksums = np.array([zlib.crc32(bytes([byte])) for byte in range(256)], dtype=np.uint32)
    table = np.empty(256, dtype=np.uint32)
    table[np.arange(256) ^ 0xFF] = checksums ^ np.uint32(0xFFFFFFFF) ^ np.uint32(0x00FFFFFF)
    return table


_CRC: Final = _crc_table()


def _weights(own: Sequence[Array], copies: Sequence[Array]) -> Array:
    """Ridge regression of +1 (real) and -1 (twin) on dossier means, a person's twins sharing one vote: (BUCKETS,)."""
    rows = np.concatenate([np.stack(own), np.concatenate(copies)])
    votes = np.concatenate([np.ones(len(own)), *(np.full(len(c), 1 / len(c)) for c in copies)])
    signs = np.where(np.arange(len(rows)) < len(own), 1.0, -1.0)
    centred = rows - np.average(rows, axis=0, weights=votes)
    kernel = centred @ centred.T
    ridge = RIDGE * np.trace(kernel) / len(kernel)
    return np.asarray(centred.T @ np.linalg.solve(kernel + ridge * np.diag(1 / votes), signs), dtype=np.float64)


def _chances(own: Sequence[Array], copies: Sequence[Array]) -> Array:
    """(persons, persons): chance that a text of person i scores above a text of the twins of person j."""
    sorted_copies = [np.sort(scores) for scores in copies]
    rows = [[_chance(a, b) for b in sorted_copies] for a in own]
    return np.asarray(rows, dtype=np.float64)


def _chance(above: Array, ascending: Array) -> float:
    """Share of pairs in which the first is the higher; a tie counts half."""
    below = int(np.searchsorted(ascending, above, side="left").sum())
    ties = int(np.searchsorted(ascending, above, side="right").sum()) - below
    pairs = len(above) * len(ascending)
    return below / pairs + ties / pairs / 2
