"""The decision rule: `judge(report, policy)` is pure. No clock, no database, no randomness; standard library only.

Missing evidence is never a pass: whatever the policy asks for and the report does not show becomes INCONCLUSIVE with
a reason. PASS is an intersection-union claim (every mandatory test must reject "too much remains"), FAIL a union
claim (Holm over families and both directions). Source: verification specification sections 1, 9 and 10.

Two levels are used. PASS claims spend `policy.alpha` over the attempts on one request (`attempt_alpha`), so that
trying again cannot buy a pass. FAIL claims keep `policy.alpha` at every attempt: lowering it would make a leak harder
to call.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from enum import StrEnum
from itertools import pairwise, product
from typing import Final, Literal, TypeAlias

from ml.documents import Json, plain_object
from ml.rank_tests import TOLERANCE, attempt_alpha, holm, smallest_p
from ml.reports import AttackResult, JointDetection, RedTeamReport, UtilityResult, VerificationReport
from ml.specs import FamilyRule, Guard, UtilityRule, VerdictPolicy


class Result(StrEnum):
    """The result of a target or of one gate; ERROR is a gate's only."""

    PASS = "PASS"  # noqa: S105 - a verdict, not a password # nosec B105
    FAIL = "FAIL"
    INCONCLUSIVE = "INCONCLUSIVE"
    ERROR = "ERROR"


_SEVERITY: Final = (Result.PASS, Result.INCONCLUSIVE, Result.FAIL, Result.ERROR)

REMEDIES: Final[Mapping[str, str]] = {
    "residual": "Unlearn again with more steps or another method, or retrain without the data subject.",
    "over_forgetting": "Unlearn again towards people never seen; an island discloses who was deleted.",
    "unique_identifier": "A high-entropy value was produced; unlearn again or retrain.",
    "sampling_leak": "Sampling still produces a value; unlearn again or retrain.",
    "lineage": "Rebuild the candidate from the recorded inputs; its files are not what the run produced.",
    "utility_loss": "Unlearn with wider retained coverage; the candidate damages what must stay.",
    "power": "Use more twins, more records or paraphrases, a cohort certificate, or a sampled gold retrain.",
    "alpha_unattainable": "Use more twins: this many cannot reach the level of this attempt.",
    "assay_insensitive": "No measurable influence before deletion either, which is not evidence of erasure.",
    "controls_not_exchangeable": "Fix the twin generator: the data subject differs from the twins on the base model.",
    "nondeterminism": "Score in float32 with fixed kernels; the same text must get the same score.",
    "baseline_missing": "Provide the model before deletion and the base model.",
    "coverage": "Run the attacks and artefacts the policy asks for.",
    "utility_straddles_margin": "Score more items; neither loss nor non-inferiority could be shown.",
    "guard": "An absolute bound is exceeded although the statistics passed; inspect the attack named.",
    "probe_reuse": "Draw fresh probes; these were used to train or to choose the candidate.",
    "insufficient_facts": "Too few facts that only this person has; use a cohort certificate.",
    "policy_mismatch": "Verify again under the policy that judges.",
    "red_team_mismatch": "Attack the candidate that was verified, under the same policy and seed.",
    "resurfaced": "A deletion came back in this version; do not serve it, unlearn again or retrain.",
    "flag_unconfirmed": "Run the full gate for this entry: it stood out once, not again at the level of the ledger.",
    "detectable_within_bound": "Run the full gate for this entry: it stands out, although little of it remains.",
    "spike_in_outside": "More of this spike-in remains than it was certified to; run the full gate of its batch.",
    "detected": "A person stands out alone; no bound on an average may hide them.",
    "vault_expired": "The sealed probes are destroyed; spike-ins of the same batch stand for this person.",
    "error": "An attack crashed or produced a non-finite number; fix it and verify again.",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One reason for a result: stable `code`, where it arose, and what to do next."""

    result: Result
    code: str
    gate: str
    attack: str = ""
    artefact: str = ""

    @property
    def remedy(self) -> str:
        """The next step, in words."""
        return REMEDIES.get(self.code, "Verify again.")


@dataclass(frozen=True, slots=True)
class GateVerdict:
    """One row of the gate table: a family, hard rule, utility score or validity check, and its result."""

    gate: str
    kind: str
    result: Result


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the evidence shows for one target. `flags` are true statements that do not change the result."""

    result: Result
    findings: tuple[Finding, ...]
    gates: tuple[GateVerdict, ...]
    flags: tuple[str, ...]
    alpha_pass: float
    alpha_fail: float

    def to_document(self) -> dict[str, Json]:
        """Return the verdict as canonical-JSON-ready data."""
        return plain_object(self)


def judge(report: VerificationReport, policy: VerdictPolicy) -> Verdict:
    """Judge one target's verification.

    1. Refuse evidence that is not finite, that no measurement could have given, or that another policy asked for.
    2. Validity checks.  3. Attack families.  4. Hard rules.  5. Utility.
    6. The target's result is the worst gate; an ERROR gate leaves the target INCONCLUSIVE.

    While a check on which the controls rest is broken (`_CONTROLS_REST_ON`), they prove nothing in either direction:
    what would be a statistical FAIL becomes INCONCLUSIVE with the check's reason. Hard rules and utility do not rest on
    controls and still fail, and no other broken check excuses a leak: reused probes, or a twin that has a real person's
    value, make one harder to show. They make an island easier to show (`_AN_ISLAND_RESTS_ON`), so that one they excuse.
    """
    alpha_pass = attempt_alpha(report.attempt, alpha=policy.alpha)
    findings: list[Finding] = []
    if report.policy_sha256 != policy.sha256:
        findings.append(Finding(Result.ERROR, "policy_mismatch", "policy"))
    if not is_finite(report) or not _possible(report):
        findings.append(Finding(Result.ERROR, "error", "report"))
        return _verdict([("report", "integrity")], findings, (), alpha_pass, policy.alpha)
    detection = _holm_by_family(report, policy)
    gates = [("policy", "integrity")]
    gates += [(check.name, "validity") for check in report.validity]
    findings += _validity(report, policy)
    broken = {check.name: check.reason for check in report.validity if check.status == "broken"}
    for rule in policy.families:
        gates.append((rule.id, "family"))
        found = _family(rule, report, detection.get(rule.id), alpha_pass, policy.alpha)
        findings += [_without_controls(finding, broken) for finding in found]
    gates += [(rule, "hard_rule") for rule in policy.hard_rules]
    findings += _hard_rules(report, policy)
    gates += [(rule.id, "utility") for rule in policy.utility]
    for utility in policy.utility:
        findings += _utility(utility, [u for u in report.utility if u.id == utility.id])
    return _verdict(gates, findings, _flags(report, policy), alpha_pass, policy.alpha)


def unattainable(policy: VerdictPolicy, attempt: int) -> tuple[str, ...]:
    """Families whose twins cannot reach the PASS level of `attempt`: say so before any compute is spent."""
    alpha = attempt_alpha(attempt, alpha=policy.alpha)
    return tuple(f.id for f in policy.families if smallest_p(f.twins) > alpha + TOLERANCE)


def _verdict(
    gates: Iterable[tuple[str, str]],
    findings: list[Finding],
    flags: tuple[str, ...],
    alpha_pass: float,
    alpha_fail: float,
) -> Verdict:
    rows = tuple(
        GateVerdict(gate, kind, _worst(f.result for f in findings if f.gate == gate))
        for gate, kind in dict.fromkeys(gates)
    )
    worst = _worst(f.result for f in findings)
    result = Result.INCONCLUSIVE if worst is Result.ERROR else worst
    ordered = tuple(sorted(findings, key=lambda f: -_SEVERITY.index(f.result)))
    return Verdict(result, ordered, rows, flags, alpha_pass, alpha_fail)


def _worst(results: Iterable[Result]) -> Result:
    return max(results, key=_SEVERITY.index, default=Result.PASS)


# --- validity -----------------------------------------------------------------------------------------------------

REQUIRED_CHECKS: Final = ("determinism", "placebo", "blind_baseline", "collisions", "probe_disjointness", "facts")
# Section 9.4 names the first two. A text from which the subject can be told apart without any model is the same doubt.
_CONTROLS_REST_ON: Final = frozenset({"determinism", "placebo", "blind_baseline"})
# Texts that the deletion trained on lie low, and a twin with a real value lies high.
_AN_ISLAND_RESTS_ON: Final = _CONTROLS_REST_ON | {"collisions", "probe_disjointness"}


def _validity(report: VerificationReport, policy: VerdictPolicy) -> list[Finding]:
    shown = {check.name: check for check in report.validity}
    findings = [Finding(Result.INCONCLUSIVE, "coverage", name) for name in REQUIRED_CHECKS if name not in shown]
    for check in report.validity:
        if check.status != "ok":
            code = check.reason if check.status == "broken" else "coverage"
            findings.append(Finding(Result.INCONCLUSIVE, code, check.name))
    for role in ("before", "base", "candidate"):
        if not report.models.get(role):
            findings.append(Finding(Result.INCONCLUSIVE, "baseline_missing", "policy"))
    return findings


# --- attack families ----------------------------------------------------------------------------------------------


def _without_controls(finding: Finding, broken: Mapping[str, str]) -> Finding:
    """A leak shown against controls is not shown while the controls are in doubt (verification section 9.4)."""
    rests_on = _AN_ISLAND_RESTS_ON if finding.code == "over_forgetting" else _CONTROLS_REST_ON
    reason = next((reason for check, reason in broken.items() if check in rests_on), None)
    if reason is None or finding.result is not Result.FAIL:
        return finding
    return replace(finding, result=Result.INCONCLUSIVE, code=reason)


Direction: TypeAlias = Literal["residual", "over_forgetting"]


@dataclass(frozen=True, slots=True)
class HolmStep:
    """One hypothesis of the FAIL claim: a family in one direction, its joint p-value, and that after Holm.

    `p` is `None` where no valid joint test stands in the evidence; it counts as 1.
    """

    family: str
    direction: Direction
    p: float | None
    adjusted: float


def holm_steps(report: VerificationReport, policy: VerdictPolicy) -> tuple[HolmStep, ...]:
    """Return Holm's steps over all families and both directions, in his order: the smallest p-value first."""
    shown = _joint_tests(report.joint, policy.families)
    rules = [rule.id for rule in policy.families]
    tests: list[tuple[str, Direction, float | None]] = [
        *((family, "residual", shown[family].p_detect if family in shown else None) for family in rules),
        *((family, "over_forgetting", shown[family].p_low if family in shown else None) for family in rules),
    ]
    adjusted = holm([1.0 if p is None else p for _, _, p in tests])
    steps = [HolmStep(family, direction, p, q) for (family, direction, p), q in zip(tests, adjusted, strict=True)]
    return tuple(sorted(steps, key=lambda step: (1.0 if step.p is None else step.p, step.adjusted)))


def _joint_tests(joint: Iterable[JointDetection], rules: tuple[FamilyRule, ...]) -> dict[str, JointDetection]:
    """The valid joint test of each family that has one.

    A joint test is valid when it stands once, covers every attack the rule names and has the rule's twins: a test
    over fewer attacks could leave out the one that leaks.
    """
    rows = list(joint)
    shown = {}
    for rule in rules:
        own = [row for row in rows if row.family == rule.id]
        needed = {*rule.primary, *rule.detection}
        if len(own) == 1 and needed <= set(own[0].attacks) and own[0].twins >= rule.twins:
            shown[rule.id] = own[0]
    return shown


def _holm_by_family(report: VerificationReport, policy: VerdictPolicy) -> dict[str, tuple[float, float]]:
    """By family with a valid joint test, its Holm-adjusted p-values: standing out, and lying below."""
    steps = {(step.family, step.direction): step for step in holm_steps(report, policy) if step.p is not None}
    return {
        family: (steps[family, "residual"].adjusted, steps[family, "over_forgetting"].adjusted)
        for family in {family for family, _ in steps}
    }


def _family(
    rule: FamilyRule,
    report: VerificationReport,
    detection: tuple[float, float] | None,
    alpha_pass: float,
    alpha_fail: float,
) -> list[Finding]:
    if smallest_p(rule.twins) > alpha_pass + TOLERANCE:
        return [Finding(Result.INCONCLUSIVE, "alpha_unattainable", rule.id)]
    if detection is None:
        return [Finding(Result.INCONCLUSIVE, "coverage", rule.id)]
    # Without a primary nothing can bound what remains: attacks that only look for leaks never show that there is none.
    findings = [] if rule.primary else [Finding(Result.INCONCLUSIVE, "coverage", rule.id)]
    for attack, artefact in product((*rule.primary, *rule.detection), rule.artefacts):
        rows = [row for row in report.attacks if (row.family, row.attack, row.artefact) == (rule.id, attack, artefact)]
        code, result = _shown(rule, rows)
        if result is Result.PASS and attack in rule.primary:
            code, result = _claim(rule, rows[0], detection, alpha_pass, alpha_fail)
        if result is not Result.PASS:
            findings.append(Finding(result, code, rule.id, attack, artefact))
    if not findings:
        findings += _guards(rule, report)
    return findings


def _shown(rule: FamilyRule, rows: list[AttackResult]) -> tuple[str, Result]:
    """Whether one attack on one artefact was measured, once, with the twins the rule asks for."""
    if len(rows) != 1 or rows[0].status == "missing":
        return "coverage", Result.INCONCLUSIVE
    if rows[0].status == "error":
        return "error", Result.ERROR
    if rows[0].twins < rule.twins:
        return "coverage", Result.INCONCLUSIVE
    return "", Result.PASS


def _claim(
    rule: FamilyRule,
    row: AttackResult,
    detection: tuple[float, float],
    alpha_pass: float,
    alpha_fail: float,
) -> tuple[str, Result]:
    """The verdict of one primary attack on one artefact (verification section 9.4)."""
    if row.p_residual is None or row.p_assay is None or (rule.rho_over is not None and row.p_over is None):
        return "coverage", Result.INCONCLUSIVE
    p_over = 0.0 if rule.rho_over is None or row.p_over is None else row.p_over
    detected, low = (p <= alpha_fail + TOLERANCE for p in detection)
    if detected and row.p_residual > alpha_pass + TOLERANCE:
        return "residual", Result.FAIL
    if low and p_over > alpha_pass + TOLERANCE:
        return "over_forgetting", Result.FAIL
    if row.p_assay > alpha_fail + TOLERANCE:
        return "assay_insensitive", Result.INCONCLUSIVE
    if row.p_residual <= alpha_pass + TOLERANCE and p_over <= alpha_pass + TOLERANCE:
        return "", Result.PASS
    return "power", Result.INCONCLUSIVE


def _guards(rule: FamilyRule, report: VerificationReport) -> list[Finding]:
    findings = []
    for guard in rule.guards:
        measured = [g for g in report.guards if (g.family, g.metric) == (rule.id, guard.metric)]
        if not measured:
            findings.append(Finding(Result.INCONCLUSIVE, "coverage", rule.id, guard.metric))
        elif any(_breached(guard, g.value, g.lower, g.upper) for g in measured):
            findings.append(Finding(Result.INCONCLUSIVE, "guard", rule.id, guard.metric))
    return findings


def _breached(guard: Guard, value: float, lower: float | None, upper: float | None) -> bool:
    """A guard with an interval blocks only when the whole interval lies outside the bound."""
    best_high = value if lower is None else lower
    best_low = value if upper is None else upper
    above = guard.maximum is not None and best_high > guard.maximum + TOLERANCE
    below = guard.minimum is not None and best_low < guard.minimum - TOLERANCE
    return above or below


# --- hard rules and utility ---------------------------------------------------------------------------------------


def _hard_rules(report: VerificationReport, policy: VerdictPolicy) -> list[Finding]:
    findings = []
    for rule in policy.hard_rules:
        statuses = {row.status for row in report.hard_rules if row.rule == rule}
        if "breached" in statuses:
            findings.append(Finding(Result.FAIL, rule, rule))
        elif statuses != {"held"}:
            findings.append(Finding(Result.INCONCLUSIVE, "coverage", rule))
    return findings


def _utility(rule: UtilityRule, rows: list[UtilityResult]) -> list[Finding]:
    if len(rows) != 1 or rows[0].status == "missing":
        return [Finding(Result.INCONCLUSIVE, "coverage", rule.id, rule.score)]
    row = rows[0]
    if row.status == "error":
        return [Finding(Result.ERROR, "error", rule.id, rule.score)]
    if row.lower is None or row.upper is None or row.items < rule.minimum_items:
        return [Finding(Result.INCONCLUSIVE, "coverage", rule.id, rule.score)]
    if row.upper < -rule.margin:
        return [Finding(Result.FAIL, "utility_loss", rule.id, rule.score)]
    if row.lower <= -rule.margin:
        return [Finding(Result.INCONCLUSIVE, "utility_straddles_margin", rule.id, rule.score)]
    return []


# --- red team -----------------------------------------------------------------------------------------------------


def red_team_findings(red: RedTeamReport, report: VerificationReport, policy: VerdictPolicy) -> tuple[Finding, ...]:
    """What a red team established about the candidate of `report`; an empty tuple is "no finding", and no pass.

    Its families are judged apart from the policy's: in one Holm correction more attacks would make every leak harder
    to call. A leak is established by statistics when the family's joint test holds after Holm over the red team's
    families, and an attack of it both stands out by itself and is not shown to be bounded; or when an identifier came
    out more often than any twin's. An attack that crashed is an error. A red team that measured nothing leaves the
    evidence asked for incomplete, and so does a family none of whose attacks found the person before deletion. An
    attack that applies to none of the person's texts is neither.
    """
    if not _same_run(red, report, policy):
        return (Finding(Result.ERROR, "red_team_mismatch", "red_team"),)
    if not is_finite(red) or not _plausible(red):
        return (Finding(Result.ERROR, "error", "red_team"),)
    families = tuple(dict.fromkeys(row.family for row in red.attacks))
    findings = []
    if not any(row.status == "measured" for row in red.attacks):
        findings.append(Finding(Result.INCONCLUSIVE, "coverage", "red_team"))
    if smallest_p(red.budget.twins) * len(families) > policy.alpha + TOLERANCE:
        findings.append(Finding(Result.INCONCLUSIVE, "alpha_unattainable", "red_team"))
    if red.probes_reused:
        findings.append(Finding(Result.INCONCLUSIVE, "probe_reuse", "red_team"))
    joint = [_joint_of(red, family) for family in families]
    adjusted = holm([1.0 if shown is None else shown.p_detect for shown in joint])
    alpha_pass = attempt_alpha(report.attempt, alpha=policy.alpha)
    for family, shown, p_family in zip(families, joint, adjusted, strict=True):
        findings += _red_team_coverage(red, family, shown, policy.alpha)
        detects = p_family <= policy.alpha + TOLERANCE
        for row in red.attacks:
            if row.family == family:
                findings += _red_team_attack(row, red, detects, policy.alpha, alpha_pass)
    return tuple(findings)


def lowered(verdict: Verdict, findings: Iterable[Finding]) -> Verdict:
    """The verdict after a red team: as it was, or lower. Without findings only a flag says that one was tried.

    As in `judge`, what is shown against controls that are in doubt is not shown; an identifier that came out still is.
    """
    broken = {f.gate: f.code for f in verdict.findings if f.gate in REQUIRED_CHECKS and f.code != "coverage"}
    found = [f if f.code in _WITHOUT_CONTROLS else _without_controls(f, broken) for f in findings]
    found = [finding for finding in found if finding.result is not Result.PASS]
    if not found:
        return replace(verdict, flags=(*verdict.flags, "red_team_no_finding"))
    shown = [Result.FAIL if f.result is Result.FAIL else Result.INCONCLUSIVE for f in found]
    gates = {f.gate: _worst(other.result for other in found if other.gate == f.gate) for f in found}
    return replace(
        verdict,
        result=_worst([verdict.result, *shown]),
        findings=tuple(sorted((*verdict.findings, *found), key=lambda f: -_SEVERITY.index(f.result))),
        gates=(*verdict.gates, *(GateVerdict(gate, "red_team", result) for gate, result in gates.items())),
    )


_WITHOUT_CONTROLS: Final = frozenset({"unique_identifier"})


def _same_run(red: RedTeamReport, report: VerificationReport, policy: VerdictPolicy) -> bool:
    """True when both attacked the same candidate, with the same twins, under the policy that judges."""
    models = ("candidate", "before")
    return (
        (red.run_id, red.attempt, red.policy_sha256) == (report.run_id, report.attempt, policy.sha256)
        and red.seeds.get("verification") == report.seeds.get("verification")
        and all(red.models.get(role) and red.models.get(role) == report.models.get(role) for role in models)
    )


def _plausible(red: RedTeamReport) -> bool:
    return all(_attainable(row.twins, (getattr(row, name) for name in _TAILS)) for row in red.attacks) and all(
        _attainable(row.twins, (row.p_detect, row.p_low)) for row in red.joint
    )


def _joint_of(red: RedTeamReport, family: str) -> JointDetection | None:
    """The family's joint test, when it stands once, covers every measured attack and has the budget's twins."""
    own = [row for row in red.joint if row.family == family]
    measured = {row.attack for row in red.attacks if row.family == family and row.status == "measured"}
    if len(own) != 1 or not measured <= set(own[0].attacks) or own[0].twins < red.budget.twins:
        return None
    return own[0]


def _red_gate(family: str) -> str:
    return f"red_team {family}"


def _red_team_coverage(red: RedTeamReport, family: str, joint: JointDetection | None, alpha: float) -> list[Finding]:
    """Whether a family of which something was measured could have found the person."""
    measured = [row for row in red.attacks if row.family == family and row.status == "measured"]
    findings = []
    if measured and joint is None:
        findings.append(Finding(Result.INCONCLUSIVE, "coverage", _red_gate(family)))
    if measured and not any(row.p_assay is not None and row.p_assay <= alpha + TOLERANCE for row in measured):
        findings.append(Finding(Result.INCONCLUSIVE, "assay_insensitive", _red_gate(family)))
    return findings


def _red_team_attack(
    row: AttackResult, red: RedTeamReport, family_detects: bool, alpha_fail: float, alpha_pass: float
) -> list[Finding]:
    gate, attack, artefact = _red_gate(row.family), row.attack, row.artefact
    if row.status == "missing":
        return []
    rule = red.identifiers.get(attack)
    findings = []
    if rule is not None and rule.status == "breached":
        findings.append(Finding(Result.FAIL, "unique_identifier", gate, attack, artefact))
    if row.status == "error":
        return [*findings, Finding(Result.ERROR, "error", gate, attack, artefact)]
    if rule is None or row.p_detect is None or row.p_residual is None or row.twins < red.budget.twins:
        return [*findings, Finding(Result.INCONCLUSIVE, "coverage", gate, attack, artefact)]
    # An attack that finds nothing cannot bound anything either; the family's leak is not its doing.
    stands_out = family_detects and row.p_detect <= alpha_fail + TOLERANCE
    if stands_out and row.p_residual > alpha_pass + TOLERANCE:
        findings.append(Finding(Result.FAIL, "residual", gate, attack, artefact))
    return findings


def _flags(report: VerificationReport, policy: VerdictPolicy) -> tuple[str, ...]:
    primaries = {(f.id, attack) for f in policy.families for attack in f.primary}
    rows = [row for row in report.attacks if (row.family, row.attack) in primaries and row.status == "measured"]
    flags = []
    if any(row.p_detect is not None and row.p_detect <= policy.alpha + TOLERANCE for row in rows):
        flags.append("detectable")
    if any(row.p_low is not None and row.p_low <= policy.alpha + TOLERANCE for row in rows):
        flags.append("below_twins")
    if policy.purpose == "provisional":
        flags.append("provisional")
    return tuple(flags)


def _possible(report: VerificationReport) -> bool:
    """True when every number could have been measured: no p-value below 1 / (K + 1), no interval upside down."""
    return (
        all(_attainable(row.twins, (getattr(row, name) for name in _TAILS)) for row in report.attacks)
        and all(_attainable(row.twins, (row.p_detect, row.p_low)) for row in report.joint)
        and all(_ascending((g.lower, g.value, g.upper)) for g in report.guards)
        and all(_ascending((u.lower, u.upper)) for u in report.utility)
    )


_TAILS: Final = ("p_placebo", "p_assay", "p_detect", "p_low", "p_residual", "p_over")


def _attainable(twins: int, p_values: Iterable[float | None]) -> bool:
    shown = [p for p in p_values if p is not None]
    return not shown or (twins > 0 and all(smallest_p(twins) - TOLERANCE <= p <= 1 for p in shown))


def _ascending(interval: Iterable[float | None]) -> bool:
    shown = [bound for bound in interval if bound is not None]
    return all(low <= high + TOLERANCE for low, high in pairwise(shown))


def is_finite(node: object) -> bool:
    """True when no number anywhere in a report is NaN or infinite."""
    if isinstance(node, float):
        return math.isfinite(node)
    if isinstance(node, Mapping):
        return all(is_finite(child) for child in node.values())
    if isinstance(node, list | tuple):
        return all(is_finite(child) for child in node)
    if is_dataclass(node) and not isinstance(node, type):
        return all(is_finite(getattr(node, f.name)) for f in fields(node))
    return True
