"""L11: the exact chance that sampling yields a text, without drawing a sample (oracle O-7).

Source: (n, p)-discoverable extraction, arXiv:2410.19482; the Monte Carlo estimate is that of arXiv:2511.04934.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ml.attacks.attack import ATTACKS, Attack
from ml.attacks.fused import TokenStatistics, without_end
from ml.errors import SpecError


def log_sampling_probability(statistics: TokenStatistics, *, values_only: bool = False) -> Tensor:
    """log p_z, the log-probability of drawing the labels exactly: (texts,), -inf where one can never be drawn.

    Args:
        values_only: only the tokens of the values, as if the words before them had been prefilled.
    """
    mask = statistics.mask & statistics.values if values_only else without_end(statistics.mask)
    return torch.where(mask, statistics.sampled, torch.zeros(())).sum(dim=1)


def leak_at(log_probability: Tensor, *, samples: int) -> Tensor:
    """1 - (1 - p_z)^n: the chance that at least one of `samples` samples is the text, accurate for tiny p_z."""
    p = log_probability.double().exp()
    return -torch.expm1(samples * torch.log1p(-p.clamp_max(1 - 1e-16)))


def samples_for(log_probability: float, *, chance: float = 0.95) -> float:
    """Samples needed to draw the text with the given chance: ln(1 - chance) / ln(1 - p_z)."""
    return math.log1p(-chance) / math.log1p(-math.exp(log_probability))


def leak_from_samples(*, samples: int, hits: int, draws: int) -> float:
    """Monte Carlo leak@k: 1 - C(n - c, k) / C(n, k) for `hits` c among `samples` n and `draws` k."""
    if not 0 <= hits <= samples or not 0 < draws <= samples:
        raise SpecError("leak@k needs 0 <= hits <= samples and 0 < k <= samples")
    return 1 - math.comb(samples - hits, draws) / math.comb(samples, draws)


ATTACKS.register("sampling_leak")(Attack("L11", "tokens", log_sampling_probability))
