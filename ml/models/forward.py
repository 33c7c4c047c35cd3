"""One forward pass over a batch, with logits only where they are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ml.data.collate import Batch, EncodedText, collate, label_mask
from ml.errors import SpecError


def label_logits(model: Any, batch: Batch) -> Tensor:
    """Run `model` on a batch and return the logits that predict its labels: (labels, vocabulary rows), row after row.

    Questions and padding need no logits, and the output layer is a large share of a small model's cost.
    """
    rows, columns = label_mask(batch.labels).nonzero(as_tuple=True)
    return _logits_at(model, batch.input_ids, rows, columns)


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
    row_index = torch.tensor([index for index, row in enumerate(positions) for _ in row], device=device)
    columns = torch.tensor([position - 1 for row in positions for position in row], device=device)
    return _logits_at(model, batch.input_ids, row_index, columns)


def _logits_at(model: Any, input_ids: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Logits of the hidden states at (row, column): (places, vocabulary rows).

    The model's output layer is handed those states alone, and the model goes on from there, soft-caps included.

    Raises:
        SpecError: the model has no output layer of its own that it calls; all numbers would be those of other tokens.
    """
    places = rows * input_ids.shape[1] + columns

    def only(_: Any, arguments: tuple[Any, ...]) -> tuple[Tensor]:
        if len(arguments) != 1 or arguments[0].ndim != 3:
            raise _no_output_layer(model)
        return (arguments[0].flatten(0, 1).index_select(0, places).unsqueeze(0),)

    layer = model.get_output_embeddings()
    if layer is None:
        raise _no_output_layer(model)
    handle = layer.register_forward_pre_hook(only)
    try:
        logits = model(input_ids=input_ids, use_cache=False).logits
    finally:
        handle.remove()
    if logits.shape[:2] != (1, len(places)):
        raise _no_output_layer(model)
    return logits[0]


def _no_output_layer(model: Any) -> SpecError:
    kind = type(model).__name__
    return SpecError(f"{kind} has no output layer that it gives its last hidden states; choose another architecture")
