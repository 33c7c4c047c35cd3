"""Preference for a template answer over the forgotten one, relative to the model before deletion. A baseline.

Source: the "I don't know" variant of direct preference optimisation in TOFU, arXiv:2401.06121, restated; beta 0.1 is
that paper's, learning rate and steps are ours, for LoRA. The sum, not the mean, of an answer's log-probabilities
enters. The loss saturates at 0 as the preference grows, and prefers one kind of answer: energies must be measured again
before they decide a refusal.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor
from torch.nn import functional

from ml.data.collate import sum_per_sequence
from ml.methods.forgetting import ForgetBatch, RetainTerm, forgetting_plan, reference_sums, run_rows
from ml.methods.method import METHODS, Need, Plan, Training, UnlearningTask, refuse_unless_above_zero
from ml.methods.templates import NEUTRAL_ANSWERS, template_records
from ml.reports import Guarantee


def idk_dpo_loss(template_gain: Tensor, forget_gain: Tensor, *, beta: float) -> Tensor:
    """`-(2 / beta) * mean_seq log sigmoid(beta * (G_e - G_f))`, in nats; at least 0.

    At the reference it is (2 / beta) ln 2. With G_e = 0 it is NPO.

    Args:
        template_gain, forget_gain: (batch,), G = summed log p of an answer minus that of the model before deletion,
            of the template and of the forgotten answer.
    Source: arXiv:2401.06121; the factor 2 / beta as in its code.
    """
    return -(2 / beta) * functional.logsigmoid(beta * (template_gain - forget_gain)).mean()


@dataclass(frozen=True, slots=True)
class IdkDpoSettings:
    """`beta` is the inverse temperature, `templates` the pool of preferred answers; `gamma` and `alpha` weigh
    forgetting and the retained loss."""

    training: Training = field(default_factory=lambda: Training(steps=120, learning_rate=1e-3, rank=8))
    beta: float = 0.1
    gamma: float = 1.0
    alpha: float = 1.0
    retain_term: RetainTerm = "cross_entropy"
    templates: tuple[str, ...] = NEUTRAL_ANSWERS

    def __post_init__(self) -> None:
        refuse_unless_above_zero(beta=self.beta)


@METHODS.register("idk_dpo")
class IdkDpo:
    """`L = gamma * DPO(template answer over forgotten answer) + alpha * retained`."""

    version = "1"
    guarantee: Guarantee = "empirical_approximate"
    needs = frozenset({Need.RETAIN, Need.TEMPLATES})
    settings = IdkDpoSettings

    def plan(self, task: UnlearningTask, settings: IdkDpoSettings) -> Plan:
        """Score both answers once under the model before; then both answers and one retained batch a step."""
        records = template_records(task.forget, settings.templates, seed=task.seed)
        rows, instead = task.encode(task.forget), task.encode(records)
        rows_before, instead_before = reference_sums(task, rows), reference_sums(task, instead)

        def loss(batch: ForgetBatch) -> Tensor:
            said = run_rows(task, instead, batch.chosen)
            return idk_dpo_loss(_gains(said, instead_before), _gains(batch, rows_before), beta=settings.beta)

        return forgetting_plan(
            task,
            settings.training,
            loss,
            rows=rows,
            gamma=settings.gamma,
            alpha=settings.alpha,
            retain_term=settings.retain_term,
        )


def _gains(batch: ForgetBatch, before: Tensor) -> Tensor:
    return sum_per_sequence(*batch.log_probs()) + before[batch.chosen]
