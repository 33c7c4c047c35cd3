"""From a verdict and its report to the gate table of a statement. Standard library and `ml`'s seam only.

Must never decide anything: results are those of `ml.decision.judge`, numbers those of the report. A verifier derives
the same table from the evidence and compares, so a change here needs a new predicate version.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Final, Literal, TypeAlias, TypeVar, cast

from deletion_service.certificates.forms import (
    Code,
    DecimalNumber,
    Identifier,
    Sentence,
    Sha256,
    Uri,
    WholeNumber,
    decimal_number,
)
from deletion_service.errors import EvidenceMissingError
from ml.decision import Finding, GateVerdict, Result, Verdict
from ml.reports import AttackResult, GuardResult, UtilityResult, VerificationReport
from ml.specs import FamilyRule, UtilityRule, VerdictPolicy

GateResult: TypeAlias = Literal["PASS", "FAIL", "INCONCLUSIVE", "ERROR"]
Key = TypeVar("Key", bound=Hashable)
Row = TypeVar("Row")
# The finding of a statement about a target that passed and that a person declined to release.
DECLINED: Final = "declined"
# A numbers row of an attack compares with twins who were never trained on: look-alikes the model never saw.
_TWINS: Final = "holdout_reference"


@dataclass(frozen=True, slots=True)
class DigestSet:
    """An in-toto digest set with one algorithm."""

    sha256: Sha256


@dataclass(frozen=True, slots=True)
class PolicyFacts:
    """The verdict policy the run was judged by; `purpose` `test` means the result has no evidential value."""

    name: Identifier
    version: WholeNumber
    purpose: Literal["release", "test"]
    uri: Uri | None
    digest: DigestSet


@dataclass(frozen=True, slots=True)
class GateRow:
    """One line of the gate table.

    `kind` `family`, `hard_rule`, `utility`, `validity` and `integrity` are the verdict's gates; the other rows give the
    numbers below a gate: `attack` one attack that carries the claim, on one artefact; `detection` one that only looks
    for a leak and bounds nothing; `bound` one absolute bound; `score` one utility score.
    `measure` says what `value`, `interval` (what the policy accepts, open ends null) and `ci95` (lower and upper
    one-sided 95 % bounds) are about; `before`, `after` and `reference_value` are in the attack's own unit.
    `n` counts facts, prompts or items, `controls` the never-trained people compared with.
    """

    id: Identifier
    gate: Identifier
    kind: Literal["integrity", "validity", "family", "hard_rule", "utility", "attack", "detection", "bound", "score"]
    result: GateResult
    reference: Literal["retrained_reference", "holdout_reference", "none"] | None = None
    before: DecimalNumber | None = None
    after: DecimalNumber | None = None
    reference_value: DecimalNumber | None = None
    measure: Literal["residual_share", "guard_value", "mean_change"] | None = None
    value: DecimalNumber | None = None
    interval: tuple[DecimalNumber | None, DecimalNumber | None] | None = None
    ci95: tuple[DecimalNumber | None, DecimalNumber | None] | None = None
    n: WholeNumber | None = None
    controls: WholeNumber | None = None


@dataclass(frozen=True, slots=True)
class Unmet:
    """One reason why the verdict is not PASS: a finding of the decision rule, or that release was declined."""

    code: Code
    gate: Identifier
    attack: Identifier | None
    artefact: Identifier | None
    result: GateResult


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What was measured, by which rules, and what was not. `confidence` is one minus the policy's level."""

    policy: PolicyFacts
    confidence: DecimalNumber
    artifact_loaded_by_digest: bool
    gates: tuple[GateRow, ...]
    unmet: tuple[Unmet, ...]
    flags: tuple[Code, ...]
    evidence_digest: DigestSet
    not_tested: tuple[Sentence, ...]


def evaluation_of(
    verdict: Verdict,
    *,
    report: VerificationReport,
    policy: VerdictPolicy,
    candidate_manifest_sha256: str,
    evidence_sha256: str,
    policy_uri: str | None = None,
    declined: bool = False,
) -> Evaluation:
    """Return the `evaluation` part of a statement: the verdict's gates, their numbers, and what stayed untested.

    `declined` adds the finding that keeps a PASS which nobody released from being called a certificate.

    Raises:
        EvidenceMissingError: the policy is a fast tier, whose verdict is provisional.
    """
    if policy.purpose == "provisional":
        raise EvidenceMissingError(f"policy {policy.name} is a fast tier; verify under the full policy before stating")
    unmet = [_unmet(finding) for finding in verdict.findings]
    if declined:
        unmet.append(Unmet(DECLINED, "release", None, None, "INCONCLUSIVE"))
    return Evaluation(
        policy=PolicyFacts(policy.name, str(policy.version), policy.purpose, policy_uri, DigestSet(policy.sha256)),
        confidence=decimal_number(1 - policy.alpha),
        artifact_loaded_by_digest=report.models.get("candidate") == candidate_manifest_sha256,
        gates=gate_rows(verdict, report=report, policy=policy),
        unmet=tuple(unmet),
        flags=verdict.flags,
        evidence_digest=DigestSet(evidence_sha256),
        not_tested=policy.not_tested,
    )


def gate_rows(verdict: Verdict, *, report: VerificationReport, policy: VerdictPolicy) -> tuple[GateRow, ...]:
    """Return the gate table: every gate of the verdict in its order, each followed by the numbers below it."""
    families = {rule.id: rule for rule in policy.families}
    scores = {rule.id: rule for rule in policy.utility}
    rows: list[GateRow] = []
    for gate in verdict.gates:
        rows.append(_gate(gate))
        if gate.kind == "family":
            rows += _attack_rows(families[gate.gate], report.attacks, verdict.findings)
            rows += _bound_rows(families[gate.gate], report.guards, verdict.findings)
        if gate.kind == "utility":
            rows.append(_score_row(scores[gate.gate], report.utility, gate))
    return tuple(rows)


def _gate(gate: GateVerdict) -> GateRow:
    kind = cast(Literal["integrity", "validity", "family", "hard_rule", "utility"], gate.kind)
    return GateRow(id=gate.gate, gate=gate.gate, kind=kind, result=_text(gate.result))


def _attack_rows(rule: FamilyRule, attacks: Iterable[AttackResult], findings: tuple[Finding, ...]) -> Iterator[GateRow]:
    shown = _only_once(((a.attack, a.artefact), a) for a in attacks if a.family == rule.id)
    accepted = (_number(None if rule.rho_over is None else -rule.rho_over), _number(rule.rho))
    for attack, artefact in product((*rule.primary, *rule.detection), rule.artefacts):
        row = shown.get((attack, artefact))
        controls = row.twins_after if row else None
        yield GateRow(
            id=f"{rule.id}.{attack}.{artefact}",
            gate=rule.id,
            kind="attack" if attack in rule.primary else "detection",
            result=_result(findings, rule.id, {("", ""), (attack, ""), (attack, artefact)}),
            reference=_TWINS,
            before=_number(row.subject_before if row else None),
            after=_number(row.subject_after if row else None),
            reference_value=_number(controls.mean if controls else None),
            measure="residual_share",
            value=_number(row.residual_ratio if row else None),
            interval=accepted if attack in rule.primary else None,
            ci95=(None, _number(row.residual_upper)) if row and row.residual_upper is not None else None,
            n=str(row.items) if row else None,
            controls=str(row.twins) if row else None,
        )


def _bound_rows(rule: FamilyRule, guards: Iterable[GuardResult], findings: tuple[Finding, ...]) -> Iterator[GateRow]:
    shown = _only_once((guard.metric, guard) for guard in guards if guard.family == rule.id)
    for guard in rule.guards:
        row = shown.get(guard.metric)
        yield GateRow(
            id=f"{rule.id}.{guard.metric}",
            gate=rule.id,
            kind="bound",
            result=_result(findings, rule.id, {("", ""), (guard.metric, "")}),
            measure="guard_value",
            value=_number(row.value if row else None),
            interval=(_number(guard.minimum), _number(guard.maximum)),
            ci95=(_number(row.lower), _number(row.upper)) if row else None,
        )


def _score_row(rule: UtilityRule, scores: Iterable[UtilityResult], gate: GateVerdict) -> GateRow:
    row = _only_once((score.id, score) for score in scores).get(rule.id)
    return GateRow(
        id=f"{rule.id}.{rule.score}",
        gate=rule.id,
        kind="score",
        result=_text(gate.result),
        before=_number(row.mean_before if row else None),
        after=_number(row.mean_after if row else None),
        measure="mean_change",
        value=_number(row.mean_change if row else None),
        interval=(_number(-rule.margin), None),
        ci95=(_number(row.lower), _number(row.upper)) if row else None,
        n=str(row.items) if row else None,
    )


def _only_once(rows: Iterable[tuple[Key, Row]]) -> dict[Key, Row]:
    """Index rows by key, without the keys that stand twice: the decision rule accepts neither of two results."""
    listed = list(rows)
    counts = Counter(key for key, _ in listed)
    return {key: row for key, row in listed if counts[key] == 1}


def _result(findings: tuple[Finding, ...], gate: str, places: set[tuple[str, str]]) -> GateResult:
    """The worst finding at these places, or PASS; a verdict lists its findings worst first."""
    found = (f.result for f in findings if f.gate == gate and (f.attack, f.artefact) in places)
    return _text(next(found, Result.PASS))


def _unmet(finding: Finding) -> Unmet:
    return Unmet(finding.code, finding.gate, finding.attack or None, finding.artefact or None, _text(finding.result))


def _text(result: Result) -> GateResult:
    return result.value


def _number(value: float | None) -> str | None:
    return None if value is None else decimal_number(value)
