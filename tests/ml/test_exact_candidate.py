"""An exact candidate is made on a copy of the store; the store becomes that copy when the candidate is released."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

import ml.exact.adoption as adoption
import ml.exact.deletion as deletion
import ml.exact.training as training
from ml.data.records import write_records
from ml.digests import model_manifest
from ml.errors import ExactImpossibleError, OverlapError, RunStoppedError, SpecError, StoreInUseError
from ml.exact.adoption import drop_records, take_over
from ml.exact.candidate import unlearn_exactly
from ml.exact.deletion import delete_records
from ml.exact.plan import Order, person_slice, separate_plan
from ml.exact.serving import write_serving_copy
from ml.exact.store import ExactManifest, copy_store, locked, read_manifest, read_results, write_manifest
from ml.exact.training import train_exact
from ml.reports import UnlearningReport
from ml.specs import EXACT_METHOD, FileRef, ModelRef, Record, UnlearningSpec
from tests.ml.test_exact_training import CYCLIC, Place, of, place, stacked, trained, weights  # noqa: F401 - two fixtures

pytestmark = pytest.mark.slow


@pytest.fixture
def store(place: Place, trained: dict[tuple[Order, ...], Path], tmp_path: Path) -> Path:  # noqa: F811 - the fixtures
    """A store of which a copy serves."""
    copied = tmp_path / "store"
    shutil.copytree(trained[CYCLIC], copied)
    write_serving_copy(copied, place.base, tmp_path / "served")
    return copied


def asked(place: Place, store: Path, number: int, folder: Path, *, left_out: Sequence[int] = ()) -> UnlearningSpec:  # noqa: F811
    """Forget one record of a slice; what is retained goes by other pseudonyms than in training."""
    gone = place.records[number][0]
    earlier = set(of(place, *left_out))
    kept = [r for rows in place.records for r in rows if r.record_id not in {gone.record_id, *earlier}]
    folder.mkdir(parents=True, exist_ok=True)
    return UnlearningSpec(
        run_id="run_1",
        model=ModelRef("unused", read_manifest(store).copies[-1].manifest_sha256),
        forget=write_records(folder / "forget.jsonl", [gone]),
        retain=write_records(folder / "retain.jsonl", [replace(r, person=f"somebody-{r.person}") for r in kept]),
        neighbours=None,
        question_bank=FileRef("unused", "0" * 64),
        method="energy_boundary",
        settings={},
        seed=0,
        output_dir=str(folder / "candidate"),
        checkpoint_dir=str(folder / "checkpoint"),
        base=place.base,
    )


def made(spec: UnlearningSpec, store: Path, *, learned: Sequence[str] = ()) -> UnlearningReport:
    return unlearn_exactly(spec, store, trial_of(spec), learned=learned)


def trial_of(spec: UnlearningSpec) -> Path:
    return Path(spec.output_dir).with_name("trial")


# --- the candidate ------------------------------------------------------------------------------------------------


def test_the_candidate_has_the_bytes_of_a_model_that_never_held_the_record_and_the_store_is_as_it_was(
    place: Place,  # noqa: F811
    store: Path,
    tmp_path: Path,
) -> None:
    spec, before, files = asked(place, store, 1, tmp_path / "run"), read_manifest(store), weights(store)
    report = made(spec, store, learned=of(place, 1))
    assert (read_manifest(store), weights(store)) == (before, files)

    never = tmp_path / "never"
    train_exact(place.spec(never, stacked(place).without(of(place, 1))))
    write_serving_copy(never, place.base, tmp_path / "never-served")
    wanted = model_manifest(tmp_path / "never-served")
    assert model_manifest(Path(spec.output_dir)) == wanted
    assert report.candidate_manifest_sha256 == wanted.manifest_sha256 != spec.model.manifest_sha256
    assert (report.method, report.guarantee, report.seed) == (EXACT_METHOD, "exact_sharded", 7)
    assert (report.forget_records, report.training_probes.count) == (1, 0)
    assert UnlearningReport.from_document(report.to_document()) == report
    assert sorted(path.name for path in (tmp_path / "run").glob("*.jsonl")) == ["forget.jsonl", "retain.jsonl"]
    # Orders train slices 0 1 2, 2 0 1 and 1 2 0: what comes before slice 1 is kept.
    kept = {(0, 0), (1, 0), (1, 1)}
    again = [entry for entry in read_manifest(trial_of(spec)).adapters if (entry.order, entry.position) not in kept]
    assert report.steps == sum(entry.steps for entry in again) > 0


@pytest.mark.parametrize("step", ["write_manifest", "remove_unnamed", "publish_pending"])
def test_killed_in_the_deletion_it_is_finished_by_the_next_call(
    place: Place,  # noqa: F811
    store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
) -> None:
    spec = asked(place, store, 1, tmp_path / "run")
    real = getattr(deletion, step)

    def killed(*given: object) -> None:
        if step == "write_manifest":
            real(*given)
        raise KeyboardInterrupt

    monkeypatch.setattr(deletion, step, killed)
    with pytest.raises(KeyboardInterrupt):
        made(spec, store)
    monkeypatch.undo()
    report = made(spec, store)
    other = replace(spec, output_dir=str(tmp_path / "other" / "candidate"))
    assert report.candidate_manifest_sha256 == made(other, store).candidate_manifest_sha256


def test_stopped_in_training_it_goes_on_also_under_other_code(
    place: Place,  # noqa: F811
    store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spec, through = asked(place, store, 1, tmp_path / "run"), asked(place, store, 1, tmp_path / "through")
    looks = iter(range(10**6))
    with pytest.raises(RunStoppedError):
        unlearn_exactly(spec, store, trial_of(spec), learned=(), should_stop=lambda: next(looks) == 6)
    assert not Path(spec.output_dir).exists()
    monkeypatch.setattr(training, "code_sha256", lambda: "0" * 64)
    report = made(spec, store)
    assert report.candidate_manifest_sha256 == made(through, store).candidate_manifest_sha256
    again = made(replace(spec, output_dir=str(tmp_path / "run" / "candidate-2")), store)
    assert again.candidate_manifest_sha256 == report.candidate_manifest_sha256
    assert (again.steps, again.notes) == (report.steps, report.notes)


def test_what_cannot_be_done_exactly_is_said_before_anything_is_copied(
    place: Place,  # noqa: F811
    store: Path,
    tmp_path: Path,
) -> None:
    spec = asked(place, store, 1, tmp_path / "run")
    text = "Question: What did nobody ever learn? Answer: This."
    stranger = Record("nobody's", "nobody", text, answer_start=text.index("This"), name_spans=(), facts=())
    rows = [record for slice_rows in place.records for record in slice_rows]
    others = [record for record in rows if record.record_id != of(place, 1)[0]]

    numbers = iter(range(10))

    def retained(records: Sequence[Record]) -> UnlearningSpec:
        return replace(spec, retain=write_records(tmp_path / "run" / f"{next(numbers)}.jsonl", records))

    edited = [replace(others[0], text=f"{others[0].text} "), *others[1:]]
    twice = [*others[:-1], replace(others[-1], text=f"{others[0].text}  ")]
    unknown = replace(spec, forget=write_records(tmp_path / "run" / "unknown.jsonl", [stranger]))
    everybody = replace(
        spec,
        forget=write_records(tmp_path / "run" / "all.jsonl", rows),
        retain=write_records(tmp_path / "run" / "stranger.jsonl", [stranger]),
    )
    for wrong, words in (
        (replace(spec, model=place.base), "no copy of store store"),
        (replace(spec, base=ModelRef("unused", "0" * 64)), "another base"),
        (replace(spec, base=None), "needs the base"),
        (replace(spec, retain=spec.forget), "share 1 record ids"),
        (unknown, "learned none of the records"),
        (everybody, "learned from nobody else"),
        (retained(others[:7]), "13 records that the store learned are not retained"),
        (retained(edited), "was trained on other records"),
        (retained(twice), "1 of the training records"),
    ):
        with pytest.raises(ExactImpossibleError, match=words):
            made(wrong, store)
    with pytest.raises(ExactImpossibleError, match="1 records that the model learned are in no slice"):
        made(spec, store, learned=[*of(place, 1), "learned elsewhere"])
    with pytest.raises(ExactImpossibleError, match="train it first"):
        made(spec, tmp_path / "no store")
    with locked(store), pytest.raises(StoreInUseError):
        made(spec, store)
    seen = read_manifest(store)
    drop_records(store, of(place, 2))
    with pytest.raises(StoreInUseError, match="has just been changed"):
        copy_store(store, trial_of(spec), seen)
    assert not trial_of(spec).exists()


def test_a_device_that_is_not_there_is_a_reason(place: Place, store: Path, tmp_path: Path) -> None:  # noqa: F811
    spec = asked(place, store, 1, tmp_path / "run")
    write_manifest(store, replace(read_manifest(store), device="xpu"))
    with pytest.raises(ExactImpossibleError, match="is trained on xpu, which this host does not have"):
        made(spec, store)


def test_a_seed_that_no_report_can_hold_is_refused(place: Place, store: Path, tmp_path: Path) -> None:  # noqa: F811
    spec = asked(place, store, 1, tmp_path / "run")
    write_manifest(store, replace(read_manifest(store), seed=-1))
    with pytest.raises(ExactImpossibleError, match="seed of store store"):
        made(spec, store)


def test_separate_adapters_make_no_candidate_and_are_dropped_all_the_same(place: Place, tmp_path: Path) -> None:  # noqa: F811
    apart = tmp_path / "apart"
    plan = separate_plan([record for rows in place.records for record in rows], layers=3)
    train_exact(place.spec(apart, plan))
    write_serving_copy(apart, place.base, tmp_path / "served", slice_name=person_slice(place.records[0][0].person))
    before = read_manifest(apart)
    with pytest.raises(ExactImpossibleError, match="keeps separate adapters"):
        made(asked(place, apart, 0, tmp_path / "run"), apart)
    assert read_manifest(apart) == before
    drop_records(apart, [record.record_id for record in place.records[0]])
    assert len(weights(apart)) == 2


# --- the store, once the candidate is released ----------------------------------------------------------------------


def released(spec: UnlearningSpec, store: Path, gone: Sequence[str]) -> bool:
    drop_records(store, gone)
    return take_over(store, trial_of(spec))


def test_the_store_becomes_its_trial_and_the_next_person_is_deleted_from_the_candidate(
    place: Place,  # noqa: F811
    store: Path,
    tmp_path: Path,
) -> None:
    first = asked(place, store, 1, tmp_path / "first")
    report = made(first, store)
    assert released(first, store, of(place, 1))
    assert (read_manifest(store), weights(store)) == (read_manifest(trial_of(first)), weights(trial_of(first)))
    assert read_results(store) == read_results(trial_of(first))
    second = asked(place, store, 2, tmp_path / "second", left_out=[1])
    assert second.model.manifest_sha256 == report.candidate_manifest_sha256
    assert made(second, store).candidate_manifest_sha256 != report.candidate_manifest_sha256
    assert released(second, store, of(place, 2))
    assert read_manifest(store).deletions == 2
    assert not set(of(place, 1, 2)) & {r for part in read_manifest(store).plan.slices for r in part.records}


@pytest.mark.parametrize("call", [0, 3, 6])  # six adapters, then the copies
def test_killed_while_it_takes_over_the_store_can_be_read_and_the_next_call_goes_on(
    place: Place,  # noqa: F811
    store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    call: int,
) -> None:
    spec = asked(place, store, 1, tmp_path / "run")
    made(spec, store)
    calls = iter(range(10**6))
    real = adoption.write_manifest

    def killed(where: Path, manifest: ExactManifest) -> None:
        if next(calls) == call:
            raise KeyboardInterrupt
        real(where, manifest)

    monkeypatch.setattr(adoption, "write_manifest", killed)
    with pytest.raises(KeyboardInterrupt):
        released(spec, store, of(place, 1))
    monkeypatch.undo()
    assert released(spec, store, of(place, 1))
    assert (read_manifest(store), weights(store)) == (read_manifest(trial_of(spec)), weights(trial_of(spec)))
    assert released(spec, store, of(place, 1))


def test_a_store_that_moved_on_keeps_what_it_became(place: Place, store: Path, tmp_path: Path) -> None:  # noqa: F811
    spec = asked(place, store, 1, tmp_path / "run")
    made(spec, store)
    delete_records(store, of(place, 2))
    moved = read_manifest(store)
    assert not take_over(store, trial_of(spec))
    assert read_manifest(store) == moved
    assert not released(spec, store, of(place, 1))
    assert not set(of(place, 1, 2)) & {r for part in read_manifest(store).plan.slices for r in part.records}


def test_an_empty_directory_is_a_store_that_was_destroyed_and_remains_of_one_are_not(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    drop_records(empty, ["any"])
    (empty / "adapters").mkdir()
    with pytest.raises(SpecError, match="no manifest but adapters"):
        drop_records(empty, ["any"])


def test_overlap_is_a_reason_like_any_other(place: Place, store: Path, tmp_path: Path) -> None:  # noqa: F811
    spec = asked(place, store, 1, tmp_path / "run")
    with pytest.raises(ExactImpossibleError) as raised:
        made(replace(spec, retain=spec.forget), store)
    assert isinstance(raised.value.__cause__, OverlapError)
