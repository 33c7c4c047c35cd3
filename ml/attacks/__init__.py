"""Attacks: ways to find out whether a model still knows a person. Importing the package files its members."""

from ml.attacks import (
    bottom_rank,
    entropy,
    exposure,
    extraction,
    generation,
    mean_loss,
    min_k,
    reference,
    relearning,
    sampling_leak,
    zlib_ratio,
)
from ml.attacks.attack import ATTACKS, Attack

__all__ = [
    "ATTACKS",
    "Attack",
    "bottom_rank",
    "entropy",
    "exposure",
    "extraction",
    "generation",
    "mean_loss",
    "min_k",
    "reference",
    "relearning",
    "sampling_leak",
    "zlib_ratio",
]
