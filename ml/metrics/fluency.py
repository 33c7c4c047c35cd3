"""Is an answer still language? Judged by the base model and by repetition, never by the candidate itself."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from ml.attacks.fused import TokenStatistics
from ml.data.collate import mean_per_sequence


def ngram_entropy(tokens: Sequence[Hashable], size: int) -> float:
    """Shannon entropy in bits of the n-grams of a text; 0 when it has none. Oracle O-23."""
    grams = Counter(tuple(tokens[i : i + size]) for i in range(len(tokens) - size + 1))
    total = sum(grams.values())
    return 0.0 - sum(count / total * math.log2(count / total) for count in grams.values())


def weighted_ngram_entropy(tokens: Sequence[Hashable]) -> float:
    """Mean of the bigram entropy weighted 2/3 and the trigram entropy weighted 4/3, in bits. Oracle O-23.

    Source: fluency in RWKU (arXiv:2406.10890), which reads words; verification reads the model's tokens, whose number
    depends less on how many words a value happens to have.
    """
    return (2 / 3 * ngram_entropy(tokens, 2) + 4 / 3 * ngram_entropy(tokens, 3)) / 2


def opening_log_probability(statistics: TokenStatistics, opening: Tensor) -> Tensor:
    """How likely the base model finds the first words of each answer: (texts,), mean log-probability, nats per token.

    The value is left out: its tokens are improbable in good language too. So only the words before the place where the
    form puts the value are read. Compare it with that of the form's own words about the same person: a rare name
    makes both improbable.

    Args:
        statistics: the base model's fused pass over question and generated answer.
        opening: (texts,) int64, tokens before the value in the form's true answer; at least one token is read.
    """
    columns = torch.arange(statistics.mask.shape[1])
    read = statistics.mask & (columns < opening.clamp_min(1).unsqueeze(1))
    return mean_per_sequence(statistics.log_prob, read)
