"""Many deletions together: what may be said about all of them that cannot be said about each (verification section 9.6
and 12). Standard library only.

An average must never hide one person: a bound on a cohort is issued only where everybody in it was also tested alone,
with twins enough to be found. Index 0 is a data subject, 1..K are never-trained twins, larger scores more familiar.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from ml.errors import NonFiniteError, SpecError
from ml.rank_tests import (
    TOLERANCE,
    besag_clifford_p,
    detection_p,
    holm,
    residual_p,
    residual_ratio,
    residual_upper,
    smallest_p,
    strength,
)
from ml.specs import FamilyRule, VerdictPolicy

SWEPT_FAMILIES: Final = ("F1", "F2", "F3")
"""The families that one pass over texts and one over value swaps can answer."""
FIRST_TWINS: Final = 39
FEW_EXCEEDANCES: Final = 4
STOP_AT: Final = 10
SWEEP_Q: Final = 0.05
_PERMUTATIONS: Final = 1999


def swept_rules(policy: VerdictPolicy) -> tuple[FamilyRule, ...]:
    """The families of `policy` that a sweep asks about."""
    return tuple(rule for rule in policy.families if rule.id in SWEPT_FAMILIES)


# --- everybody alone ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Draws:
    """A sequential comparison of one subject with twins drawn one after the other.

    `exceedances` of the first `count` twins look at least as familiar. Nobody is compared further after the tenth
    exceedance; with four or more among the first 39 there is nothing to look for either.
    """

    exceedances: int = 0
    count: int = 0

    def after(self, exceeded: Iterable[bool]) -> Draws:
        """Continue with further twins, in the order they were drawn; after the tenth exceedance none is counted."""
        exceedances, count = self.exceedances, self.count
        for is_above in exceeded:
            if exceedances >= STOP_AT:
                break
            exceedances, count = exceedances + is_above, count + 1
        return Draws(exceedances, count)

    def needs_more(self, limit: int) -> bool:
        """True while further twins, up to `limit`, could still tell a leak from bad luck."""
        if self.exceedances >= STOP_AT or self._ended_early:
            return False
        return self.count < max(FIRST_TWINS, limit)

    @property
    def _ended_early(self) -> bool:
        return self.count == FIRST_TWINS and self.exceedances >= FEW_EXCEEDANCES

    def is_settled(self, *, alpha: float, persons: int) -> bool:
        """True when a leak would have been found at `alpha` over `persons`: not finding one was possible, not forced.

        Too few twins cannot give a small p-value, and a person who could not be found was not looked for.
        """
        return not self.needs_more(sequential_limit(persons, alpha))

    @property
    def p(self) -> float:
        """Sequential Monte Carlo p-value of "no more familiar than a twin". Oracle O-25."""
        return besag_clifford_p(exceedances=self.exceedances, draws=self.count, stop_at=STOP_AT)


def sequential_limit(persons: int, q: float) -> int:
    """Twins after which drawing stops: with none above, p reaches q / persons (20 N at 0.05)."""
    if persons < 1 or not 0 < q < 1:
        raise SpecError("a level in (0, 1) is shared by at least one person")
    return max(FIRST_TWINS, math.ceil(persons / q - TOLERANCE))


# --- the cohort ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CohortCertificate:
    """The residual bound of one attack on the average of several persons.

    `reason` says why it is not issued: `detected` (a person stands out alone), `alpha_unattainable` (somebody was
    compared with too few twins to be found, or the cohort was), `assay_insensitive` (nothing was seen before
    deletion either), `power`. `flagged` are places in the cohort.
    """

    persons: int
    twins: int
    rho: float
    p_assay: float
    p_residual: float
    residual_ratio: float | None
    residual_upper: float | None
    strength: float | None
    flagged: tuple[int, ...]
    reason: str | None

    @property
    def issued(self) -> bool:
        """True when the bound was shown and nobody stands out."""
        return self.reason is None


def cohort_average(scores: Sequence[Sequence[float]]) -> list[float]:
    """Average over persons, and over the k-th twin of each; persons with more twins than others lose the surplus.

    Raises:
        SpecError: no person.
    """
    if not scores:
        raise SpecError("a cohort has at least one person")
    count = min(map(len, scores))
    return [math.fsum(person[k] for person in scores) / len(scores) for k in range(count)]


def cohort_certificate(
    before: Sequence[Sequence[float]],
    after: Sequence[Sequence[float]],
    detection: Sequence[Draws],
    *,
    rho: float,
    alpha: float = 0.05,
    alpha_alone: float | None = None,
) -> CohortCertificate:
    """Test whether at least `rho` of the cohort's influence remains, and whether anybody stands out alone.

    Twins need not be the same before and after. A score's noise is then independent between the two moments for
    twins, while the subject's may be shared: that widens the twins' side and costs power, not validity.

    Args:
        before, after: per person, the scores of the subject and the twins on `M-` and on the model tested.
        detection: per person, their own sequential test on the model tested.
        alpha: level of the claim in the candidate's favour, which every attempt pays for.
        alpha_alone: level at which somebody stands out alone, which no attempt lowers; `alpha` where none is named.
    Raises:
        SpecError: not the same persons in all three.
        NonFiniteError: a score is NaN or infinite.
    """
    if not len(before) == len(after) == len(detection):
        raise SpecError("before, after and detection must hold the same persons")
    count = min(len(row) for row in (*before, *after)) if before else 0
    averages = [cohort_average([row[:count] for row in rows]) for rows in (before, after)]
    p_assay, p_residual = detection_p(averages[0]), residual_p(averages[0], averages[1], rho)
    alone = alpha if alpha_alone is None else alpha_alone
    flagged = tuple(i for i, p in enumerate(holm([draws.p for draws in detection])) if p <= alone + TOLERANCE)
    reason = None
    if flagged:
        reason = "detected"
    elif smallest_p(count - 1) > alpha + TOLERANCE or not _all_settled(detection, alone):
        reason = "alpha_unattainable"
    elif p_assay > alpha + TOLERANCE:
        reason = "assay_insensitive"
    elif p_residual > alpha + TOLERANCE:
        reason = "power"
    return CohortCertificate(
        persons=len(before),
        twins=count - 1,
        rho=rho,
        p_assay=p_assay,
        p_residual=p_residual,
        residual_ratio=residual_ratio(averages[0], averages[1]),
        residual_upper=residual_upper(averages[0], averages[1], alpha=alpha),
        strength=strength(averages[0]),
        flagged=flagged,
        reason=reason,
    )


def _all_settled(detection: Sequence[Draws], alpha: float) -> bool:
    return all(draws.is_settled(alpha=alpha, persons=len(detection)) for draws in detection)


# --- spike-ins ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SpikeInCertificate:
    """`failures` of `trials` deleted spike-ins: the pipeline fails at a rate of at most `upper`, at level `alpha`.

    Whoever reads one checks it with `is_sound`, which needs no statistics library.
    """

    failures: int
    trials: int
    upper: float
    alpha: float = 0.05

    @property
    def is_sound(self) -> bool:
        """True when so few failures have a chance of at most `alpha` at the rate `upper`, as the bound promises."""
        if self.trials < 1 or not 0 <= self.failures <= self.trials or not 0 < self.upper <= 1:
            return False
        chance = math.fsum(
            math.comb(self.trials, k) * self.upper**k * (1 - self.upper) ** (self.trials - k)
            for k in range(self.failures + 1)
        )
        return self.failures == self.trials or chance <= self.alpha + 1e-9


# --- versions over time -------------------------------------------------------------------------------------------


def version_level(window: int = 1, *, q: float = SWEEP_Q) -> float:
    """Level of one version's sweep: `q`, or its share of a claim over `window` versions (0.05 / 12 for twelve)."""
    if window < 1:
        raise SpecError("a window has at least one version")
    return q / window


def window_e_value(p_values: Sequence[float], *, window: int) -> float:
    """Evidence of one entry against "never resurfaced" over a window: the mean of 0.5 / sqrt(p) over its versions.

    p-values of successive versions depend on each other (same person, similar weights): they are never multiplied.
    The mean stays valid whatever the dependence, for a window that was fixed before: the best version, or the best
    moment to stop, is a running maximum and is refused.

    Raises:
        SpecError: not exactly one p-value for each of the window's versions.
    """
    if window < 1 or len(p_values) != window:
        raise SpecError("a window's evidence is the mean over all of its versions; a part of them was chosen")
    if not all(0 < p <= 1 for p in p_values):
        raise SpecError("a p-value lies above 0 and is at most 1")
    return math.fsum(0.5 / math.sqrt(p) for p in p_values) / window


@dataclass(frozen=True, slots=True)
class SlopeAlarm:
    """Does what remains grow with the number of deletions? `p` is one-sided; the alarm sounds below 0.05."""

    points: int
    slope: float
    p: float

    @property
    def sounds(self) -> bool:
        """True when later deletions leave more behind."""
        return self.slope > 0 and self.p < 0.05


def slope_alarm(deletions: Sequence[int], ratios: Sequence[float], *, seed: int) -> SlopeAlarm | None:
    """Permutation test of a positive slope of rho-hat against the number of deletions so far.

    `None` where no slope exists: fewer than two numbers of deletions.

    Raises:
        SpecError: not one ratio per number.
        NonFiniteError: a ratio is NaN or infinite.
    """
    if len(deletions) != len(ratios):
        raise SpecError("every rho-hat stands at one number of deletions")
    if not all(map(math.isfinite, ratios)):
        raise NonFiniteError("a rho-hat is NaN or infinite; it has no slope")
    if len(set(deletions)) < 2:
        return None
    centre = sum(deletions) / len(deletions)
    centred = [count - centre for count in deletions]
    product = _inner(centred, ratios)
    rng = random.Random(f"{seed}:slope")  # noqa: S311 - permutations must be reproducible from the seed
    shuffled, reached = list(ratios), 0
    for _ in range(_PERMUTATIONS):
        rng.shuffle(shuffled)
        reached += _inner(centred, shuffled) >= product - TOLERANCE
    return SlopeAlarm(len(ratios), product / _inner(centred, centred), (1 + reached) / (1 + _PERMUTATIONS))


def _inner(first: Sequence[float], second: Sequence[float]) -> float:
    return sum(a * b for a, b in zip(first, second, strict=True))
