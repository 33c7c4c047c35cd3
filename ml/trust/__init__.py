"""Which attacks may gate: the results of the meta-evaluation, and what they leave of a verdict policy.

`python -m benchmarks.meta_evaluation --out ml/trust` writes the document beside this file, with a table and a picture.
An attack that was not shown to tell models that learned a person from models that did not may look for leaks, but may
carry no PASS (verification section 7). Standard library only; nothing is measured here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import resources
from typing import Final

from ml.digests import document_sha256
from ml.documents import Stored, read_version
from ml.errors import SpecError
from ml.specs import FamilyRule, VerdictPolicy

SCHEMA_VERSION: Final = 1
RESULTS: Final = "meta_evaluation.json"
DEMOTED: Final = "-demoted-"
LOWEST_FAITHFULNESS: Final = 0.80
FEWEST_PAIRS: Final = 30
"""People on models that learned them, and as many on models that did not: fewer show nothing."""


@dataclass(frozen=True, slots=True)
class AttackTrust:
    """How well one attack tells people whom models learned from people whom they did not.

    `learned` and `not_learned` count (person, model) pairs; `faithfulness` is the AUROC between them and `lower` its
    one-sided 95 % bound. `numbers` holds what does not gate: other scales, robustness. `reason` says why a number is
    absent.
    """

    attack: str
    learned: int
    not_learned: int
    models: int
    faithfulness: float | None
    lower: float | None
    reason: str | None = None
    numbers: Mapping[str, float] = field(default_factory=dict)

    @property
    def may_gate(self) -> bool:
        """True when enough pairs were scored and the bound is high enough; what is missing is not trusted."""
        enough = min(self.learned, self.not_learned) >= FEWEST_PAIRS
        return enough and self.lower is not None and self.lower >= LOWEST_FAITHFULNESS


@dataclass(frozen=True, slots=True)
class KindVerdicts:
    """What the decision rule said of one kind of candidate: results of the whole rule and of its attack families
    alone, the reasons given, and the attacks' mean positions among the twins (twin standard deviations)."""

    kind: str
    candidates: int
    results: Mapping[str, int]
    families: Mapping[str, int]
    reasons: tuple[str, ...]
    positions: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class MetaEvaluation(Stored):
    """The whole of one meta-evaluation: how models were made, every attack, every kind of pretender."""

    pool: Mapping[str, str]
    attacks: tuple[AttackTrust, ...]
    kinds: tuple[KindVerdicts, ...]
    environment: Mapping[str, str]
    cpu_seconds: float
    schema_version: int = SCHEMA_VERSION

    @classmethod
    def from_document(cls, document: object) -> MetaEvaluation:
        """Read a results document; raises `SpecError` naming the field that does not fit, or an attack twice."""
        results = read_version(cls, document, where="meta-evaluation", version=SCHEMA_VERSION)
        names = [row.attack for row in results.attacks]
        if len(names) != len(set(names)):
            raise SpecError("meta-evaluation: an attack stands twice")
        return results


@dataclass(frozen=True, slots=True)
class Demotion:
    """A policy whose primaries all deserve trust; `demoted` by family, and the families that have no primary left.

    Such a family stays mandatory and is INCONCLUSIVE (`coverage`): nothing it measures can show a PASS.
    """

    policy: VerdictPolicy
    demoted: Mapping[str, tuple[str, ...]]
    uncovered: tuple[str, ...]


def demote(policy: VerdictPolicy, results: MetaEvaluation) -> Demotion:
    """Turn every primary that does not deserve to gate into a detection attack of its family.

    An attack that the results do not name was not shown to deserve it. A policy that changes gets a name of its own, by
    what was demoted, and a digest of its own, and says on the certificate what was demoted.
    """
    trusted = {row.attack for row in results.attacks if row.may_gate}
    demoted = {rule.id: tuple(a for a in rule.primary if a not in trusted) for rule in policy.families}
    demoted = {family: attacks for family, attacks in demoted.items() if attacks}
    if not demoted:
        return Demotion(policy, {}, ())
    families = tuple(_without(rule, demoted.get(rule.id, ())) for rule in policy.families)
    names = ", ".join(sorted({attack for attacks in demoted.values() for attack in attacks}))
    left_out = f"Proof by attacks that were not shown to tell who was learned: {names}; they only look for leaks."
    which = document_sha256([[family, *attacks] for family, attacks in sorted(demoted.items())])[:8]
    changed = replace(
        policy, name=f"{policy.name}{DEMOTED}{which}", families=families, not_tested=(left_out, *policy.not_tested)
    )
    return Demotion(changed, demoted, tuple(rule.id for rule in families if not rule.primary))


@cache
def last_results() -> MetaEvaluation:
    """The results of the last full run, which come with the product."""
    text = resources.files(__name__).joinpath(RESULTS).read_text(encoding="utf-8")
    return MetaEvaluation.from_document(json.loads(text))


def trusted(policy: VerdictPolicy) -> VerdictPolicy:
    """What the last results leave of a policy for releases; one for tests is left as it is."""
    return demote(policy, last_results()).policy if policy.purpose == "release" else policy


def _without(rule: FamilyRule, demoted: tuple[str, ...]) -> FamilyRule:
    kept = tuple(attack for attack in rule.primary if attack not in demoted)
    return replace(rule, primary=kept, detection=(*rule.detection, *demoted))
