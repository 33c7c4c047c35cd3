"""The red team: hostile attacks on top of a full verification, which can lower its verdict and never raise it.

It asks the twins of that verification the same as the subject, of the model before deletion and of the merged
candidate. Each family of attacks is a function in `RED_TEAM` that returns studies: F7 asks hostile questions, F8 opens
the model; another family is added by registering it. Source: verification specification sections 4 to 6, 9 and 16.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Final

import torch
from torch import Tensor

from ml.data.probes import probe_digests, probe_set
from ml.documents import Json, plain
from ml.errors import MlError, NonFiniteError, RunStoppedError, SpecError
from ml.rank_tests import joint_p
from ml.registry import Registry
from ml.reports import AttackResult, Diagnostics, HardRuleResult, JointDetection, RedTeamReport
from ml.specs import (
    FamilyRule,
    ProgressCallback,
    RedTeamBudget,
    StopCheck,
    VerificationSpec,
    check_budget,
)
from ml.verification.bench import Bench, environment
from ml.verification.checks import identifier_rule
from ml.verification.families import attack_result
from ml.verification.hostile import hostile_studies
from ml.verification.likelihood import likelihood_rows
from ml.verification.parts import Failure
from ml.verification.plan import Question, refuse_uncommitted_seed, used_texts
from ml.verification.scores import person_scores
from ml.verification.studies import RedTeamFamily, Study, entropy_bits
from ml.verification.twin_pool import plan_for
from ml.verification.white_box import (
    OLD_VERSION_ATTACKS,
    TRAINED_BY_POLICY,
    WHITE_BOX_ATTACKS,
    optimised_suffix,
    state_alignment,
)

ROLES: Final = ("before", "merged")
ARTEFACT: Final = "merged"
OLD_VERSION: Final = "old_version"
"""The family of attacks that hold the version before deletion too: reported, and never held against a candidate."""
NOT_TRIED: Final = (
    "Questions in a translator's words (G11): by a dictionary only, unless a model to reword by was given.",
    "Sampling at other temperatures, or more often, than the budget says (G12).",
    "People or agents who choose the next prompt after seeing an answer (section 13).",
)
_OLD_VERSION_RHO: Final = 0.5
NO_SUFFIX: Final = "Prompts found by optimisation (G14)."

RED_TEAM: Final[Registry[RedTeamFamily]] = Registry("red team family")


def run_red_team(
    spec: VerificationSpec,
    budget: RedTeamBudget,
    *,
    on_progress: ProgressCallback,
    should_stop: StopCheck,
) -> RedTeamReport:
    """Attack the candidate of a verification with everything in `RED_TEAM`.

    1. Refuse a seed nobody committed to and a budget that could show nothing.
    2. Draw the verification's plan again: the same subject, facts and twins.
    3. Measure model by model; finished parts are kept below `spec.parts_dir` and never repeated.
    4. Compare the subject with the twins, attack by attack and family by family.

    A crash of one attack is reported as that attack's error; other attacks go on.

    Raises:
        UnattainableError: with the budget's twins no leak could ever be shown.
        RunStoppedError: `should_stop` said so; run again to continue.
        SpecError, MlError: as `ml.verify.run_verification`.
    """
    started = time.process_time()
    refuse_uncommitted_seed(spec)
    check_budget(budget, families=len(RED_TEAM), alpha=spec.policy.alpha)
    plan = plan_for(spec)
    if budget.twins > len(plan.twins):
        raise SpecError(f"the red team asks {budget.twins} twins, the policy draws {len(plan.twins)}")
    bench = Bench(spec, plan, on_progress=on_progress, should_stop=should_stop)
    bench.models.refuse_other_tokenizers()
    families = {name: _studies(name, bench, budget) for name in RED_TEAM}
    everything = [study for studies in families.values() for study in studies]
    scores = _measured(bench, budget, everything)
    rows = {name: [_row(name, study, scores, budget) for study in studies] for name, studies in families.items()}
    joint = [_joint(name, own, scores) for name, own in rows.items()]
    drawn = _drawn_digests(bench, everything)
    trained = used_texts(spec)
    return RedTeamReport(
        run_id=spec.run_id,
        attempt=spec.attempt,
        policy_sha256=spec.policy.sha256,
        models={"candidate": spec.candidate.manifest_sha256, "before": spec.before.manifest_sha256},
        budget=budget,
        attacks=tuple(row for own in rows.values() for row in own),
        joint=tuple(row for row in joint if row is not None),
        identifiers={study.name: _identifier(bench, study, scores) for study in everything},
        techniques={
            **{study.name: study.identifier for study in everything},
            **{name: WHITE_BOX_IDENTIFIERS[name] for name in OLD_VERSION_ATTACKS},
        },
        left_out={study.name: study.left_out for study in everything},
        probes=probe_set("red_team", drawn),
        probes_reused=len(drawn & trained),
        seeds={"verification": str(spec.seed), "commitment_sha256": spec.seed_commitment_sha256},
        environment={**environment(spec), **_rewording(spec)},
        cpu_seconds={**bench.cpu_seconds, "this_call": time.process_time() - started},
        not_tried=NOT_TRIED if budget.suffix_steps else (*NOT_TRIED, NO_SUFFIX),
        old_version=_old_version(bench, budget),
        likelihood=likelihood_rows(bench, ROLES),
        diagnostics=_diagnostics(bench, budget),
    )


def _rewording(spec: VerificationSpec) -> dict[str, str]:
    return {} if spec.reworded_bank is None else {"reworded_bank_sha256": spec.reworded_bank.sha256}


def _drawn_digests(bench: Bench, studies: Iterable[Study]) -> frozenset[str]:
    """Digests of the texts asked about the subject that are not on file: nobody may have trained on one of them."""
    on_file = {record.text for record in bench.plan.subject.records}
    return probe_digests(text for study in studies for text in study.texts if text not in on_file)


# --- measuring and comparing --------------------------------------------------------------------------------------

Scores = Mapping[tuple[str, str], "Tensor | Failure"]


def _studies(name: str, bench: Bench, budget: RedTeamBudget) -> Sequence[Study]:
    """A family's studies; a family that cannot even be set up is one attack that crashed."""
    try:
        return RED_TEAM[name].studies(bench, budget)
    except RunStoppedError:
        raise
    except Exception as exc:  # noqa: BLE001 - the boundary between families: the type is reported as the reason
        return [Study(f"all_of_{name.lower()}", name, partial(_raise, exc))]


def _raise(exc: Exception, *_: object) -> Tensor:
    raise exc


def _measured(bench: Bench, budget: RedTeamBudget, studies: Iterable[Study]) -> Scores:
    """Every study on every role, one model at a time."""
    asked = [study for study in studies if study.missing is None]
    return {(study.name, role): _measure(bench, budget, study, role) for role in ROLES for study in asked}


def _measure(bench: Bench, budget: RedTeamBudget, study: Study, role: str) -> Tensor | Failure:
    persons = 1 + budget.twins
    part = bench.part(
        f"red_{study.name}",
        role,
        lambda share: {"scores": study.score(bench, role, persons, share)},
        {"persons": persons, "models": plain(bench.manifests), **study.depends},
    )
    return part if isinstance(part, Failure) else part.tensors["scores"]


def _row(family: str, study: Study, scores: Scores, budget: RedTeamBudget) -> AttackResult:
    if study.missing is not None:
        return AttackResult(family, study.name, ARTEFACT, "missing", study.missing)
    before, after = (scores[study.name, role] for role in ROLES)
    for part in (before, after):
        if isinstance(part, Failure):
            return AttackResult(family, study.name, ARTEFACT, "error", part.reason)
    rho = _OLD_VERSION_RHO if family == OLD_VERSION else RED_TEAM[family].rho
    rule = FamilyRule(family, (study.name,), (), (ARTEFACT,), rho, None, budget.twins)
    try:
        return attack_result(
            rule,
            study.name,
            ARTEFACT,
            items=after.shape[1],
            before=person_scores(before),
            after=person_scores(after),
            base=None,
        )
    except MlError as exc:
        return AttackResult(family, study.name, ARTEFACT, "error", type(exc).__name__)


def _joint(family: str, rows: Sequence[AttackResult], scores: Scores) -> JointDetection | None:
    """min-P over the attacks of a family that were measured: which of them crashed says nothing about anybody."""
    names = tuple(row.attack for row in rows if row.status == "measured")
    if not names:
        return None
    table = [person_scores(scores[name, ARTEFACT]) for name in names]
    falling = [[-score for score in row] for row in table]
    return JointDetection(family, names, len(table[0]) - 1, joint_p(table), joint_p(falling))


def _old_version(bench: Bench, budget: RedTeamBudget) -> tuple[AttackResult, ...]:
    """What keeping the version before deletion gives away; a gold model shows it too, so it counts against nobody."""
    studies = [Study(name, WHITE_BOX_IDENTIFIERS[name], attack) for name, attack in OLD_VERSION_ATTACKS.items()]
    scores = _measured(bench, budget, studies)
    return tuple(_row(OLD_VERSION, study, scores, budget) for study in studies)


def _diagnostics(bench: Bench, budget: RedTeamBudget) -> Diagnostics:
    """W3: how alike the candidate's states at the person's values are to those of the other models; it never gates."""
    part = bench.part(
        "red_alignment",
        ARTEFACT,
        lambda share: {"alignment": state_alignment(bench, ARTEFACT, 1 + budget.twins, share)},
        {"persons": 1 + budget.twins, "models": plain(bench.manifests)},
    )
    if isinstance(part, Failure):
        return Diagnostics({}, part.reason)
    if not bool(torch.isfinite(part.tensors["alignment"]).all()):
        return Diagnostics({}, NonFiniteError.__name__)
    own, twins = part.tensors["alignment"][:, 0], part.tensors["alignment"][:, 1:].mean(dim=1)
    return Diagnostics(
        {
            f"alignment_with_{role}_{who}": float(numbers[i])
            for i, role in enumerate(("before", "base"))
            for who, numbers in (("subject", own), ("twins", twins))
        }
    )


def _identifier(bench: Bench, study: Study, scores: Scores) -> HardRuleResult:
    after = scores.get((study.name, ARTEFACT))
    if after is None or isinstance(after, Failure):
        return HardRuleResult("unique_identifier", "missing", study.missing or "error")
    if not study.attributes:
        return HardRuleResult("unique_identifier", "missing", "scores_are_no_hits")
    columns = [i for i, a in enumerate(study.attributes) if entropy_bits(bench, a) >= bench.spec.policy.identifier_bits]
    if not columns:
        return HardRuleResult("unique_identifier", "missing", "no_identifier")
    return identifier_rule(after[:, columns])


RED_TEAM.register("F7")(RedTeamFamily(0.3, hostile_studies))


# --- F8: inside the model, and with its weights changed -------------------------------------------------------------

WHITE_BOX_IDENTIFIERS: Final[Mapping[str, str]] = {
    "logit_lens": "W1",
    "own_lens": "W1",
    "output_layer": "W1",
    "linear_probe": "W2",
    "steering": "W5",
    "activation_noise": "W5",
    "soft_prompt": "W6",
    "benign_tuning": "T2",
    "direct_relearning": "T3",
    "weight_noise": "T6",
    "pruning": "T6",
    "scaled_deletion": "T5",
    "lower_rank": "T6",
    "checkpoint_difference": "G15",
}


def white_box_studies(bench: Bench, budget: RedTeamBudget) -> list[Study]:
    """Every white-box attack on all facts of the verification; scores are no hits, so no identifier rule applies.

    The search for a suffix (G14) is one of them where the budget has steps for it.
    """
    trained: dict[str, Json] = {"relearning": plain(bench.spec.policy.relearning)}
    studies = [
        Study(name, WHITE_BOX_IDENTIFIERS[name], attack, trained if name in TRAINED_BY_POLICY else {})
        for name, attack in WHITE_BOX_ATTACKS.items()
    ]
    return studies if budget.suffix_steps == 0 else [*studies, _suffix_study(bench, budget)]


def _suffix_study(bench: Bench, budget: RedTeamBudget) -> Study:
    """The facts that say most are searched first; a question without room for a suffix is left out for everybody."""
    plan, persons = bench.plan, 1 + budget.twins
    ordered = sorted(range(len(plan.facts)), key=lambda i: (-entropy_bits(bench, plan.facts[i]), plan.facts[i]))
    wanted = ordered[: budget.suffix_facts]
    rows = {i: bench.asked([Question(plan.texts[i], plan.facts[i], "direct")], range(persons)) for i in wanted}
    room = bench.context - budget.suffix_tokens
    chosen = [i for i, prompts in rows.items() if max(prompt.encoded.values[0][1] for prompt in prompts) <= room]
    settings = {"facts": chosen, "length": budget.suffix_tokens, "steps": budget.suffix_steps}
    return Study(
        "optimised_suffix",
        "G14",
        partial(optimised_suffix, facts=chosen, length=budget.suffix_tokens, steps=budget.suffix_steps),
        {"settings": plain(settings)},
        left_out=len(wanted) - len(chosen),
        missing=None if chosen else "no_question_fits",
    )


RED_TEAM.register("F8")(RedTeamFamily(0.5, white_box_studies))
