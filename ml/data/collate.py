"""The one masking and pooling helper: which tokens count, in what order, and how they are averaged.

Position `i` of the logits scores the token at `i + 1`. `IGNORED` marks every token that must not enter a loss: prompt
and padding. Rows are padded on the right; causal attention then needs no mask, and real end-of-turn tokens are never
masked by an equality with the pad id (verification section 2.2, trap 1).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from ml.errors import ContextLengthError, EmptySequenceError, RecordError
from ml.specs import Record

IGNORED: Final = -100


@dataclass(frozen=True, slots=True)
class EncodedText:
    """Token ids of one text; labels begin at token `first_label`; `values` are token ranges, end exclusive."""

    ids: tuple[int, ...]
    first_label: int
    values: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Batch:
    """Right-padded rows: `input_ids` and `labels`, both (batch, seq) int64; labels are `IGNORED` where unscored."""

    input_ids: Tensor
    labels: Tensor

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch on `device`."""
        return Batch(self.input_ids.to(device), self.labels.to(device))


def encode_record(tokenizer: Any, record: Record, *, context: int) -> EncodedText:
    """Tokenise one record, with the end-of-sequence token appended."""
    return encode_records(tokenizer, [record], context=context)[0]


def encode_records(tokenizer: Any, records: Sequence[Record], *, context: int) -> list[EncodedText]:
    """Tokenise many records in one call, as `encode_record` does each; `values[i]` belongs to `record.facts[i]`."""
    if not records:
        return []
    encoding = tokenizer([record.text for record in records], return_offsets_mapping=True, add_special_tokens=True)
    rows = zip(records, encoding["input_ids"], encoding["offset_mapping"], strict=True)
    return [
        _located(tokenizer, ids, offsets, record.answer_start, _spans(record), context=context, end=True)
        for record, ids, offsets in rows
    ]


def _spans(record: Record) -> list[tuple[int, int]]:
    return [(fact.start, fact.end) for fact in record.facts]


def encode_text(
    tokenizer: Any,
    text: str,
    answer_start: int,
    value_spans: Sequence[tuple[int, int]] = (),
    *,
    context: int,
    end: bool = True,
) -> EncodedText:
    """Tokenise `text`; map character offsets to tokens. A token that straddles a span's start belongs to the span.

    Args:
        context: longest sequence the model takes, in tokens.
        end: append the tokenizer's end-of-sequence token as the last label.
    Raises:
        ContextLengthError: the text is longer than `context`.
        RecordError: a value has no token of its own.
    """
    encoding = tokenizer(text, return_offsets_mapping=True, add_special_tokens=True)
    ids, offsets = encoding["input_ids"], encoding["offset_mapping"]
    return _located(tokenizer, ids, offsets, answer_start, value_spans, context=context, end=end)


def _located(
    tokenizer: Any,
    tokens: Sequence[int],
    offsets: Sequence[tuple[int, int]],
    answer_start: int,
    value_spans: Sequence[tuple[int, int]],
    *,
    context: int,
    end: bool,
) -> EncodedText:
    ids = list(tokens)
    while ids and ids[-1] == tokenizer.eos_token_id:
        ids.pop()
    offsets = offsets[: len(ids)]
    if end:
        ids.append(tokenizer.eos_token_id)
    if len(ids) > context:
        raise ContextLengthError(f"a text has {len(ids)} tokens, the model takes {context}; shorten or split it")
    first_label = next((i for i, (a, b) in enumerate(offsets) if b > answer_start and b > a), len(offsets))
    values = tuple(_token_range(offsets, start, stop) for start, stop in value_spans)
    # The first token of a text has nothing that predicts it.
    return EncodedText(tuple(ids), max(1, first_label), values)


def _token_range(offsets: Sequence[tuple[int, int]], start: int, stop: int) -> tuple[int, int]:
    inside = [i for i, (a, b) in enumerate(offsets) if a < stop and b > start and b > a]
    if not inside:
        raise RecordError("a value span covers no token; check the record's offsets")
    return inside[0], inside[-1] + 1


def collate(rows: Sequence[EncodedText], *, pad_id: int) -> Batch:
    """Pad rows on the right; labels are the answer tokens, everything else is `IGNORED`.

    Raises:
        EmptySequenceError: a row has no label.
    """
    width = max(len(row.ids) for row in rows)
    if any(row.first_label >= len(row.ids) for row in rows):
        raise EmptySequenceError("a row has no answer token to score")
    # One conversion of Python lists costs a tenth of one a row.
    padded = [row.ids + (pad_id,) * (width - len(row.ids)) for row in rows]
    first, end = torch.tensor([[row.first_label, len(row.ids)] for row in rows]).T.unsqueeze(-1)
    input_ids, columns = torch.tensor(padded), torch.arange(width)
    return Batch(input_ids, input_ids.where((columns >= first) & (columns < end), IGNORED))


def token_budget_batches(lengths: Sequence[int], *, budget: int) -> Iterator[list[int]]:
    """Yield index groups sorted by length whose padded size stays within `budget` tokens (at least one row each)."""
    group: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        if group and lengths[index] * (len(group) + 1) > budget:
            yield group
            group = []
        group.append(index)
    if group:
        yield group


def labels_in_order(labels: Tensor) -> Tensor:
    """The scored labels of (batch, seq), row after row: (labels,)."""
    return labels[:, 1:][label_mask(labels)]


def label_mask(labels: Tensor) -> Tensor:
    """Which positions of (batch, seq) labels, counted from the one before each, are scored: (batch, seq-1) bool."""
    return labels[:, 1:] != IGNORED


def shift(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Align logits with the labels they predict.

    Args:
        logits: (batch, seq, vocab).
        labels: (batch, seq), `IGNORED` where unscored.
    Returns:
        logits (batch, seq-1, vocab), labels (batch, seq-1) with 0 in ignored places, mask (batch, seq-1) bool.
    """
    return logits[:, :-1], labels[:, 1:].clamp_min(0), label_mask(labels)


def label_log_probs(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability of each label in float32: (batch, seq-1), with 0 where the mask (also returned) is False."""
    aligned, targets, mask = shift(logits, labels)
    return chosen_log_probs(aligned, targets).masked_fill(~mask, 0.0), mask


def chosen_log_probs(logits: Tensor, labels: Tensor) -> Tensor:
    """log p of `labels` (...) under `logits` (..., rows), in float32."""
    return torch.log_softmax(logits.float(), dim=-1).gather(-1, labels.unsqueeze(-1)).squeeze(-1)


def mean_over_tokens(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over all masked positions of the batch (GA, GradDiff, WGA, KL, energy by token)."""
    _refuse_empty(mask.sum().unsqueeze(0))
    return (values.float() * mask).sum() / mask.sum()


def sum_per_sequence(values: Tensor, mask: Tensor) -> Tensor:
    """Sum over the masked positions of each row: (batch,) (NPO, DPO)."""
    _refuse_empty(mask.sum(dim=-1))
    return (values.float() * mask).sum(dim=-1)


def mean_per_sequence(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the masked positions of each row: (batch,) (SimNPO, energy by sequence)."""
    return sum_per_sequence(values, mask) / mask.sum(dim=-1)


def _refuse_empty(counts: Tensor) -> None:
    if bool((counts == 0).any()):
        raise EmptySequenceError("a row has no position that counts; the mean of nothing is not 0")
