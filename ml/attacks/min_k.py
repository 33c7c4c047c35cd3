"""L4 and L5: the least likely tokens of a text, plain and standardised (verification section 3, oracle O-5).

Source: Min-K % (arXiv:2310.16789) and Min-K %++ (arXiv:2404.02936). The last label is left out.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from ml.attacks.attack import ATTACKS, Attack
from ml.attacks.fused import TokenStatistics, without_end
from ml.errors import EmptySequenceError

SHARE: Final = 0.4
_SMALLEST_VARIANCE: Final = 1e-6


def min_k(statistics: TokenStatistics, *, share: float = SHARE) -> Tensor:
    """Minus the mean of the max(1, floor(share x T)) smallest log-probabilities: (texts,); larger is less familiar."""
    return -_mean_of_smallest(statistics.log_prob, without_end(statistics.mask), share)


def min_k_plus_plus(statistics: TokenStatistics, *, share: float = SHARE) -> Tensor:
    """As `min_k`, on log-probabilities standardised by their mean and spread over the vocabulary."""
    variance = statistics.mean_square - statistics.mean.square()
    standardised = (statistics.log_prob - statistics.mean) / variance.clamp_min(_SMALLEST_VARIANCE).sqrt()
    return -_mean_of_smallest(standardised, without_end(statistics.mask), share)


def _mean_of_smallest(values: Tensor, mask: Tensor, share: float) -> Tensor:
    counts = mask.sum(dim=1)
    if bool((counts == 0).any()):
        raise EmptySequenceError("a text has no label besides its end; there is no token to rank")
    taken = (counts * share).floor().clamp_min(1)
    ordered = values.masked_fill(~mask, torch.inf).sort(dim=1).values
    smallest = torch.arange(values.shape[1]) < taken.unsqueeze(1)
    return ordered.masked_fill(~smallest, 0.0).sum(dim=1) / taken


ATTACKS.register("min_k")(Attack("L4", "tokens", lambda statistics: -min_k(statistics)))
ATTACKS.register("min_k_plus_plus")(Attack("L5", "tokens", lambda statistics: -min_k_plus_plus(statistics)))
