"""The fast tier: what every candidate can afford, before the full gate (verification section 16).

It asks what one pass over texts and one over value swaps can answer, of the full-precision candidate alone. Nothing is
generated, relearned or rounded, so its PASS is provisional and promotes nothing. Its parts are those of the full tier,
which then does not measure them again.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from ml.attacks import ATTACKS
from ml.specs import FamilyRule, VerdictPolicy

_CHEAP_READINGS: Final = frozenset({"tokens", "swaps"})
_CHEAP_UTILITY: Final = frozenset({"U1", "U4"})
_NEEDS_ANSWERS: Final = frozenset({"unique_identifier"})


def fast_tier(policy: VerdictPolicy) -> VerdictPolicy:
    """The part of `policy` that needs no generation, no training and no rounded copy, with its limits unchanged."""
    kept = tuple(rule for rule in policy.families if _is_cheap(rule))
    left = ", ".join(rule.id for rule in policy.families if rule not in kept)
    return replace(
        policy,
        name=f"{policy.name}-fast",
        purpose="provisional",
        families=kept,
        utility=tuple(rule for rule in policy.utility if rule.id.split(".")[0] in _CHEAP_UTILITY),
        hard_rules=tuple(rule for rule in policy.hard_rules if rule not in _NEEDS_ANSWERS),
        not_tested=(
            f"What the full tier of {policy.name} adds: {left}, and the utility that goes with them.",
            *policy.not_tested,
        ),
    )


def _is_cheap(rule: FamilyRule) -> bool:
    readings = {ATTACKS[attack].reads for attack in (*rule.primary, *rule.detection)}
    return rule.artefacts == ("merged",) and readings <= _CHEAP_READINGS
