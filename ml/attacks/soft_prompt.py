"""W6: a few trained input vectors before the text, at a fixed budget. White box.

Trained vectors elicit anything, learned or not (arXiv:2502.15836): the loss they reach says nothing by itself. Only
the difference to twins does, each with vectors of their own from the same start and at the same budget.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from ml.attacks.fused import DEFAULT_BUDGET
from ml.attacks.relearning import frozen
from ml.attacks.value_states import collate_values, mean_by_text, value_places
from ml.data.collate import EncodedText, token_budget_batches
from ml.errors import ContextLengthError, NonFiniteError, SpecError
from ml.models.backbone import model_device, output_logits
from ml.models.load import LoadedModel

LARGEST: Final = 10


@dataclass(frozen=True, slots=True)
class SoftPromptBudget:
    """The fixed budget: vectors per person, steps, texts of each person in a step, and the learning rate.

    The learning rate of Adam is in units of the root mean square of the model's input vectors.
    """

    vectors: int = LARGEST
    steps: int = 200
    texts_per_step: int = 4
    learning_rate: float = 0.1


def soft_prompts(
    loaded: LoadedModel,
    texts: Sequence[Sequence[EncodedText]],
    budget: SoftPromptBudget,
    *,
    seed: int,
    after_step: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Train one soft prompt per person, all persons together; persons do not influence each other.

    Args:
        texts: for each person the same number of texts; text i is about the same fact for everybody.
        seed: decides the start (input vectors of random tokens) and the order of texts, alike for everybody.
        after_step: told how many of how many steps are done; may raise to stop.
    Returns:
        (persons, vectors, hidden) float32.
    Raises:
        SpecError: more than 10 vectors, or none, or no step.
        ContextLengthError: a text and the vectors do not fit into the model's context.
        NonFiniteError: a person's loss is NaN or infinite.
    """
    _refuse_unfit(loaded, texts, budget)
    table = loaded.model.get_input_embeddings().weight.detach().float()
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(loaded.tokenizer), (budget.vectors,), generator=generator).to(table.device)
    prompts = table[drawn].repeat(len(texts), 1, 1).requires_grad_()
    optimizer = torch.optim.Adam([prompts], lr=budget.learning_rate * float(table.square().mean().sqrt()))
    order = _order(len(texts[0]), budget, seed)
    with frozen(loaded.model), torch.enable_grad():
        for step, rows in enumerate(order):
            owners = torch.arange(len(texts), device=prompts.device).repeat_interleave(len(rows))
            scores = _value_scores(loaded, prompts[owners], [person[i] for person in texts for i in rows])
            loss = -scores.reshape(len(texts), -1).mean(dim=1).sum()
            if not bool(torch.isfinite(loss)):
                raise NonFiniteError("a soft prompt diverged: a loss is NaN or infinite")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            if after_step is not None:
                after_step(step + 1, len(order))
    return prompts.detach()


@torch.no_grad()
def prompted_scores(
    loaded: LoadedModel, prompts: Tensor, texts: Sequence[Sequence[EncodedText]], *, budget: int = DEFAULT_BUDGET
) -> Tensor:
    """Minus the loss on the values behind each person's own soft prompt: (persons, texts), nats per token.

    Larger means more familiar, and only against twins at the same budget.
    """
    flat = [text for person in texts for text in person]
    owners = torch.arange(len(texts)).repeat_interleave(len(texts[0]))
    out = torch.zeros(len(flat))
    for rows in token_budget_batches([len(text.ids) + prompts.shape[1] for text in flat], budget=budget):
        own = prompts[owners[rows].to(prompts.device)]
        out[rows] = _value_scores(loaded, own, [flat[i] for i in rows]).cpu()
    if not bool(torch.isfinite(out).all()):
        raise NonFiniteError("the log-probability of a value is NaN or infinite; the model is broken")
    return out.reshape(len(texts), -1)


def _refuse_unfit(loaded: LoadedModel, texts: Sequence[Sequence[EncodedText]], budget: SoftPromptBudget) -> None:
    if not 1 <= budget.vectors <= LARGEST or budget.steps < 1 or budget.texts_per_step < 1:
        raise SpecError(f"a soft prompt has 1 to {LARGEST} vectors, and at least one step of one text")
    longest = max(len(text.ids) for person in texts for text in person)
    if longest + budget.vectors > loaded.context:
        raise ContextLengthError(
            f"a text of {longest} tokens and {budget.vectors} vectors do not fit into {loaded.context} positions"
        )


def _order(texts: int, budget: SoftPromptBudget, seed: int) -> list[list[int]]:
    """The texts of each step: every text once before any comes again."""
    rng = random.Random(seed)  # noqa: S311 - an order to be reproduced, not a secret
    size = min(budget.texts_per_step, texts)
    queue: list[int] = []
    steps = []
    for _ in range(budget.steps):
        if len(queue) < size:
            queue += rng.sample(range(texts), texts)
        steps.append(queue[:size])
        queue = queue[size:]
    return steps


def _value_scores(loaded: LoadedModel, prompts: Tensor, texts: Sequence[EncodedText]) -> Tensor:
    """Mean log-probability of the value tokens of each text behind its prompt (texts, vectors, hidden): (texts,)."""
    batch = collate_values(texts, pad_id=loaded.pad_id).to(model_device(loaded.model))
    embedded = loaded.model.get_input_embeddings()(batch.input_ids)
    inputs = torch.cat([prompts.to(embedded.dtype), embedded], dim=1)
    hidden = loaded.model.base_model(inputs_embeds=inputs, use_cache=False).last_hidden_state[:, prompts.shape[1] :]
    row, position, targets = value_places(batch)
    log_probs = torch.log_softmax(output_logits(loaded.model, hidden[row, position]), dim=-1)
    chosen = log_probs.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    return mean_by_text(chosen.unsqueeze(0), row, texts=len(texts))[0]
