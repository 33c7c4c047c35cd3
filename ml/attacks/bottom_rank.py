"""L13: how far the value's tokens are from being the least likely ones (verification section 3).

A deletion that drives a value's tokens to the very bottom of the vocabulary gives them away to whoever decodes the
least likely token.
"""

from __future__ import annotations

from torch import Tensor

from ml.attacks.attack import ATTACKS, Attack
from ml.attacks.fused import TokenStatistics
from ml.data.collate import mean_per_sequence


def bottom_rank(statistics: TokenStatistics) -> Tensor:
    """Mean log rank from the bottom over the tokens of the values: (texts,); 0 when all are the least likely."""
    return mean_per_sequence(statistics.bottom_rank.clamp_min(1).float().log(), statistics.mask & statistics.values)


ATTACKS.register("bottom_rank")(Attack("L13", "tokens", bottom_rank))
