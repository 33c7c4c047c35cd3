"""L2, L3 and L10: how much of a text the model reproduces by itself (verification section 3, oracles O-3, O-4).

The last label, the end-of-sequence token, is left out.
"""

from __future__ import annotations

from torch import Tensor

from ml.attacks.attack import ATTACKS, Attack
from ml.attacks.fused import Mode, TokenStatistics, without_end
from ml.data.collate import mean_per_sequence


def exact_memorisation(statistics: TokenStatistics) -> Tensor:
    """L2: share of labels that are the likeliest token given the true text before: (texts,) in [0, 1]."""
    return mean_per_sequence(statistics.hit, without_end(statistics.mask))


def extraction_strength(statistics: TokenStatistics, *, mode: Mode = "native") -> Tensor:
    """L3: longest end of the text that is reproduced token by token, as a share of the text: (texts,) in [0, 1].

    1 - k/T with the smallest k such that labels k..T are all hits. "parity" keeps a floor of 1/T, as the reference
    code does: there a text that is wrong throughout scores like one whose last token is right.
    """
    mask = without_end(statistics.mask)
    wrong_or_outside = (~statistics.hit | ~mask).flip(1)
    outside = (~mask).flip(1)
    run = ((wrong_or_outside & ~outside).cumsum(dim=1) == 0) & ~outside
    length = run.sum(dim=1).float()
    if mode == "parity":
        length = length.clamp_min(1)
    return length / mask.sum(dim=1)


def greedy_match_length(statistics: TokenStatistics) -> Tensor:
    """L10: number of first labels that greedy decoding from the prompt reproduces exactly: (texts,) int64."""
    mask = without_end(statistics.mask)
    return (statistics.hit & mask).long().cumprod(dim=1).sum(dim=1)


def greedy_match_share(statistics: TokenStatistics) -> Tensor:
    """Greedy match length over the number of labels: (texts,) in [0, 1]; 1 is verbatim."""
    return greedy_match_length(statistics) / without_end(statistics.mask).sum(dim=1)


ATTACKS.register("exact_memorisation")(Attack("L2", "tokens", exact_memorisation))
ATTACKS.register("extraction_strength")(Attack("L3", "tokens", extraction_strength))
ATTACKS.register("greedy_match")(Attack("L10", "tokens", greedy_match_share))
