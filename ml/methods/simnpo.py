"""SimNPO: negative preference optimisation without a reference, on the answer's mean log-probability.

Source: arXiv:2410.07163, restated. beta, delta, gamma and alpha are those of open-unlearning (the authors' runs on TOFU
use beta 2.5 and gamma 0.1375); learning rate and steps are ours, for LoRA. The loss saturates at 0 as an answer's
likelihood falls. Pressure against right tokens alone can lower energy: energies must be measured again before they
decide a refusal.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor
from torch.nn import functional

from ml.data.collate import mean_per_sequence
from ml.methods.forgetting import RetainTerm, forgetting_plan
from ml.methods.method import METHODS, Need, Plan, Training, UnlearningTask, refuse_unless_above_zero
from ml.reports import Guarantee


def simnpo_loss(log_probs: Tensor, mask: Tensor, *, beta: float, delta: float) -> Tensor:
    """`-(2 / beta) * mean_seq log sigmoid(beta * (S / |y| - delta))`, in nats; at least 0.

    S is an answer's summed negative log-likelihood and |y| its labelled tokens after the shift: a sum instead of the
    mean would change beta by |y|.

    Args:
        log_probs, mask: (batch, seq), from `label_log_probs`.
        delta: mean negative log-likelihood from which on the pressure falls, in nats.
    Source: arXiv:2410.07163. Oracle of the shared fixture, (beta, delta): (4.5, 0) -> 0.0015371, (2.5, 0) ->
    0.0336554, (4.5, 1) -> 0.1206432.
    """
    gap = -mean_per_sequence(log_probs, mask) - delta
    return -(2 / beta) * functional.logsigmoid(beta * gap).mean()


@dataclass(frozen=True, slots=True)
class SimNpoSettings:
    """`beta` is the inverse temperature, `delta` the margin; `gamma` weighs forgetting, `alpha` the retained loss."""

    training: Training = field(default_factory=lambda: Training(steps=120, learning_rate=1e-3, rank=8))
    beta: float = 4.5
    delta: float = 0.0
    gamma: float = 0.125
    alpha: float = 1.0
    retain_term: RetainTerm = "cross_entropy"

    def __post_init__(self) -> None:
        refuse_unless_above_zero(beta=self.beta)


@METHODS.register("simnpo")
class SimNpo:
    """`L = gamma * SimNPO(forget) + alpha * retained`."""

    version = "1"
    guarantee: Guarantee = "empirical_approximate"
    needs = frozenset({Need.RETAIN})
    settings = SimNpoSettings

    def plan(self, task: UnlearningTask, settings: SimNpoSettings) -> Plan:
        """Take one forget batch and one retained batch a step."""
        return forgetting_plan(
            task,
            settings.training,
            lambda batch: simnpo_loss(*batch.log_probs(), beta=settings.beta, delta=settings.delta),
            gamma=settings.gamma,
            alpha=settings.alpha,
            retain_term=settings.retain_term,
        )
