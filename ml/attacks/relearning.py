"""T1: does relearning half of a person's facts bring back the other half? (verification section 6)

A fresh low-rank adapter is trained on facts A of one person and scored on that person's other facts V; the same for
every twin, at the same budget. All persons' adapters are trained together on the frozen model: each row of a batch
knows whose adapter it passes through, so that forty adapters cost little more than one pass over the model. Persons do
not influence each other: the loss is a sum over persons and the optimiser works element by element.

Source: arXiv:2410.08827 (Deeb and Roger).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor, nn

from ml.attacks.attack import ATTACKS, Attack
from ml.attacks.exposure import same_context_difference
from ml.data.collate import EncodedText, collate, label_log_probs, mean_per_sequence
from ml.errors import NonFiniteError, SpecError
from ml.models.backbone import hidden_states, model_device, output_logits
from ml.models.load import LoadedModel
from ml.models.quantise import linear_layers
from ml.specs import RelearningBudget

SCALE: Final = 2.0
ROWS_PER_STEP: Final = 8


class PersonalAdapters:
    """One low-rank adapter per person on every linear layer below the output layer of a frozen model.

    The output of a layer for a row of person p gains `SCALE * x A_p B_p`. A is drawn once and copied to every person,
    B starts at zero, so every person starts from the same place.
    """

    def __init__(self, model: Any, *, persons: int, rank: int, seed: int) -> None:
        layers = linear_layers(model)
        if not layers:
            raise SpecError("relearning needs linear layers below the output layer; this model has none")
        generator = torch.Generator().manual_seed(seed)
        self._layers = layers
        self._owners = torch.zeros(0, dtype=torch.long)
        self.down, self.up = {}, {}
        for name, layer in layers.items():
            bound = 1 / math.sqrt(layer.in_features)
            start = torch.rand(layer.in_features, rank, generator=generator) * 2 * bound - bound
            device = layer.weight.device
            self.down[name] = start.to(device).repeat(persons, 1, 1).requires_grad_()
            self.up[name] = torch.zeros(persons, rank, layer.out_features, device=device).requires_grad_()

    def parameters(self) -> list[Tensor]:
        """All trainable tensors, persons first."""
        return [*self.down.values(), *self.up.values()]

    def belong_to(self, owners: Tensor) -> None:
        """Say whose adapter each row of the next forward pass uses: (rows,) int64."""
        self._owners = owners.to(self.parameters()[0].device)

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Let the model pass through the adapters inside the block."""
        handles = [layer.register_forward_hook(self._hook(name)) for name, layer in self._layers.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        def add(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            low = torch.bmm(inputs[0].float(), self.down[name][self._owners])
            return output + (SCALE * torch.bmm(low, self.up[name][self._owners])).to(output.dtype)

        return add


def relearn(
    loaded: LoadedModel,
    texts: Sequence[Sequence[EncodedText]],
    budget: RelearningBudget,
    *,
    seed: int,
    after_step: Callable[[int, int], None] | None = None,
    after_epoch: Callable[[PersonalAdapters, int], None] | None = None,
) -> PersonalAdapters:
    """Train one adapter per person on that person's texts, all persons together.

    Args:
        texts: for each person the texts of facts A; text i is about the same fact, in the same form, for everybody.
        seed: decides the adapters' start and the order of texts, alike for everybody.
        after_step: told how many of how many steps are done; may raise to stop.
        after_epoch: shown the adapters, attached, with the number of epochs done: 0 before the first.
    Returns:
        Adapters of persons 0.. in the order of `texts`; who is trained together changes nothing.
    Raises:
        NonFiniteError: a person's loss is NaN or infinite.
    """
    order = _order(len(texts[0]), budget.epochs, seed)
    adapters = PersonalAdapters(loaded.model, persons=len(texts), rank=budget.rank, seed=seed)
    optimizer = torch.optim.AdamW(adapters.parameters(), lr=budget.learning_rate, weight_decay=0.0)
    each = len(order) // max(1, budget.epochs)
    with frozen(loaded.model), adapters.attached():
        for step, rows in enumerate(order):
            if after_epoch is not None and step % each == 0:
                after_epoch(adapters, step // each)
            _step(loaded, adapters, optimizer, texts, rows)
            if after_step is not None:
                after_step(step + 1, len(order))
        if after_epoch is not None:
            after_epoch(adapters, budget.epochs)
    return adapters


def watched_epochs(epochs: int) -> tuple[int, ...]:
    """The epochs after which a relearning curve is read: none yet, powers of two, and all."""
    powers = (2**n for n in range(epochs.bit_length()))
    return tuple(sorted({0, *(epoch for epoch in powers if epoch <= epochs), epochs}))


def _order(texts: int, epochs: int, seed: int) -> list[list[int]]:
    rng = random.Random(seed)  # noqa: S311 - an order to be reproduced, not a secret
    steps = []
    for _ in range(epochs):
        order = list(range(texts))
        rng.shuffle(order)
        steps += [order[i : i + ROWS_PER_STEP] for i in range(0, texts, ROWS_PER_STEP)]
    return steps


def _step(
    loaded: LoadedModel,
    adapters: PersonalAdapters,
    optimizer: torch.optim.Optimizer,
    texts: Sequence[Sequence[EncodedText]],
    rows: Sequence[int],
) -> None:
    batch = collate([person[i] for person in texts for i in rows], pad_id=loaded.pad_id)
    batch = batch.to(model_device(loaded.model))
    adapters.belong_to(torch.arange(len(texts)).repeat_interleave(len(rows)))
    hidden, _ = hidden_states(loaded.model, batch.input_ids)
    first = int((batch.labels >= 0).any(dim=0).nonzero()[0]) - 1
    log_probs, mask = label_log_probs(output_logits(loaded.model, hidden[:, first:]), batch.labels[:, first:])
    loss = -mean_per_sequence(log_probs, mask).reshape(len(texts), -1).mean(dim=1).sum()
    if not bool(torch.isfinite(loss)):
        raise NonFiniteError("relearning diverged: a loss is NaN or infinite")
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


@contextmanager
def frozen(model: Any) -> Iterator[None]:
    """Keep the model's own weights out of the graph inside the block."""
    wanted = [p for p in model.parameters() if p.requires_grad]
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)


ATTACKS.register("relearned_difference")(Attack("T1", "relearned", same_context_difference))
