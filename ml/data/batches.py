"""Which rows belong to which step: pure functions of a seed and a step number, so a run can be taken up anywhere."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import lru_cache

from ml.errors import EmptySetError


class EpochBatches:
    """Every row once per epoch, in batches of `rows` rows of similar length, in an order drawn from the seed.

    Args:
        lengths: tokens of each row; rows of one batch are close in length, so that little is padding.
        rows: rows per batch; the last batch of an epoch may be smaller.
    Raises:
        EmptySetError: there is no row.
    """

    def __init__(self, lengths: Sequence[int], *, rows: int, seed: int) -> None:
        if not lengths:
            raise EmptySetError("there are no rows to draw batches from")
        self.lengths, self.rows, self.seed = tuple(lengths), min(rows, len(lengths)), seed
        self.per_epoch = -(-len(lengths) // self.rows)
        self._epoch = lru_cache(maxsize=2)(self._draw)

    def at(self, step: int) -> list[int]:
        """Row numbers of batch `step`, counted from the first epoch on."""
        epoch, position = divmod(step, self.per_epoch)
        return self._epoch(epoch)[position]

    def _draw(self, epoch: int) -> list[list[int]]:
        rng = random.Random(f"{self.seed}:{epoch}")  # noqa: S311 - an order to be reproduced, not a secret
        order = list(range(len(self.lengths)))
        rng.shuffle(order)
        window = 16 * self.rows
        pieces = [order[i : i + window] for i in range(0, len(order), window)]
        order = [i for piece in pieces for i in sorted(piece, key=self.lengths.__getitem__)]
        batches = [order[i : i + self.rows] for i in range(0, len(order), self.rows)]
        rng.shuffle(batches)
        return batches
