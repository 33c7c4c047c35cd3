"""Attack families: rank tests against the twins, joint detection, and guards (verification section 9)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Final

import torch
from torch import Tensor

from ml.attacks import ATTACKS
from ml.energy import auroc
from ml.metrics.intervals import clopper_pearson_upper
from ml.metrics.roc import auroc_interval, roc_points
from ml.rank_tests import (
    TOLERANCE,
    attempt_alpha,
    detection_p,
    joint_p,
    low_p,
    over_forgetting_p,
    residual_p,
    residual_ratio,
    residual_upper,
    smallest_p,
    standard_deviation,
    strength,
    two_sided_p,
)
from ml.reports import MINIMUM_BIN, AttackResult, FactRoc, GuardResult, JointDetection, TwinSummary, histogram
from ml.specs import FamilyRule, Guard
from ml.verification.bench import MOMENTS, Bench, Moment
from ml.verification.parts import Failure
from ml.verification.scores import attack_part, item_kinds, item_scores, person_scores

HISTOGRAM_BINS: Final = 20
# Measurements so dear that a policy asks them of few twins.
_FEW_TWINS: Final = frozenset({"answers", "relearned"})


class Family:
    """One family's scores: per attack and role, for the subject and the family's twins."""

    def __init__(self, bench: Bench, rule: FamilyRule) -> None:
        self.bench, self.rule = bench, rule
        self.attacks = (*rule.primary, *rule.detection)
        self._items: dict[tuple[str, str], Tensor | Failure] = {}

    def items(self, attack: str, role: str) -> Tensor | Failure:
        """Scores of one attack on one role: (persons, items)."""
        if (attack, role) not in self._items:
            self._items[attack, role] = self._scored(attack, role)
        return self._items[attack, role]

    def _scored(self, attack: str, role: str) -> Tensor | Failure:
        part = attack_part(self.bench, attack, role)
        if isinstance(part, Failure):
            return part
        try:
            return item_scores(self.bench, attack, part)[: 1 + self.rule.twins]
        except Exception as exc:  # noqa: BLE001 - the boundary between attacks: the type is reported as the reason
            return Failure(type(exc).__name__)

    def scores(self, attack: str, role: str) -> list[float] | Failure:
        """One number per person; detection attacks are standardised by kind of value."""
        items = self.items(attack, role)
        if isinstance(items, Failure):
            return items
        return person_scores(items, self._kinds(attack))

    def _kinds(self, attack: str) -> list[str] | None:
        """The kinds by which a detection attack is standardised; a primary is not."""
        return None if attack in self.rule.primary else item_kinds(self.bench, attack)

    def rows(self) -> list[AttackResult]:
        """The result of every attack on every artefact."""
        return [self._row(attack, artefact) for attack, artefact in product(self.attacks, self.rule.artefacts)]

    def _row(self, attack: str, artefact: str) -> AttackResult:
        items, before = self.items(attack, artefact), self.scores(attack, "before")
        after = self.scores(attack, artefact)
        if isinstance(items, Failure) or isinstance(after, Failure):
            reason = after.reason if isinstance(after, Failure) else "unknown"
            return AttackResult(self.rule.id, attack, artefact, "error", reason)
        if isinstance(before, Failure):
            return AttackResult(self.rule.id, attack, artefact, "error", before.reason)
        placebo = self.scores(attack, "base") if reads_base(attack) else None
        return attack_result(
            self.rule,
            attack,
            artefact,
            items=items.shape[1],
            before=before,
            after=after,
            base=None if isinstance(placebo, Failure) else placebo,
        )

    def joint(self) -> JointDetection | None:
        """min-P over all attacks and artefacts, in both directions; `None` when one of them has no scores.

        Where few twins were asked for and the person still stands above all of them, so few cannot tell a leak from
        bad luck once every family's level is shared out. Then all twins are asked (sequential Monte Carlo: the p-value
        after more draws stays valid, because drawing more depends on nothing but the ranks so far).
        """
        first = self._joint(self.scores)
        if first is None or not self._needs_more_twins(first):
            return first
        return self._joint(self._scores_of_all)

    def _joint(self, scores: Callable[[str, str], list[float] | Failure]) -> JointDetection | None:
        table = [scores(attack, artefact) for attack, artefact in product(self.attacks, self.rule.artefacts)]
        rows = [row for row in table if not isinstance(row, Failure)]
        if len(rows) < len(table):
            return None
        falling = [[-score for score in row] for row in rows]
        return JointDetection(self.rule.id, self.attacks, len(rows[0]) - 1, joint_p(rows), joint_p(falling))

    def _needs_more_twins(self, first: JointDetection) -> bool:
        """True when the person is above every twin, what remains is not bounded, and there are twins left to ask."""
        if not asks_few_at_first(self.rule) or first.twins >= self.bench.persons - 1:
            return False
        if first.p_detect > smallest_p(first.twins) + TOLERANCE:
            return False
        alpha = attempt_alpha(self.bench.spec.attempt, alpha=self.bench.spec.policy.alpha)
        return any(
            not self._bounded(attack, artefact, alpha)
            for attack in self.rule.primary
            for artefact in self.rule.artefacts
        )

    def _bounded(self, attack: str, artefact: str, alpha: float) -> bool:
        before, after = self.scores(attack, "before"), self.scores(attack, artefact)
        if isinstance(before, Failure) or isinstance(after, Failure):
            return False
        return residual_p(before, after, self.rule.rho) <= alpha + TOLERANCE

    def _scores_of_all(self, attack: str, role: str) -> list[float] | Failure:
        """Scores of the person and every twin that was drawn, whatever number the family asked for."""
        first, part = self.items(attack, role), self.bench.further(ATTACKS[attack].reads, role)
        if isinstance(first, Failure):
            return first
        if isinstance(part, Failure):
            return part
        rest = item_scores(self.bench, attack, part)
        return person_scores(torch.cat([first, rest]), self._kinds(attack))

    def rocs(self) -> list[FactRoc]:
        """For each primary, how well it tells the subject's facts from the twins', before and after.

        Curves are for people to look at, and never a gate; few facts have none.
        """
        found = [self._roc(attack, moment) for attack in self.rule.primary for moment in MOMENTS]
        return [curve for curve in found if curve is not None]

    def _roc(self, attack: str, moment: Moment) -> FactRoc | None:
        items = self.items(attack, MOMENTS[moment])
        if isinstance(items, Failure) or items.shape[1] < MINIMUM_BIN or not bool(torch.isfinite(items).all()):
            return None
        own, twins = items[0], items[1:].flatten()
        first, second = zip(*roc_points(own, twins, at_least=MINIMUM_BIN), strict=True)
        return FactRoc(self.rule.id, attack, moment, first, second, auroc(own, twins))

    def guards(self) -> list[GuardResult]:
        """The guards whose metric could be measured, on the artefact where it is worst."""
        measured = [(guard, self._worst(guard)) for guard in self.rule.guards]
        return [worst for _, worst in measured if worst is not None]

    def _worst(self, guard: Guard) -> GuardResult | None:
        shown = [GUARD_METRICS[guard.metric](self, artefact) for artefact in self.rule.artefacts]
        results = [result for result in shown if result is not None]
        if len(results) < len(shown):
            return None
        return max(results, key=lambda result: _excess(guard, result))


def asks_few_at_first(rule: FamilyRule) -> bool:
    """True for a family that asks further twins where the first ones cannot tell a leak from bad luck."""
    return {ATTACKS[attack].reads for attack in (*rule.primary, *rule.detection)} <= _FEW_TWINS


def reads_base(attack: str) -> bool:
    """True for attacks that can be run on the base model, where nobody was learned: the placebo's scores."""
    return ATTACKS[attack].reads in ("tokens", "swaps") and attack != "reference"


def attack_result(
    rule: FamilyRule,
    attack: str,
    artefact: str,
    *,
    items: int,
    before: Sequence[float],
    after: Sequence[float],
    base: Sequence[float] | None,
) -> AttackResult:
    """Run every rank test on the scores of one attack; index 0 is the subject.

    Raises:
        NonFiniteError: a score is NaN or infinite.
    """
    return AttackResult(
        family=rule.id,
        attack=attack,
        artefact=artefact,
        status="measured",
        items=items,
        twins=len(after) - 1,
        subject_before=before[0],
        subject_after=after[0],
        twins_before=_summary(before[1:]),
        twins_after=_summary(after[1:]),
        p_placebo=None if base is None else two_sided_p(base),
        p_assay=detection_p(before),
        p_detect=detection_p(after),
        p_low=low_p(after),
        p_residual=residual_p(before, after, rule.rho),
        p_over=None if rule.rho_over is None else over_forgetting_p(before, after, rule.rho_over),
        residual_ratio=residual_ratio(before, after),
        residual_upper=residual_upper(before, after) if attack in rule.primary else None,
        strength=strength(before),
    )


def _summary(scores: Sequence[float]) -> TwinSummary:
    low, high = min(scores), max(scores)
    edges = [low + (high - low) * i / HISTOGRAM_BINS for i in range(HISTOGRAM_BINS + 1)]
    shape = histogram(scores, edges=edges) if high > low else None
    return TwinSummary(len(scores), sum(scores) / len(scores), standard_deviation(scores), shape)


def _excess(guard: Guard, result: GuardResult) -> float:
    """How far a guard's value, or all of its interval, lies beyond its nearest bound; negative inside."""
    lowest = result.value if result.lower is None else result.lower
    highest = result.value if result.upper is None else result.upper
    over = -float("inf") if guard.maximum is None else lowest - guard.maximum
    under = -float("inf") if guard.minimum is None else guard.minimum - highest
    return max(over, under)


def _pooled_auc(family: Family, artefact: str) -> GuardResult | None:
    """Chance that a fact of the subject looks more familiar than a fact of a twin, with its 95 % interval.

    One fact alone has no interval, and a family without a primary has no scores to pool.
    """
    if not family.rule.primary:
        return None
    items = family.items(family.rule.primary[0], artefact)
    if isinstance(items, Failure) or items.shape[1] < 2:
        return None
    area = auroc_interval(items[0], items[1:].flatten())
    return GuardResult(family.rule.id, "pooled_auc", area.mean, area.lower, area.upper)


def _mean_exposure(family: Family, artefact: str) -> GuardResult | None:
    scores = family.scores("exposure", artefact)
    return None if isinstance(scores, Failure) else GuardResult(family.rule.id, "mean_exposure", scores[0])


def _extraction_excess(family: Family, artefact: str) -> GuardResult | None:
    scores = family.scores("extraction_strength", artefact)
    if isinstance(scores, Failure):
        return None
    excess = scores[0] - sum(scores[1:]) / len(scores[1:])
    return GuardResult(family.rule.id, "extraction_strength_excess", excess)


def _hit_rate_upper(family: Family, artefact: str) -> GuardResult | None:
    """Clopper-Pearson bound of the subject's hit rate over all prompts of the family."""
    items = family.items("hit_rate", artefact)
    if isinstance(items, Failure):
        return None
    upper = clopper_pearson_upper(int(items[0].sum()), items.shape[1])
    return GuardResult(family.rule.id, "hit_rate_upper", upper)


GUARD_METRICS: Final[Mapping[str, Callable[[Family, str], GuardResult | None]]] = {
    "pooled_auc": _pooled_auc,
    "mean_exposure": _mean_exposure,
    "extraction_strength_excess": _extraction_excess,
    "hit_rate_upper": _hit_rate_upper,
}
