"""L15, L16: membership inference summed up as an area under the ROC curve (verification section 3, oracle O-11).

The area is 1 where texts of the forget set look like training texts and the held-out ones do not, as in the reference
code; MUSE's own code (arXiv:2407.06460) reports one minus that.
"""

from __future__ import annotations

from torch import Tensor

from ml.energy import auroc
from ml.errors import SpecError


def membership_auc(forget: Tensor, holdout: Tensor) -> float:
    """Chance that a held-out text looks less familiar than a forget text: scores (n,) and (m,), larger = less familiar.

    Raises:
        EmptySetError, NonFiniteError: a side has no score, or one that is no number.
    """
    return auroc(holdout, forget)


def privleak(area: float, reference: float = 0.5) -> float:
    """L15: relative distance in per cent from the reference's area: 0 is ideal, negative leaks, positive over-forgets.

    Args:
        area: `membership_auc` of the candidate.
        reference: that of a model retrained without the forget set, below 1; 0.5 where none is at hand.
    """
    _refuse_outside(area, reference)
    if reference == 1.0:
        raise SpecError("PrivLeak is undefined where the reference's area is 1")
    return ((1 - area) - (1 - reference)) / (1 - reference) * 100


def relative_difference(score: float, reference: float) -> float:
    """Distance of a score from a retrained model's, in per cent of the latter, which is above 0; 0 is ideal."""
    if reference <= 0:
        raise SpecError("a relative difference needs a reference score above 0")
    return (score - reference) / reference * 100


def similar_membership(area: float, reference: float) -> float:
    """L16 (sMIA): 1 - |area - reference| / reference, clipped to [0, 1]; 1 means as hard to tell as the reference."""
    _refuse_outside(area, reference)
    if reference == 0.0:
        raise SpecError("sMIA is undefined where the reference's area is 0")
    return min(1.0, max(0.0, 1 - abs(area - reference) / reference))


def _refuse_outside(*areas: float) -> None:
    if any(not 0 <= area <= 1 for area in areas):
        raise SpecError("an area under a ROC curve lies in [0, 1]")
