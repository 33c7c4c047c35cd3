"""W3: how alike two models' states are, by linear centred kernel alignment (verification section 5). Diagnostic only.

It never gates: of all measures in section 7 it is the least robust to relearning.

Source: arXiv:1905.00414.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ml.errors import SpecError


def linear_cka(first: Tensor, second: Tensor) -> Tensor:
    """Alignment in [0, 1], 1 = alike up to rotation and scale: (..., n, d) and (..., n, e) to (...). Oracle O-15.

    Raises:
        SpecError: the states of one side do not vary, so there is nothing to align.
    """
    x = first.float() - first.float().mean(dim=-2, keepdim=True)
    y = second.float() - second.float().mean(dim=-2, keepdim=True)
    own = torch.linalg.matrix_norm(x.mT @ x) * torch.linalg.matrix_norm(y.mT @ y)
    if bool((own == 0).any()):
        raise SpecError("alignment is undefined for states that do not vary")
    return torch.linalg.matrix_norm(x.mT @ y).square() / own
