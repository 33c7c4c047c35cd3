"""Forget only the marked facts of a text and keep the words around them: for personal data inside documents.

Source: CodeEraser, arXiv:2509.13755, restated; gamma 0.1, lambda 0.1 and alpha 1 are the authors', learning rate and
steps are ours, for LoRA. There, forget and retained batches alternate; here one of each makes a step. There, a text
stops by two measures with thresholds from unseen text; here by the first alone, the share of its facts' tokens that the
model would say, with a threshold that is set. Up to that stop the loss is unbounded (clipping and few steps are the
guard), and pressure against right tokens alone can lower energy: energies must be measured again before they decide a
refusal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from ml.data.collate import EncodedText, mean_over_tokens
from ml.errors import RecordError, SpecError
from ml.methods.forgetting import ForgetBatch, forgetting_plan, run_before
from ml.methods.losses import divergence
from ml.methods.method import METHODS, Need, Plan, Training, UnlearningTask
from ml.reports import Guarantee


def fact_span_loss(
    log_probs: Tensor, facts: Tensor, others: Tensor, drift: Tensor, *, gamma: float, divergence_weight: float
) -> Tensor:
    """`-mean_s l_t + gamma * mean_{not s} l_t - divergence_weight * mean_s KL(before || now)`, l = -log p, in nats.

    Each mean is over the tokens of the whole batch that its mask marks; unbounded below.

    Args:
        log_probs: (batch, seq), from `label_log_probs`.
        facts, others: (batch, seq), bool; the labels inside and outside of marked facts.
        drift: (batch, seq), KL(before || now) at each label.
    Raises:
        EmptySequenceError: a mask marks nothing.
    Source: arXiv:2509.13755. Oracle of the shared fixture, first token marked: gamma 0.1, no divergence ->
        -0.1247980.
    """
    kept = gamma * -mean_over_tokens(log_probs, others)
    return mean_over_tokens(log_probs, facts) + kept - divergence_weight * mean_over_tokens(drift, facts)


def still_said(logits: Tensor, labels: Tensor, facts: Tensor, *, stop_share: float) -> Tensor:
    """Rows of whose facts' tokens more than `stop_share` are the most likely ones: (batch,), bool.

    Args:
        logits, labels: (batch, seq, vocabulary) and (batch, seq), from `shift`.
        facts: (batch, seq), bool; every row marks a token.
    """
    said = (logits.argmax(dim=-1) == labels) & facts
    return said.sum(dim=-1) > stop_share * facts.sum(dim=-1)


@dataclass(frozen=True, slots=True)
class FactSpansSettings:
    """Weights of the terms, and when a text has had enough.

    gamma: weighs the words around the facts.
    divergence_weight: lambda, of the divergence from the model before; `alpha` times it weighs the retained divergence.
    stop_share: a text takes part while more than this share of its facts' tokens is what the model would say.
    """

    training: Training = field(
        default_factory=lambda: Training(steps=120, learning_rate=1e-3, rank=32, alpha=32.0, forget_rows=8)
    )
    gamma: float = 0.1
    divergence_weight: float = 0.1
    alpha: float = 1.0
    stop_share: float = 0.0

    def __post_init__(self) -> None:
        if self.gamma < 0 or self.divergence_weight < 0 or not 0 <= self.stop_share < 1:
            raise SpecError("settings gamma and divergence_weight must not be below 0; stop_share lies in [0, 1)")


@METHODS.register("fact_spans")
class FactSpans:
    """`L = fact_span_loss(forget) + divergence_weight * alpha * KL_retain(before || now)`."""

    version = "1"
    guarantee: Guarantee = "empirical_approximate"
    needs = frozenset({Need.RETAIN, Need.FACTS})
    settings = FactSpansSettings

    def plan(self, task: UnlearningTask, settings: FactSpansSettings) -> Plan:
        """Find the facts' tokens; then both models on one forget batch and one retained batch a step."""
        rows = task.encode(task.forget)
        places = [fact_positions(row) for row in rows]

        def loss(batch: ForgetBatch) -> Tensor:
            logits, labels, mask = batch.distributions()
            log_probs, _ = batch.log_probs()
            facts = batch.marks([places[i] for i in batch.chosen])
            remembered = still_said(logits, labels, facts, stop_share=settings.stop_share).unsqueeze(-1)
            if not bool(remembered.any()):
                return 0.0 * log_probs.sum()
            before, _, _ = run_before(task, batch).distributions()
            return fact_span_loss(
                log_probs,
                facts & remembered,
                mask & ~facts & remembered,
                divergence(before, logits),
                gamma=settings.gamma,
                divergence_weight=settings.divergence_weight,
            )

        return forgetting_plan(
            task,
            settings.training,
            loss,
            rows=rows,
            alpha=settings.divergence_weight * settings.alpha,
            retain_term="divergence",
        )


def fact_positions(row: EncodedText) -> Sequence[int]:
    """Token positions of a text's marked facts, as far as they bear labels; a token that straddles a start is one.

    Raises:
        RecordError: none of them bears a label, so that nothing would be forgotten.
    """
    places = sorted({place for first, end in row.values for place in range(max(first, row.first_label), end)})
    if not places:
        raise RecordError("the facts of a record all stand before its answer; mark one that the model is to forget")
    return places
