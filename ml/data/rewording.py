"""The question bank in other words, by a paraphrase or translation model of the deployer's own.

The model is given templates with an invented name, never a person's name or value. What it returns is a bank as any
other: whoever has that document repeats the attack without the model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final, TypeAlias

import torch

from ml.data.questions import Attribute, QuestionBank, QuestionForm
from ml.errors import SpecError
from ml.models.load import LoadedModel

STAND_IN: Final = "Robin Vale"
"""The name in templates while they are reworded; it must come back unchanged, once, or the wording is dropped."""

_NAME: Final = "{name}"
_NEW_TOKENS: Final = 64
_ROWS: Final = 32

Rewrite: TypeAlias = Callable[[Sequence[str]], list[str]]
"""Texts in other words, in the same order."""


def reworded_bank(bank: QuestionBank, rewrite: Rewrite) -> QuestionBank:
    """Return the bank with every question reworded; an answer keeps its words, so that its value keeps its place.

    A wording is dropped that loses the name or repeats it, names a placeholder, is empty, or is on file already.

    Raises:
        SpecError: not one usable wording came back: the model is no paraphraser of such questions.
    """
    asked = [(name, form) for name, attribute in bank.attributes.items() for form in attribute.forms if _can_ask(form)]
    texts = [form.question.replace(_NAME, STAND_IN) for _, form in asked]
    returned = rewrite(texts)
    if len(returned) != len(texts):
        raise SpecError("a rewriter returns one text for each it was given")
    found: dict[str, dict[str, QuestionForm]] = {}
    for (name, form), text in zip(asked, returned, strict=True):
        question = _template(text)
        on_file = {_squeezed(other.question) for other in bank.attributes[name].forms}
        if question is not None and _squeezed(question) not in on_file:
            found.setdefault(name, {}).setdefault(_squeezed(question), replace(form, question=question))
    if not found:
        raise SpecError("the rewriter returned no usable question; name a paraphrase or translation model")
    return replace(
        bank, attributes={name: _with(bank.attributes[name], forms) for name, forms in sorted(found.items())}
    )


def _can_ask(form: QuestionForm) -> bool:
    return form.question.count(_NAME) == 1 and "{value}" not in form.question


def _with(attribute: Attribute, forms: dict[str, QuestionForm]) -> Attribute:
    return replace(attribute, forms=tuple(forms.values()))


def _template(text: str) -> str | None:
    line = " ".join(text.split())
    if line.count(STAND_IN) != 1 or "{" in line or "}" in line:
        return None
    return line.replace(STAND_IN, _NAME)


def _squeezed(question: str) -> str:
    return " ".join(question.casefold().split())


def rewriter(loaded: LoadedModel) -> Rewrite:
    """Let a sequence-to-sequence model reword texts, greedily: the same texts always get the same words."""

    def rewrite(texts: Sequence[str]) -> list[str]:
        rows: list[str] = []
        for start in range(0, len(texts), _ROWS):
            given = loaded.tokenizer(list(texts[start : start + _ROWS]), return_tensors="pt", padding=True)
            given = {name: given[name].to(loaded.model.device) for name in ("input_ids", "attention_mask")}
            with torch.inference_mode():
                written = loaded.model.generate(**given, do_sample=False, num_beams=1, max_new_tokens=_NEW_TOKENS)
            rows += loaded.tokenizer.batch_decode(written, skip_special_tokens=True)
        return rows

    return rewrite
