"""One forward pass over a batch, with logits for answers only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ml.data.collate import IGNORED, Batch, EncodedText, collate


def answer_logits(model: Any, batch: Batch, *, kept: int | None = None) -> tuple[Tensor, Tensor]:
    """Run `model` and return logits and labels of the columns in which some row has a label.

    Questions need no logits, and the output layer is a large share of a small model's cost. Works for any causal
    language model of transformers: the model itself applies its output layer, soft-caps included.

    Args:
        kept: how many columns to return instead, where the caller needs as many as of another batch.
    Returns:
        logits (batch, kept, rows) and labels (batch, kept), for `ml.data.collate.shift`: the first kept column lies
        one before the first label of any row.
    """
    kept = answer_columns(batch) if kept is None else kept
    output = model(input_ids=batch.input_ids, use_cache=False, logits_to_keep=kept)
    return output.logits, batch.labels[:, -kept:]


def answer_columns(batch: Batch) -> int:
    """How many last columns of a batch reach from one before the first label of any row to the end."""
    first = int((batch.labels != IGNORED).any(dim=0).nonzero()[0])
    return batch.labels.shape[1] - max(0, first - 1)


def logits_before(
    model: Any, rows: Sequence[EncodedText], positions: Sequence[Sequence[int]], *, pad_id: int, device: str
) -> Tensor:
    """Run `model` on `rows` and return the logits that predict the tokens at `positions`.

    Args:
        positions: for each row the token positions (1 or more) to predict.
    Returns:
        (total positions, vocabulary rows), row after row.
    """
    batch = collate(rows, pad_id=pad_id).to(device)
    width = batch.input_ids.shape[1]
    kept = width - min(position - 1 for row in positions for position in row)
    logits = model(input_ids=batch.input_ids, use_cache=False, logits_to_keep=kept).logits
    row_index = [index for index, row in enumerate(positions) for _ in row]
    columns = [position - 1 - (width - kept) for row in positions for position in row]
    return logits[torch.tensor(row_index, device=logits.device), torch.tensor(columns, device=logits.device)]
