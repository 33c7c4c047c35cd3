"""Loss functions of deletion, as maths: tensors in, tensors out. No model, no trainer, no settings.

`log_probs` are log-probabilities of the labels, (batch, seq) float32 with 0 where `mask` is False, as
`ml.data.collate.label_log_probs` returns them. "Sum per sequence" and "mean over tokens" differ between methods; each
function says which it is.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ml.data.collate import mean_over_tokens, sum_per_sequence


def grad_diff_loss(
    forget_log_probs: Tensor, forget_mask: Tensor, retain_loss: Tensor, *, gamma: float, alpha: float
) -> Tensor:
    """Gradient difference: `-gamma * NLL(forget) + alpha * retain_loss`; unbounded below.

    Source: TOFU, arXiv:2401.06121. Oracle of the shared fixture (gamma = alpha = 1, NLL): -0.9424235.
    """
    return gamma * mean_over_tokens(forget_log_probs, forget_mask) + alpha * retain_loss


def npo_loss(log_probs: Tensor, mask: Tensor, reference_sums: Tensor, *, beta: float) -> Tensor:
    """Negative preference optimisation: `-(2 / beta) * mean_seq log sigmoid(beta * (S - S_ref))`.

    S is the answer's *summed* negative log-likelihood; a mean instead would change beta by the number of tokens. At
    the reference the loss is (2 / beta) ln 2 with the gradient of ascent on the sum; large forgetting saturates it.

    Args:
        reference_sums: (batch,), S of the model before unlearning.
    Source: arXiv:2404.05868. Oracle of the shared fixture: beta 0.1 -> 12.6235154, beta 1 -> 0.4904837.
    """
    gap = -sum_per_sequence(log_probs, mask) - reference_sums
    return -(2 / beta) * functional.logsigmoid(beta * gap).mean()


def divergence(reference_logits: Tensor, logits: Tensor) -> Tensor:
    """KL(p_ref || p) at each position, in nats: (...,) from (..., rows); 0 when nothing has changed."""
    return functional.kl_div(
        torch.log_softmax(logits.float(), dim=-1),
        torch.log_softmax(reference_logits.float(), dim=-1),
        reduction="none",
        log_target=True,
    ).sum(dim=-1)


def soft_cross_entropy(targets: Tensor, logits: Tensor) -> Tensor:
    """Cross-entropy to a whole distribution at each position, in nats: (...,) from two (..., rows).

    Args:
        targets: probabilities, float32.
    """
    return -(targets * torch.log_softmax(logits.float(), dim=-1)).sum(dim=-1)
