"""A budgeted search of settings looks at the training side alone, and leaves one candidate."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml import delete
from ml.data.probes import probe_digests, probe_set, read_probe_digests
from ml.data.records import read_records
from ml.digests import file_sha256
from ml.documents import plain_object
from ml.errors import DeletionIncompleteError, DigestMismatchError, MlError, NonFiniteError, SpecError
from ml.methods import METHODS
from ml.models.load import model_ref
from ml.reports import UnlearningReport
from ml.search import FACTORS, Search, _Probes, farthest, proposals, score_of, search
from ml.specs import FileRef, UnlearningSpec
from ml.unlearn import REPORT, TRAINING_PROBES, run_unlearning
from tests.ml.specs import unlearning_spec
from tests.tiny import TinyWorld

SHORT = plain_object(METHODS["grad_diff"].settings(training=METHODS["ga"].settings().training))
SHORT = {**SHORT, "training": {**SHORT["training"], "steps": 4, "learning_rate": "0.002"}}


def _spec(tiny: TinyWorld, root: Path, **changes: Any) -> UnlearningSpec:
    return unlearning_spec(tiny, root, method="grad_diff", settings=SHORT, seed=3, **changes)


def _numbers(settings: Any) -> list[float]:
    training = settings["training"]
    own = [float(value) for name, value in settings.items() if isinstance(value, str) and value[0] in "-.0123456789"]
    return [float(training["learning_rate"]), float(training["steps"]), *own]


@given(
    st.sampled_from(sorted(set(METHODS) - {"none", "idk_dpo", "flat"})),
    st.integers(1, 9),
    st.integers(0, 99),
)
def test_what_is_tried_begins_with_what_was_given_and_varies_rate_steps_and_numbers_alone(
    method: str, budget: int, seed: int
) -> None:
    found = proposals(method, {}, budget=budget, seed=seed)
    given_settings = plain_object(METHODS[method].settings())
    assert found[0] == given_settings
    assert len(found) <= budget
    assert len({json.dumps(one, sort_keys=True) for one in found}) == len(found)
    for one in found:
        assert set(one) == set(given_settings)
        for value, start in zip(_numbers(one), _numbers(given_settings), strict=True):
            # Steps are whole; a weight of 0 stays out.
            assert any(value == pytest.approx(start * factor, abs=0.51 if start >= 1 else 0) for factor in FACTORS)
        same = {name: value for name, value in one["training"].items() if name not in ("learning_rate", "steps")}
        assert same.items() <= given_settings["training"].items()
    assert proposals(method, {}, budget=budget, seed=seed) == found


@pytest.mark.parametrize(
    ("method", "settings", "budget"),
    [("npo", {}, 0), ("npo", {"wishes": 1}, 2), ("npo", {"training": {"steps": "many"}}, 2)],
)
def test_a_search_without_budget_or_with_strange_settings_is_refused(method: str, settings: Any, budget: int) -> None:
    with pytest.raises(SpecError):
        proposals(method, settings, budget=budget, seed=0)


@given(st.floats(0, 9), st.floats(0, 9), st.floats(-9, 9))
def test_a_score_grows_with_every_distance_and_keeping_better_is_no_merit(
    value: float, energy: float, rise: float
) -> None:
    score = score_of({"value_gap": value, "energy_gap": energy, "retained_rise": rise})
    assert score >= score_of({"value_gap": 0.0, "energy_gap": 0.0, "retained_rise": 0.0}) == 0.0
    assert score == score_of({"value_gap": value, "energy_gap": energy, "retained_rise": max(rise, 0.0)})
    assert score <= score_of({"value_gap": value + 1, "energy_gap": energy, "retained_rise": rise})


def test_what_is_remembered_is_not_made_up_for_by_what_was_pushed_too_far() -> None:
    strangers = {("x", ("boat",)): -8.0, ("y", ("boat",)): -6.0, ("x", ("dog",)): -9.0}
    clean = {("a", ("boat",)): -7.0, ("a", ("dog",)): -9.0, ("b", ("boat",)): -7.0}
    assert farthest(clean, strangers) == 0.0
    # of one person, fact against fact
    assert farthest(clean | {("a", ("boat",)): -1.0, ("a", ("dog",)): -15.0}, strangers) == 6.0
    # of two, one against the other
    assert farthest(clean | {("a", ("boat",)): -1.0, ("b", ("boat",)): -13.0}, strangers) == 6.0
    # somebody who is still known counts in full, however many others are not
    many = {(f"p{number}", ("boat",)): -7.0 for number in range(50)}
    assert farthest(clean | many | {("b", ("boat",)): 0.0}, strangers) == 7.0
    # what no stranger was asked about is held to the average
    assert farthest({("a", ("door",)): -7.0}, {("x", ("boat",)): -8.0, ("x", ("dog",)): -6.0}) == 0.0


def test_the_best_of_the_trials_is_left_and_nothing_of_the_others(
    tiny: TinyWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, work = _spec(tiny, tmp_path), tmp_path / "search"
    found = search(spec, budget=3, work=work)
    assert [trial.number for trial in found.trials] == [0, 1, 2]
    assert found.trials[0].settings == SHORT
    best = found.trials[found.best]
    assert best.score == min(trial.score for trial in found.trials if trial.score is not None)
    assert not list(work.glob("trial-*/model"))
    made = model_ref(Path(spec.output_dir))
    report = UnlearningReport.from_document(json.loads((Path(spec.checkpoint_dir) / REPORT).read_text()))
    assert report.candidate_manifest_sha256 == made.manifest_sha256
    # It is the run that those settings make.
    assert run_unlearning(replace(spec, settings=best.settings)) == report
    # Everything that was asked to choose it is a training probe, which no verification asks.
    path = Path(spec.checkpoint_dir) / TRAINING_PROBES
    digests = read_probe_digests(FileRef(str(path), file_sha256(path)))
    assert report.training_probes == probe_set("training", digests)
    assert probe_digests(_Probes(spec).texts) <= digests
    assert not list(Path(spec.checkpoint_dir).glob("checkpoint*"))

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("done already")

    monkeypatch.setattr("ml.search._tried", refuse)
    assert search(spec, budget=3, work=work) == found
    with pytest.raises(SpecError, match="holds another search"):
        search(replace(spec, seed=4), budget=3, work=work)


def test_a_candidate_that_was_exchanged_or_lost_since_is_not_handed_over_again(tiny: TinyWorld, tmp_path: Path) -> None:
    spec, work = _spec(tiny, tmp_path), tmp_path / "search"
    search(spec, budget=1, work=work)
    shutil.rmtree(spec.output_dir)
    with pytest.raises(SpecError, match="is gone; remove search"):
        search(spec, budget=1, work=work)
    shutil.copytree(tiny.before.path, spec.output_dir)
    with pytest.raises(DigestMismatchError):
        search(spec, budget=1, work=work)


@pytest.mark.parametrize("stopped", ["after the model", "at the removal", "before the publication"])
def test_a_search_that_was_stopped_anywhere_goes_on_to_the_same_end(
    tiny: TinyWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped: str
) -> None:
    spec, work = _spec(tiny, tmp_path), tmp_path / "search"
    place = {
        "after the model": "ml.search.score_of",
        "at the removal": "ml.search._remove",
        "before the publication": "ml.search.publish",
    }[stopped]

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as once:
        once.setattr(place, stop)
        with pytest.raises(KeyboardInterrupt):
            search(spec, budget=2, work=work)
    assert not Path(spec.output_dir).exists()
    found = search(spec, budget=2, work=work)
    elsewhere = _spec(tiny, tmp_path / "undisturbed")
    undisturbed = search(elsewhere, budget=2, work=tmp_path / "undisturbed" / "search")
    assert [trial.score for trial in found.trials] == [trial.score for trial in undisturbed.trials]
    made, expected = (model_ref(Path(one.output_dir)).manifest_sha256 for one in (spec, elsewhere))
    assert made == expected
    assert not list(work.glob("trial-*/model"))


def test_a_model_that_lost_and_cannot_be_removed_is_named(
    tiny: TinyWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = shutil.rmtree

    def refuse(path: Path, **how: Any) -> None:
        if path.name.startswith("trial-"):
            raise PermissionError(13, "no", str(path))
        real(path, **how)

    monkeypatch.setattr("ml.search.shutil.rmtree", refuse)
    with pytest.raises(DeletionIncompleteError, match=r"trial-\d of the search lost"):
        search(_spec(tiny, tmp_path), budget=2, work=tmp_path / "search")


def test_a_trial_that_diverges_is_no_candidate_and_a_search_of_such_trials_makes_none(
    tiny: TinyWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = run_unlearning

    def diverge(spec: UnlearningSpec, **how: Any) -> UnlearningReport:
        if spec.run_id.endswith("-0") or spec.seed == 4:
            raise NonFiniteError("the gradient of step 2 is not finite; lower the learning rate")
        return real(spec, **how)

    monkeypatch.setattr("ml.search.run_unlearning", diverge)
    found: Search = search(_spec(tiny, tmp_path / "one"), budget=2, work=tmp_path / "one" / "search")
    assert (found.trials[0].score, found.trials[0].cpu_seconds, found.best) == (None, None, 1)
    spec = replace(_spec(tiny, tmp_path / "none"), seed=4)
    with pytest.raises(SpecError, match="lower learning rate"):
        search(spec, budget=2, work=tmp_path / "none" / "search")
    assert not Path(spec.output_dir).exists()


def test_a_candidate_whose_answers_are_not_finite_is_none(
    tiny: TinyWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    real = _Probes.numbers

    def numbers(self: _Probes, *what: Any) -> dict[str, float]:
        asked.append(what)
        if len(asked) == 1:
            raise NonFiniteError("a score is not finite")
        return real(self, *what)

    monkeypatch.setattr(_Probes, "numbers", numbers)
    spec, work = _spec(tiny, tmp_path), tmp_path / "search"
    found = search(spec, budget=2, work=work)
    assert (found.trials[0].score, found.best) == (None, 1)
    assert found.trials[0].cpu_seconds
    assert not (work / "trial-0").exists()


def _command(tiny: TinyWorld, out: Path, *more: str) -> list[str]:
    paths = {"--model": tiny.before, "--forget": tiny.forget, "--retain": tiny.retain, "--neighbours": tiny.neighbours}
    words = [word for name, ref in paths.items() for word in (name, ref.path)]
    settings = out.with_suffix(".json")
    settings.write_text(json.dumps(SHORT))
    return [*words, "--method", "grad_diff", "--settings", str(settings), "--out", str(out), "--threads", "1", *more]


def test_a_deletion_needs_no_service(tiny: TinyWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert delete.main(_command(tiny, tmp_path / "plain")) == 0
    assert model_ref(tmp_path / "plain" / "model").manifest_sha256 in capsys.readouterr().out
    assert delete.main(_command(tiny, tmp_path / "searched", "--budget", "2")) == 0
    told = capsys.readouterr().out
    assert "value_gap" in told
    shown = json.loads((tmp_path / "searched" / "search.json").read_text())
    assert len(shown["trials"]) == 2
    best = json.loads((tmp_path / "searched" / "settings.json").read_text())
    assert best == shown["trials"][shown["best"]]["settings"]
    records = read_records(tiny.forget, what="forget set")
    secrets = {r.text[start:end] for r in records for start, end in r.name_spans}
    secrets |= {r.value(fact) for r in records for fact in r.facts}
    kept = told + "".join(path.read_text() for path in (tmp_path / "searched").glob("*.json"))
    assert secrets
    assert not any(secret in kept for secret in secrets)


@pytest.mark.parametrize(
    ("more", "match"),
    [
        (["--budget", "0"], "budget of at least one"),
        (["--settings", "nowhere.json"], "cannot be read as JSON"),
        (["--retain", "nowhere.jsonl"], "nowhere.jsonl"),
    ],
)
def test_a_deletion_that_cannot_be_done_says_why_and_makes_nothing(
    tiny: TinyWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], match: str
) -> None:
    assert delete.main(_command(tiny, tmp_path / "out", *more)) == 2
    assert match in capsys.readouterr().err
    assert not (tmp_path / "out" / "model").exists()


def test_a_search_never_hands_over_to_a_directory_that_holds_something_else(tiny: TinyWorld, tmp_path: Path) -> None:
    spec = _spec(tiny, tmp_path)
    Path(spec.output_dir).mkdir(parents=True)
    with pytest.raises(MlError, match="name another"):
        search(spec, budget=1, work=tmp_path / "search")
    assert not list((tmp_path / "search").glob("trial-*"))
