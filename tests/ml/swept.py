"""Reports of sweeps, made of the ledger alone: nobody is back, unless a test says who."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from ml.cohort_reports import CohortBound
from ml.cohorts import CohortCertificate, Draws, swept_rules
from ml.metrics.intervals import clopper_pearson_upper
from ml.reports import ValidityCheck
from ml.specs import DeletionLedger, FamilyRule, LedgerEntry, SweepSpec, VerdictPolicy
from ml.sweep_decision import REQUIRED_CHECKS, flags, spike_in_certificate
from ml.sweep_reports import Confirmation, SweepEntry, SweepReport

_GONE, _FOUND = Draws(10, 21), Draws(0, 2000)


def swept(spec: SweepSpec, ledger: DeletionLedger, *, back: Collection[str] = ()) -> SweepReport:
    """A consistent report: whoever has probes was tested, whoever is in `back` stands out and stood out again."""
    rows = [_row(entry, spec.policy, is_back=entry.id in back) for entry in ledger.entries]
    marked = flags(rows, q=0.05)
    rows = [replace(row, flagged=flag) for row, flag in zip(rows, marked, strict=True)]
    tested = [row for row in rows if row.draws is not None]
    bounds = [_bound(spec.policy, rule.id, a, art, len(tested)) for rule, a, art in _primaries(spec)] if tested else []
    return SweepReport(
        run_id=spec.run_id,
        as_of=spec.as_of,
        policy_sha256=spec.policy.sha256,
        ledger_sha256=spec.ledger.sha256,
        models={"candidate": spec.candidate.manifest_sha256, "base": spec.base.manifest_sha256},
        artefacts=spec.artefacts,
        q=0.05,
        window=1,
        entries=tuple(rows),
        cohort=tuple(bounds),
        spike_ins=spike_in_certificate(rows, spec.policy, clopper_pearson_upper),
        slope=None,
        validity=tuple(ValidityCheck(name, "ok", "controls_not_exchangeable", 0.5, 0.01) for name in REQUIRED_CHECKS)
        if tested
        else (),
        seeds={"sweep": str(spec.seed), "commitment_sha256": spec.seed_commitment_sha256},
        environment={},
        cpu_seconds={},
    )


def _row(entry: LedgerEntry, policy: VerdictPolicy, *, is_back: bool) -> SweepEntry:
    if entry.probes is None:
        return SweepEntry(entry.id, entry.kind, entry.deletions_so_far, "untested", "coverage")
    attacks = [attack for rule in swept_rules(policy) for attack in rule.primary]
    ratios = dict.fromkeys(attacks, 0.97 if is_back else 0.02) if entry.before else {}
    row = SweepEntry(entry.id, entry.kind, entry.deletions_so_far, "measured", items=9, residual_ratios=ratios)
    if not is_back:
        return replace(row, draws=_GONE)
    return replace(row, draws=_FOUND, confirmation=Confirmation(_FOUND, 0.5, False))


def _primaries(spec: SweepSpec) -> list[tuple[FamilyRule, str, str]]:
    return [
        (rule, attack, artefact)
        for rule in swept_rules(spec.policy)
        for attack in rule.primary
        for artefact in spec.artefacts
    ]


def _bound(policy: VerdictPolicy, family: str, attack: str, artefact: str, persons: int) -> CohortBound:
    rho = next(rule.rho for rule in policy.families if rule.id == family)
    return CohortBound(
        family, attack, artefact, CohortCertificate(persons, 49, rho, 0.02, 0.02, 0.01, 0.05, 40.0, (), None)
    )
