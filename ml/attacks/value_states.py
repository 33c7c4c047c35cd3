"""States of every block at the positions that predict a person's values: what the white-box probes read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ml.attacks.fused import DEFAULT_BUDGET
from ml.data.collate import IGNORED, Batch, EncodedText, collate, token_budget_batches
from ml.errors import EmptySequenceError
from ml.models.backbone import hidden_states, model_device
from ml.models.layers import blocks, listening
from ml.models.load import LoadedModel


@dataclass(frozen=True, slots=True)
class ValueStates:
    """One entry per value token.

    `states` (layers, tokens, hidden) float32 is what each block passed on at the position before the token; `targets`
    (tokens,) int64 the token itself; `texts` (tokens,) int64 the index of its text.
    """

    states: Tensor
    targets: Tensor
    texts: Tensor


def collate_values(texts: Sequence[EncodedText], *, pad_id: int) -> Batch:
    """Pad texts on the right; only tokens of values that stand in the answer are labels.

    Raises:
        EmptySequenceError: a text's answer holds no value.
    """
    batch = collate(texts, pad_id=pad_id)
    inside = torch.zeros_like(batch.labels, dtype=torch.bool)
    for row, text in enumerate(texts):
        for start, end in text.values:
            inside[row, max(start, text.first_label) : end] = True
    if not bool(inside.any(dim=1).all()):
        raise EmptySequenceError("the answer of a text holds no value; the state before nothing has no score")
    return Batch(batch.input_ids, batch.labels.masked_fill(~inside, IGNORED))


def value_places(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Row, predicting position and token of every label: three tensors (tokens,) int64, row after row."""
    row, position = (batch.labels[:, 1:] != IGNORED).nonzero(as_tuple=True)
    return row, position, batch.labels[row, position + 1]


def value_states(
    loaded: LoadedModel,
    texts: Sequence[EncodedText],
    *,
    budget: int = DEFAULT_BUDGET,
    after_batch: Callable[[int], None] | None = None,
) -> Iterator[ValueStates]:
    """Yield the states of some texts at a time, in batches of at most `budget` tokens of similar length.

    Args:
        after_batch: told how many texts are finished; may raise to stop.
    Raises:
        EmptySequenceError: a text's answer holds no value.
    """
    done = 0
    for rows in token_budget_batches([len(text.ids) for text in texts], budget=budget):
        yield _batch_states(loaded, [texts[i] for i in rows], torch.tensor(rows))
        done += len(rows)
        if after_batch is not None:
            after_batch(done)


@torch.no_grad()
def _batch_states(loaded: LoadedModel, texts: Sequence[EncodedText], index: Tensor) -> ValueStates:
    batch = collate_values(texts, pad_id=loaded.pad_id).to(model_device(loaded.model))
    with listening(loaded.model) as heard:
        hidden_states(loaded.model, batch.input_ids)
    row, position, targets = value_places(batch)
    states = torch.stack([heard[number][row, position].float() for number in range(len(heard))])
    return ValueStates(states, targets, index.to(row.device)[row])


def mean_value_states(
    loaded: LoadedModel,
    texts: Sequence[EncodedText],
    *,
    budget: int = DEFAULT_BUDGET,
    after_batch: Callable[[int], None] | None = None,
) -> Tensor:
    """Mean state over each text's value tokens: (layers, texts, hidden) float32, on the processor."""
    out = torch.zeros(len(blocks(loaded.model)), len(texts), loaded.model.config.hidden_size)
    for found in value_states(loaded, texts, budget=budget, after_batch=after_batch):
        out += mean_by_text(found.states.cpu(), found.texts.cpu(), texts=len(texts))
    return out


def mean_by_text(numbers: Tensor, owners: Tensor, *, texts: int) -> Tensor:
    """Average (layers, tokens, ...) over the tokens of each text: (layers, texts, ...); 0 for a text not among them."""
    shape = (numbers.shape[0], texts, *numbers.shape[2:])
    counts = torch.bincount(owners, minlength=texts).clamp_min(1).to(numbers.dtype)
    sums = torch.zeros(shape, dtype=numbers.dtype, device=numbers.device).index_add(1, owners, numbers)
    return sums / counts.reshape(1, -1, *[1] * (numbers.dim() - 2))
