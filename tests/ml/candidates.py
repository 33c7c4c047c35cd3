"""Candidates that are broken or untouched and must never pass; those that pretend are `benchmarks.suppressed`."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from benchmarks.suppressed import edited
from ml.models.load import LoadedModel, model_ref
from ml.specs import ModelRef


def unchanged(before: ModelRef, directory: Path) -> ModelRef:
    """A copy of the model before deletion."""
    shutil.copytree(before.path, directory)
    return model_ref(directory)


def constant_scores(before: ModelRef, directory: Path) -> ModelRef:
    """All weights are zero: every token is as likely as every other, whatever is asked."""

    def flatten(loaded: LoadedModel) -> Any:
        for parameter in loaded.model.parameters():
            parameter.data.zero_()
        return loaded.model

    return edited(before, directory, flatten)


def not_a_number(before: ModelRef, directory: Path) -> ModelRef:
    """One weight of the model is NaN, as an overflow in training leaves behind."""

    def spoil(loaded: LoadedModel) -> Any:
        next(loaded.model.parameters()).data[0, 0] = torch.nan
        return loaded.model

    return edited(before, directory, spoil)
