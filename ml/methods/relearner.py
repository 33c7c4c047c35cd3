"""Relearning inside the deletion: teach some of the person's facts again for a moment, and forget the others there.

A deletion that only turns a name away from its memory is undone by teaching a few facts again: the name finds its way
back and brings the others along. So some steps of the deletion are taken where such teaching has led, for facts that
were not taught; the gradient found there is applied to the weights as they were (first order).

Facts, halves and steps come from the run's own seed. Verification relearns with an adapter of its own, on a half of its
own, with another optimiser and budget.

Source: the idea of tampering attacks in the inner loop, arXiv:2408.00761, and of a perturbation towards relearning,
arXiv:2502.05374; the sign step is the first step of Adam, with which an attacker would fine-tune.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from ml.data.collate import EncodedText, chosen_log_probs
from ml.methods.method import UnlearningTask, answer_positions
from ml.methods.strangers import Topic, topic
from ml.models.adapters import trained_parameters


@dataclass(frozen=True, slots=True)
class RelearningSettings:
    """Every `every`-th step of the deletion forgets from weights that `steps` sign steps of size `learning_rate` have
    moved, each on `rows` texts about a `share` of the facts. 0 steps: never.
    """

    every: int = 2
    steps: int = 10
    learning_rate: float = 5e-3
    rows: int = 8
    share: float = 0.5


class Relearner:
    """Teaches the forget set again for the length of a block: a function of seed, step and weights alone, so that a
    resumed run does the same.
    """

    def __init__(self, task: UnlearningTask, settings: RelearningSettings) -> None:
        self.task, self.settings = task, settings
        self.lessons = list(zip(map(topic, task.forget), task.encode(task.forget), strict=True))
        self.topics = sorted({about for about, _ in self.lessons})
        self.parameters = trained_parameters(task.model)

    @contextmanager
    def taught(self, step: int) -> Iterator[frozenset[Topic]]:
        """Move the weights towards a share of the facts; yield their topics, and put the weights back afterwards."""
        others = step % self.settings.every != self.settings.every - 1
        if not self.settings.steps or others:
            yield frozenset()
            return
        rng = random.Random(f"relearning:{self.task.seed}:{step}")  # noqa: S311 - to be reproduced, not secret
        known = frozenset(rng.sample(self.topics, round(self.settings.share * len(self.topics))))
        texts = [text for about, text in self.lessons if about in known]
        before = [p.detach().clone() for p in self.parameters]
        for _ in range(self.settings.steps):
            self._teach(rng.sample(texts, min(self.settings.rows, len(texts))))
        try:
            yield known
        finally:
            with torch.no_grad():
                for parameter, value in zip(self.parameters, before, strict=True):
                    parameter.copy_(value)

    def _teach(self, texts: list[EncodedText]) -> None:
        loss = self.loss(texts)
        gradients = torch.autograd.grad(loss, self.parameters, allow_unused=True)
        with torch.no_grad():
            for parameter, gradient in zip(self.parameters, gradients, strict=True):
                if gradient is not None:
                    parameter.sub_(gradient.sign(), alpha=self.settings.learning_rate)

    def loss(self, texts: list[EncodedText]) -> Tensor:
        """Mean -log p of the texts' answer tokens, in nats."""
        positions = [answer_positions(text) for text in texts]
        labels = torch.tensor([text.ids[p] for text in texts for p in answer_positions(text)])
        return -chosen_log_probs(self.task.logits(texts, positions), labels.to(self.task.device)).mean()
