"""L1: mean loss of a text, and the probability and energy that go with it (verification section 3, oracle O-2)."""

from __future__ import annotations

import torch
from torch import Tensor

from ml.attacks.attack import ATTACKS, Attack
from ml.attacks.fused import TokenStatistics
from ml.data.collate import mean_per_sequence


def mean_loss(statistics: TokenStatistics) -> Tensor:
    """Mean negative log-likelihood over all labels, the end-of-sequence token included: (texts,), nats per token."""
    return -mean_per_sequence(statistics.log_prob, statistics.mask)


def probability(statistics: TokenStatistics) -> Tensor:
    """exp(-mean loss): the geometric mean of the labels' probabilities, (texts,) in [0, 1]; 1 is known by heart."""
    return torch.exp(-mean_loss(statistics))


def value_log_probability(statistics: TokenStatistics) -> Tensor:
    """Mean log-probability over the tokens of the values alone: (texts,), nats per token."""
    return mean_per_sequence(statistics.log_prob, statistics.mask & statistics.values)


def mean_energy(statistics: TokenStatistics) -> Tensor:
    """Mean centred energy over all labels: (texts,), nats; higher is more foreign."""
    return mean_per_sequence(statistics.energy, statistics.mask)


ATTACKS.register("mean_loss")(Attack("L1", "tokens", lambda statistics: -mean_loss(statistics)))
