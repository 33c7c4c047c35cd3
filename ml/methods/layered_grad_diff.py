"""Layer-restricted gradient difference: only the feed-forward layers of the first blocks train, and what is lost of the
retained set weighs the more the more is lost.

Source: arXiv:2504.12996 (SemEval-2025 Task 4), restated; blocks 0 to 5 were found there by causal tracing on OLMo and
are a property of that model: set `training.blocks` for another. Learning rate and steps are ours, for LoRA; an epoch is
one pass over the forget set. The ascent is unbounded (clipping and few steps are the guard); it may lower
energy, after which a refusal by high energy inverts: measure it again.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Final

import torch

from ml.methods.forgetting import forget_turn, forgetting_plan
from ml.methods.ga import ga_loss
from ml.methods.method import METHODS, Need, Plan, Training, UnlearningTask
from ml.reports import Guarantee

_SMALLEST: Final = 1.2
_LARGEST: Final = 2.3


def retain_multiplier(rise: float) -> float:
    """`clip(round(0.3 * 6^rise + 0.8, 1), 1.2, 2.3)`: the weight of the retained loss.

    Args:
        rise: how far the retained loss of a step lies above the average of the first epoch's steps, in nats. The
            reference code divides that average by examples instead of by steps.
    Source: arXiv:2504.12996. Oracle: 0 -> 1.2, 0.1 -> 1.2, 0.5 -> 1.5, 1 -> 2.3.
    """
    # Beyond a rise of 1 the clip decides, and the power would overflow.
    return min(_LARGEST, max(_SMALLEST, round(0.3 * 6 ** min(rise, 1.0) + 0.8, 1)))


@dataclass(frozen=True, slots=True)
class LayeredGradDiffSettings:
    """`training.blocks` and `training.part` say which layers train."""

    training: Training = field(
        default_factory=lambda: Training(
            steps=60, learning_rate=1e-3, rank=8, blocks=(0, 1, 2, 3, 4, 5), part="feed_forward"
        )
    )


@METHODS.register("layered_grad_diff")
class LayeredGradDiff:
    """`L = -NLL(forget) + m * NLL(retain)`, m = 1.2 in the first epoch and `retain_multiplier` from then on."""

    version = "1"
    guarantee: Guarantee = "empirical_approximate"
    needs = frozenset({Need.RETAIN})
    settings = LayeredGradDiffSettings

    def plan(self, task: UnlearningTask, settings: LayeredGradDiffSettings) -> Plan:
        """Add up the retained loss of the first epoch; from then on compare each step with its average."""
        rows = task.encode(task.forget)
        epoch = forget_turn(rows, settings.training, seed=task.seed).per_epoch
        total = torch.zeros((), dtype=torch.float64)

        def multiplier(number: int, retain_loss: float) -> float:
            if number < epoch:
                total.add_(retain_loss)
                return _SMALLEST
            return retain_multiplier(retain_loss - float(total) / epoch)

        plan = forgetting_plan(
            task, settings.training, lambda batch: ga_loss(*batch.log_probs()), rows=rows, alpha=multiplier
        )
        return replace(plan, state={"first_epoch": total})
