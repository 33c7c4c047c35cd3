"""G10, G12 and G13: talk on after the first answer, draw answers at random, ask with noise in the prompt.

Everything random here is drawn before a model is asked, per prompt and in the prompts' order: which prompts share a
batch changes no draw.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ml.attacks.fused import SamplingScheme, filtered_log_probs
from ml.attacks.generation import DEFAULT_ROWS, NEW_TOKENS, Choose, Prompt, continuations, greedy_answers
from ml.errors import ContextLengthError
from ml.models.load import LoadedModel


def converse(
    loaded: LoadedModel,
    prompts: Sequence[Sequence[int]],
    retorts: Sequence[Sequence[Sequence[int]]],
    *,
    new_tokens: int = NEW_TOKENS,
    batch_rows: int = DEFAULT_ROWS,
    after_batch: Callable[[int], None] | None = None,
) -> list[list[list[int]]]:
    """Ask, answer greedily, retort, turn by turn: the answers of every turn to all prompts, one more than retorts.

    A model's context may be too short for the whole conversation. The question then stays, and the oldest words after
    it are dropped, as many as leave room for the retort and for an answer.

    Args:
        retorts: what each prompt's answer is met with, turn by turn: (turns, prompts) of ids.
        after_batch: told how many prompts are finished, over all turns.
    Raises:
        ContextLengthError: a question and a retort leave no room for an answer.
    """
    said: list[list[int]] = [[] for _ in prompts]
    longest = [max((len(turn[i]) for turn in retorts), default=0) for i in range(len(prompts))]
    answers: list[list[list[int]]] = []
    for turn in range(len(retorts) + 1):
        asked = [_shortened(loaded, *row, new_tokens) for row in zip(prompts, said, longest, strict=True)]
        before = turn * len(prompts)
        answers.append(
            greedy_answers(
                loaded,
                asked,
                new_tokens=new_tokens,
                batch_rows=batch_rows,
                after_batch=None if after_batch is None else _offset(after_batch, before),
            )
        )
        if turn < len(retorts):
            rows = zip(said, answers[-1], retorts[turn], strict=True)
            said = [[*history, *answer, *retort] for history, answer, retort in rows]
    return answers


def _offset(after_batch: Callable[[int], None], before: int) -> Callable[[int], None]:
    return lambda done: after_batch(before + done)


def _shortened(
    loaded: LoadedModel, prompt: Sequence[int], said: Sequence[int], retort: int, new_tokens: int
) -> list[int]:
    """The question and the latest part of what was said since, with room for `new_tokens` or as many as there are.

    `retort` is the number of tokens of the longest retort.
    """
    room = loaded.context - len(prompt) - retort
    if room < 1:
        raise ContextLengthError("a question and its retort fill the model's context; nothing could be answered")
    kept = loaded.context - len(prompt) - min(new_tokens, room)
    return [*prompt, *said[max(0, len(said) - kept) :]]


def samples(
    loaded: LoadedModel,
    prompts: Sequence[Sequence[int]],
    *,
    count: int,
    scheme: SamplingScheme,
    seed: int,
    new_tokens: int = NEW_TOKENS,
    batch_rows: int = DEFAULT_ROWS,
    after_batch: Callable[[int], None] | None = None,
) -> list[list[int]]:
    """Draw `count` answers to each prompt: those of prompt p at p * count and after.

    The same seed draws the same numbers for every model, so that two models differ by what they know alone.
    """
    repeated = [prompt for prompt in prompts for _ in range(count)]
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.rand(len(repeated), new_tokens, generator=generator)
    return continuations(
        loaded,
        repeated,
        choose=drawn(numbers, scheme),
        new_tokens=new_tokens,
        batch_rows=batch_rows,
        after_batch=after_batch,
    )


def drawn(numbers: Tensor, scheme: SamplingScheme) -> Choose:
    """Draw by `scheme`: the token at which the summed probability, likeliest first, passes the prompt's number.

    Args:
        numbers: (prompts, new tokens), uniform in [0, 1).
    """

    def choose(logits: Tensor, prompts: Tensor, given: int) -> Tensor:
        log_probs = logits - torch.logsumexp(logits, dim=-1, keepdim=True)
        ordered, order = filtered_log_probs(log_probs, scheme)
        number = numbers[prompts.cpu(), given].to(logits.device).unsqueeze(-1)
        # Summed in float32 the whole may end a little below 1: the last token that can be drawn takes the rest.
        last = torch.isfinite(ordered).sum(dim=-1, keepdim=True) - 1
        place = torch.searchsorted(ordered.exp().cumsum(dim=-1), number, right=True)
        return order.gather(-1, torch.minimum(place, last)).squeeze(-1)

    return choose


def with_noise(prompt: Prompt, tokens: Sequence[int], *, share: float, rng: random.Random) -> Prompt:
    """Replace `share` of the prompt's tokens, at least one, by others drawn from `tokens`."""
    ids = list(prompt.encoded.ids)
    for place in rng.sample(range(prompt.length), max(1, round(share * prompt.length))):
        ids[place] = _another(ids[place], tokens, rng)
    return replace(prompt, encoded=replace(prompt.encoded, ids=tuple(ids)))


def _another(token: int, tokens: Sequence[int], rng: random.Random) -> int:
    drawn = rng.choice(tokens)
    while drawn == token:
        drawn = rng.choice(tokens)
    return drawn
