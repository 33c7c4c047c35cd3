"""A verification report that passes, and the small policy it passes under: the starting point of hostile edits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVar

from ml.decision import REQUIRED_CHECKS
from ml.rank_tests import smallest_p
from ml.reports import (
    AttackResult,
    GuardResult,
    HardRuleResult,
    JointDetection,
    ProbeSet,
    RedTeamReport,
    TwinSummary,
    UtilityResult,
    ValidityCheck,
    VerificationReport,
)
from ml.specs import FamilyRule, Guard, RedTeamBudget, RelearningBudget, UtilityRule, VerdictPolicy

Report = TypeVar("Report", VerificationReport, RedTeamReport)

MEMBERSHIP = FamilyRule(
    id="F1",
    primary=("same_context_difference",),
    detection=("mean_loss", "min_k"),
    artefacts=("merged", "int8"),
    rho=0.2,
    rho_over=0.3,
    twins=239,
    guards=(Guard("pooled_auc", minimum=0.4, maximum=0.6),),
)
GENERATION = FamilyRule(
    id="F4",
    primary=("hit_rate",),
    detection=(),
    artefacts=("merged",),
    rho=0.2,
    rho_over=None,
    twins=39,
    guards=(Guard("hit_rate_upper", maximum=0.02),),
)
POLICY = VerdictPolicy(
    name="example",
    version=1,
    purpose="test",
    alpha=0.05,
    swaps=39,
    minimum_facts=20,
    generation_prompts=149,
    families=(MEMBERSHIP, GENERATION),
    utility=(UtilityRule("U1", "probability", 0.02, 300), UtilityRule("U4", "held_out", 0.02, 300)),
    hard_rules=("unique_identifier", "sampling_leak", "lineage"),
    leak_samples=1000,
    leak_limit=0.01,
    identifier_bits=20.0,
    placebo_alpha=0.01,
    blind_auc_limit=0.6,
    determinism_tolerance=1e-4,
    relearning=RelearningBudget(share=0.5, epochs=3, learning_rate=1e-3, rank=8),
    not_tested=("Attacks by people were not tried.",),
)


def passing_report(policy: VerdictPolicy = POLICY) -> VerificationReport:
    """Return evidence that shows everything `policy` asks for."""
    rows = [
        _attack(rule, attack, artefact)
        for rule in policy.families
        for attack in (*rule.primary, *rule.detection)
        for artefact in rule.artefacts
    ]
    return VerificationReport(
        run_id="run-1",
        attempt=1,
        policy_sha256=policy.sha256,
        models={"before": "a" * 64, "base": "b" * 64, "candidate": "c" * 64},
        artefacts={"merged": "c" * 64, "int8": "d" * 64},
        attacks=tuple(rows),
        joint=tuple(
            JointDetection(rule.id, (*rule.primary, *rule.detection), rule.twins, 0.5, 0.6) for rule in policy.families
        ),
        guards=tuple(_guard(rule.id, guard) for rule in policy.families for guard in rule.guards),
        hard_rules=tuple(HardRuleResult(rule, "held", None, {"value": 0.0}) for rule in policy.hard_rules),
        utility=tuple(_utility(rule) for rule in policy.utility),
        validity=tuple(ValidityCheck(name, "ok", "coverage", 0.0, 1.0) for name in REQUIRED_CHECKS),
        groups=(),
        energies=(),
        separation={"energy_auroc_retained_vs_deleted": 0.99},
        probe_sets=(),
        seeds={"verification": "1"},
        environment={"torch": "2"},
        cpu_seconds={"total": 1.0},
    )


RED_ATTACKS = ("role_play", "sampling", "token_noise")
BUDGET = RedTeamBudget()


def quiet_red_team(report: VerificationReport) -> RedTeamReport:
    """Return a red team that attacked the candidate of `report` and found nothing."""
    rows = tuple(
        replace(_attack(_red_rule(attack), attack, "merged"), p_detect=0.5, p_placebo=None) for attack in RED_ATTACKS
    )
    return RedTeamReport(
        run_id=report.run_id,
        attempt=report.attempt,
        policy_sha256=report.policy_sha256,
        models=report.models,
        budget=BUDGET,
        attacks=rows,
        joint=(JointDetection("F7", RED_ATTACKS, BUDGET.twins, 0.5, 0.6),),
        identifiers={attack: HardRuleResult("unique_identifier", "held") for attack in RED_ATTACKS},
        techniques=dict(zip(RED_ATTACKS, ("G6", "G12", "G13"), strict=True)),
        left_out=dict.fromkeys(RED_ATTACKS, 0),
        probes=ProbeSet("red_team", 3, "0" * 64),
        probes_reused=0,
        seeds=report.seeds,
        environment={"torch": "2"},
        cpu_seconds={"total": 1.0},
        not_tried=("Other things.",),
    )


def _red_rule(attack: str) -> FamilyRule:
    return FamilyRule("F7", (attack,), (), ("merged",), 0.3, None, BUDGET.twins)


def edited(report: Report, field: str, index: int, **changes: Any) -> Report:
    """Return `report` with entry `index` of the tuple `field` changed."""
    rows = list(getattr(report, field))
    rows[index] = replace(rows[index], **changes)
    return replace(report, **{field: tuple(rows)})


def without(report: Report, field: str, index: int) -> Report:
    """Return `report` without entry `index` of the tuple `field`."""
    rows = list(getattr(report, field))
    del rows[index]
    return replace(report, **{field: tuple(rows)})


def _attack(rule: FamilyRule, attack: str, artefact: str) -> AttackResult:
    floor = smallest_p(rule.twins)
    return AttackResult(
        family=rule.id,
        attack=attack,
        artefact=artefact,
        status="measured",
        items=28,
        twins=rule.twins,
        subject_before=40.0,
        subject_after=0.1,
        twins_before=TwinSummary(rule.twins, 0.0, 2.0, None),
        twins_after=TwinSummary(rule.twins, 0.0, 2.0, None),
        p_placebo=0.4,
        p_assay=floor,
        p_detect=0.45,
        p_low=0.55,
        p_residual=floor,
        p_over=floor,
        residual_ratio=0.01,
        residual_upper=0.08,
        strength=20.0,
    )


def _guard(family: str, guard: Guard) -> GuardResult:
    inside = [bound for bound in (guard.minimum, guard.maximum) if bound is not None]
    return GuardResult(family, guard.metric, sum(inside) / len(inside))


def _utility(rule: UtilityRule) -> UtilityResult:
    return UtilityResult(
        id=rule.id,
        score=rule.score,
        status="measured",
        items=rule.minimum_items,
        persons=40,
        mean_before=0.99,
        mean_after=0.989,
        mean_change=-0.001,
        lower=-0.002,
        upper=0.0,
    )
