"""L7: loss against a reference that never saw the person, here the base model (oracle O-6)."""

from __future__ import annotations

from torch import Tensor

from ml.attacks.attack import ATTACKS, Attack
from ml.attacks.fused import TokenStatistics
from ml.attacks.mean_loss import mean_loss
from ml.errors import SpecError


def reference_excess(statistics: TokenStatistics) -> Tensor:
    """Mean loss minus the reference's mean loss: (texts,), nats per token; larger is less familiar.

    Raises:
        SpecError: the reference's losses were not measured.
    """
    if statistics.reference_loss is None:
        raise SpecError("attack reference needs the base model's loss of each text")
    return mean_loss(statistics) - statistics.reference_loss


ATTACKS.register("reference")(Attack("L7", "tokens", lambda statistics: -reference_excess(statistics)))
