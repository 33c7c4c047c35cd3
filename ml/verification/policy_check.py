"""Does a policy ask for what can be measured, and for enough of it to show anything?

An artefact nobody knows must not be taken for one that is known.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from ml.attacks import ATTACKS
from ml.errors import SpecError
from ml.models.served import combinations_of, copies, refuse_missing_loader
from ml.rank_tests import TOLERANCE
from ml.specs import VerdictPolicy
from ml.verification.checks import HARD_RULES
from ml.verification.families import GUARD_METRICS, asks_few_at_first
from ml.verification.kept import PAIRINGS, SCORES


def refuse_powerless(policy: VerdictPolicy) -> None:
    """Raise `SpecError` when a policy for releases could establish no leak, however large: before anything is computed.

    A leak is established by Holm over all families in both directions (verification section 9.3). Families that begin
    with few twins may ask all that are drawn.
    """
    most, families = max(family.twins for family in policy.families), len(policy.families)
    needed = math.ceil(2 * families / policy.alpha - 1 - TOLERANCE)
    for family in policy.families:
        twins = most if asks_few_at_first(family) else family.twins
        if policy.purpose == "release" and twins < needed:
            raise SpecError(
                f"verdict policy {policy.name}: {twins} twins can establish no leak in family {family.id} over "
                f"{families} families in two directions at level {policy.alpha}; draw at least {needed}"
            )


def refuse_unknown(policy: VerdictPolicy, *, adapters: int = 0) -> None:
    """Raise `SpecError` naming the first attack, artefact, guard, hard rule or utility score that nothing measures.

    Args:
        adapters: how many a client may select.
    Raises:
        LoaderMissingError: an artefact is served by a library that is not installed.
    """
    families = policy.families
    named = [artefact for rule in families for artefact in rule.artefacts]
    if unasked := set(combinations_of(adapters)) - set(named):
        raise SpecError(
            f"verdict policy {policy.name} asks nothing of {len(unasked)} combinations of the adapters named; use one "
            "that names them all, or name no adapters"
        )
    _refuse("attack", (a for rule in families for a in (*rule.primary, *rule.detection)), ATTACKS, policy)
    _refuse("artefact", named, ("merged", *copies(adapters)), policy)
    refuse_missing_loader(named)
    _refuse("guard", (guard.metric for rule in families for guard in rule.guards), GUARD_METRICS, policy)
    _refuse("hard rule", policy.hard_rules, HARD_RULES, policy)
    _refuse("utility id", (rule.id.split(".")[0] for rule in policy.utility), PAIRINGS, policy)
    for rule in policy.utility:
        _refuse(f"score of {rule.id}", (rule.score,), SCORES[rule.id.split(".")[0]], policy)


def _refuse(kind: str, named: Iterable[str], known: Iterable[str], policy: VerdictPolicy) -> None:
    allowed = sorted(known)
    unknown = next((name for name in named if name not in allowed), None)
    if unknown is not None:
        raise SpecError(f"verdict policy {policy.name}: no {kind} {unknown!r}; known: {', '.join(allowed)}")
