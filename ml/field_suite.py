"""The numbers that benchmarks of unlearning report, from one fused pass over each text (verification section 3).

They describe; `ml.decision` judges, on other evidence. In parity mode they are those of the reference implementation
(OpenUnlearning, arXiv:2506.12618), in native mode without its known defects (verification section 2.2).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Final

import torch
from torch import Tensor

from ml.attacks.extraction import exact_memorisation, extraction_strength
from ml.attacks.fused import DEFAULT_BUDGET, Mode, compressed_bytes, fused_pass
from ml.attacks.mean_loss import mean_loss, probability
from ml.attacks.min_k import min_k, min_k_plus_plus
from ml.attacks.reference import reference_excess
from ml.attacks.zlib_ratio import zlib_ratio
from ml.data.collate import EncodedText
from ml.errors import EmptySetError
from ml.metrics.membership import membership_auc, privleak, relative_difference
from ml.metrics.truth_ratio import truth_ratio
from ml.models.load import LoadedModel

MEMBERSHIP: Final = ("loss", "min_k", "min_k_plus_plus", "zlib")


@dataclass(frozen=True, slots=True)
class LikelihoodBlock:
    """Scores of every text: (texts,) each, larger membership scores being less familiar.

    `probability`, `exact_memorisation` and `extraction_strength` lie in [0, 1]; `membership` holds one tensor an
    attack, "reference" among them where the reference's losses were given.
    """

    probability: Tensor
    exact_memorisation: Tensor
    extraction_strength: Tensor
    membership: Mapping[str, Tensor]


def likelihood_block(
    loaded: LoadedModel,
    texts: Sequence[EncodedText],
    *,
    known: Tensor | None = None,
    mode: Mode = "native",
    budget: int = DEFAULT_BUDGET,
) -> LikelihoodBlock:
    """Score texts by L1 to L7 in one pass.

    Args:
        known: (texts,), the reference's losses of these texts (`reference_losses`) where L7 is wanted.
    Raises:
        EmptySetError: no text.
        NonFiniteError: a score is NaN or infinite.
    """
    if not texts:
        raise EmptySetError("a likelihood block needs at least one text")
    statistics = replace(
        fused_pass(loaded, texts, budget=budget, mode=mode), compressed_bytes=compressed_bytes(loaded.tokenizer, texts)
    )
    membership = {
        "loss": mean_loss(statistics),
        "min_k": min_k(statistics),
        "min_k_plus_plus": min_k_plus_plus(statistics),
        "zlib": zlib_ratio(statistics),
    }
    if known is not None:
        membership["reference"] = reference_excess(replace(statistics, reference_loss=known))
    return LikelihoodBlock(
        probability(statistics),
        exact_memorisation(statistics),
        extraction_strength(statistics, mode=mode),
        membership,
    )


def reference_losses(
    reference: LoadedModel, texts: Sequence[EncodedText], *, mode: Mode = "native", budget: int = DEFAULT_BUDGET
) -> Tensor:
    """Mean loss of each text under a reference model: (texts,), nats. It never changes: measure it once and keep it."""
    return mean_loss(fused_pass(reference, texts, mode=mode, budget=budget))


def forget_numbers(
    loaded: LoadedModel,
    forget: Sequence[EncodedText],
    holdout: Sequence[EncodedText],
    *,
    known: Tensor | None = None,
    reference_auc: float = 0.5,
    mode: Mode = "native",
    budget: int = DEFAULT_BUDGET,
) -> dict[str, float]:
    """Aggregates over a forget set, and membership areas against held-out texts: 1 where forget texts look trained on.

    Args:
        known: (forget + holdout,), the reference's losses of these texts, in this order.
        reference_auc: Min-K area of a retrained model; 0.5 where none is at hand.
    Raises:
        EmptySetError: one of the sets is empty.
    """
    if not forget or not holdout:
        raise EmptySetError("membership needs texts of the forget set and held-out texts")
    block = likelihood_block(loaded, [*forget, *holdout], known=known, mode=mode, budget=budget)
    count = len(forget)
    numbers = {
        "probability": float(block.probability[:count].mean()),
        "exact_memorisation": float(block.exact_memorisation[:count].mean()),
        "extraction_strength": float(block.extraction_strength[:count].mean()),
    }
    areas = {name: membership_auc(scores[:count], scores[count:]) for name, scores in block.membership.items()}
    numbers |= {f"auc_{name}": area for name, area in areas.items()}
    return numbers | {
        "privleak": privleak(areas["min_k"], reference_auc),
        "relative_difference": relative_difference(areas["min_k"], reference_auc),
    }


def truth_ratios(
    loaded: LoadedModel,
    right: Sequence[EncodedText],
    wrong: Sequence[Sequence[EncodedText]],
    *,
    mode: Mode = "native",
) -> Tensor:
    """L8 for each question: (items,), above 1 where the wrong answers are likelier than the right one."""
    correct, others = answer_losses(loaded, right, wrong, mode=mode)
    return truth_ratio(correct, others, mode=mode)


def answer_losses(
    loaded: LoadedModel,
    right: Sequence[EncodedText],
    wrong: Sequence[Sequence[EncodedText]],
    *,
    mode: Mode = "native",
    budget: int = DEFAULT_BUDGET,
) -> tuple[Tensor, Tensor]:
    """Mean losses of right answers, (items,), and of wrong ones, (items, answers), in one pass over all of them.

    Raises:
        EmptySetError: no question, or questions with different numbers of wrong answers.
    """
    answers = {len(row) for row in wrong}
    if not right or len(wrong) != len(right) or len(answers) != 1 or 0 in answers:
        raise EmptySetError("every question needs a right answer and equally many wrong ones")
    losses = mean_loss(fused_pass(loaded, [*right, *chain.from_iterable(wrong)], mode=mode, budget=budget))
    return losses[: len(right)], losses[len(right) :].reshape(len(right), -1)


def probabilities(losses: Tensor) -> Tensor:
    """exp(-loss): geometric mean of the tokens' probabilities, in [0, 1]."""
    return torch.exp(-losses)
