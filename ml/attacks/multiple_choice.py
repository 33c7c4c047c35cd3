"""G6, multiple choice: which letter does a model give to the true value among random ones?

The options show the value, so that an answer which repeats it gives nothing away; what counts is the choice, by the
likelihood of the letters alone. Every value takes every place once: a model that likes one letter gains nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor

from ml.attacks.exposure import ValueContest, common_prefix, same_context_difference
from ml.errors import ContextLengthError, SpecError

LETTERS: Final = ("A", "B", "C", "D")


def choice_texts(question: str, value: str, others: Sequence[str]) -> list[str]:
    """The question with its options, up to the letter: one text for each place of the true value.

    Raises:
        SpecError: there are not three other values.
    """
    if len(others) != len(LETTERS) - 1:
        raise SpecError(f"a choice is among {len(LETTERS)} values, the true one and {len(LETTERS) - 1} others")
    texts = []
    for place in range(len(LETTERS)):
        options = [*others[:place], value, *others[place:]]
        shown = " ".join(f"({letter}) {option}" for letter, option in zip(LETTERS, options, strict=True))
        texts.append(f"{question.rstrip()}\n{shown}\nAnswer: (")
    return texts


def choice_contests(tokenizer: Any, texts: Sequence[str], *, context: int) -> list[ValueContest]:
    """The letters compete after each text, that of the true value first: one contest a text.

    Args:
        texts: what `choice_texts` gives for each fact, one fact after the other.
    Raises:
        ContextLengthError: a text is longer than `context` tokens.
    """
    ordered = [_right_first(place) for place in range(len(LETTERS))]
    asked = [text + letter for i, text in enumerate(texts) for letter in ordered[i % len(LETTERS)]]
    every = [tuple(ids) for ids in tokenizer(asked, verbose=False)["input_ids"]] if asked else []
    longest = max(map(len, every), default=0)
    if longest > context:
        raise ContextLengthError(f"a choice has {longest} tokens, the model takes {context}")
    contests = []
    for i in range(0, len(every), len(LETTERS)):
        rows = [_without_end(tokenizer, row) for row in every[i : i + len(LETTERS)]]
        prompt = common_prefix(rows)
        contests.append(ValueContest(prompt, tuple(row[len(prompt) :] for row in rows)))
    return contests


def _right_first(place: int) -> tuple[str, ...]:
    return (LETTERS[place], *(letter for letter in LETTERS if letter != LETTERS[place]))


def _without_end(tokenizer: Any, row: tuple[int, ...]) -> tuple[int, ...]:
    """Some tokenizers close every text; nothing is closed here."""
    return row[:-1] if row[-1] == tokenizer.eos_token_id else row


def choice_scores(log_probs: Tensor) -> Tensor:
    """Mean over places of log p(right letter) minus the mean log p of the others: (facts * 4, 4) to (facts,), nats."""
    differences = same_context_difference(log_probs).reshape(-1, len(LETTERS))
    return torch.mean(differences, dim=1)
