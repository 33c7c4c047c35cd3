"""What must stay: every retained row in turn, the neighbours of the forgotten more often, against two losses.

KL to the model before deletion keeps the whole distribution where it was; cross-entropy keeps the right answer right.
Coverage comes first: a retained row that is never seen is the first to be damaged.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Literal

import torch
from torch import Tensor

from ml.data.batches import EpochBatches
from ml.data.collate import EncodedText, chosen_log_probs, token_budget_batches
from ml.data.dossiers import paraphrases, read_dossier
from ml.data.questions import QuestionBank
from ml.data.records import by_person
from ml.errors import EmptySetError
from ml.finetune import cross_entropy_of
from ml.methods.losses import divergence
from ml.methods.method import UnlearningTask, answer_positions
from ml.specs import Record

_BATCH_TOKENS: Final = 4096


@dataclass(frozen=True, slots=True)
class RetainedBatch:
    """Retained rows of one step under both models: logits (tokens, vocabulary rows), labels (tokens,), `counts` tokens
    per row."""

    logits: Tensor
    reference: Tensor
    labels: Tensor
    counts: Tensor

    def divergence(self) -> Tensor:
        """Mean KL(before || now) over answer tokens, in nats."""
        return divergence(self.reference, self.logits).mean()

    def cross_entropy(self) -> Tensor:
        """Mean -log p of the right answer's tokens, in nats."""
        return cross_entropy_of(self.logits, self.labels)

    def mean_per_row(self, values: Tensor) -> Tensor:
        """Average (tokens,) values over each row: (rows,)."""
        rows = torch.repeat_interleave(torch.arange(len(self.counts), device=values.device), self.counts)
        return torch.zeros(len(self.counts), device=values.device).index_add(0, rows, values) / self.counts


class Retention:
    """Draws the retained rows of each step and runs both models on them.

    Args:
        rows: retained rows a step; `neighbour_rows` more are neighbours', the closest most often (`closeness`).
        reworded_forms: in how many of the bank's other forms each fact is also asked. What is known in words that are
            not on file is lost first when only the words on file are kept.
    Raises:
        EmptySetError: there is no retained record.
    """

    def __init__(self, task: UnlearningTask, *, rows: int, neighbour_rows: int, reworded_forms: int = 0) -> None:
        if not task.retain:
            raise EmptySetError("the retain set is empty; deletion without it damages what must stay")
        self.task = task
        self._sizes = rows, neighbour_rows
        self._prepared: tuple[int, Tensor] | None = None
        self._nearby = {record.person for record in task.neighbours}
        self.drawn = reworded_records(task.retain, task.bank, forms=reworded_forms)

    # Tokenised when the first step needs them: where a second process takes the retained rows, none does.

    @cached_property
    def rows(self) -> list[EncodedText]:
        """Every retained text."""
        return self.task.encode([*self.task.retain, *self.drawn])

    @cached_property
    def near(self) -> list[EncodedText]:
        """The neighbours' texts, each as often as its turn should come."""
        close = closeness(self.task)
        records = [*self.task.neighbours, *(record for record in self.drawn if record.person in self._nearby)]
        return self.task.encode([record for record in records for _ in range(close[record.person])])

    @cached_property
    def _turn(self) -> EpochBatches:
        return EpochBatches([len(row.ids) for row in self.rows], rows=self._sizes[0], seed=self.task.seed)

    @cached_property
    def _near_turn(self) -> EpochBatches | None:
        rows = self._sizes[1]
        if not self.near or not rows:
            return None
        return EpochBatches([len(row.ids) for row in self.near], rows=rows, seed=self.task.seed + 1)

    def chosen(self, step: int) -> list[EncodedText]:
        """The retained rows of one step, neighbours last."""
        near = [] if self._near_turn is None else [self.near[i] for i in self._near_turn.at(step)]
        return [self.rows[i] for i in self._turn.at(step)] + near

    def parts(
        self, rows: Sequence[EncodedText], term: Literal["cross_entropy", "divergence"], count: int
    ) -> list[Tensor]:
        """The retained loss of `rows` as a sum of `count` losses, of as many rows each (fewer where rows are fewer)."""
        groups = [rows[first::count] for first in range(min(count, len(rows)))]
        tokens = [sum(len(answer_positions(row)) for row in group) for group in groups]
        loss = self._cross_entropy if term == "cross_entropy" else self._divergence
        return [loss(group) * (own / sum(tokens)) for group, own in zip(groups, tokens, strict=True)]

    def _cross_entropy(self, rows: Sequence[EncodedText]) -> Tensor:
        logits = self.task.logits(rows, [answer_positions(row) for row in rows])
        return cross_entropy_of(logits, _labels(rows).to(logits.device))

    def _divergence(self, rows: Sequence[EncodedText]) -> Tensor:
        positions = [answer_positions(row) for row in rows]
        return divergence(self.task.reference_logits(rows, positions), self.task.logits(rows, positions)).mean()

    def cross_entropy_before(self) -> float:
        """Mean -log p of the tokens of every retained answer under the model before deletion, in nats."""
        total, tokens = 0.0, 0
        for group in token_budget_batches([len(row.ids) for row in self.rows], budget=_BATCH_TOKENS):
            rows = [self.rows[i] for i in group]
            logits = self.task.reference_logits(rows, [answer_positions(row) for row in rows])
            labels = _labels(rows).to(logits.device)
            total -= float(chosen_log_probs(logits, labels).sum())
            tokens += len(labels)
        return total / tokens

    def prepare(self, step: int) -> None:
        """Run the model before deletion on the rows of a later step."""
        self._prepared = step, self._reference(step)

    def _reference(self, step: int) -> Tensor:
        if self._prepared is not None and self._prepared[0] == step:
            return self._prepared[1]
        rows = self.chosen(step)
        return self.task.reference_logits(rows, [answer_positions(row) for row in rows])

    def at(self, step: int) -> RetainedBatch:
        """Run the model in training and, unless it was prepared, the model before deletion on the rows of one step."""
        rows = self.chosen(step)
        positions = [answer_positions(row) for row in rows]
        device = self.task.device
        return RetainedBatch(
            logits=self.task.logits(rows, positions),
            reference=self._reference(step),
            labels=_labels(rows).to(device),
            counts=torch.tensor([len(ps) for ps in positions]).to(device),
        )


def closeness(task: UnlearningTask) -> Mapping[str, int]:
    """How many values each neighbour has in common with the forgotten, at least 1: how often their turn comes."""
    forgotten = {(fact.attribute, record.value(fact)) for record in task.forget for fact in record.facts}
    return {
        person: max(1, len({(f.attribute, r.value(f)) for r in records for f in r.facts} & forgotten))
        for person, records in by_person(task.neighbours).items()
    }


def reworded_records(records: Sequence[Record], bank: QuestionBank, *, forms: int) -> tuple[Record, ...]:
    """The facts of everybody in `records` in words that their own records do not use: each in `forms` of the bank's
    other forms but never in the last one, for verification asks in words that no deletion used. Which one is left
    follows from person and attribute alone, so that deletions one after another leave the same one."""
    texts: list[Record] = []
    for person, own in by_person(records).items():
        if not forms or not any(record.name_spans for record in own):
            continue
        dossier = read_dossier(own)
        for attribute in dossier.values:
            other = paraphrases(dossier, bank, (attribute,))
            rng = random.Random(f"reworded:{person}:{attribute}")  # noqa: S311 - an order to be reproduced, no secret
            texts += rng.sample(other, max(0, len(other) - 1))[:forms]
    return tuple(texts)


def _labels(rows: Sequence[EncodedText]) -> Tensor:
    return torch.tensor([row.ids[position] for row in rows for position in answer_positions(row)])
