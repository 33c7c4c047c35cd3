"""W1: can the output layer of the model before deletion still read the value from a layer's state? White box.

The decoder is fixed: a deletion that only rotated the last layer away from the output would fool its own decoder, not
this one. It is a copy of one norm and one output layer, so no second model is held.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from ml.attacks.fused import DEFAULT_BUDGET
from ml.attacks.unlearning_depth import SMALLEST_GAP, unlearning_depth
from ml.attacks.value_states import mean_by_text, value_states
from ml.data.collate import EncodedText
from ml.errors import EmptySetError, NonFiniteError
from ml.models.layers import blocks, final_norm
from ml.models.load import LoadedModel

# Positions whose logits are made at once.
_CHUNK: Final = 512


@dataclass(frozen=True, slots=True)
class Decoder:
    """One model's final norm and output layer, as copies."""

    norm: nn.Module
    output: nn.Module

    def log_probs(self, states: Tensor, targets: Tensor) -> Tensor:
        """log p of each target as read from its state: (tokens, hidden) and (tokens,) to (tokens,) float32."""
        dtype = next(self.output.parameters()).dtype
        pieces = [
            torch.log_softmax(self.output(self.norm(part.to(dtype))).float(), dim=-1).gather(-1, labels.unsqueeze(-1))
            for part, labels in zip(states.split(_CHUNK), targets.split(_CHUNK), strict=True)
        ]
        return torch.cat(pieces).squeeze(-1)


def fixed_decoder(loaded: LoadedModel) -> Decoder:
    """Copy the decoder of a model, which may then be let go."""
    return Decoder(copy.deepcopy(final_norm(loaded.model)), copy.deepcopy(loaded.model.get_output_embeddings()))


@torch.no_grad()
def lens_scores(
    loaded: LoadedModel,
    decoder: Decoder,
    texts: Sequence[EncodedText],
    *,
    budget: int = DEFAULT_BUDGET,
    after_batch: Callable[[int], None] | None = None,
) -> Tensor:
    """Mean log-probability of each text's value tokens by layer: (layers, texts), nats; larger = more familiar.

    Raises:
        EmptySequenceError: a text's answer holds no value.
        NonFiniteError: a log-probability is NaN or infinite.
    """
    out = torch.zeros(len(blocks(loaded.model)), len(texts))
    for found in value_states(loaded, texts, budget=budget, after_batch=after_batch):
        scores = torch.stack([decoder.log_probs(layer, found.targets) for layer in found.states])
        out += mean_by_text(scores.cpu(), found.texts.cpu(), texts=len(texts))
    if not bool(torch.isfinite(out).all()):
        raise NonFiniteError("a log-probability read from a layer is NaN or infinite; the model is broken")
    return out


def lens_erasure(before: Tensor, after: Tensor, reference: Tensor) -> float:
    """Share of what the lens saw that is gone, 1 = all: mean log-probabilities (layers,) of the three models.

    Layers where `before` and `reference` differ by at most 0.05 nats are left out; the others weigh by that gap.

    Args:
        reference: the retrained model, or the base model in its stead.
    Raises:
        EmptySetError: no layer has a gap.
    """
    return unlearning_depth(before - reference, before - after)


def telling_layers(gained: Tensor) -> Tensor:
    """Which layers read what a model learned: (layers, texts) of people it knows to (layers,) bool.

    Args:
        gained: by how much more a layer reads than the same layer of the base model, nats.
    Raises:
        EmptySetError: none does.
    """
    telling = gained.mean(dim=1) > SMALLEST_GAP
    if not bool(telling.any()):
        raise EmptySetError("no layer reads what the model learned; the lens sees nothing here")
    return telling


def best_layer(scores: Tensor) -> Tensor:
    """Scores on the layer where each person stands out most: (layers, persons, items) to (persons, items).

    Layers are not averaged: a deletion may leave a trace in one and overshoot in the next. To compare them, a layer's
    scores are centred on the median person and in units of the median distance from it; that treats all persons alike.
    """
    means = scores.mean(dim=2)
    centre = means.median(dim=1, keepdim=True).values
    spread = (means - centre).abs().median(dim=1, keepdim=True).values
    spread = torch.where(spread > 0, spread, torch.ones_like(spread))
    best = ((means - centre) / spread).argmax(dim=0)
    standard = (scores - centre.unsqueeze(2)) / spread.unsqueeze(2)
    return standard[best, torch.arange(scores.shape[1])]
