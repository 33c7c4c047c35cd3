"""A sealed twin pool: people of one schema share twins, words and swaps; nobody's verdict moves, and reports say so."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ml.verification.bench as bench_module
from ml.attacks.attack import ATTACKS
from ml.cohort_reports import CohortReport, MissingBound
from ml.data.dossiers import normal_value, read_dossier, shared_values
from ml.data.records import write_records
from ml.data.synthetic import Stranger, StrangerFactory, twin_records
from ml.decision import Result, judge
from ml.digests import canonical_json, file_sha256
from ml.errors import MlError, OverlapError, PoolMismatchError, RunStoppedError, SpecError
from ml.loop import ignore_progress, never_stop
from ml.manifest import FoundInputs
from ml.policies import load_policy
from ml.reports import VerificationReport
from ml.reproduction import compare_reports
from ml.specs import FactSpan, FileRef, ModelRef, Record, VerdictPolicy, VerificationSpec, seed_commitment
from ml.verification.cohort import cohort_report
from ml.verification.families import Family
from ml.verification.parts import Failure
from ml.verification.plan import Plan
from ml.verification.pooled import SubjectBench
from ml.verification.tiers import fast_tier
from ml.verification.twin_pool import TwinPool, draw_pool, pattern_of, plan_for, pool_plans, read_pool, write_pool
from ml.verify import main, run_cohort, run_manifest, run_verification, run_verifications
from tests.ml import candidates
from tests.ml.specs import verification_spec
from tests.tiny import TinyWorld

pytestmark = pytest.mark.slow
# Every kind of measurement of unit-1, with less of each: what is tested here is that subjects share them.
_UNIT = load_policy("unit-1")
POLICY = replace(
    _UNIT,
    generation_prompts=18,
    families=tuple(replace(rule, artefacts=tuple(a for a in rule.artefacts if a != "int8")) for rule in _UNIT.families),
    relearning=replace(_UNIT.relearning, epochs=3),
)


@dataclass(frozen=True)
class Stand:
    """Alice, whom `before` learned, and two people of whom the same is on file in the same words, whom nobody learned.

    `people` are their records, Alice's first; `root` keeps files and parts.
    """

    world: TinyWorld
    root: Path
    people: tuple[tuple[Record, ...], ...]

    def spec(self, candidate: ModelRef, number: int, **changes: Any) -> VerificationSpec:
        """The verification of one of them."""
        fixed: dict[str, Any] = {
            "run_id": f"run-{number}",
            "policy": POLICY,
            "forget": self.records(self.people[number], f"person-{number}"),
            "neighbours": None,
        }
        return verification_spec(self.world, candidate, self.root, **(fixed | changes))

    def specs(self, candidate: ModelRef | None = None, **changes: Any) -> list[VerificationSpec]:
        """The verifications of all of them, with the pool they share drawn and sealed."""
        specs = [self.spec(candidate or self.world.gold, number, **changes) for number in range(len(self.people))]
        return sealed(specs, self.root / "pool.json")

    def records(self, records: Sequence[Record], name: str) -> FileRef:
        """Records as a snapshot."""
        return write_records(self.root / f"{name}.jsonl", records)


def sealed(specs: Sequence[VerificationSpec], path: Path) -> list[VerificationSpec]:
    pool = write_pool(path, draw_pool(specs))
    return [replace(spec, twin_pool=pool) for spec in specs]


def verify(specs: Sequence[VerificationSpec], should_stop: Any = never_stop) -> tuple[VerificationReport, ...]:
    return run_verifications(specs, on_progress=ignore_progress, should_stop=should_stop)


@pytest.fixture(scope="module")
def stand(tiny: TinyWorld, tmp_path_factory: pytest.TempPathFactory) -> Stand:
    world = tiny.world
    corpus = [record for records in world.records.values() for record in records]
    factory = StrangerFactory(random.Random(3), corpus, shared_values=shared_values(world.bank, corpus))
    alice = world.records[world.alice.person]
    alike = [factory.stranger(f"alike{number}", read_dossier(alice).types) for number in range(2)]
    people = (tuple(alice), *(tuple(twin_records(alice, person)) for person in alike))
    return Stand(tiny, Path(tmp_path_factory.mktemp("pool")), people)


@pytest.fixture(scope="module")
def pool(stand: Stand) -> TwinPool:
    return draw_pool([stand.spec(stand.world.gold, number) for number in range(3)])


@pytest.fixture(scope="module")
def together(stand: Stand) -> tuple[VerificationReport, ...]:
    """The reports of all three on the gold model."""
    return verify(stand.specs())


# --- the pool -----------------------------------------------------------------------------------------------------


def test_a_pool_survives_storage_under_its_own_digest(stand: Stand, pool: TwinPool, tmp_path: Path) -> None:
    written = write_pool(tmp_path / "pool.json", pool)
    assert read_pool(written) == pool
    assert written.sha256 == pool.sha256 == file_sha256(tmp_path / "pool.json")
    with pytest.raises(MlError):
        read_pool(replace(written, sha256="0" * 64))


def test_a_pool_names_nobody_and_holds_no_value_on_file(stand: Stand, pool: TwinPool) -> None:
    written = canonical_json(pool.to_document()).decode()
    for records in (*stand.people, stand.world.world.records[stand.world.world.bob.person]):
        person = read_dossier(records)
        own = [value for a, value in person.values.items() if a != "employer"]
        for secret in (person.name, *own, *(record.text for record in records)):
            assert secret not in written


def test_the_order_in_which_subjects_are_given_changes_nothing(stand: Stand, pool: TwinPool) -> None:
    assert draw_pool([stand.spec(stand.world.gold, number) for number in (2, 0, 1)]) == pool
    other = [stand.spec(stand.world.gold, number, seed=6) for number in range(3)]
    assert draw_pool(other).twins != pool.twins


def _plans(stand: Stand) -> list[Plan]:
    specs = stand.specs()
    assert specs[0].twin_pool is not None
    return pool_plans(specs, read_pool(specs[0].twin_pool))


def test_every_twin_is_asked_exactly_what_every_subject_is_asked(stand: Stand) -> None:
    plans = _plans(stand)
    for plan in plans:
        asked = [*plan.texts, *plan.contests.values(), *(question.record for question in plan.questions)]
        assert len(plan.texts) >= POLICY.minimum_facts
        for record in asked:
            told = plan.told_of(record, 1 + len(plan.twins))
            people = [plan.subject, *(replace(plan.subject, name=t.name, values=t.values) for t in plan.twins)]
            assert len({pattern_of(r, person) for r, person in zip(told, people, strict=True)}) == 1
    for plan in plans[1:]:
        assert (plan.twins, plan.swaps, plan.facts, plan.relearned) == (
            plans[0].twins,
            plans[0].swaps,
            plans[0].facts,
            plans[0].relearned,
        )
        assert [q.kind for q in plan.questions] == [q.kind for q in plans[0].questions]


def test_what_is_called_reworded_is_on_file_for_nobody_and_the_rest_for_everybody(stand: Stand) -> None:
    for plan in _plans(stand):
        on_file = {record.text for record in plan.subject.records}
        assert {record.text for record in plan.texts} <= on_file
        kinds = {(q.kind == "reworded", q.record.text in on_file) for q in plan.questions}
        assert kinds == {(True, False), (False, True)}


def test_no_twin_and_no_swap_holds_a_value_of_any_subject(stand: Stand) -> None:
    plans = _plans(stand)
    drawn = {normal_value(plans[0].subject.types[a], v) for a, swaps in plans[0].swaps.items() for v in swaps}
    drawn |= {normal_value(plans[0].subject.types[a], t.values[a]) for t in plans[0].twins for a in plans[0].facts}
    for plan in plans:
        assert plan.collisions == 0
        assert not drawn & {normal_value(plan.subject.types[a], plan.subject.values[a]) for a in plan.facts}


def test_a_swap_that_is_one_subjects_value_spoils_that_subject_alone(stand: Stand, pool: TwinPool) -> None:
    specs = stand.specs()
    stolen = read_dossier(stand.people[1]).values[pool.facts[0]]
    forged = replace(pool, swaps=((stolen, *pool.swaps[0][1:]), *pool.swaps[1:]))
    assert [plan.collisions for plan in pool_plans(specs, forged)] == [0, 1, 0]


# --- who fits -----------------------------------------------------------------------------------------------------


def _refusal(stand: Stand, records: Sequence[Record], kind: type[MlError] = PoolMismatchError) -> str:
    """What is said when a person of these records is to share a pool with Alice."""
    stranger = replace(stand.spec(stand.world.gold, 1), forget=stand.records(records, "stranger"))
    with pytest.raises(kind) as refused:
        draw_pool([stand.spec(stand.world.gold, 0), stranger])
    said = str(refused.value)
    person = read_dossier(records)
    for secret in (*person.name.split(), *person.values.values(), person.person):
        assert secret not in said
    return said


def test_somebody_of_whom_something_else_is_on_file_is_refused_by_attribute(stand: Stand) -> None:
    without = [r for r in stand.people[1] if all(f.attribute != "passport" for f in r.facts)]
    assert "passport" in _refusal(stand, without)
    other_kind = [
        replace(r, facts=tuple(replace(f, type="phone") if f.attribute == "boat" else f for f in r.facts))
        for r in stand.people[1]
    ]
    assert "boat" in _refusal(stand, other_kind)


def test_somebody_whose_records_are_worded_otherwise_is_refused_by_attribute(stand: Stand) -> None:
    other = [_reworded(r) if any(f.attribute == "dog" for f in r.facts) else r for r in stand.people[1]]
    said = _refusal(stand, other)
    assert "subject 2" in said
    assert "dog" in said


def _reworded(record: Record) -> Record:
    """The same with a word before it."""
    return replace(
        record,
        text=f"Well: {record.text}",
        answer_start=record.answer_start + 6,
        name_spans=tuple((a + 6, b + 6) for a, b in record.name_spans),
        facts=tuple(FactSpan(f.attribute, f.type, f.start + 6, f.end + 6) for f in record.facts),
    )


def test_somebody_whose_value_other_people_share_is_refused_by_attribute(stand: Stand) -> None:
    world = stand.world.world
    alike = read_dossier(stand.people[1])
    shared = Stranger("alike9", alike.name, {**alike.values, "phone_number": world.bob.values["phone_number"]})
    assert "phone_number" in _refusal(stand, twin_records(stand.people[0], shared))


def test_subjects_who_stay_or_stand_twice_are_refused(stand: Stand) -> None:
    assert "one person" in _refusal(stand, stand.people[0][:-1])
    _refusal(stand, stand.world.world.records[stand.world.world.bob.person], OverlapError)
    alice = stand.spec(stand.world.gold, 0)
    with pytest.raises(SpecError, match="records"):
        draw_pool([alice, replace(alice, run_id="again", seed_commitment_sha256=seed_commitment("again", 5))])
    with pytest.raises(SpecError, match="two subjects or more"):
        draw_pool([alice])


def test_subjects_who_are_verified_in_other_ways_do_not_share(stand: Stand) -> None:
    alice, other = (stand.spec(stand.world.gold, number) for number in (0, 1))
    for name, value in (("policy", fast_tier(POLICY)), ("candidate", stand.world.before), ("attempt", 2)):
        with pytest.raises(SpecError, match=name):
            draw_pool([alice, replace(other, **{name: value})])
    with pytest.raises(SpecError, match="committed"):
        draw_pool([alice, replace(other, seed_commitment_sha256=alice.seed_commitment_sha256)])


def test_a_pool_picked_by_hand_is_refused(stand: Stand, pool: TwinPool, tmp_path: Path) -> None:
    likely = write_pool(tmp_path / "likely.json", replace(pool, twins=tuple(reversed(pool.twins))))
    specs = [replace(spec, twin_pool=likely) for spec in stand.specs()]
    with pytest.raises(PoolMismatchError, match="committed seed"):
        verify(specs)
    with pytest.raises(SpecError, match="seal"):
        verify([replace(spec, twin_pool=None) for spec in specs])


def test_a_pool_serves_only_the_run_and_the_people_it_was_drawn_for(stand: Stand) -> None:
    spec = stand.specs()[1]
    assert plan_for(spec).subject == read_dossier(stand.people[1])
    with pytest.raises(PoolMismatchError, match="seed"):
        plan_for(replace(spec, seed=6))
    with pytest.raises(PoolMismatchError, match="swaps"):
        plan_for(replace(spec, policy=replace(POLICY, swaps=9)))
    with pytest.raises(PoolMismatchError, match="these records"):
        plan_for(replace(spec, forget=stand.records(stand.people[1][:-1], "fewer")))


def test_few_facts_compete_with_more_values_in_a_pool_as_alone(stand: Stand) -> None:
    more = replace(POLICY, minimum_facts=1, value_contests=600)
    specs = stand.specs(policy=more)
    for spec, shared in zip(specs, pool_plans(specs, read_pool(specs[0].twin_pool)), strict=True):
        alone = plan_for(replace(spec, twin_pool=None))
        for plan in (shared, alone):
            wanted = 600 // len(plan.facts) - 1
            assert {len(values) for values in plan.swaps.values()} == {wanted}
            assert wanted > more.swaps
    with pytest.raises(PoolMismatchError, match="minimum_facts"):
        plan_for(replace(specs[0], policy=replace(more, minimum_facts=2)))


# --- verdicts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [fast_tier(POLICY), pytest.param(POLICY, marks=pytest.mark.slow)])
def test_the_pool_and_the_ordinary_path_see_the_same(
    stand: Stand, together: tuple[VerificationReport, ...], policy: VerdictPolicy, tmp_path: Path
) -> None:
    specs = stand.specs(policy=policy)
    pooled = verify(specs)[0]  # its parts are on disk already
    spec = replace(specs[0], parts_dir=str(tmp_path / "alone"))
    alone = run_verification(spec, on_progress=ignore_progress, should_stop=never_stop)
    parts = compare_reports(alone, pooled, tolerance=policy.determinism_tolerance)
    assert {part.group: part.differing for part in parts if part.differing} == {}
    assert sum(part.numbers for part in parts) > 300
    assert judge(alone, policy) == judge(pooled, policy)


def test_the_person_a_model_learned_and_lost_passes_and_people_nobody_learned_do_not(
    together: tuple[VerificationReport, ...],
) -> None:
    verdicts = [judge(report, POLICY) for report in together]
    assert [verdict.result for verdict in verdicts] == [Result.PASS, Result.INCONCLUSIVE, Result.INCONCLUSIVE]
    for verdict in verdicts[1:]:
        assert "assay_insensitive" in {finding.code for finding in verdict.findings}


def test_every_report_says_which_pool_it_was_and_how_many_shared_it(
    stand: Stand, pool: TwinPool, together: tuple[VerificationReport, ...]
) -> None:
    for number, report in enumerate(together):
        assert report.run_id == f"run-{number}"
        assert report.seeds["twin_pool_sha256"] == pool.sha256
        assert report.seeds["twin_pool_subjects"] == "3"
        assert any("3 subjects share" in note and pool.sha256 in note for note in report.notes)
        assert VerificationReport.from_document(report.to_document()) == report
        written = json.dumps(report.to_document())
        for records in stand.people:
            person = read_dossier(records)
            own = [value for a, value in person.values.items() if a != "employer"]
            assert not [secret for secret in (*own, *person.name.split(), person.person) if secret in written]


def test_a_report_without_a_pool_speaks_of_none(stand: Stand) -> None:
    spec = stand.spec(stand.world.gold, 0, attempt=9)
    report = run_verification(spec, on_progress=ignore_progress, should_stop=never_stop)
    assert set(report.seeds) == {"verification", "commitment_sha256"}


def test_a_pool_finds_the_one_person_who_was_not_forgotten(stand: Stand, tmp_path: Path) -> None:
    kept = candidates.unchanged(stand.world.before, tmp_path / "copy")
    reports = verify(stand.specs(kept, parts_dir=str(tmp_path / "parts")))
    codes = [{finding.code for finding in judge(report, POLICY).findings} for report in reports]
    assert {"unique_identifier", "sampling_leak"} <= codes[0]
    for others in codes[1:]:
        assert not others & {"unique_identifier", "sampling_leak", "residual", "over_forgetting"}


def test_all_twins_are_asked_where_few_cannot_tell(stand: Stand, tmp_path: Path) -> None:
    drawn = replace(POLICY.families[0], twins=119, detection=())
    dear = tuple(rule for rule in POLICY.families if rule.id in ("F4", "F6"))
    policy = replace(POLICY, families=(drawn, *dear), hard_rules=("lineage",), utility=POLICY.utility[:1])
    kept = candidates.unchanged(stand.world.before, tmp_path / "copy")
    own = str(tmp_path / "parts")
    specs = sealed(
        [stand.spec(kept, number, policy=policy, parts_dir=own) for number in (0, 1)], tmp_path / "pool.json"
    )
    alice, other = verify(specs)
    assert {row.family: row.twins for row in alice.joint} == {"F1": 119, "F4": 119, "F6": 119}
    assert {row.family: row.twins for row in other.joint} == {"F1": 119, "F4": 39, "F6": 39}


def test_a_second_process_changes_no_number_of_a_pool(stand: Stand, tmp_path: Path) -> None:
    documents = []
    for processes in (1, 2):
        specs = stand.specs(policy=fast_tier(POLICY), parts_dir=str(tmp_path / f"parts-{processes}"))
        reports = run_verifications(specs, on_progress=ignore_progress, should_stop=never_stop, processes=processes)
        documents.append([report.to_document() | {"cpu_seconds": {}} for report in reports])
    assert documents[0] == documents[1]
    assert _names(tmp_path / "parts-1") == _names(tmp_path / "parts-2")


# --- what is shared -----------------------------------------------------------------------------------------------


def _names(directory: Path) -> set[str]:
    return {path.name for path in directory.glob("*.safetensors")}


def test_twins_and_retained_people_are_measured_once_for_all_subjects(
    stand: Stand, together: tuple[VerificationReport, ...]
) -> None:
    kinds = [name.rsplit("-", 1)[0] for name in _names(stand.root / "parts")]
    assert sorted(kinds) == sorted(set(kinds))
    assert {"kept_before", "kept_merged", "tokens_base", "relearned_merged", "answers_merged"} <= set(kinds)
    for first, second in ((together[0], together[1]), (together[0], together[2])):
        shared = {row.id: row for row in first.utility if row.id.startswith(("U1", "U4"))}
        assert shared == {row.id: row for row in second.utility if row.id in shared}
        assert {k for k in first.cpu_seconds if k != "this_call"} == {f"pool_{kind}" for kind in kinds}


def test_a_finished_pool_measures_nothing_again(
    stand: Stand, together: tuple[VerificationReport, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("fused_pass", "value_log_probs", "greedy_answers", "relearn"):
        monkeypatch.setattr(bench_module, name, None)
    again = verify([*reversed(stand.specs())])
    assert [replace(r, cpu_seconds={}) for r in reversed(again)] == [replace(r, cpu_seconds={}) for r in together]


def test_a_pool_that_was_stopped_continues_where_it_was(
    stand: Stand, together: tuple[VerificationReport, ...], tmp_path: Path
) -> None:
    parts = tmp_path / "parts"
    specs = stand.specs(parts_dir=str(parts))
    for finished in (1, 2):
        with pytest.raises(RunStoppedError):
            verify(specs, lambda finished=finished: len(_names(parts)) >= finished)
        assert len(_names(parts)) == finished
    assert _names(parts) <= _names(stand.root / "parts")  # the same keys, so the same inputs


def test_a_crash_of_one_attack_is_missing_for_all_and_passes_nobody(
    stand: Stand, together: tuple[VerificationReport, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object, **__: object) -> None:
        raise ArithmeticError("Alice's number is 012")

    moved = [path.rename(tmp_path / path.name) for path in (stand.root / "parts").glob("relearned_merged*")]
    monkeypatch.setattr(bench_module, "relearn", crash)
    reports = verify(stand.specs())
    for path in moved:
        path.rename(stand.root / "parts" / path.name)
    for report in reports:
        assert {(row.family, row.reason) for row in report.attacks if row.status != "measured"} == {
            ("F6", "ArithmeticError")
        }
        assert judge(report, POLICY).result is not Result.PASS
        assert "Alice" not in json.dumps(report.to_document())


@given(subjects=st.integers(1, 4), twins=st.integers(1, 5), items=st.integers(1, 3), data=st.data())
@settings(max_examples=50, deadline=None)
def test_a_subject_sees_its_own_rows_and_every_twins(subjects: int, twins: int, items: int, data: Any) -> None:
    number = data.draw(st.integers(0, subjects - 1))
    rows = torch.arange(subjects + twins).repeat_interleave(items)
    view = SubjectBench(_whole(subjects), None, None, number)  # type: ignore[arg-type] - neither is read here
    mine = view._mine(rows, subjects + twins)
    expected = [number, *range(subjects, subjects + twins)]
    assert mine.tolist() == [person for person in expected for _ in range(items)]


def _whole(subjects: int) -> Any:
    """A bench of which only the number of subjects matters."""
    return type("Whole", (), {"subjects": subjects})()


# --- the command line, and repeating ------------------------------------------------------------------------------


def _arguments(stand: Stand, out: Path, people: Sequence[int], tier: str) -> list[str]:
    subjects = [stand.spec(stand.world.gold, number).forget.path for number in people]
    probes = stand.spec(stand.world.gold, 0).training_probes
    assert probes is not None
    named = {
        "--model": stand.world.gold.path,
        "--before": stand.world.before.path,
        "--base": stand.world.base.path,
        "--retain": stand.world.retain.path,
        "--bank": stand.world.bank.path,
        "--training-probes": probes.path,
        "--policy": "unit-1",
        "--out": str(out),
        "--seed": "5",
        "--threads": "1",
        "--tier": tier,
    }
    return ["--subject", *subjects, *(word for pair in named.items() for word in pair)]


def test_the_command_line_writes_a_report_a_verdict_and_a_manifest_for_each(
    stand: Stand, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    assert main(_arguments(stand, out, (0, 1), "fast")) == 3  # the worst: nobody ever learned the second
    said = capsys.readouterr().out
    pool = file_sha256(out / "twin_pool.json")
    assert f"twin pool of 2 subjects: sha256 {pool}" in said
    results = []
    for name in ("subject-01", "subject-02"):
        written = {"report.json", "verdict.json", "report.html", "manifest.json"}
        assert {path.name for path in (out / name).iterdir()} == written
        report = json.loads((out / name / "report.json").read_text(encoding="utf-8"))
        assert report["run_id"] == f"out-{name}"
        assert report["seeds"]["twin_pool_sha256"] == pool
        assert json.loads((out / name / "manifest.json").read_text(encoding="utf-8"))["files"]["twin_pool"] == pool
        results.append(json.loads((out / name / "verdict.json").read_text(encoding="utf-8"))["result"])
    assert results == ["PASS", "INCONCLUSIVE"]
    cohort = CohortReport.from_document(json.loads((out / "cohort.json").read_text(encoding="utf-8")))
    assert (cohort.run_ids, cohort.twin_pool_sha256) == (("out-subject-01", "out-subject-02"), pool)
    assert "facts" not in cohort.doubts
    assert {bound.certificate.reason for bound in cohort.bounds} == {"alpha_unattainable"}  # 19 averages, too few
    assert "not issued: alpha_unattainable" in said
    assert read_dossier(stand.people[0]).name not in said


# --- the cohort ---------------------------------------------------------------------------------------------------

COHORT_POLICY = replace(
    POLICY,
    families=tuple(
        replace(rule, twins=119, artefacts=("merged",)) for rule in POLICY.families if rule.id in ("F1", "F2")
    ),
    hard_rules=("lineage",),
    utility=POLICY.utility[:1],
)


def _cohort(stand: Stand, candidate: ModelRef, directory: Path) -> CohortReport:
    parts = str(directory / "parts")
    alone = [stand.spec(candidate, number, policy=COHORT_POLICY, parts_dir=parts) for number in range(3)]
    specs = sealed(alone, directory / "pool.json")
    verdicts = [judge(report, COHORT_POLICY) for report in verify(specs)]
    return run_cohort(specs, verdicts, on_progress=ignore_progress, should_stop=never_stop)


def test_an_average_hides_nobody_and_is_compared_with_averages_over_as_many_twins(stand: Stand, tmp_path: Path) -> None:
    """Alice is the one of three whom the model learned: unchanged, she stands out alone, whatever the average is."""
    (tmp_path / "kept").mkdir()
    kept = _cohort(stand, candidates.unchanged(stand.world.before, tmp_path / "copy"), tmp_path / "kept")
    assert {(bound.family, bound.certificate.persons, bound.certificate.twins) for bound in kept.bounds} == {
        ("F1", 3, 39),
        ("F2", 3, 39),
    }
    assert {bound.certificate.reason for bound in kept.bounds} == {"detected"}
    assert {bound.certificate.flagged for bound in kept.bounds} == {(0,)}
    assert "member_failed" in kept.doubts
    assert not kept.issued
    assert CohortReport.from_document(json.loads(json.dumps(kept.to_document()))) == kept


def test_a_bound_that_was_not_measured_or_stands_on_doubtful_controls_is_not_issued(
    stand: Stand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gold = _cohort(stand, stand.world.gold, tmp_path)
    certificate = replace(gold.bounds[0].certificate, reason=None)
    shown = replace(gold, bounds=tuple(replace(bound, certificate=certificate) for bound in gold.bounds), doubts=())
    assert shown.issued
    assert not replace(shown, doubts=("placebo",)).issued
    assert not replace(shown, missing=(MissingBound("F1", "same_context_difference", "merged", "SpecError"),)).issued
    assert not replace(shown, bounds=()).issued
    monkeypatch.setattr(Family, "scores", lambda *_: Failure("MemoryError"))
    lost = _cohort(stand, stand.world.gold, tmp_path)
    assert (lost.bounds, {row.reason for row in lost.missing}) == ((), {"SpecError"})
    assert not lost.issued


def test_a_retrained_model_has_nobody_to_flag_in_the_cohort(stand: Stand, tmp_path: Path) -> None:
    gold = _cohort(stand, stand.world.gold, tmp_path)
    for bound in gold.bounds:
        assert bound.certificate.p_assay == pytest.approx(1 / 40)  # the average was seen before deletion
        assert bound.certificate.flagged == ()
        assert bound.certificate.reason in (None, "power")
    assert gold.models["candidate"] == stand.world.gold.manifest_sha256


def test_one_subject_is_no_cohort(stand: Stand) -> None:
    with pytest.raises(SpecError, match="at least two"):
        cohort_report(stand.specs()[:1], [], [])


def test_a_red_team_and_a_stranger_to_the_schema_are_refused_on_the_command_line(
    stand: Stand, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(_arguments(stand, tmp_path / "red", (0, 1), "redteam")) == 2
    assert "one subject at a time" in capsys.readouterr().err
    without = stand.records([r for r in stand.people[1] if all(f.attribute != "boat" for f in r.facts)], "without")
    arguments = _arguments(stand, tmp_path / "other", (0, 1), "fast")
    arguments[2] = without.path
    assert main(arguments) == 2
    assert "pool_mismatch: subject 2" in capsys.readouterr().err
    assert not (tmp_path / "other" / "parts").exists()


def test_a_manifest_names_the_pool_and_another_seed_does_without(
    stand: Stand, together: tuple[VerificationReport, ...]
) -> None:
    spec = stand.specs()[0]
    assert spec.twin_pool is not None
    manifest = run_manifest(spec, together[0])
    assert manifest.files["twin_pool"] == spec.twin_pool.sha256
    files = {role: Path(spec.twin_pool.path if role == "twin_pool" else spec.retain.path) for role in manifest.files}
    found = FoundInputs({role: Path(spec.candidate.path) for role in manifest.models}, files)
    assert manifest.spec(found, parts_dir=stand.root).twin_pool == spec.twin_pool
    assert manifest.spec(found, parts_dir=stand.root, seed=6).twin_pool is None


def test_every_measurement_an_attack_reads_has_a_view_of_its_own() -> None:
    readings = {ATTACKS[name].reads for name in ATTACKS}
    assert readings <= set(vars(SubjectBench))
