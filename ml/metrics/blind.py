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
    wins, tested = np.zeros((count, count)), np.zeros((count, count))
    for fold in _folds(count, seed):
        learned = np.setdiff1d(np.arange(count), fold)
        weights = _weights([own[i].mean(axis=0) for i in learned], [copies[i].mean(axis=1) for i in learned])
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
    counts = np.zeros((len(texts), BUCKETS))
    for row, text in enumerate(texts):
        buckets = [zlib.crc32(gram) % BUCKETS for gram in _grams(text.encode("utf-8"))]
        counts[row] = np.bincount(buckets, minlength=BUCKETS)
    return np.log1p(counts)


def _grams(text: bytes) -> Iterator[bytes]:
    for size in SIZES:
        yield from (text[i : i + size] for i in range(len(text) - size + 1))


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
    rows = [[float((a[:, None] > b).mean() + (a[:, None] == b).mean() / 2) for b in copies] for a in own]
    return np.asarray(rows, dtype=np.float64)
