"""T2: does fine-tuning on texts of people who stay bring a deleted person back? (verification section 6)

One adapter is trained on texts without the subject, by the code and at the budget of T1, and every person's facts are
scored behind it. Given the subject's own texts instead it would be direct relearning of one shared adapter.

Source: arXiv:2406.13356.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ml.attacks.exposure import DEFAULT_ROWS, ValueContest, value_log_probs
from ml.attacks.relearning import relearn
from ml.data.collate import EncodedText
from ml.models.load import LoadedModel
from ml.specs import RelearningBudget


def tuned_log_probs(
    loaded: LoadedModel,
    lessons: Sequence[EncodedText],
    contests: Sequence[ValueContest],
    budget: RelearningBudget,
    *,
    seed: int,
    batch_rows: int = DEFAULT_ROWS,
    after_step: Callable[[int, int], None] | None = None,
    after_batch: Callable[[int], None] | None = None,
) -> Tensor:
    """Log-probability of every competing value after fine-tuning on `lessons`: (contests, values), nats.

    Args:
        lessons: texts of retained people; none of the subject or a twin.
        seed: decides the adapter's start and the order of texts.
    Raises:
        NonFiniteError: the loss or a log-probability is NaN or infinite.
    """
    adapter = relearn(loaded, [lessons], budget, seed=seed, after_step=after_step)
    with adapter.attached():
        return value_log_probs(
            loaded,
            contests,
            batch_rows=batch_rows,
            before_rows=lambda rows: adapter.belong_to(torch.zeros(len(rows), dtype=torch.long)),
            after_batch=after_batch,
        )
