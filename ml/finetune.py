"""Plain fine-tuning: make a model repeat the answers of its records. The other direction lives in `ml.methods`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ml.data.batches import EpochBatches
from ml.data.collate import Batch, EncodedText, chosen_log_probs, collate, labels_in_order, mean_over_tokens
from ml.loop import Backward, LoopResult, LoopSettings, StepFunction, ignore_progress, never_stop, train
from ml.models.forward import label_logits
from ml.specs import ProgressCallback, StopCheck


def cross_entropy_of(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean of -log p of `labels` (n,) under `logits` (n, rows), in nats; lower is better known."""
    return -mean_over_tokens(chosen_log_probs(logits, labels), torch.ones_like(labels, dtype=torch.bool))


def cross_entropy(model: Any, batch: Batch) -> Tensor:
    """`cross_entropy_of` the batch's answer tokens under `model`."""
    return cross_entropy_of(label_logits(model, batch), labels_in_order(batch.labels))


def cross_entropy_step(
    model: Any, rows: Sequence[EncodedText], *, pad_id: int, batch_rows: int, seed: int, device: str
) -> StepFunction:
    """Return a step function that lowers the cross-entropy of `rows`, every row once per epoch."""
    batches = EpochBatches([len(row.ids) for row in rows], rows=batch_rows, seed=seed)

    def step(number: int, backward: Backward) -> Mapping[str, Tensor]:
        batch = collate([rows[i] for i in batches.at(number)], pad_id=pad_id).to(device)
        loss = cross_entropy(model, batch)
        backward(loss)
        return {"cross_entropy": loss.detach()}

    return step


def finetune(
    model: Any,
    rows: Sequence[EncodedText],
    settings: LoopSettings,
    *,
    pad_id: int,
    batch_rows: int,
    seed: int,
    device: str = "cpu",
    phase: str = "fine-tuning",
    config_sha256: str = "",
    checkpoint_path: Path | None = None,
    on_progress: ProgressCallback = ignore_progress,
    should_stop: StopCheck = never_stop,
    is_met: Callable[[], bool] | None = None,
) -> LoopResult:
    """Fine-tune the parameters of `model` that require gradients on `rows`, in place; arguments as in `loop.train`."""
    return train(
        model,
        cross_entropy_step(model, rows, pad_id=pad_id, batch_rows=batch_rows, seed=seed, device=device),
        settings,
        phase=phase,
        config_sha256=config_sha256,
        checkpoint_path=checkpoint_path,
        on_progress=on_progress,
        should_stop=should_stop,
        is_met=is_met,
    )
