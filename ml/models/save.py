"""Write a model directory so that it is there whole or not at all."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from ml.files import flush, sync_directory


def save_model(model: Any, tokenizer: Any, directory: Path) -> None:
    """Write weights (safetensors), configuration and tokenizer into `directory` and flush them to disk."""
    model.save_pretrained(directory, safe_serialization=True)
    tokenizer.save_pretrained(directory)
    flush(directory)


def publish_model(model: Any, tokenizer: Any, directory: Path) -> None:
    """Write a model under a temporary name beside `directory`, then rename it."""
    partial = partial_directory(directory)
    save_model(model, tokenizer, partial)
    publish(partial, directory)


def partial_directory(directory: Path) -> Path:
    """Return an empty place beside `directory` to write to, on the same file system."""
    partial = directory.with_name(f"{directory.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    return partial


def publish(partial: Path, directory: Path) -> None:
    """Rename a finished directory to its final name."""
    partial.replace(directory)
    sync_directory(directory.parent)
