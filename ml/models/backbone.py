"""A causal language model taken apart at its output layer, so that logits are made only where they are needed.

Works for models whose logits are the output layer applied to the last hidden state. A model that does more to them
(soft-caps, scales) differs from its own `forward`; verification's determinism check compares the two.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor


def hidden_states(
    model: Any, input_ids: Tensor, *, past: Any = None, attention_mask: Tensor | None = None, keep: bool = False
) -> tuple[Tensor, Any]:
    """Run the network below the output layer.

    Args:
        input_ids: (rows, seq) int64; continues `past` where given.
        past: cache of the tokens before; it is extended in place, so pass a copy (`select_rows`) to use it again.
        attention_mask: (rows, seq), only for parity with code that masks; causal attention over right-padded rows
            needs none.
        keep: also return a cache.
    Returns:
        Hidden states (rows, seq, hidden) and the cache, or `None`.
    """
    output = model.base_model(
        input_ids=input_ids, past_key_values=past, attention_mask=attention_mask, use_cache=keep or past is not None
    )
    return output.last_hidden_state, output.past_key_values


def output_logits(model: Any, hidden: Tensor) -> Tensor:
    """Logits of hidden states: (..., hidden) to (..., vocabulary), float32."""
    return model.get_output_embeddings()(hidden).float()


def select_rows(cache: Any, rows: Tensor) -> Any:
    """Return a cache of the given rows (repeats allowed); the original stays as it is."""
    chosen = copy.copy(cache)
    chosen.layers = [copy.copy(layer) for layer in cache.layers]
    chosen.batch_select_indices(rows)
    return chosen


def model_device(model: Any) -> torch.device:
    """The device the model's parameters are on."""
    return next(model.parameters()).device
