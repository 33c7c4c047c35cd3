"""One look at every text of a set: the sum of its gradients, or of their squares, at the weights as they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor, nn

from ml.data.collate import EncodedText, collate, label_mask, token_budget_batches
from ml.errors import EmptySetError, NonFiniteError
from ml.finetune import cross_entropy

_BATCH_TOKENS: Final = 4096


def mean_gradients(
    model: Any, rows: Sequence[EncodedText], parameters: Sequence[nn.Parameter], *, pad_id: int, device: str
) -> list[Tensor]:
    """Gradient of the mean NLL of all labelled tokens of `rows`, float32, shaped as each parameter.

    Raises:
        EmptySetError: there is no row.
        NonFiniteError: a gradient is NaN or infinite.
    """
    _refuse_none(rows)
    tokens = sum(len(row.ids) - row.first_label for row in rows)
    sums = [torch.zeros_like(parameter, dtype=torch.float32) for parameter in parameters]
    with _requiring_gradients(model, parameters):
        for group in token_budget_batches([len(row.ids) for row in rows], budget=_BATCH_TOKENS):
            batch = collate([rows[i] for i in group], pad_id=pad_id).to(device)
            share = int(label_mask(batch.labels).sum()) / tokens
            for total, gradient in zip(sums, _gradients(cross_entropy(model, batch), parameters), strict=True):
                total += share * gradient
    return _finite(sums)


def mean_squared_gradients(
    model: Any, rows: Sequence[EncodedText], parameters: Sequence[nn.Parameter], *, pad_id: int, device: str
) -> list[Tensor]:
    """Mean over `rows` of the squared gradient of each row's mean NLL: the diagonal of the empirical Fisher matrix.

    Row by row, because the square of a batch's gradient is something else for every size of batch.

    Raises:
        EmptySetError: there is no row.
        NonFiniteError: a gradient is NaN or infinite.
    """
    _refuse_none(rows)
    sums = [torch.zeros_like(parameter, dtype=torch.float32) for parameter in parameters]
    with _requiring_gradients(model, parameters):
        for row in rows:
            batch = collate([row], pad_id=pad_id).to(device)
            for total, gradient in zip(sums, _gradients(cross_entropy(model, batch), parameters), strict=True):
                total.addcmul_(gradient, gradient, value=1 / len(rows))
    return _finite(sums)


def _gradients(loss: Tensor, parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    found = torch.autograd.grad(loss, list(parameters), allow_unused=True)
    return [
        torch.zeros_like(parameter, dtype=torch.float32) if gradient is None else gradient.float()
        for parameter, gradient in zip(parameters, found, strict=True)
    ]


def _finite(gradients: list[Tensor]) -> list[Tensor]:
    if not all(bool(torch.isfinite(gradient).all()) for gradient in gradients):
        raise NonFiniteError("a gradient at the weights as they are is not finite; look at the model and its sets")
    return gradients


def _refuse_none(rows: Sequence[EncodedText]) -> None:
    if not rows:
        raise EmptySetError("there is no text to take a gradient of; give at least one")


@contextmanager
def _requiring_gradients(model: Any, parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Let exactly `parameters` take gradients for a while."""
    chosen = {id(parameter) for parameter in parameters}
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    for parameter, _ in before:
        parameter.requires_grad_(id(parameter) in chosen)
    try:
        yield
    finally:
        for parameter, required in before:
            parameter.requires_grad_(required)
