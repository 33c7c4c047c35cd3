"""G15: what an old version and a new one reveal together: the difference of their log-probabilities, amplified.

It needs the old weights or their log-probabilities, so it says how much an old version that is kept gives away; it
holds against exact retraining too and therefore never blocks a deletion.

Source: arXiv:2505.24379. Departure: whole values are compared, not each next token, so nothing is normalised again.
"""

from __future__ import annotations

from typing import Final

from torch import Tensor

from ml.errors import SpecError

AMPLIFICATIONS: Final = (1.0, 2.0, 4.0)


def amplified(before: Tensor, after: Tensor, amplification: float) -> Tensor:
    """`after + amplification * (before - after)`: log-probabilities (facts, 1 + swaps) of both models to the same.

    1 gives the old version itself, 0 the new one. The result ranks values and is no log-probability.

    Raises:
        SpecError: the two do not score the same values.
    """
    if before.shape != after.shape:
        raise SpecError("both versions score the same values of the same facts")
    return after.float() + amplification * (before.float() - after.float())
