"""WAGLE: which layers a deletion should train, judged once at the weights as they are.

A fresh adapter is zero, so its own weights have no score. The weights it would change are scored instead, and the
layers most of whose weights are among the highest get an adapter; any method can then be run on them.

Source: arXiv:2410.17509, restated; mu 1e-6 is the authors', with which the product of the two gradients decides. There,
single weights are masked; choosing whole layers by them is ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor

from ml.data.collate import EncodedText
from ml.errors import EmptySetError
from ml.methods.sweeps import mean_gradients

_MU: Final = 1e-6


def attribution_scores(weights: Tensor, forget: Tensor, retain: Tensor, *, mu: float) -> Tensor:
    """`S_i = w_i * g_f,i - (1 / mu) * g_r,i * g_f,i`, elementwise.

    Args:
        forget, retain: gradients of the loss on either set, shaped as `weights`.
    Source: arXiv:2410.17509. Oracle: mu 1, weights [1, -2, 0.5], gradients [0.1, 0.2, -0.4] and [0.3, 0, 0.1] ->
        [0.07, -0.4, -0.16].
    """
    return weights * forget - retain * forget / mu


def highest(scores: Tensor, share: float) -> Tensor:
    """Mask of the `share` of entries, rounded up, that have the largest absolute value: bool, shaped as `scores`.

    Oracle: two of three of [0.07, -0.4, -0.16] -> [0, 1, 1].
    """
    sizes = scores.abs().flatten()
    mask = torch.zeros_like(sizes, dtype=torch.bool)
    mask[sizes.topk(math.ceil(share * len(sizes))).indices] = True
    return mask.view_as(scores)


def attributed_layers(
    model: Any,
    names: Sequence[str],
    share: float,
    *,
    forget: Sequence[EncodedText],
    retain: Sequence[EncodedText],
    pad_id: int,
    device: str,
) -> list[str]:
    """The `share` (rounded up) of the layers `names` whose weights are the most often among the highest `share` of all.

    Args:
        model: without an adapter; its weights come back as they were.
    Raises:
        EmptySetError: there is nothing to forget or to retain: one of them alone says nothing about the other.
    """
    if not retain:
        raise EmptySetError("the retain set is empty; setting training.layer_share needs one to choose layers by")
    parameters = [model.get_submodule(name).weight for name in names]
    sides = [mean_gradients(model, rows, parameters, pad_id=pad_id, device=device) for rows in (forget, retain)]
    scores = [
        attribution_scores(parameter.detach().float(), *gradients, mu=_MU)
        for parameter, *gradients in zip(parameters, *sides, strict=True)
    ]
    marked = highest(torch.cat([score.flatten() for score in scores]), share).split([s.numel() for s in scores])
    shares = torch.stack([mask.float().mean() for mask in marked])
    chosen = shares.topk(math.ceil(share * len(names))).indices.tolist()
    return [names[index] for index in sorted(chosen)]
