"""L6: loss per compressed byte, which discounts texts that are simple in themselves (oracle O-6).

Source: arXiv:2012.07805.
"""

from __future__ import annotations

from torch import Tensor

from ml.attacks.attack import ATTACKS, Attack
from ml.attacks.fused import TokenStatistics
from ml.attacks.mean_loss import mean_loss
from ml.errors import SpecError


def zlib_ratio(statistics: TokenStatistics) -> Tensor:
    """Mean loss divided by the compressed size of the labels: (texts,), nats per token and byte.

    Raises:
        SpecError: the compressed sizes were not measured.
    """
    if statistics.compressed_bytes is None:
        raise SpecError("attack zlib_ratio needs the compressed size of each text")
    return mean_loss(statistics) / statistics.compressed_bytes


ATTACKS.register("zlib_ratio")(Attack("L6", "tokens", lambda statistics: -zlib_ratio(statistics)))
