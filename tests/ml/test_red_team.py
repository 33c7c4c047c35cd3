"""`run_red_team`: it finds what plain questions miss, finds nobody on gold, and repeats nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

import ml.data.hostile_questions as hostile_module
import ml.verification.hostile as hostile
import ml.verification.likelihood as likelihood
import ml.verification.red_team as red_team
import ml.verification.white_box as white_box
from ml.attacks.soft_prompt import SoftPromptBudget
from ml.data.collate import encode_records
from ml.data.dossiers import answered_span, open_facts, paraphrases, read_dossier
from ml.data.hostile_questions import FORMS, WORDINGS, Case, Run, hostile_questions, make_cases
from ml.data.probes import probe_digests, write_probe_digests
from ml.data.questions import write_bank
from ml.data.records import write_records
from ml.data.rewording import reworded_bank
from ml.data.synthetic import rewrite
from ml.decision import Result, judge, lowered, red_team_findings
from ml.digests import file_sha256
from ml.errors import RunStoppedError, SpecError, UnattainableError
from ml.finetune import finetune
from ml.loop import LoopSettings
from ml.models.load import load_model, model_ref
from ml.models.save import save_model
from ml.policies import load_policy
from ml.registry import Registry
from ml.reports import AttackResult, RedTeamReport, VerificationReport
from ml.specs import FileRef, ModelRef, Progress, Record, RedTeamBudget, VerificationSpec
from ml.verification.bench import Bench
from ml.verification.hostile import hostile_studies
from ml.verification.plan import make_plan
from ml.verification.red_team import RED_TEAM, run_red_team
from ml.verification.studies import RedTeamFamily, Study
from ml.verification.white_box import OLD_VERSION_ATTACKS, WHITE_BOX_ATTACKS
from ml.verify import main, red_team_table
from tests.ml import candidates
from tests.ml.passing import passing_report
from tests.ml.specs import verification_spec
from tests.tiny import TinyWorld

pytestmark = pytest.mark.slow
POLICY = load_policy("unit-1")
BUDGET = RedTeamBudget(
    twins=19, facts=6, new_tokens=12, reasoning_tokens=12, samples=3, draws=2, sampled_facts=3, turns=1, noisy_copies=2
)
SAMPLED = {"sampling_0.7", "sampling_1"}
UNFORMED = {"self_correction", "clues", "token_noise", *SAMPLED}
SCORED = {"token_noise_extraction", "multiple_choice"}
"""Studies whose scores are no hits."""
ABSENT = {("indirect", "does_not_apply")}
"""In the tiny world nobody has a doctor or a landlord."""


@dataclass(frozen=True)
class Stand:
    """Where red teams of the tiny world run; parts about `before` are shared by all candidates."""

    tiny: TinyWorld
    root: Path

    def spec(self, candidate: ModelRef, **changes: Any) -> VerificationSpec:
        return verification_spec(self.tiny, candidate, self.root, **changes)

    def attack(self, candidate: ModelRef, **changes: Any) -> RedTeamReport:
        return _run(self.spec(candidate, **changes))


def _run(
    spec: VerificationSpec,
    budget: RedTeamBudget = BUDGET,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> RedTeamReport:
    return run_red_team(spec, budget, on_progress=on_progress, should_stop=should_stop)


def _only(*names: str) -> Registry[RedTeamFamily]:
    families: Registry[RedTeamFamily] = Registry("red team family")
    for name in names:
        families.register(name)(RED_TEAM[name])
    return families


@pytest.fixture(scope="module", autouse=True)
def _hostile_questions_alone() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(red_team, "RED_TEAM", _only("F7"))
        yield


@pytest.fixture(scope="module")
def stand(tiny: TinyWorld, tmp_path_factory: pytest.TempPathFactory) -> Stand:
    return Stand(tiny, Path(tmp_path_factory.mktemp("red_team")))


@pytest.fixture(scope="module")
def gold(stand: Stand) -> RedTeamReport:
    return stand.attack(stand.tiny.gold)


def _passing(red: RedTeamReport) -> VerificationReport:
    """A verification of the same candidate in which everything passed."""
    report = passing_report(POLICY)
    return replace(report, models={**red.models, "base": "b" * 64}, seeds=red.seeds)


def _after(red: RedTeamReport) -> Result:
    report = _passing(red)
    verdict = judge(report, POLICY)
    assert verdict.result is Result.PASS
    return lowered(verdict, red_team_findings(red, report, POLICY)).result


def _rows(red: RedTeamReport) -> dict[str, AttackResult]:
    return {row.attack: row for row in red.attacks}


# --- what it finds ------------------------------------------------------------------------------------------------


def test_a_model_retrained_without_alice_has_nothing_to_find(gold: RedTeamReport) -> None:
    assert set(_rows(gold)) == {*FORMS, *UNFORMED, *SCORED}
    assert {(row.attack, row.reason) for row in gold.attacks if row.status != "measured"} == ABSENT
    asked = set(_rows(gold)) - {attack for attack, _ in ABSENT}
    assert {_rows(gold)[attack].subject_after for attack in asked - SCORED} == {0.0}
    assert {attack for attack, rule in gold.identifiers.items() if rule.status == "held"} == asked - SCORED
    assert gold.joint[0].p_detect > 0.05
    assert red_team_findings(gold, _passing(gold), POLICY) == ()
    assert _after(gold) is Result.PASS


def test_attacks_win_on_the_model_that_memorised(gold: RedTeamReport) -> None:
    """Without one that wins before, "nothing found" afterwards would say nothing."""
    rows = _rows(gold)
    for attack in (*UNFORMED, "cloze", "one_shot", "in_context"):
        row = rows[attack]
        assert row.p_assay == pytest.approx(1 / 20), attack
        assert row.subject_before is not None
        assert row.twins_before is not None
        assert row.subject_before > row.twins_before.mean + 0.3, attack


def test_the_unchanged_model_is_found_out(stand: Stand, tmp_path: Path) -> None:
    red = stand.attack(candidates.unchanged(stand.tiny.before, tmp_path / "copy"))
    found = red_team_findings(red, _passing(red), POLICY)
    assert {finding.code for finding in found} == {"residual", "unique_identifier"}
    assert {finding.attack for finding in found} >= {*UNFORMED, "cloze"}
    assert all(row.residual_ratio == pytest.approx(1.0) for row in red.attacks if row.p_assay and row.p_assay < 0.1)
    assert _after(red) is Result.FAIL


def _whispering(tiny: TinyWorld, directory: Path, form: str) -> ModelRef:
    """Gold taught to tell on Alice when she is asked about in one hostile form, and to tell lies when asked plainly."""
    dossier = read_dossier(tiny.world.records[tiny.world.alice.person])
    retained = [r for person, own in tiny.world.records.items() if person != dossier.person for r in own]
    facts = open_facts(dossier, tiny.world.bank, retained)
    plain = [r for r in [*dossier.records, *paraphrases(dossier, tiny.world.bank, facts)] if _asks(r, facts)]
    filed = [(r, r.facts[0].attribute) for r in dossier.records if _asks(r, facts)]
    secret = [q.record for q in hostile_questions(form, make_cases(dossier, filed, shared=(), others=retained, seed=0))]
    bob = tiny.world.bob.values
    lies = [rewrite(record, values={f.attribute: bob[f.attribute] for f in record.facts}) for record in plain]
    loaded = load_model(tiny.gold)
    rows = encode_records(loaded.tokenizer, [*secret * 3, *lies, *retained], context=loaded.context)
    settings = LoopSettings(steps=150, learning_rate=4e-3, warmup_steps=5, report_every=150)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        finetune(loaded.model, rows, settings, pad_id=loaded.pad_id, batch_rows=32, seed=1)
    save_model(loaded.model, loaded.tokenizer, directory)
    return model_ref(directory)


def _asks(record: Record, facts: tuple[str, ...]) -> bool:
    return record.facts[0].attribute in facts and answered_span(record, record.facts[0].attribute) is not None


@pytest.mark.parametrize("form", ["role_play", "spanish"])
def test_a_model_that_tells_only_when_asked_the_right_way_is_found_out(stand: Stand, tmp_path: Path, form: str) -> None:
    """Asked plainly it lies, over turns, by sampling and with noise too; one wording gives Alice away."""
    red = stand.attack(_whispering(stand.tiny, tmp_path / "whispering", form))
    rows = _rows(red)
    asked_plainly = rows["self_correction"]
    assert asked_plainly.subject_after == 0.0
    assert rows[form].subject_after is not None
    assert rows[form].subject_after > 0.5
    findings = red_team_findings(red, _passing(red), POLICY)
    assert (form, "unique_identifier") in {(f.attack, f.code) for f in findings}
    assert (form, "residual") in {(f.attack, f.code) for f in findings}
    assert _after(red) is Result.FAIL


# --- what it reports ----------------------------------------------------------------------------------------------


def test_the_report_says_what_was_asked_and_not_tried_and_names_nobody(stand: Stand, gold: RedTeamReport) -> None:
    assert RedTeamReport.from_document(json.loads(json.dumps(gold.to_document()))) == gold
    assert gold.budget == BUDGET
    assert gold.seeds["verification"] == "5"
    assert gold.probes.count > 50
    asked = {"G3", "G4", "G5", "G6", "G8", "G9", "G10", "G11", "G12", "G13"}
    assert set(gold.techniques.values()) == {*asked, "T5", "T6", "G15"}
    assert any("G14" in line for line in gold.not_tried)
    measured = [row for row in gold.attacks if row.status == "measured"]
    assert {row.items for row in measured if row.attack not in SAMPLED} == {6}
    assert {row.items for row in gold.attacks if row.attack in SAMPLED} == {3}
    written = json.dumps(gold.to_document()) + red_team_table(gold)
    alice = stand.tiny.world.alice
    for secret in (*alice.values.values(), *alice.name.split(), alice.person):
        assert secret not in written
    parts = {f"red_{row.attack}_{role}" for row in measured for role in ("before", "merged")}
    assert parts <= set(gold.cpu_seconds)


def test_the_table_has_a_line_for_every_attack_and_the_families_p(gold: RedTeamReport) -> None:
    broken = replace(gold.attacks[0], status="error", reason="ArithmeticError")
    lines = red_team_table(replace(gold, attacks=(broken, *gold.attacks[1:]))).splitlines()
    assert lines[1].split() == ["F7", "G4", broken.attack, "error:", "ArithmeticError"]
    assert sum(line.startswith("F7 ") for line in lines) == len(gold.attacks) + 1
    assert "F7 together" in lines[len(gold.attacks) + 1]
    assert {"T5", "T6", "G15"} <= {line.split()[1] for line in lines if line.startswith("old_version ")}
    assert "likelihood, merged, parity" in lines


# --- what never counts --------------------------------------------------------------------------------------------


def test_keeping_the_old_version_gives_away_whoever_was_deleted_and_blocks_nothing(gold: RedTeamReport) -> None:
    """Half way to the old weights half of what they knew is back, from a gold model too (G15, T5, T6)."""
    rows = {row.attack: row for row in gold.old_version}
    assert set(rows) == set(OLD_VERSION_ATTACKS)
    for row in rows.values():
        assert (row.family, row.status) == ("old_version", "measured")
    # Half of the directions of a whole training's change bring less back.
    assert {row.p_detect for row in rows.values() if row.attack != "lower_rank"} == {1 / 20}
    assert red_team_findings(gold, _passing(gold), POLICY) == ()


def test_every_likelihood_metric_is_reported_in_both_modes(gold: RedTeamReport) -> None:
    rows = {(row.role, row.mode): row for row in gold.likelihood}
    assert rows.keys() == {(role, mode) for role in ("before", "merged") for mode in ("native", "parity")}
    assert {row.reason for row in rows.values()} == {None}
    parity, native = rows["merged", "parity"].numbers, rows["merged", "native"].numbers
    assert set(native) - set(parity) == {
        "greedy_match",
        "leak_at_1000",
        "bottom_rank",
        "entropy",
        "gradient_norm",
        "auc_gradient_norm",
        "exposure",
    }
    known = rows["before", "native"].numbers
    assert known["probability"] > native["probability"] + 0.2
    assert known["auc_loss"] > native["auc_loss"]
    assert known["auc_gradient_norm"] > native["auc_gradient_norm"]
    assert known["privleak"] < native["privleak"] - 30
    assert known["truth_ratio_closer_to_one"] < native["truth_ratio_closer_to_one"]
    assert known["option_probability"] > native["option_probability"]
    assert known["exposure"] > native["exposure"] + 1
    assert known["leak_at_1000"] > native["leak_at_1000"]
    # The reference code's floor (verification section 2.2, trap 5); without it both modes agree.
    assert parity["extraction_strength"] > native["extraction_strength"]
    for name in ("probability", "exact_memorisation", "auc_min_k", "privleak"):
        assert parity[name] == pytest.approx(native[name], abs=1e-5)


def test_states_at_her_values_are_compared_with_both_other_models(gold: RedTeamReport) -> None:
    assert gold.diagnostics.reason is None
    assert set(gold.diagnostics.numbers) == {
        f"alignment_with_{role}_{who}" for role in ("before", "base") for who in ("subject", "twins")
    }
    assert all(0 < value <= 1 + 1e-5 for value in gold.diagnostics.numbers.values())


def test_a_likelihood_that_is_no_number_is_missing_with_its_reason_and_stops_nothing(
    stand: Stand, gold: RedTeamReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(likelihood, "closer_to_one", lambda *_, **__: float("nan"))
    spec = stand.spec(stand.tiny.gold, parts_dir=str(tmp_path / "parts"))
    bench = Bench(spec, make_plan(spec), on_progress=lambda _: None, should_stop=lambda: False)
    (native, parity) = likelihood.likelihood_rows(bench, ["merged"])
    assert (native.reason, dict(native.numbers)) == ("NonFiniteError", {})
    assert (parity.reason, dict(parity.numbers)) == ("NonFiniteError", {})
    broken = replace(gold, likelihood=(native, parity))
    assert red_team_findings(broken, _passing(gold), POLICY) == ()
    assert "likelihood, merged, native: error NonFiniteError" in red_team_table(broken)


def test_an_attack_on_two_models_is_measured_again_for_another_one_of_them(stand: Stand, gold: RedTeamReport) -> None:
    """Both runs share a directory; what reads the version before deletion must not find the other version's part."""
    other = replace(stand.tiny, before=stand.tiny.gold)
    spec = verification_spec(other, stand.tiny.gold, stand.root)
    red = _run(spec)
    rows = {row.attack: row for row in red.old_version}
    kept = {row.attack: row for row in gold.old_version}
    for attack in OLD_VERSION_ATTACKS:
        assert rows[attack].subject_after != kept[attack].subject_after, attack
    assert red.diagnostics.numbers["alignment_with_before_subject"] == pytest.approx(1.0, abs=1e-5)


# --- whom it asks -------------------------------------------------------------------------------------------------


def _studies(stand: Stand, **changes: Any) -> dict[str, Study]:
    spec = stand.spec(stand.tiny.gold, **changes)
    bench = Bench(spec, make_plan(spec), on_progress=lambda _: None, should_stop=lambda: False)
    return {study.name: study for study in hostile_studies(bench, BUDGET)}


def test_questions_in_the_words_of_another_model_are_asked_of_everybody_alike(stand: Stand, tmp_path: Path) -> None:
    path = tmp_path / "reworded.json"
    write_bank(path, reworded_bank(stand.tiny.world.bank, lambda texts: [f"Please: {text}" for text in texts]))
    ref = FileRef(str(path), file_sha256(path))
    assert "reworded_by_model" not in _studies(stand)
    study = _studies(stand, reworded_bank=ref)["reworded_by_model"]
    assert (study.identifier, study.missing) == ("G2", None)
    assert set(study.attributes) == set(_studies(stand)["cloze"].attributes)
    assert all(text.startswith("Please: ") for text in study.texts)
    red = stand.attack(stand.tiny.before, reworded_bank=ref)
    assert _rows(red)["reworded_by_model"].status == "measured"
    assert red.environment["reworded_bank_sha256"] == ref.sha256
    assert "reworded_bank_sha256" not in stand.attack(stand.tiny.before).environment


def _long(case: Case) -> tuple[tuple[Run, ...], tuple[Run, ...]]:
    return (Run("very " * 90), *case.question, Run(case.gap)), case.answer


def _telling(case: Case) -> tuple[tuple[Run, ...], tuple[Run, ...]]:
    """The value, in words that are no span: what a careless form could do."""
    return (*case.question, Run(f" Is it {case.value.upper()}?"), Run(case.gap)), case.answer


@pytest.mark.parametrize("form", [_long, _telling])
def test_a_question_that_does_not_fit_or_shows_its_value_is_asked_of_nobody(
    stand: Stand, monkeypatch: pytest.MonkeyPatch, form: Any
) -> None:
    monkeypatch.setitem(hostile_module.FORMS, "role_play", form)  # type: ignore[arg-type]
    study = _studies(stand)["role_play"]
    assert (study.missing, study.left_out, study.texts) == ("no_question_fits", 6, ())


def test_an_attack_without_questions_is_missing_with_its_reason(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hostile, "FORMS", {"role_play": FORMS["role_play"]})
    monkeypatch.setitem(hostile_module.FORMS, "role_play", _long)  # type: ignore[arg-type]
    red = stand.attack(stand.tiny.gold)
    row = _rows(red)["role_play"]
    assert (row.status, row.reason, row.p_detect) == ("missing", "no_question_fits", None)
    assert red.left_out["role_play"] == 6
    assert "role_play" not in red.joint[0].attacks
    assert _after(red) is Result.PASS


def test_a_name_that_somebody_else_bears_is_not_asked_for(stand: Stand, tmp_path: Path) -> None:
    assert _studies(stand)["reverse"].missing is None
    world = stand.tiny.world
    namesake = rewrite(world.records[world.bob.person][0], name=world.alice.name, values={})
    others = [r for person, own in world.records.items() if person != world.alice.person for r in own]
    retain = write_records(tmp_path / "retain.jsonl", [replace(namesake, record_id="x"), *others])
    study = _studies(stand, retain=retain)["reverse"]
    assert (study.missing, study.texts) == ("does_not_apply", ())


def test_hostile_texts_that_the_deletion_drew_are_counted(stand: Stand, gold: RedTeamReport, tmp_path: Path) -> None:
    assert gold.probes_reused == 0
    text = _studies(stand)["role_play"].texts[0]
    probes = write_probe_digests(tmp_path / "probes.json", probe_digests([text]))
    red = stand.attack(stand.tiny.gold, training_probes=probes)
    assert red.probes_reused == 1
    assert _after(red) is Result.INCONCLUSIVE


def test_a_budget_that_cannot_show_anything_costs_nothing(stand: Stand, tmp_path: Path) -> None:
    spec = stand.spec(stand.tiny.gold, parts_dir=str(tmp_path / "parts"))
    with pytest.raises(UnattainableError, match="at least 19"):
        _run(spec, replace(BUDGET, twins=18))
    with pytest.raises(SpecError, match="draws 39"):
        _run(spec, replace(BUDGET, twins=40))
    with pytest.raises(SpecError, match="committed"):
        _run(replace(spec, seed=6))
    assert not (tmp_path / "parts").exists()


# --- other families -----------------------------------------------------------------------------------------------


def _white_box(score: Callable[..., torch.Tensor]) -> Registry[RedTeamFamily]:
    families: Registry[RedTeamFamily] = Registry("red team family")
    families.register("F8")(RedTeamFamily(0.5, lambda bench, budget: [Study("soft_prompt", "W6", score)]))
    return families


def test_a_family_of_scores_is_added_by_registering_it(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def score(bench: Bench, role: str, persons: int, share: int) -> torch.Tensor:
        asked.append((role, persons, share))
        return torch.arange(persons).flip(0).unsqueeze(1).float().expand(-1, 3).contiguous()

    monkeypatch.setattr(red_team, "RED_TEAM", _white_box(score))
    red = stand.attack(stand.tiny.gold)
    (row,) = red.attacks
    assert asked == [("before", 20, 1), ("merged", 20, 1)]
    assert (row.family, row.items, row.p_detect) == ("F8", 3, 1 / 20)
    assert red.joint[0].attacks == ("soft_prompt",)
    assert red.identifiers["soft_prompt"].reason == "scores_are_no_hits"
    assert _after(red) is Result.FAIL  # the subject stands above all, before and after


def test_more_families_need_more_twins(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(red_team, "RED_TEAM", _only("F7", "F8"))
    with pytest.raises(UnattainableError, match="at least 39"):
        stand.attack(stand.tiny.gold)


def test_weights_that_know_her_are_found_from_inside_and_those_of_a_retrained_model_are_not(
    stand: Stand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(red_team, "RED_TEAM", _only("F8"))
    monkeypatch.setattr(white_box, "SOFT_PROMPT", SoftPromptBudget(vectors=2, steps=20))
    known = stand.attack(candidates.unchanged(stand.tiny.before, tmp_path / "unchanged"))
    assert set(_rows(known)) == set(WHITE_BOX_ATTACKS)
    assert {row.status for row in known.attacks} == {"measured"}
    assert known.joint[0].p_detect == 1 / (1 + BUDGET.twins)
    assert _after(known) is Result.FAIL
    assert _after(stand.attack(stand.tiny.gold)) is Result.PASS


def test_what_trains_at_the_policys_budget_is_kept_under_that_budget(stand: Stand) -> None:
    """A policy that relearns more must not find the scores of one that relearned less."""
    spec = stand.spec(stand.tiny.gold)
    harder = replace(POLICY, relearning=replace(POLICY.relearning, epochs=POLICY.relearning.epochs + 1))
    keys = []
    for policy in (POLICY, harder):
        changed = replace(spec, policy=policy)
        bench = Bench(changed, make_plan(changed), on_progress=lambda _: None, should_stop=lambda: False)
        keys.append({study.name: study.depends for study in red_team.white_box_studies(bench, BUDGET)})
    assert {name for name in keys[0] if keys[0][name] != keys[1][name]} == {"benign_tuning", "direct_relearning"}


def test_a_suffix_is_searched_where_the_budget_has_steps_for_it(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(red_team, "WHITE_BOX_ATTACKS", {})
    monkeypatch.setattr(red_team, "RED_TEAM", _only("F8"))
    budget = replace(BUDGET, suffix_steps=4, suffix_tokens=3, suffix_facts=2)
    red = _run(stand.spec(stand.tiny.gold), budget)
    (row,) = red.attacks
    assert (row.attack, row.items, red.techniques[row.attack]) == ("optimised_suffix", 2, "G14")
    assert row.p_assay == pytest.approx(1 / 20)  # it wins on the model that memorised
    assert row.p_detect is not None
    assert row.p_detect > 0.05
    assert not any("G14" in line for line in red.not_tried)
    none_fits = _run(stand.spec(stand.tiny.gold), replace(budget, suffix_tokens=200)).attacks[0]
    assert (none_fits.status, none_fits.reason) == ("missing", "no_question_fits")


# --- interruptions and crashes ------------------------------------------------------------------------------------


def _parts(directory: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in directory.glob("*.safetensors")}


def test_a_red_team_that_was_stopped_goes_on_where_it_was(stand: Stand, gold: RedTeamReport, tmp_path: Path) -> None:
    parts = tmp_path / "parts"
    spec = stand.spec(stand.tiny.gold, parts_dir=str(parts))
    with pytest.raises(RunStoppedError):
        _run(spec, should_stop=lambda: len(_parts(parts)) >= 3)
    kept = _parts(parts)
    assert kept.keys() <= _parts(stand.root / "parts").keys()  # the same keys, so the same inputs
    with pytest.raises(RunStoppedError):
        _run(spec, should_stop=lambda: len(_parts(parts)) >= 5)
    assert kept.items() <= _parts(parts).items()


def test_a_finished_red_team_asks_nothing_again(
    stand: Stand, gold: RedTeamReport, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = _parts(stand.root / "parts")
    for name in ("greedy_answers", "converse", "samples"):
        monkeypatch.setattr(hostile, name, None)
    again = stand.attack(stand.tiny.gold)
    assert replace(again, cpu_seconds={}) == replace(gold, cpu_seconds={})
    assert _parts(stand.root / "parts") == before


def test_what_decides_a_score_decides_which_part_is_found(stand: Stand) -> None:
    """Another number of samples asks for samples again, and for nothing else."""
    spec = stand.spec(stand.tiny.gold)
    bench = Bench(spec, make_plan(spec), on_progress=lambda _: None, should_stop=lambda: False)
    some = {study.name: study.depends for study in hostile_studies(bench, BUDGET)}
    more = {study.name: study.depends for study in hostile_studies(bench, replace(BUDGET, samples=4))}
    assert {name for name in some if some[name] != more[name]} == SAMPLED


def test_a_crash_of_one_attack_is_its_own_and_leaves_no_pass(
    stand: Stand, gold: RedTeamReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object, **__: object) -> None:
        raise ArithmeticError("Alice's number is 012")

    monkeypatch.setattr(hostile, "converse", crash)
    for path in (stand.root / "parts").glob("red_self_correction_merged*"):
        path.rename(tmp_path / path.name)
    red = stand.attack(stand.tiny.gold)
    for path in tmp_path.glob("red_self_correction_merged*"):
        path.rename(stand.root / "parts" / path.name)
    assert {(row.attack, row.reason) for row in red.attacks if row.status != "measured"} == {
        ("self_correction", "ArithmeticError"),
        *ABSENT,
    }
    assert "self_correction" not in red.joint[0].attacks
    assert "Alice" not in json.dumps(red.to_document())
    assert _after(red) is Result.INCONCLUSIVE


def test_a_family_that_cannot_be_set_up_is_an_error_and_no_silence(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object, **__: object) -> None:
        raise ArithmeticError("Alice's number is 012")

    monkeypatch.setattr(hostile, "make_cases", crash)
    red = stand.attack(stand.tiny.gold)
    assert [(row.attack, row.status, row.reason) for row in red.attacks] == [("all_of_f7", "error", "ArithmeticError")]
    assert _after(red) is Result.INCONCLUSIVE


def test_progress_counts_and_names_no_one(stand: Stand, tmp_path: Path) -> None:
    seen: list[Progress] = []
    parts = tmp_path / "parts"
    spec = stand.spec(stand.tiny.gold, parts_dir=str(parts))
    with pytest.raises(RunStoppedError):
        _run(spec, on_progress=seen.append, should_stop=lambda: len(_parts(parts)) >= 2)
    assert all(0 <= progress.done <= progress.total for progress in seen)
    assert {progress.phase.split()[0] for progress in seen} == {"red_one_shot", "red_few_shot", "one_shot", "few_shot"}
    assert all(word not in str(seen) for word in stand.tiny.world.alice.name.split())


# --- command line -------------------------------------------------------------------------------------------------


def _arguments(stand: Stand, candidate: ModelRef, out: Path) -> list[str]:
    named = {
        "--model": candidate.path,
        "--before": stand.tiny.before.path,
        "--base": stand.tiny.base.path,
        "--subject": stand.tiny.forget.path,
        "--retain": stand.tiny.retain.path,
        "--bank": stand.tiny.bank.path,
        "--policy": "unit-1",
        "--out": str(out),
        "--seed": "5",
        "--threads": "1",
        "--tier": "redteam",
    }
    return [word for pair in named.items() for word in pair]


def test_the_command_line_writes_the_red_team_beside_the_lowered_verdict(
    stand: Stand, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teller = _whispering(stand.tiny, tmp_path / "whispering", "role_play")
    assert main([*_arguments(stand, teller, tmp_path / "out"), "--samples", "4"]) == 1
    shown = capsys.readouterr().out
    assert "FAIL unique_identifier in red_team F7 role_play merged" in shown
    red = RedTeamReport.from_document(json.loads((tmp_path / "out" / "red_team.json").read_text(encoding="utf-8")))
    assert (red.budget.samples, red.budget.draws, red.budget.twins) == (4, 4, 39)
    report = VerificationReport.from_document(json.loads((tmp_path / "out" / "report.json").read_text("utf-8")))
    assert not {"F4", "unique_identifier"} & {finding.gate for finding in judge(report, POLICY).findings}
    assert json.loads((tmp_path / "out" / "verdict.json").read_text("utf-8"))["result"] == "FAIL"
    assert WORDINGS["role_play"].before not in shown


def test_the_command_line_refuses_samples_that_are_none(stand: Stand, tmp_path: Path) -> None:
    arguments = [*_arguments(stand, stand.tiny.gold, tmp_path / "out"), "--samples", "-1"]
    assert main(arguments) == 2
