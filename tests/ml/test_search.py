"""A budgeted search of settings looks at the training side alone, and leaves one candidate."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml import delete
from ml.data.probes import probe_set, read_probe_digests
from ml.data.records import read_records
from ml.digests import file_sha256
from ml.documents import plain_object
from ml.errors import MlError, NonFiniteError, SpecError
from ml.methods import METHODS
from ml.models.load import model_ref
from ml.reports import UnlearningReport
from ml.search import FACTORS, Search, proposals, score_of, search
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
    weights = [float(value) for name, value in settings.items() if name in ("alpha", "beta", "gamma")]
    return [float(training["learning_rate"]), float(training["steps"]), *weights]


@given(
    st.sampled_from(sorted(set(METHODS) - {"none", "idk_dpo", "flat"})),
    st.integers(1, 9),
    st.integers(0, 99),
)
def test_what_is_tried_begins_with_what_was_given_and_varies_rate_steps_and_weights_alone(
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


@given(st.floats(-9, 9), st.floats(-9, 9), st.floats(-9, 9))
def test_nothing_beats_what_never_learned(value: float, energy: float, rise: float) -> None:
    score = score_of({"value_gap": value, "energy_gap": energy, "retained_rise": rise})
    assert score >= score_of({"value_gap": 0.0, "energy_gap": 0.0, "retained_rise": 0.0}) == 0.0
    # Less likely than a stranger's is as wrong as likelier, and what is kept better is no merit.
    assert score == score_of({"value_gap": -value, "energy_gap": -energy, "retained_rise": max(rise, 0.0)})


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
    alone = run_unlearning(_spec(tiny, tmp_path / "alone"))
    assert len(digests) > alone.training_probes.count

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("done already")

    monkeypatch.setattr("ml.search.run_unlearning", refuse)
    assert search(spec, budget=3, work=work) == found
    with pytest.raises(SpecError, match="holds another search"):
        search(replace(spec, seed=4), budget=3, work=work)


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
    assert (found.trials[0].score, found.best) == (None, 1)
    spec = replace(_spec(tiny, tmp_path / "none"), seed=4)
    with pytest.raises(SpecError, match="lower learning rate"):
        search(spec, budget=2, work=tmp_path / "none" / "search")
    assert not Path(spec.output_dir).exists()


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
    names = {record.person for record in read_records(tiny.forget, what="forget set")}
    assert not any(name in told for name in names)


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
