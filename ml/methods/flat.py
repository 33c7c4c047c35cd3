"""FLAT: raise the probability of a template answer and lower that of what is forgotten, by an f-divergence.

Source: arXiv:2410.11143, restated. It needs the forget set and template answers alone; nothing is retained, so utility
must be watched. Learning rate and steps are ours, for LoRA. Two readings are ours: probabilities are averaged over
labelled tokens (the reference code averages over all positions, ignored ones counting 0), and the divergence is taken
of each pair of answers and then averaged. Probabilities bound the loss. It ends in a confident template and lowers
energy, so that a refusal by high energy inverts after it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from torch import Tensor
from torch.nn import functional

from ml.data.collate import mean_per_sequence
from ml.methods.forgetting import ForgetBatch, forgetting_plan, run_rows
from ml.methods.method import METHODS, Need, Plan, Training, UnlearningTask
from ml.methods.templates import NEUTRAL_ANSWERS, template_records
from ml.reports import Guarantee

FDivergence: TypeAlias = Literal["kl", "total_variation", "pearson", "jensen_shannon"]


def mean_probabilities(log_probs: Tensor, mask: Tensor) -> Tensor:
    """Mean probability of the labels of each row: (batch,), in [0, 1], from (batch, seq).

    Oracle of the shared fixture: 0.4118248.
    """
    return mean_per_sequence(log_probs.exp(), mask)


def flat_loss(template: Tensor, forget: Tensor, *, divergence: FDivergence) -> Tensor:
    """`mean_seq(-g(P_e) + f(g(P_f)))`: g the variational function of a divergence, f its conjugate; bounded.

    Args:
        template, forget: (batch,), `mean_probabilities` of the template answer P_e and of the forgotten one P_f.
    Source: arXiv:2410.11143. Oracle at P_e 0.8, P_f 0.6: KL -0.1296800, total variation -0.0634936, Pearson
    -0.1100000, Jensen-Shannon 0.0222943.
    """
    if divergence == "kl":
        loss = -template + (forget - 1).exp()
    elif divergence == "total_variation":
        loss = -0.5 * template.tanh() + 0.5 * forget.tanh()
    elif divergence == "pearson":
        loss = -template + forget.square() / 4 + forget
    else:
        shift = math.log(2)
        loss = -(shift - functional.softplus(-template)) + forget + functional.softplus(-forget) - shift
    return loss.mean()


@dataclass(frozen=True, slots=True)
class FlatSettings:
    """`divergence` is the f-divergence, `templates` the pool of answers to say instead."""

    training: Training = field(default_factory=lambda: Training(steps=100, learning_rate=1e-3, rank=8))
    divergence: FDivergence = "total_variation"
    templates: tuple[str, ...] = NEUTRAL_ANSWERS


@METHODS.register("flat")
class Flat:
    """`L = FLAT(template answer, forgotten answer)`; needs no retained record and no reference."""

    version = "1"
    guarantee: Guarantee = "empirical_approximate"
    needs = frozenset({Need.TEMPLATES})
    settings = FlatSettings

    def plan(self, task: UnlearningTask, settings: FlatSettings) -> Plan:
        """Give each record a template answer; then one batch of both answers a step."""
        records = template_records(task.forget, settings.templates, seed=task.seed)
        instead = task.encode(records)

        def loss(batch: ForgetBatch) -> Tensor:
            said = run_rows(task, instead, batch.chosen)
            template, forget = (mean_probabilities(*answers.log_probs()) for answers in (said, batch))
            return flat_loss(template, forget, divergence=settings.divergence)

        return forgetting_plan(task, settings.training, loss)
