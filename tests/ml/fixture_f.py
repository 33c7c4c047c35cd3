"""Fixture F of the verification specification: one text given by its next-token distributions."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ml.attacks.fused import SamplingScheme, TokenStatistics, token_numbers

# Fixture F of verification section 14: next-token rows, and the tokens that came; 3 is the end of the sequence.
ROWS = ((0.7, 0.1, 0.1, 0.1), (0.2, 0.5, 0.2, 0.1), (0.05, 0.8, 0.1, 0.05), (0.1, 0.1, 0.6, 0.2), (0.25,) * 4)
TARGETS = (0, 0, 1, 2, 3)
PLAIN = SamplingScheme()


def one_text(
    rows: Sequence[Sequence[float]] = ROWS,
    targets: Sequence[int] = TARGETS,
    *,
    scheme: SamplingScheme = PLAIN,
    padding: int = 2,
) -> TokenStatistics:
    """One text, scored from its next-token distributions, with some padding behind it."""
    numbers = token_numbers(torch.tensor(rows).log(), torch.tensor(targets), scheme=scheme)
    width = len(rows) + padding
    fields = {name: torch.zeros(1, width, dtype=values.dtype) for name, values in numbers.items()}
    for name, values in numbers.items():
        fields[name][0, : len(rows)] = values
    mask = torch.arange(width).unsqueeze(0) < len(rows)
    return TokenStatistics(mask=mask, values=mask & (torch.arange(width) == 1), **fields)
