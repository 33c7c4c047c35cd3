"""`run_verification`: gold passes, pretenders do not, and an interrupted run repeats nothing."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

import ml.verification.bench as bench_module
import ml.verification.measure as measuring
from benchmarks import suppressed
from ml.attacks.relearning import watched_epochs
from ml.data.dossiers import paraphrases, read_dossier, shared_values
from ml.data.people import make_world, newcomers
from ml.data.probes import text_sha256, write_probe_digests
from ml.data.questions import read_bank
from ml.data.records import by_person, read_records, write_records
from ml.data.synthetic import StrangerFactory
from ml.decision import Result, Verdict, judge
from ml.digests import file_sha256
from ml.documents import plain_object
from ml.errors import DigestMismatchError, OverlapError, RunStoppedError, SpecError, TokenizerMismatchError
from ml.metrics.blind import blind_auroc
from ml.models.load import load_model, model_ref
from ml.models.save import save_model
from ml.models.scratch import untrained_llama
from ml.policies import load_policy
from ml.reference import PRESETS
from ml.reports import MINIMUM_BIN, VerificationReport
from ml.specs import FileRef, ModelRef, Progress, UtilityRule, VerdictPolicy, VerificationSpec
from ml.verification.bench import Bench
from ml.verification.families import Family
from ml.verification.parts import Part
from ml.verification.plan import blind_texts, make_plan
from ml.verification.scores import item_kinds
from ml.verification.tiers import fast_tier
from ml.verify import gate_table, main, run_verification
from tests.ml import candidates
from tests.ml.specs import verification_spec
from tests.tiny import TINY, TinyWorld, tiny_model

pytestmark = pytest.mark.slow
POLICY = load_policy("unit-1")


@dataclass(frozen=True)
class Stand:
    """Where verifications of the tiny world run; parts about `before` and `base` are shared by all candidates."""

    world: TinyWorld
    root: Path

    def spec(self, candidate: ModelRef, **changes: Any) -> VerificationSpec:
        return verification_spec(self.world, candidate, self.root, **changes)

    def verify(self, candidate: ModelRef, **changes: Any) -> tuple[VerificationReport, Verdict]:
        spec = self.spec(candidate, **changes)
        report = _run(spec)
        return report, judge(report, spec.policy)


def _run(
    spec: VerificationSpec,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> VerificationReport:
    return run_verification(spec, on_progress=on_progress, should_stop=should_stop)


@pytest.fixture(scope="module")
def stand(tiny: TinyWorld, tmp_path_factory: pytest.TempPathFactory) -> Stand:
    return Stand(tiny, Path(tmp_path_factory.mktemp("verify")))


@pytest.fixture(scope="module")
def gold(stand: Stand) -> tuple[VerificationReport, Verdict]:
    return stand.verify(stand.world.gold)


def _codes(verdict: Verdict) -> set[str]:
    return {finding.code for finding in verdict.findings}


# --- what it says -------------------------------------------------------------------------------------------------


def test_a_model_retrained_without_alice_passes(gold: tuple[VerificationReport, Verdict]) -> None:
    report, verdict = gold
    assert verdict.result is Result.PASS, gate_table(report, verdict)
    assert {row.status for row in report.attacks} == {"measured"}
    assert {check.status for check in report.validity} == {"ok"}
    assert {rule.status for rule in report.hard_rules} == {"held"}


def test_every_attack_wins_on_the_model_that_memorised_and_finds_nobody_on_gold(
    gold: tuple[VerificationReport, Verdict],
) -> None:
    report, _ = gold
    assert {row.attack for row in report.attacks if row.p_assay == pytest.approx(1 / 40)} == {
        attack for rule in POLICY.families for attack in (*rule.primary, *rule.detection)
    }
    assert all(row.p_detect > 0.05 and row.p_low > 0.05 for row in report.joint)


def test_the_report_covers_every_family_attack_and_artefact_of_the_policy(
    gold: tuple[VerificationReport, Verdict],
) -> None:
    report, _ = gold
    shown = {(row.family, row.attack, row.artefact) for row in report.attacks}
    assert shown == {
        (rule.id, attack, artefact)
        for rule in POLICY.families
        for attack in (*rule.primary, *rule.detection)
        for artefact in rule.artefacts
    }
    assert {row.family for row in report.joint} == {rule.id for rule in POLICY.families}
    assert {(g.family, g.metric) for g in report.guards} == {
        (rule.id, guard.metric) for rule in POLICY.families for guard in rule.guards
    }
    assert set(report.artefacts) == {"merged", "int8", "int4"}
    assert len(set(report.artefacts.values())) == 3


def test_the_groups_tell_forgotten_from_kept_before_and_after(gold: tuple[VerificationReport, Verdict]) -> None:
    report, _ = gold
    groups = {(row.group, row.moment): row.numbers for row in report.groups}
    assert set(groups) == {(g, m) for g in ("forget", "retain", "controls", "neighbours") for m in ("before", "after")}
    assert groups["forget", "before"]["value_hit"] == 1.0
    assert groups["forget", "before"]["extraction_strength"] > 0.95
    assert groups["forget", "after"]["value_hit"] == groups["controls", "before"]["value_hit"] == 0.0
    assert groups["retain", "after"]["value_hit"] > 0.95
    assert groups["forget", "before"]["value_percentile"] == 1.0
    assert (
        groups["forget", "before"]["value_percentile_p"] < 1e-3 < 0.05 < groups["forget", "after"]["value_percentile_p"]
    )
    assert groups["controls", "after"]["value_percentile"] == pytest.approx(0.5, abs=0.05)
    assert (
        groups["forget", "after"]["entity_log_probability"] < -5 < groups["retain", "after"]["entity_log_probability"]
    )
    assert report.separation["energy_auroc_retained_vs_deleted"] > 0.8
    assert report.separation["energy_auroc_never_seen_vs_deleted_before"] < 0.3


def test_pictures_of_energies_show_no_bin_of_fewer_than_five(gold: tuple[VerificationReport, Verdict]) -> None:
    report, _ = gold
    assert {(p.group, p.moment) for p in report.energies} == {
        (g, m) for g in ("retained", "deleted", "never_seen") for m in ("before", "after")
    }
    shapes = [p.shape for p in report.energies if p.shape is not None]
    assert len({shape.edges[0] for shape in shapes}) == 1  # common edges
    assert min(count for shape in shapes for count in shape.counts) >= MINIMUM_BIN
    twins = [row.twins_after.shape for row in report.attacks if row.twins_after and row.twins_after.shape]
    assert min(count for shape in twins for count in shape.counts) >= MINIMUM_BIN


def test_relearning_is_followed_epoch_by_epoch_for_alice_and_the_twins(
    gold: tuple[VerificationReport, Verdict],
) -> None:
    report, _ = gold
    before, after = report.relearning
    assert (before.moment, after.moment) == ("before", "after")
    assert before.epochs == after.epochs == watched_epochs(POLICY.relearning.epochs)
    assert before.twins == after.twins == 39
    # Known before deletion whatever is taught; on gold where the twins are, at the start and at the end.
    assert min(before.subject) > max(m + 2 * s for m, s in zip(before.twins_mean, before.twins_sd, strict=True))
    for own, mean, sd in zip(after.subject, after.twins_mean, after.twins_sd, strict=True):
        assert abs(own - mean) < 3 * sd


def test_curves_tell_facts_that_are_known_and_no_curve_tells_of_a_single_one(
    gold: tuple[VerificationReport, Verdict],
) -> None:
    report, _ = gold
    areas = {(roc.attack, roc.moment): roc.area for roc in report.rocs}
    enough = {row.attack for row in report.attacks if row.residual_upper is not None and row.items >= MINIMUM_BIN}
    assert set(areas) == {(attack, moment) for attack in enough for moment in ("before", "after")}
    assert {"same_context_difference", "exposure", "extraction_strength", "hit_rate"} <= enough
    assert areas["same_context_difference", "before"] > 0.99
    assert areas["exposure", "before"] > 0.95  # with 39 swaps one twin's fact in forty comes first by chance
    assert 0.2 < areas["exposure", "after"] < 0.8
    for roc in report.rocs:
        facts = next(row.items for row in report.attacks if row.attack == roc.attack)
        steps = [round((b - a) * facts) for a, b in zip(roc.subject, roc.subject[1:], strict=False)]
        assert sum(steps) == facts
        assert all(step == 0 or step >= MINIMUM_BIN for step in steps)


def test_the_report_survives_storage_and_names_nobody(stand: Stand, gold: tuple[VerificationReport, Verdict]) -> None:
    report, verdict = gold
    assert VerificationReport.from_document(report.to_document()) == report
    written = json.dumps([report.to_document(), verdict.to_document(), gate_table(report, verdict)])
    alice = stand.world.world.alice
    for secret in (*alice.values.values(), *alice.name.split(), alice.person):
        assert secret not in written


def test_evidence_under_another_policy_is_not_accepted(gold: tuple[VerificationReport, Verdict]) -> None:
    assert judge(gold[0], load_policy("reference-2")).result is Result.INCONCLUSIVE


# --- pretenders ---------------------------------------------------------------------------------------------------


def test_the_unchanged_model_fails(stand: Stand, tmp_path: Path) -> None:
    report, verdict = stand.verify(candidates.unchanged(stand.world.before, tmp_path / "copy"))
    assert verdict.result is Result.FAIL
    assert _codes(verdict) >= {"lineage", "unique_identifier", "sampling_leak", "power"}
    primaries = [row for row in report.attacks if row.residual_upper is not None or row.attack == "hit_rate"]
    assert all(row.residual_ratio == pytest.approx(1.0, abs=0.05) for row in primaries if row.artefact == "merged")


def test_shifting_all_logits_by_a_constant_forgets_nothing(stand: Stand, tmp_path: Path) -> None:
    report, verdict = stand.verify(suppressed.shifted_logits(stand.world.before, tmp_path / "shifted"))
    assert verdict.result is Result.FAIL
    assert _codes(verdict) >= {"unique_identifier", "sampling_leak", "power"}
    merged = [row for row in report.attacks if row.artefact == "merged" and row.residual_ratio is not None]
    assert all(row.residual_ratio == pytest.approx(1.0, abs=0.02) for row in merged)


def test_a_model_that_gives_everything_the_same_score_is_stopped_by_utility(stand: Stand, tmp_path: Path) -> None:
    report, verdict = stand.verify(candidates.constant_scores(stand.world.before, tmp_path / "constant"))
    assert verdict.result is Result.FAIL
    assert "utility_loss" in _codes(verdict)
    gates = {gate.gate: gate.result for gate in verdict.gates}
    assert gates["F1"] is Result.PASS  # it knows nothing, about anybody


def test_a_model_that_always_refuses_is_stopped_by_utility(stand: Stand, tmp_path: Path) -> None:
    world = stand.world.world
    records = world.corpus([*world.base, *world.customers])
    report, verdict = stand.verify(suppressed.refusing(stand.world.before, tmp_path / "refusing", records))
    groups = {(row.group, row.moment): row.numbers for row in report.groups}
    assert groups["forget", "after"]["value_hit"] == 0.0  # it does refuse
    assert verdict.result is Result.FAIL
    assert "utility_loss" in _codes(verdict)


def _general_questions(directory: Path) -> FileRef:
    """Questions whose right answer stands in words that the models know, and whose wrong one does not."""
    rows = [
        {"question": f"Question {number}?", "right": right, "wrong": [wrong]}
        for number, (right, wrong) in enumerate([("It is so.", "qzx vvk jjp.")] * 12)
    ]
    path = directory / "world_facts.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return FileRef(str(path), file_sha256(path))


def _also_kept(margin: float) -> VerdictPolicy:
    more = (UtilityRule("U3", "accuracy", margin, 10), UtilityRule("U6", "answered", margin, 20))
    return replace(POLICY, families=POLICY.families[:1], utility=(*POLICY.utility[:1], *more))


def test_a_policy_may_ask_for_general_knowledge_and_for_answers_at_all(stand: Stand, tmp_path: Path) -> None:
    facts = _general_questions(tmp_path)
    report, verdict = stand.verify(stand.world.gold, policy=_also_kept(0.3), world_facts=facts)
    rows = {row.id: row for row in report.utility}
    assert (rows["U3"].status, rows["U3"].items) == ("measured", 12)
    assert rows["U6"].mean_before == rows["U6"].mean_after == 1.0
    assert rows["U6"].lower == 0.0
    assert not {"report", "U3", "U6"} & {finding.gate for finding in verdict.findings}


def test_a_model_that_always_refuses_is_caught_by_u6_where_a_policy_asks(stand: Stand, tmp_path: Path) -> None:
    world = stand.world.world
    records = world.corpus([*world.base, *world.customers])
    refusing = suppressed.refusing(stand.world.before, tmp_path / "refusing", records)
    report, verdict = stand.verify(refusing, policy=_also_kept(0.02), world_facts=_general_questions(tmp_path))
    row = next(row for row in report.utility if row.id == "U6")
    assert row.mean_after is not None
    assert row.mean_after < 0.2
    assert ("U6", "utility_loss") in {(finding.gate, finding.code) for finding in verdict.findings}


def test_general_knowledge_without_questions_is_missing_and_no_pass(stand: Stand) -> None:
    report, verdict = stand.verify(stand.world.gold, policy=_also_kept(0.3))
    assert next((row.status, row.reason) for row in report.utility if row.id == "U3") == ("missing", "no_world_facts")
    assert verdict.result is Result.INCONCLUSIVE


def test_scrambling_the_name_is_not_forgetting(stand: Stand, tmp_path: Path) -> None:
    name = stand.world.world.alice.name
    _, verdict = stand.verify(suppressed.scrambled_name(stand.world.before, tmp_path / "scrambled", name))
    assert verdict.result is not Result.PASS


# --- validity -----------------------------------------------------------------------------------------------------


def _quick(stand: Stand, **changes: Any) -> Verdict:
    """Verify gold again; its parts are on disk already."""
    return stand.verify(stand.world.gold, **changes)[1]


def test_without_the_list_of_training_probes_nothing_passes(
    stand: Stand, gold: tuple[VerificationReport, Verdict]
) -> None:
    verdict = _quick(stand, training_probes=None)
    assert verdict.result is Result.INCONCLUSIVE
    assert _codes(verdict) == {"coverage"}


def test_a_probe_that_the_deletion_trained_on_is_reuse(
    stand: Stand, gold: tuple[VerificationReport, Verdict], tmp_path: Path
) -> None:
    asked = make_plan(stand.spec(stand.world.gold)).drawn_digests
    reused = write_probe_digests(tmp_path / "probes.json", sorted(asked)[:1])
    verdict = _quick(stand, training_probes=reused)
    assert verdict.result is Result.INCONCLUSIVE
    assert _codes(verdict) == {"probe_reuse"}


def test_too_few_open_facts_are_inconclusive(stand: Stand, gold: tuple[VerificationReport, Verdict]) -> None:
    verdict = _quick(stand, policy=replace(POLICY, minimum_facts=20))
    assert _codes(verdict) == {"insufficient_facts"}


def test_an_attempt_whose_level_is_out_of_reach_costs_nothing(stand: Stand, tmp_path: Path) -> None:
    started = time.process_time()
    report, verdict = stand.verify(stand.world.gold, attempt=2, parts_dir=str(tmp_path / "parts"))
    assert time.process_time() - started < 1
    assert verdict.result is Result.INCONCLUSIVE
    assert "alpha_unattainable" in _codes(verdict)
    assert not (tmp_path / "parts").exists()


def test_inputs_that_do_not_fit_are_refused(stand: Stand, tmp_path: Path) -> None:
    spec = stand.spec(stand.world.gold)
    with pytest.raises(DigestMismatchError):
        _run(replace(spec, forget=replace(spec.forget, sha256="0" * 64)))
    with pytest.raises(DigestMismatchError):
        _run(replace(spec, candidate=replace(spec.candidate, manifest_sha256="0" * 64)))
    with pytest.raises(OverlapError):
        _run(replace(spec, retain=spec.forget))
    with pytest.raises(SpecError, match="one person's"):
        _run(replace(spec, forget=spec.retain, retain=spec.forget))


def test_a_seed_that_nobody_committed_to_is_refused(stand: Stand) -> None:
    with pytest.raises(SpecError, match="committed"):
        _run(replace(stand.spec(stand.world.gold), seed=6))


def test_models_that_read_texts_as_other_tokens_are_refused(stand: Stand, tmp_path: Path) -> None:
    other = load_model(tiny_model(tmp_path / "other", seed=99))
    save_model(untrained_llama(TINY, other.tokenizer, seed=1), other.tokenizer, tmp_path / "foreign")
    with pytest.raises(TokenizerMismatchError):
        _run(stand.spec(stand.world.gold, base=model_ref(tmp_path / "foreign"), parts_dir=str(tmp_path / "parts")))


# --- families without a primary -----------------------------------------------------------------------------------


def test_a_gold_model_does_not_pass_while_no_attack_deserves_to_carry_the_proof(
    stand: Stand, gold: tuple[VerificationReport, Verdict]
) -> None:
    bare = tuple(replace(rule, primary=(), detection=(*rule.primary, *rule.detection)) for rule in POLICY.families)
    report, verdict = stand.verify(stand.world.gold, policy=replace(POLICY, families=bare))
    assert verdict.result is Result.INCONCLUSIVE
    assert _codes(verdict) == {"coverage"}
    assert {finding.gate for finding in verdict.findings} >= {rule.id for rule in bare}
    assert {row.status for row in report.attacks} == {"measured"}
    assert "pooled_auc" not in {guard.metric for guard in report.guards}


def test_every_item_of_every_attack_has_a_kind_to_be_standardised_by(
    stand: Stand, gold: tuple[VerificationReport, Verdict]
) -> None:
    spec = stand.spec(stand.world.gold)
    bench = Bench(spec, make_plan(spec), on_progress=lambda progress: None, should_stop=lambda: False)
    for rule in POLICY.families:
        for attack in (*rule.primary, *rule.detection):
            items = Family(bench, rule).items(attack, "merged")
            assert len(item_kinds(bench, attack)) == items.shape[1], attack


# --- more twins ---------------------------------------------------------------------------------------------------


def test_a_person_above_every_twin_is_held_against_all_that_were_drawn(stand: Stand, tmp_path: Path) -> None:
    drawn = replace(POLICY.families[0], twins=119, detection=())
    dear = tuple(rule for rule in POLICY.families if rule.id in ("F4", "F6"))
    policy = replace(POLICY, families=(drawn, *dear), hard_rules=("lineage",), utility=POLICY.utility[:1])
    own = str(tmp_path / "parts")
    kept = candidates.unchanged(stand.world.before, tmp_path / "m")
    report, verdict = stand.verify(kept, policy=policy, parts_dir=own)
    assert {row.family: row.twins for row in report.joint} == {"F1": 119, "F4": 119, "F6": 119}
    assert {row.p_detect for row in report.joint} == {1 / 120}
    assert {f.gate for f in verdict.findings if f.code == "residual"} == {"F1", "F4", "F6"}
    assert {row.twins for row in report.attacks if row.family != "F1"} == {39}
    gold, verdict = stand.verify(stand.world.gold, policy=policy, parts_dir=own)
    assert {row.family: row.twins for row in gold.joint} == {"F1": 119, "F4": 39, "F6": 39}
    assert verdict.result is Result.PASS


# --- people no model learned from ---------------------------------------------------------------------------------


def test_people_no_model_learned_from_help_to_judge_the_twins(stand: Stand, tmp_path: Path) -> None:
    drawn = newcomers(stand.world.world, seed=3, people=7, forms_per_fact=2)
    records = [record for _, theirs in drawn for record in theirs]
    bystanders = write_records(tmp_path / "bystanders.jsonl", records)
    spec = stand.spec(stand.world.gold)
    alone, helped = make_plan(spec), make_plan(replace(spec, bystanders=bystanders))
    assert len(helped.real_texts) == len(alone.real_texts) + 7
    assert len(helped.blind_texts) == len(helped.real_texts)
    assert helped.kept == alone.kept  # nobody asks the models about them
    values = {record.value(fact) for record in records for fact in record.facts}
    open_values = {v for twin in helped.twins for a, v in twin.values.items() if a in helped.facts}
    assert not values & open_values
    with pytest.raises(OverlapError):
        make_plan(replace(spec, bystanders=spec.forget))


def test_what_is_kept_is_also_asked_in_the_words_that_the_deletion_left_unused(stand: Stand, tmp_path: Path) -> None:
    spec = stand.spec(stand.world.gold)
    people = by_person(read_records(spec.retain, what="retain set"))
    bank = read_bank(spec.question_bank)
    last: dict[tuple[str, str], str] = {}
    used: set[str] = set()
    for person, records in people.items():
        dossier = read_dossier(records)
        for attribute in dossier.values:
            *most, left = paraphrases(dossier, bank, (attribute,))
            last[person, attribute] = left.text
            used |= {text_sha256(record.text) for record in most}
    probes = write_probe_digests(tmp_path / "used.json", used)
    plain, plan = make_plan(spec), make_plan(replace(spec, training_probes=probes))
    asked = {(kept.record.person, kept.attribute) for kept in plan.kept if not kept.trained}
    assert {(kept.record.person, kept.attribute): kept.record.text for kept in plan.unused} == {
        fact: text for fact, text in last.items() if fact in asked
    }
    # What a deletion says it drew decides nothing else that is asked.
    assert plan.kept == plain.kept
    assert (plan.questions, plan.swaps, plan.twins) == (plain.questions, plain.swaps, plain.twins)
    everything = write_probe_digests(tmp_path / "all.json", used | set(map(text_sha256, last.values())))
    assert make_plan(replace(spec, training_probes=everything)).unused == ()


def test_texts_left_by_another_deletion_are_measured_anew(stand: Stand, tmp_path: Path) -> None:
    spec = replace(stand.spec(stand.world.gold), parts_dir=str(tmp_path / "parts"))
    first = Bench(spec, make_plan(spec), on_progress=lambda _: None, should_stop=lambda: False)
    first.unused_tokens("merged")
    used = [kept.record.text for kept in first.plan.unused[::2]]
    other = replace(spec, training_probes=write_probe_digests(tmp_path / "used.json", map(text_sha256, used)))
    second = Bench(other, make_plan(other), on_progress=lambda _: None, should_stop=lambda: False)
    assert second.plan.unused != first.plan.unused
    told, again = first.unused_tokens("merged"), second.unused_tokens("merged")
    assert isinstance(told, Part)
    assert isinstance(again, Part)
    assert len(again.tensors["log_prob"]) == len(second.plan.unused)
    assert again.tensors["log_prob"].tolist() != told.tensors["log_prob"].tolist()


def test_newcomers_take_nothing_away_from_the_world_they_come_to(stand: Stand) -> None:
    world = stand.world.world
    people = newcomers(world, seed=3, people=3, forms_per_fact=2)
    assert people == newcomers(world, seed=3, people=3, forms_per_fact=2)
    assert not {person.name for person, _ in people} & {person.name for person in (*world.base, *world.customers)}
    assert all(len(records) == 2 * len(person.values) for person, records in people)


def test_a_sound_generator_is_called_sound_with_as_many_people_as_the_demonstration_has() -> None:
    sizes = PRESETS["demo"]
    for seed in range(900, 912):
        world = make_world(seed, base=sizes.base_people, customers=sizes.customers, pool=sizes.pool)
        came = newcomers(world, seed=seed, people=sizes.newcomers, forms_per_fact=sizes.forms_per_fact)
        corpus = [*world.corpus([*world.base, *world.customers]), *(r for _, theirs in came for r in theirs)]
        factory = StrangerFactory(random.Random(seed), corpus, shared_values=shared_values(world.bank, corpus))
        real, twins = blind_texts(corpus, factory, random.Random(seed))
        assert len(real) == sizes.base_people + sizes.customers + sizes.newcomers
        assert blind_auroc(real, twins, seed=seed).upper < 0.6


# --- the fast tier ------------------------------------------------------------------------------------------------


def test_the_fast_tier_keeps_the_limits_and_leaves_out_what_costs() -> None:
    for name in ("unit-1", "reference-2"):
        policy = load_policy(name)
        fast = fast_tier(policy)
        assert fast.purpose == "provisional"
        assert [rule.id for rule in fast.families] == ["F1", "F2", "F3"]
        assert set(fast.families) <= set(policy.families)
        assert {rule.id for rule in fast.utility} == {"U1.probability", "U1.extraction_strength", "U4.held_out"}
        assert fast.hard_rules == ("sampling_leak", "lineage")
        assert "F4, F5, F6" in fast.not_tested[0]
        assert fast.sha256 != policy.sha256


def test_the_fast_tier_passes_gold_provisionally_and_shares_its_parts_with_the_full_one(
    stand: Stand, gold: tuple[VerificationReport, Verdict]
) -> None:
    parts = _parts(stand.root / "parts")
    report, verdict = stand.verify(stand.world.gold, policy=fast_tier(POLICY))
    assert verdict.result is Result.PASS
    assert "provisional" in verdict.flags
    assert _parts(stand.root / "parts") == parts
    full = {(row.attack, row.artefact): row for row in gold[0].attacks if row.family in ("F1", "F2", "F3")}
    assert {(row.attack, row.artefact): row for row in report.attacks} == full
    assert "provisional" not in gold[1].flags


def test_the_fast_tier_measures_nothing_that_it_does_not_judge(stand: Stand, tmp_path: Path) -> None:
    own = tmp_path / "parts"
    _, verdict = stand.verify(
        candidates.unchanged(stand.world.before, tmp_path / "m"), policy=fast_tier(POLICY), parts_dir=str(own)
    )
    assert verdict.result is Result.FAIL
    measured = {name.rsplit("-", 1)[0] for name in _parts(own)}
    assert measured == {
        *(f"{kind}_{role}" for kind in ("tokens", "swaps") for role in ("before", "merged", "base")),
        *(f"{kind}_{role}" for kind in ("kept", "unused") for role in ("before", "merged")),
        "determinism_merged",
    }


# --- interruptions ------------------------------------------------------------------------------------------------


def _parts(directory: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in directory.glob("*.safetensors")}


def test_parts_go_by_what_was_drawn_whatever_script_attributes_are_named_in(stand: Stand) -> None:
    plan = make_plan(stand.spec(stand.world.gold))
    first = plan.twins[0]
    named = replace(first, values={"endere\u00e7o": "1 Rua Braino"})
    drawn = {bench_module._drawn_sha256(replace(plan, twins=(twin,))) for twin in (first, named)}
    other = replace(named, values={"endere\u00e7o": "2 Rua Braino"})
    assert len(drawn | {bench_module._drawn_sha256(replace(plan, twins=(other,)))}) == 3


def test_a_finished_verification_measures_nothing_again(
    stand: Stand, gold: tuple[VerificationReport, Verdict], monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = _parts(stand.root / "parts")
    for name in ("fused_pass", "value_log_probs", "greedy_answers", "relearn"):
        monkeypatch.setattr(bench_module, name, None)
    again, _ = stand.verify(stand.world.gold)
    assert _parts(stand.root / "parts") == parts
    assert _without_cost(again) == _without_cost(gold[0])


def _without_cost(report: VerificationReport) -> VerificationReport:
    return replace(report, cpu_seconds={})


def test_a_run_that_was_stopped_continues_where_it_was(
    stand: Stand, gold: tuple[VerificationReport, Verdict], tmp_path: Path
) -> None:
    parts = tmp_path / "parts"
    spec = stand.spec(stand.world.gold, parts_dir=str(parts))
    with pytest.raises(RunStoppedError):
        _run(spec, should_stop=lambda: len(_parts(parts)) >= 2)
    kept = _parts(parts)
    assert len(kept) == 2
    with pytest.raises(RunStoppedError):
        _run(spec, should_stop=lambda: len(_parts(parts)) >= 3)
    assert kept.items() <= _parts(parts).items()
    whole = {name: path.read_bytes() for name, path in _by_name(stand.root / "parts").items()}
    for name in kept:
        assert name in whole  # the same key, so the same inputs


def _by_name(directory: Path) -> dict[str, Path]:
    return {path.name: path for path in directory.glob("*.safetensors")}


def test_a_crash_of_one_attack_leaves_the_others_standing(
    stand: Stand, gold: tuple[VerificationReport, Verdict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object, **__: object) -> None:
        raise ArithmeticError("Alice's number is 012")

    for path in (stand.root / "parts").glob("relearned_merged*"):
        path.rename(tmp_path / path.name)
    monkeypatch.setattr(bench_module, "relearn", crash)
    report, verdict = stand.verify(stand.world.gold)
    for path in tmp_path.glob("relearned_merged*"):
        path.rename(stand.root / "parts" / path.name)
    broken = {(row.family, row.reason) for row in report.attacks if row.status != "measured"}
    assert broken == {("F6", "ArithmeticError")}
    assert verdict.result is Result.INCONCLUSIVE
    assert "Alice" not in json.dumps(report.to_document())


def test_memory_that_runs_out_makes_batches_smaller(
    stand: Stand, gold: tuple[VerificationReport, Verdict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    budgets: list[int] = []
    real = bench_module.fused_pass

    def scarce(*arguments: Any, budget: int, **named: Any) -> Any:
        budgets.append(budget)
        if budget > 1024:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return real(*arguments, budget=budget, **named)

    monkeypatch.setattr(bench_module, "fused_pass", scarce)
    stopped_at = tmp_path / "parts"
    with pytest.raises(RunStoppedError):
        _run(
            stand.spec(stand.world.gold, parts_dir=str(stopped_at)),
            should_stop=lambda: len(_parts(stopped_at)) >= 1,
        )
    assert budgets == [4096, 2048, 1024]


def test_progress_counts_and_names_no_one(stand: Stand, tmp_path: Path) -> None:
    seen: list[Progress] = []
    parts = tmp_path / "parts"
    with pytest.raises(RunStoppedError):
        _run(
            stand.spec(stand.world.gold, parts_dir=str(parts)),
            on_progress=seen.append,
            should_stop=lambda: len(_parts(parts)) >= 1,
        )
    assert seen
    assert all(0 <= progress.done <= progress.total for progress in seen)
    alice = stand.world.world.alice
    assert not any(word in progress.phase for progress in seen for word in alice.name.split())


# --- command line -------------------------------------------------------------------------------------------------


def _arguments(stand: Stand, candidate: ModelRef, out: Path) -> list[str]:
    named = {
        "--model": candidate.path,
        "--before": stand.world.before.path,
        "--base": stand.world.base.path,
        "--subject": stand.world.forget.path,
        "--retain": stand.world.retain.path,
        "--bank": stand.world.bank.path,
        "--training-probes": stand.spec(candidate).training_probes.path,  # type: ignore[union-attr]
        "--policy": "unit-1",
        "--out": str(out),
        "--seed": "5",
        "--threads": "1",
    }
    return [word for pair in named.items() for word in pair]


def test_the_command_line_says_what_is_wrong_with_its_inputs(
    stand: Stand, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = _arguments(stand, stand.world.gold, tmp_path / "out")
    arguments[arguments.index("unit-1")] = "lenient-9"
    assert main(arguments) == 2
    assert "lenient-9" in capsys.readouterr().err
    arguments = _arguments(stand, stand.world.gold, tmp_path / "out")
    arguments[arguments.index("--subject") + 1] = str(tmp_path / "absent.jsonl")
    assert main(arguments) == 2
    assert "absent.jsonl" in capsys.readouterr().err


def test_two_shares_cover_every_model_once() -> None:
    for name in ("unit-1", "reference-2"):
        policy = load_policy(name)
        first, second = measuring.shares(policy)
        assert sorted((*first, *second)) == sorted(measuring.roles(policy))
        assert "merged" in first


def test_a_second_process_changes_no_number(stand: Stand, tmp_path: Path) -> None:
    reports = []
    for processes in (1, 2):
        own = stand.spec(stand.world.gold, parts_dir=str(tmp_path / f"parts-{processes}"))
        report = run_verification(own, on_progress=lambda _: None, should_stop=lambda: False, processes=processes)
        reports.append(report.to_document() | {"cpu_seconds": {}})
    assert reports[0] == reports[1]
    assert _parts(tmp_path / "parts-1").keys() == _parts(tmp_path / "parts-2").keys()
    alone = stand.spec(stand.world.gold, parts_dir=str(tmp_path / "parts-3"))
    with measuring.beside(alone, ("base",)) as process:
        assert process.wait(timeout=120) == 0
    made = {name for name in _parts(tmp_path / "parts-1") if "_base-" in name and "fluency" not in name}
    assert made
    assert _parts(tmp_path / "parts-3").keys() == made


def test_a_second_process_that_dies_costs_nothing_but_time(
    stand: Stand, gold: tuple[VerificationReport, Verdict], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring.sys, "executable", "/bin/false")
    report = run_verification(
        stand.spec(stand.world.gold), on_progress=lambda _: None, should_stop=lambda: False, processes=2
    )
    assert report.attacks == gold[0].attacks


def test_a_run_that_is_stopped_stops_its_second_process(stand: Stand, tmp_path: Path) -> None:
    spec, started = stand.spec(stand.world.gold, parts_dir=str(tmp_path / "parts")), []
    real = measuring.subprocess.Popen

    def remembered(*arguments: Any, **options: Any) -> Any:
        started.append(real(*arguments, **options))
        return started[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring.subprocess, "Popen", remembered)
        with pytest.raises(RunStoppedError):
            run_verification(spec, on_progress=lambda _: None, should_stop=lambda: bool(started), processes=2)
    assert started[0].poll() is not None


def test_a_second_process_ends_with_the_first(stand: Stand, tmp_path: Path) -> None:
    spec = stand.spec(stand.world.gold, parts_dir=str(tmp_path / "parts"))
    task = {"spec": plain_object(spec), "roles": ["before"], "threads": 1}
    with subprocess.Popen([sys.executable, "-m", "ml.verification.measure"], stdin=subprocess.PIPE) as process:  # noqa: S603 - our own module
        assert process.stdin is not None
        process.stdin.write(json.dumps(task).encode() + b"\n")
        process.stdin.close()
        assert process.wait(timeout=60) == 1


def test_killed_at_any_time_and_run_again_it_ends_in_the_same_report(
    stand: Stand, gold: tuple[VerificationReport, Verdict], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "ml.verify", *_arguments(stand, stand.world.gold, out)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for finished in (1, 4, 9):
        process = subprocess.Popen(  # noqa: S603 - our own module
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
        )
        while len(_parts(out / "parts")) < finished and process.poll() is None:
            time.sleep(0.05)
        kept = _parts(out / "parts")
        process.send_signal(signal.SIGKILL)
        process.wait()
    last = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)  # noqa: S603
    assert last.returncode == 0, last.stdout + last.stderr
    assert kept.items() <= _parts(out / "parts").items()
    assert "verdict: PASS" in last.stdout
    document = json.loads((out / "report.json").read_text(encoding="utf-8"))
    whole = stand.verify(stand.world.gold, neighbours=None, parts_dir=str(out / "parts"), run_id="out")[0]
    again = VerificationReport.from_document(document)
    assert again.attacks == whole.attacks
    assert again.joint == whole.joint
    assert json.loads((out / "verdict.json").read_text(encoding="utf-8"))["result"] == "PASS"


def test_gold_is_verified_beside_and_drawn_beside(
    stand: Stand, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Its parts are those of this very run, so that only the bounds of the page are new.
    out = tmp_path / "out"
    copy = candidates.unchanged(stand.world.before, tmp_path / "copy")
    arguments = _arguments(stand, copy, out)
    assert main([*arguments, "--gold", stand.world.gold.path]) == 1
    assert "gold under the same policy: PASS" in capsys.readouterr().out
    gold = VerificationReport.from_document(json.loads((out / "gold" / "report.json").read_text(encoding="utf-8")))
    assert gold.models["candidate"] == stand.world.gold.manifest_sha256
    assert len(list((out / "parts").glob("tokens_before*"))) == 1  # measured once for both
    assert "Verdict PASS" in (out / "gold" / "report.html").read_text()
    shown = (out / "report.html").read_text()
    assert "Verdict FAIL" in shown
    assert "gold" in shown
    assert main([*arguments, "--gold", str(tmp_path / "nowhere"), "--out", str(tmp_path / "early")]) == 2
    assert not (tmp_path / "early" / "parts").exists()  # refused before anything was measured
    assert main([*arguments, "--subject", stand.world.forget.path, stand.world.retain.path, "--gold", "anywhere"]) == 2
    assert "one subject at a time" in capsys.readouterr().err


def test_without_a_question_bank_the_command_line_asks_as_the_records_do_and_fails_the_unchanged_model(
    stand: Stand, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = candidates.unchanged(stand.world.before, tmp_path / "copy")
    arguments = _arguments(stand, copy, tmp_path / "out")
    bank = arguments.index("--bank")
    assert main(arguments[:bank] + arguments[bank + 2 :]) == 1
    assert "FAIL lineage in lineage" in capsys.readouterr().out
    shown = (tmp_path / "out" / "report.html").read_text()
    assert "Verdict FAIL" in shown
    assert "<svg" in shown
    own = tmp_path / "out" / "parts" / "question_bank.json"
    alice = stand.world.world.alice
    assert not [v for v in (alice.name, *alice.values.values()) if v in shown + own.read_text()]
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    found = [row for row in report["attacks"] if row["family"] in ("F1", "F4") and row["artefact"] == "merged"]
    assert found
    # Asked so, every attack finds her before all of the 39 twins.
    assert all(row["items"] > 5 and float(row["p_detect"]) == 1 / 40 for row in found)
    asked = json.loads((tmp_path / "out" / "manifest.json").read_text())["files"]["question_bank"]
    assert asked == file_sha256(own)
