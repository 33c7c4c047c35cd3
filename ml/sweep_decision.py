"""The rule for sweeps: `judge_sweep(report, policy)` is pure. Standard library only (verification section 12).

PASS says that a bound on what remains was shown for the cohort of all earlier deletions, that nobody was flagged and
that every spike-in stayed inside its bound. It says nothing about utility, which each version shows at its own gate,
and nothing about who could not be tested: an entry without probes is never a pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import product
from typing import Final

from ml.cohort_reports import CohortBound
from ml.cohorts import STOP_AT, CohortCertificate, Draws, SpikeInCertificate, swept_rules, version_level
from ml.decision import Finding, Result, is_finite
from ml.documents import Json, plain_object
from ml.rank_tests import TOLERANCE, benjamini_hochberg, smallest_p
from ml.specs import FamilyRule, VerdictPolicy
from ml.sweep_reports import Confirmation, SweepEntry, SweepReport

REQUIRED_CHECKS: Final = ("determinism", "placebo", "collisions")


@dataclass(frozen=True, slots=True)
class SweepVerdict:
    """What the evidence shows about one version; a finding's `gate` is an entry's id or the name of a check.

    `owed` names the entries whose flag calls for the full gate. `alarms` are true statements that change no result.
    """

    result: Result
    findings: tuple[Finding, ...]
    owed: tuple[str, ...]
    alarms: tuple[str, ...]

    def to_document(self) -> dict[str, Json]:
        """Return the verdict as canonical-JSON-ready data."""
        return plain_object(self)


def judge_sweep(report: SweepReport, policy: VerdictPolicy) -> SweepVerdict:
    """Judge one version's sweep.

    1. Refuse evidence that another policy asked for, that is not finite or that contradicts itself.
    2. Validity checks.  3. Each entry: flags, and what could not be tested.  4. Spike-ins.  5. The cohort's bound.
    6. FAIL needs a confirmed flag and valid controls; PASS needs that nothing at all was found.
    """
    if report.policy_sha256 != policy.sha256:
        return _verdict([Finding(Result.INCONCLUSIVE, "policy_mismatch", "policy")], report)
    if not is_finite(report) or not _consistent(report, policy):
        return _verdict([Finding(Result.INCONCLUSIVE, "error", "report")], report)
    findings = _validity(report)
    broken = bool(findings)
    for entry in report.entries:
        findings += _entry(entry, report, policy, broken=broken)
        findings += _spike_in(entry, policy)
    findings += _cohort(report, policy)
    return _verdict(findings, report)


def flags(entries: Iterable[SweepEntry], *, q: float) -> list[bool]:
    """Benjamini-Hochberg over all entries; one that was not tested counts with p = 1."""
    return benjamini_hochberg([1.0 if entry.draws is None else entry.draws.p for entry in entries], q=q)


def is_confirmed(confirmation: Confirmation | None, *, q: float, entries: int) -> bool:
    """True when a flag stood again at a level shared by all entries, not only by those flagged."""
    return confirmation is not None and confirmation.draws.p <= q / entries + TOLERANCE


def spike_in_certificate(
    entries: Iterable[SweepEntry], policy: VerdictPolicy, upper: Callable[[int, int], float]
) -> SpikeInCertificate | None:
    """Rate at which tested spike-ins came back or left their bound; `None` without any.

    Args:
        upper: the Clopper-Pearson bound of `failures` among `trials`.
    """
    failed = [_has_failed(entry, policy) for entry in entries if entry.kind == "spike_in" and entry.draws is not None]
    return SpikeInCertificate(sum(failed), len(failed), upper(sum(failed), len(failed))) if failed else None


def _has_failed(entry: SweepEntry, policy: VerdictPolicy) -> bool:
    return entry.flagged or _outside(entry, policy)


def _outside(entry: SweepEntry, policy: VerdictPolicy) -> bool:
    """True when rho-hat of some primary exceeds the fraction that deletions are certified to: a guard, no claim."""
    limits = {attack: rule.rho for rule in swept_rules(policy) for attack in rule.primary}
    return any(ratio > limits[attack] for attack, ratio in entry.residual_ratios.items())


def _primaries(policy: VerdictPolicy) -> set[str]:
    return {attack for rule in swept_rules(policy) for attack in rule.primary}


def _verdict(findings: list[Finding], report: SweepReport) -> SweepVerdict:
    ordered = tuple(sorted(findings, key=lambda finding: finding.result is not Result.FAIL))
    result = ordered[0].result if ordered else Result.PASS
    owed = tuple(entry.id for entry in report.entries if entry.flagged)
    alarms = ("slope",) if report.slope is not None and report.slope.sounds else ()
    return SweepVerdict(result, ordered, owed, alarms)


def _validity(report: SweepReport) -> list[Finding]:
    shown = {check.name: check for check in report.validity}
    findings = [Finding(Result.INCONCLUSIVE, "coverage", name) for name in REQUIRED_CHECKS if name not in shown]
    for check in report.validity:
        if check.status != "ok":
            code = check.reason if check.status == "broken" else "coverage"
            findings.append(Finding(Result.INCONCLUSIVE, code, check.name))
    if not all(report.models.get(role) for role in ("candidate", "base")):
        findings.append(Finding(Result.INCONCLUSIVE, "baseline_missing", "policy"))
    return findings


def _entry(entry: SweepEntry, report: SweepReport, policy: VerdictPolicy, *, broken: bool) -> list[Finding]:
    count, confirmation = len(report.entries), entry.confirmation
    if entry.draws is None:
        return [Finding(Result.INCONCLUSIVE, entry.reason or "coverage", entry.id)]
    if not entry.draws.is_settled(alpha=report.q, persons=count):
        return [Finding(Result.INCONCLUSIVE, "alpha_unattainable", entry.id)]
    if not entry.flagged:
        return []
    if broken or confirmation is None or not is_confirmed(confirmation, q=report.q, entries=count):
        return [Finding(Result.INCONCLUSIVE, "flag_unconfirmed", entry.id)]
    if confirmation.p_placebo < policy.placebo_alpha - TOLERANCE:
        return [Finding(Result.INCONCLUSIVE, "controls_not_exchangeable", entry.id)]
    if confirmation.residual_bounded:
        return [Finding(Result.INCONCLUSIVE, "detectable_within_bound", entry.id)]
    return [Finding(Result.FAIL, "resurfaced", entry.id)]


def _spike_in(entry: SweepEntry, policy: VerdictPolicy) -> list[Finding]:
    """Every spike-in must still be inside the bound it was certified to; what was not recorded cannot be inside."""
    if entry.kind != "spike_in" or entry.draws is None:
        return []
    if set(entry.residual_ratios) != _primaries(policy):
        return [Finding(Result.INCONCLUSIVE, "baseline_missing", entry.id)]
    return [Finding(Result.INCONCLUSIVE, "spike_in_outside", entry.id)] if _outside(entry, policy) else []


def _cohort(report: SweepReport, policy: VerdictPolicy) -> list[Finding]:
    """Each primary must bound what remains of all entries that were tested, on every artefact."""
    tested = sum(entry.draws is not None for entry in report.entries)
    findings = []
    for rule in swept_rules(policy):
        if not rule.primary:
            findings.append(Finding(Result.INCONCLUSIVE, "coverage", rule.id))
        for attack, artefact in product(rule.primary, report.artefacts):
            rows = [r for r in report.cohort if (r.family, r.attack, r.artefact) == (rule.id, attack, artefact)]
            code = _bound(rows, rule, tested, policy.alpha)
            if code is not None:
                findings.append(Finding(Result.INCONCLUSIVE, code, rule.id, attack, artefact))
    return findings


def _bound(rows: list[CohortBound], rule: FamilyRule, tested: int, alpha: float) -> str | None:
    """Why the bound of one attack is not shown, or `None`."""
    if len(rows) != 1:
        return "coverage"
    shown = rows[0].certificate
    if shown.persons < tested or shown.rho != rule.rho:
        return "baseline_missing"
    return shown.reason if shown.reason is not None or shown.p_residual <= alpha + TOLERANCE else "power"


# --- integrity ----------------------------------------------------------------------------------------------------


def _consistent(report: SweepReport, policy: VerdictPolicy) -> bool:
    """True when the report's parts agree: levels, flags, counts and bounds are what its own numbers say."""
    entries = report.entries
    counts = [draws for entry in entries for draws in _all_draws(entry)]
    return (
        bool(entries)
        and bool(report.artefacts)
        and len({entry.id for entry in entries}) == len(entries)
        and report.window >= 1
        and abs(report.q - version_level(report.window)) <= TOLERANCE
        and all(0 <= d.exceedances <= min(d.count, STOP_AT) and d.count > 0 for d in counts)
        and all((entry.status == "measured") == (entry.draws is not None) for entry in entries)
        and all(entry.draws is None for entry in entries if entry.kind == "expired")
        and [entry.flagged for entry in entries] == flags(entries, q=report.q)
        and all(set(entry.residual_ratios) <= _primaries(policy) for entry in entries)
        and all(_attainable(row.certificate) for row in report.cohort)
        and _spike_ins_add_up(report, policy)
    )


def _all_draws(entry: SweepEntry) -> list[Draws]:
    confirmed = [] if entry.confirmation is None else [entry.confirmation.draws]
    return confirmed if entry.draws is None else [entry.draws, *confirmed]


def _attainable(shown: CohortCertificate) -> bool:
    floor = smallest_p(shown.twins) - TOLERANCE if shown.twins > 0 else 1.0
    return all(floor <= p <= 1 for p in (shown.p_assay, shown.p_residual))


def _spike_ins_add_up(report: SweepReport, policy: VerdictPolicy) -> bool:
    shown = report.spike_ins
    if shown is None:
        return spike_in_certificate(report.entries, policy, lambda failures, trials: 1.0) is None
    counted = spike_in_certificate(report.entries, policy, lambda failures, trials: shown.upper)
    return counted == shown and shown.is_sound
