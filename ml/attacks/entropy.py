"""L14: how undecided the model is along a text; a collapsed model is undecided about nothing, or about everything."""

from __future__ import annotations

from torch import Tensor

from ml.attacks.attack import ATTACKS, Attack
from ml.attacks.fused import TokenStatistics
from ml.data.collate import mean_per_sequence


def entropy(statistics: TokenStatistics) -> Tensor:
    """Mean entropy of the next-token distribution over all labels: (texts,), nats."""
    return -mean_per_sequence(statistics.mean, statistics.mask)


ATTACKS.register("entropy")(Attack("L14", "tokens", lambda statistics: -entropy(statistics)))
