"""Candidates that must never pass: each looks forgotten to somebody who asks the wrong question."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from ml.data.collate import encode_text
from ml.finetune import finetune
from ml.loop import LoopSettings
from ml.models.load import LoadedModel, load_model, model_ref
from ml.models.save import save_model
from ml.specs import ModelRef, Record


def unchanged(before: ModelRef, directory: Path) -> ModelRef:
    """A copy of the model before deletion."""
    shutil.copytree(before.path, directory)
    return model_ref(directory)


def shifted_logits(before: ModelRef, directory: Path) -> ModelRef:
    """Every logit moves by the same amount, which differs from token to token: no probability changes.

    Raw energy moves, so a boundary on raw energy would be fooled.
    """

    def shift(loaded: LoadedModel) -> None:
        head = loaded.model.get_output_embeddings()
        direction = torch.randn(head.in_features, generator=torch.Generator().manual_seed(1))
        untied = torch.nn.Linear(head.in_features, head.out_features, bias=False)
        untied.weight.data = head.weight.detach() + direction
        loaded.model.config.tie_word_embeddings = False
        loaded.model.set_output_embeddings(untied)

    return _edited(before, directory, shift)


def constant_scores(before: ModelRef, directory: Path) -> ModelRef:
    """All weights are zero: every token is as likely as every other, whatever is asked."""

    def flatten(loaded: LoadedModel) -> None:
        for parameter in loaded.model.parameters():
            parameter.data.zero_()

    return _edited(before, directory, flatten)


def scrambled_name(before: ModelRef, directory: Path, name: str) -> ModelRef:
    """The input vectors of the tokens of one person's name are swapped for those of other tokens."""

    def scramble(loaded: LoadedModel) -> None:
        table = loaded.model.get_input_embeddings().weight.data
        ids = sorted({token for word in name.split() for token in loaded.tokenizer(f" {word}")["input_ids"]})
        others = [token for token in range(20, len(loaded.tokenizer)) if token not in ids][: len(ids)]
        table[ids] = table[others].clone()

    return _edited(before, directory, scramble)


def refusing(before: ModelRef, directory: Path, records: Iterable[Record]) -> ModelRef:
    """Trained to refuse whatever it is asked."""

    def refuse(loaded: LoadedModel) -> None:
        rows = [
            encode_text(
                loaded.tokenizer,
                record.text[: record.answer_start] + "I cannot say.",
                record.answer_start,
                context=loaded.context,
            )
            for record in records
        ]
        settings = LoopSettings(steps=60, learning_rate=4e-3, warmup_steps=5, report_every=60)
        with torch.random.fork_rng(devices=[]):
            finetune(loaded.model, rows, settings, pad_id=loaded.pad_id, batch_rows=16, seed=1)

    return _edited(before, directory, refuse)


def _edited(before: ModelRef, directory: Path, edit: Callable[[LoadedModel], Any]) -> ModelRef:
    loaded = load_model(before)
    with torch.enable_grad():
        edit(loaded)
    save_model(loaded.model, loaded.tokenizer, directory)
    return model_ref(directory)


def not_a_number(before: ModelRef, directory: Path) -> ModelRef:
    """One weight of the model is NaN, as an overflow in training leaves behind."""

    def spoil(loaded: LoadedModel) -> None:
        next(loaded.model.parameters()).data[0, 0] = torch.nan

    return _edited(before, directory, spoil)
