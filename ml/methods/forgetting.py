"""The step that most methods share: one forget batch against the method's own loss, one retained batch beside it.

`L = gamma * L_forget + alpha * L_retain`. A method's file holds its forget loss and little else; what is drawn, run and
aligned is here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

import torch
from torch import Tensor

from ml.data.batches import EpochBatches
from ml.data.collate import Batch, EncodedText, chosen_log_probs, collate, label_mask, labels_in_order
from ml.finetune import cross_entropy_of
from ml.loop import Backward
from ml.methods.method import (
    Plan,
    TellsApart,
    Training,
    UnlearningTask,
    answer_positions,
    back_propagate,
    refuse_below_zero,
    refuse_unless_above_zero,
    watched,
)
from ml.methods.retention import Retention
from ml.models.adapters import reference_model
from ml.models.forward import label_logits

RetainTerm: TypeAlias = Literal["cross_entropy", "divergence"]
RetainWeight: TypeAlias = Callable[[int, float], float]
"""Called with the step number and the retained loss of that step; returns the loss's weight."""


@dataclass(frozen=True, slots=True)
class ForgetBatch:
    """Rows of one step under the model in training.

    `chosen` numbers them among the method's rows, in order; `logits` (labels, rows) are those that predict the labels
    of `tokens`, row after row, with logits that stand for no token from `vocabulary` on. What methods are given has the
    columns of `tokens` from the first to the last in which some row has a label.
    """

    chosen: list[int]
    tokens: Batch
    logits: Tensor
    vocabulary: int

    def log_probs(self) -> tuple[Tensor, Tensor]:
        """Log-probability of each label, (batch, seq), and the mask of labels, as `label_log_probs` returns them."""
        labels, mask = self._labels()
        log_probs = chosen_log_probs(self.logits, labels[mask])
        return log_probs.new_zeros(mask.shape).masked_scatter(mask, log_probs), mask

    def distributions(self) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of real tokens only (batch, seq, vocabulary), the labels they predict, and the mask of labels. Where
        there is no label, logits are 0."""
        labels, mask = self._labels()
        logits = self.logits.new_zeros(*mask.shape, self.vocabulary)
        logits.index_put_(mask.nonzero(as_tuple=True), self.logits[:, : self.vocabulary])
        return logits, labels.clamp_min(0), mask

    def marks(self, positions: Sequence[Sequence[int]]) -> Tensor:
        """Mask (batch, seq) of the labels that are the tokens at `positions` of each row, in the order of `chosen`."""
        marked = torch.zeros_like(self.tokens.labels, dtype=torch.bool)
        for row, places in enumerate(positions):
            marked[row, list(places)] = True
        mask = label_mask(self.tokens.labels)
        return (marked[:, 1:] & mask)[:, _used(mask)]

    def _labels(self) -> tuple[Tensor, Tensor]:
        mask = label_mask(self.tokens.labels)
        columns = _used(mask)
        return self.tokens.labels[:, 1:][:, columns], mask[:, columns]


def _used(mask: Tensor) -> slice:
    """The columns of a mask (batch, seq) from the first to the last in which some row is True."""
    columns = mask.any(dim=0).nonzero().flatten().tolist()
    return slice(columns[0], columns[-1] + 1)


_PADDING: Final = 1.25

ForgetLoss: TypeAlias = Callable[[ForgetBatch], Tensor]


def forgetting_plan(
    task: UnlearningTask,
    training: Training,
    forget_loss: ForgetLoss,
    *,
    rows: Sequence[EncodedText] | None = None,
    gamma: float = 1.0,
    alpha: float | RetainWeight = 0.0,
    retain_term: RetainTerm = "cross_entropy",
    penalty: Callable[[int], Tensor] | None = None,
) -> Plan:
    """Return the plan whose every step takes one forget batch and, unless `alpha` is 0, one retained batch.

    Args:
        forget_loss: a scalar from the forget rows of one step.
        rows: what to forget; the encoded forget set unless given.
        alpha: weight of the retained loss, or what decides it at each step.
        retain_term: "cross_entropy" keeps the right answers right, "divergence" the whole distribution where it was.
        penalty: a loss of the adapter's weights alone, by step number.
    Raises:
        EmptySetError: there is nothing to forget, or nothing to retain although `alpha` is not 0.
        SpecError: a weight would teach what is to be forgotten, or unteach what is retained.
    """
    refuse_unless_above_zero(gamma=gamma)
    if not callable(alpha):
        refuse_below_zero(alpha=alpha)
    rows = task.encode(task.forget) if rows is None else rows
    turn = forget_turn(rows, training, seed=task.seed)
    retention = _retention(task, training) if alpha != 0.0 else None

    def step(number: int, backward: Backward) -> dict[str, Tensor]:
        also = [] if penalty is None else [penalty(number)]
        chosen = turn.at(number)
        if retention is None:
            forget = forget_loss(run_rows(task, rows, chosen))
            back_propagate(backward, forget=gamma * forget, retain=also)
            return dict(watched(forget=forget))
        kept = retention.chosen(number)
        # Whoever tells gradients apart needs a graph for each.
        directions = backward.directions if isinstance(backward, TellsApart) else 0
        if not directions and retain_term == "cross_entropy" and _fit_together([rows[i] for i in chosen], kept):
            batch, retained = run_together(task, rows, chosen, kept)
            forget, parts = forget_loss(batch), [retained]
        else:
            forget = forget_loss(run_rows(task, rows, chosen))
            parts = retention.parts(kept, retain_term, max(1, directions))
        retain = torch.stack([part.detach() for part in parts]).sum()
        weight = alpha(number, float(retain)) if callable(alpha) else alpha
        weighed = [weight * part for part in parts]
        # The penalty is no direction of its own: forgetting keeps off retained rows.
        back_propagate(backward, forget=gamma * forget, retain=[sum(also, start=weighed[0]), *weighed[1:]])
        if not callable(alpha):
            return dict(watched(forget=forget, retain=retain))
        return dict(watched(forget=forget, retain=retain, retain_weight=torch.tensor(weight, dtype=torch.float64)))

    return Plan(step=step, loop=training.loop())


def _retention(task: UnlearningTask, training: Training) -> Retention:
    return Retention(task, rows=training.retain_rows, neighbour_rows=training.neighbour_rows)


def forget_turn(rows: Sequence[EncodedText], training: Training, *, seed: int) -> EpochBatches:
    """Which of `rows` belong to which step."""
    return EpochBatches([len(row.ids) for row in rows], rows=training.forget_rows, seed=seed)


def run_rows(task: UnlearningTask, rows: Sequence[EncodedText], chosen: list[int]) -> ForgetBatch:
    """Run the model in training on the chosen rows."""
    tokens = collate([rows[i] for i in chosen], pad_id=task.pad_id).to(task.device)
    return ForgetBatch(chosen, tokens, label_logits(task.model, tokens), task.vocabulary)


def run_together(
    task: UnlearningTask, rows: Sequence[EncodedText], chosen: list[int], kept: Sequence[EncodedText]
) -> tuple[ForgetBatch, Tensor]:
    """Run the model in training once on the chosen rows and on retained ones: the former, and the mean -log p of the
    latter's labels, in nats, as `Retention.cross_entropy` has it."""
    forget = [rows[i] for i in chosen]
    tokens = collate([*forget, *kept], pad_id=task.pad_id).to(task.device)
    own = Batch(tokens.input_ids[: len(forget)], tokens.labels[: len(forget)])
    logits, labels = label_logits(task.model, tokens), labels_in_order(tokens.labels)
    count = int(label_mask(own.labels).sum())
    first, rest = logits.split([count, len(labels) - count])
    return ForgetBatch(chosen, own, first, task.vocabulary), cross_entropy_of(rest, labels[count:])


def _fit_together(forget: Sequence[EncodedText], kept: Sequence[EncodedText]) -> bool:
    """Whether one pass costs less than two: padding all rows to one length must not add more than is saved."""
    longest = [max(len(row.ids) for row in group) for group in (forget, kept)]
    apart = longest[0] * len(forget) + longest[1] * len(kept)
    return max(longest) * (len(forget) + len(kept)) <= _PADDING * apart


def run_before(task: UnlearningTask, batch: ForgetBatch) -> ForgetBatch:
    """Run the model before deletion on the rows of `batch`, without a graph."""
    with reference_model(task.model) as before:
        return ForgetBatch(batch.chosen, batch.tokens, label_logits(before, batch.tokens), task.vocabulary)


def reference_sums(task: UnlearningTask, rows: Sequence[EncodedText]) -> Tensor:
    """Summed answer NLL of each row under the model before deletion: (rows,)."""
    positions = [answer_positions(row) for row in rows]

    def summed(logits: Tensor, index: int) -> Tensor:
        labels = torch.tensor([rows[index].ids[p] for p in positions[index]], device=logits.device)
        return -chosen_log_probs(logits, labels).sum()

    return torch.stack(task.read_reference(rows, positions, summed))
