"""The shared fixture of the method oracles (unlearning-methods, section 0): vocabulary 4, two answer tokens."""

from __future__ import annotations

import torch

from ml.data.collate import IGNORED

FORGET = torch.tensor([[2.0, 0.0, -1.0, 0.5], [0.0, 1.0, 3.0, -2.0]])
FORGET_LABELS = torch.tensor([0, 1])
REFERENCE = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 2.0, 1.0, 0.0]])
RETAIN = torch.tensor([[3.0, 0.0, 0.0, 0.0], [0.0, 0.0, 2.0, 1.0]])
RETAIN_LABELS = torch.tensor([0, 2])
MASK = torch.ones(1, 2, dtype=torch.bool)


def as_batch(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """One row whose first token is unscored, so that logits i predict label i + 1."""
    row = torch.cat([torch.tensor([IGNORED]), labels]).unsqueeze(0)
    return torch.cat([logits, torch.zeros(1, 4)]).unsqueeze(0), row
