"""W4: how deep a deletion reaches, by putting another model's states into the model before deletion. Diagnostic only.

Where a layer's states of a model that never knew the person (the reference) lower the value's probability, the states
of the candidate should lower it as much. A share over the layers where the reference does is the score.

Source: arXiv:2605.24614. Departure: texts are read as they are on file, not in that paper's prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from ml.attacks.value_states import collate_values, mean_by_text, value_places
from ml.data.collate import Batch, EncodedText
from ml.errors import EmptySetError, SpecError
from ml.models.backbone import hidden_states, model_device, output_logits
from ml.models.layers import blocks, changed, listening
from ml.models.load import LoadedModel

SMALLEST_GAP: Final = 0.05


def depth_by_layer(reference: Tensor, candidate: Tensor, *, smallest: float = SMALLEST_GAP) -> dict[int, float]:
    """The share of the reference's drop that the candidate shows, clipped to [0, 1], where that drop counts.

    Args:
        reference, candidate: (layers,), by how much each lowers the mean log-probability of the values, nats.
        smallest: drops of the reference up to here tell nothing; their layers are left out.
    """
    if reference.shape != candidate.shape or reference.dim() != 1:
        raise SpecError("drops are compared layer by layer: two tensors (layers,) of the same length")
    shares = (candidate.float() / reference.float()).clamp(0, 1)
    return {layer: float(shares[layer]) for layer in range(len(shares)) if float(reference[layer]) > smallest}


def unlearning_depth(reference: Tensor, candidate: Tensor, *, smallest: float = SMALLEST_GAP) -> float:
    """Mean of `depth_by_layer`, weighted by the reference's drop: 1 = as if never known, 0 = untouched. Oracle O-16.

    Raises:
        EmptySetError: no layer of the reference shows a drop; the measure sees nothing here.
    """
    shares = depth_by_layer(reference, candidate, smallest=smallest)
    if not shares:
        raise EmptySetError("no layer tells the reference from the model before deletion; depth is undefined")
    weights = {layer: float(reference[layer]) for layer in shares}
    return sum(weights[layer] * share for layer, share in shares.items()) / sum(weights.values())


@torch.no_grad()
def patched_drops(before: LoadedModel, source: LoadedModel, texts: Sequence[EncodedText]) -> Tensor:
    """By how much `source`'s states, put into one block of `before`, lower the values' log-probability: (layers,).

    States are exchanged where they predict a token of a value, one block at a time; the mean is over tokens of a text,
    then over texts. Two models are in memory, and the texts form one batch: a dossier, not a corpus.
    """
    batch = collate_values(texts, pad_id=before.pad_id).to(model_device(before.model))
    with listening(source.model) as heard:
        hidden_states(source.model, batch.input_ids)
    states = dict(heard)
    places = value_places(batch)[:2]
    plain = _mean_log_prob(before, batch, len(texts))
    drops = []
    for number in range(len(blocks(before.model))):

        def exchange(own: Tensor, _positions: Tensor, other: Tensor = states[number]) -> Tensor:
            return own.index_put(places, other[places].to(own.dtype))

        with changed(before.model, number, exchange):
            drops.append(plain - _mean_log_prob(before, batch, len(texts)))
    return torch.stack(drops).cpu()


def _mean_log_prob(loaded: LoadedModel, batch: Batch, texts: int) -> Tensor:
    hidden, _ = hidden_states(loaded.model, batch.input_ids)
    row, position, targets = value_places(batch)
    log_probs = torch.log_softmax(output_logits(loaded.model, hidden[row, position]), dim=-1)
    chosen = log_probs.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    return mean_by_text(chosen.unsqueeze(0), row, texts=texts).mean()
