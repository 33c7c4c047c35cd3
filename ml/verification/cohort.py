"""Several subjects of one twin pool as a cohort: a bound on their average, with everybody tested alone beside it.

A person with few records can seldom be shown to be forgotten; together several can (verification section 9.6). Twins
of a pool are the same for every subject, and an average over subjects needs averages over as many independent twins:
the twins are dealt out, the k-th share of each subject making the k-th average.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from ml.cohort_reports import CohortBound, CohortReport, MissingBound
from ml.cohorts import CohortCertificate, Draws, cohort_certificate, swept_rules
from ml.decision import REQUIRED_CHECKS, Result, Verdict
from ml.errors import MlError, SpecError
from ml.rank_tests import attempt_alpha
from ml.specs import FamilyRule, VerificationSpec
from ml.verification.bench import Bench
from ml.verification.families import Family
from ml.verification.parts import Failure

MEMBER_FAILED: Final = "member_failed"
_SOUND: Final = frozenset({"validity", "integrity"})


def cohort_report(
    specs: Sequence[VerificationSpec], benches: Sequence[Bench], verdicts: Sequence[Verdict]
) -> CohortReport:
    """Bound every primary of F1 to F3 on the average of the subjects.

    Args:
        benches: what each subject's report reads, in the order of `specs`.
        verdicts: each subject's own.
    Raises:
        SpecError: fewer than two subjects, or subjects without a shared pool.
    """
    pool = specs[0].twin_pool
    if len(specs) < 2 or pool is None:
        raise SpecError("a cohort has at least two subjects that share a twin pool")
    first, policy = specs[0], specs[0].policy
    rows = [
        _row(benches, rule, attack, artefact)
        for rule in swept_rules(policy)
        for attack in rule.primary
        for artefact in rule.artefacts
    ]
    return CohortReport(
        run_ids=tuple(spec.run_id for spec in specs),
        twin_pool_sha256=pool.sha256,
        policy_sha256=policy.sha256,
        models={
            "candidate": first.candidate.manifest_sha256,
            "before": first.before.manifest_sha256,
            "base": first.base.manifest_sha256,
        },
        bounds=tuple(row for row in rows if isinstance(row, CohortBound)),
        missing=tuple(row for row in rows if isinstance(row, MissingBound)),
        doubts=tuple(sorted(_doubts(verdicts))),
    )


def _doubts(verdicts: Iterable[Verdict]) -> set[str]:
    doubts = set()
    for verdict in verdicts:
        doubts |= {f.gate for f in verdict.findings if f.gate in REQUIRED_CHECKS}
        doubts |= {gate.gate for gate in verdict.gates if gate.kind in _SOUND and gate.result is not Result.PASS}
        if verdict.result is Result.FAIL:
            doubts.add(MEMBER_FAILED)
    return doubts


def _row(benches: Sequence[Bench], rule: FamilyRule, attack: str, artefact: str) -> CohortBound | MissingBound:
    """One primary on one artefact; what one member's scores lack or break, the cohort lacks."""
    try:
        return CohortBound(rule.id, attack, artefact, _bound(benches, rule, attack, artefact))
    except MlError as exc:
        return MissingBound(rule.id, attack, artefact, type(exc).__name__)


def _bound(benches: Sequence[Bench], rule: FamilyRule, attack: str, artefact: str) -> CohortCertificate:
    before, after, alone = [], [], []
    for number, bench in enumerate(benches):
        family = Family(bench, rule)
        old, new = family.scores(attack, "before"), family.scores(attack, artefact)
        if isinstance(old, Failure) or isinstance(new, Failure):
            raise SpecError("somebody's scores could not be measured")
        before.append(_dealt(old, number, len(benches)))
        after.append(_dealt(new, number, len(benches)))
        alone.append(Draws().after(twin >= new[0] for twin in new[1:]))
    spec = benches[0].spec
    return cohort_certificate(
        before,
        after,
        alone,
        rho=rule.rho,
        alpha=attempt_alpha(spec.attempt, alpha=spec.policy.alpha),
        alpha_alone=spec.policy.alpha,
    )


def _dealt(scores: Sequence[float], number: int, subjects: int) -> list[float]:
    """The subject's score and their share of the twins: every `subjects`-th, equally many for everybody."""
    share = (len(scores) - 1) // subjects
    return [scores[0], *scores[1 + number :: subjects][:share]]
