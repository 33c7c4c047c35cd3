"""UGradSL: gradient ascent on labels that are smoothed by a negative amount (generalised label smoothing).

Source: arXiv:2406.07698, restated. A run counts steps, each with one batch of either kind, so its two variants, which
count epochs of one set or of the other, are the same here. The smoothing -0.4 is the one of a published baseline
(arXiv:2410.11143); the mixture 0.5, learning rate and steps are ours: the paper tunes them for each data set. The
ascent is unbounded (clipping and few steps are the guard); what it does to energies must be measured before
they decide a refusal. With a large vocabulary the smoothing is spread over every token and changes little.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ml.data.collate import mean_over_tokens
from ml.errors import SpecError
from ml.methods.forgetting import RetainTerm, forgetting_plan
from ml.methods.method import METHODS, Need, Plan, Training, UnlearningTask
from ml.reports import Guarantee


def smoothed_ascent_loss(logits: Tensor, labels: Tensor, mask: Tensor, *, smoothing: float) -> Tensor:
    """`-mean_t((1 - s) * l_t + s / V * sum_k l_tk)` with l = -log p, mean over tokens, in nats; unbounded below.

    Args:
        logits, labels, mask: (batch, seq, V), (batch, seq), (batch, seq), from `shift`; no row of padding among V.
        smoothing: s; below 0 it pushes the right token down harder, 0 is gradient ascent.
    Source: arXiv:2406.07698. Oracle of the shared fixture: s -0.4 -> -0.8339325, 0 -> -1.2589325.
    """
    log_probs = torch.log_softmax(logits.float(), dim=-1)
    chosen = log_probs.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    return mean_over_tokens((1 - smoothing) * chosen + smoothing * log_probs.mean(dim=-1), mask)


@dataclass(frozen=True, slots=True)
class UgradslSettings:
    """`smoothing` of the forgotten labels; `mixture` weighs the retained loss, and 1 minus it the ascent."""

    training: Training = field(default_factory=lambda: Training(steps=60, learning_rate=1e-3, rank=8))
    smoothing: float = -0.4
    mixture: float = 0.5
    retain_term: RetainTerm = "cross_entropy"

    def __post_init__(self) -> None:
        if self.smoothing > 0 or not 0 < self.mixture < 1:
            raise SpecError("setting smoothing must not be above 0, and mixture lies between 0 and 1")


@METHODS.register("ugradsl")
class Ugradsl:
    """`L = mixture * retained - (1 - mixture) * CE(forget, smoothed labels)`."""

    version = "1"
    guarantee: Guarantee = "empirical_approximate"
    needs = frozenset({Need.RETAIN})
    settings = UgradslSettings

    def plan(self, task: UnlearningTask, settings: UgradslSettings) -> Plan:
        """Take one forget batch and one retained batch a step."""
        return forgetting_plan(
            task,
            settings.training,
            lambda batch: smoothed_ascent_loss(*batch.distributions(), smoothing=settings.smoothing),
            gamma=1 - settings.mixture,
            alpha=settings.mixture,
            retain_term=settings.retain_term,
        )
