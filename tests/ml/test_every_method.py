"""Every deletion method: what it refuses before it trains, and a short run that ends in a candidate, stopped or not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path

import pytest

from ml.data.records import read_records, write_records
from ml.documents import Json
from ml.errors import EmptySetError, RecordError, RunStoppedError, SpecError
from ml.methods import METHODS, Need
from ml.methods.method import Training
from ml.models.load import load_model, model_ref
from ml.specs import Progress, UnlearningSpec
from ml.unlearn import run_unlearning
from tests.ml.specs import unlearning_spec
from tests.tiny import TinyWorld

TRAINING: dict[str, Json] = {"steps": 2, "learning_rate": "0.001", "rank": 2, "retain_rows": 4, "checkpoint_every": 1}
# What a method is told beside `TRAINING`, so that it fits a model of two blocks and a test of seconds.
SETTINGS: Mapping[str, dict[str, Json]] = {
    "energy_boundary": {"draws": 1, "reworded_forms": 0, "relearning": {"steps": 1, "rows": 4}},
    "layered_grad_diff": {"training": {**TRAINING, "forget_rows": 20, "blocks": [0], "part": "feed_forward"}},
    "pdu": {"dual_wait": 0},
    "rmu": {"block": 1, "training": {**TRAINING, "blocks": [0, 1], "part": "feed_forward_output"}},
}
UNCHANGING = {"none"}
# Methods that change weights once, without a step.
EDITS = {"iau", "ssd"}


def spec_for(tiny: TinyWorld, method: str, directory: Path) -> UnlearningSpec:
    """Two steps of `method`."""
    settings = {"training": TRAINING, **SETTINGS.get(method, {})}
    return unlearning_spec(tiny, directory, method=method, settings=settings)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_two_steps_end_in_a_candidate_whose_report_names_the_method(
    tiny: TinyWorld, tmp_path: Path, method: str
) -> None:
    spec = spec_for(tiny, method, tmp_path)
    report = run_unlearning(spec)
    assert (report.method, report.method_version) == (method, METHODS[method].version)
    assert report.guarantee == METHODS[method].guarantee
    assert report.candidate_manifest_sha256 == model_ref(Path(spec.output_dir)).manifest_sha256
    load_model(model_ref(Path(spec.output_dir)))
    if method in UNCHANGING | EDITS:
        assert report.steps == 0
        assert (report.candidate_manifest_sha256 == spec.model.manifest_sha256) == (method in UNCHANGING)
        return
    assert report.steps == 2
    assert report.losses["gradient_norm"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("method", [name for name in METHODS if name not in UNCHANGING | EDITS])
def test_a_run_stopped_between_its_steps_resumes_to_the_same_bytes(
    tiny: TinyWorld, tmp_path: Path, method: str
) -> None:
    whole = run_unlearning(spec_for(tiny, method, tmp_path / "whole"))
    spec = spec_for(tiny, method, tmp_path / "stopped")
    saved: list[Path] = []
    with pytest.raises(RunStoppedError):
        run_unlearning(spec, on_checkpoint=saved.append, should_stop=lambda: bool(saved))
    resumed = run_unlearning(spec)
    assert resumed.resumed_from_step == 1
    assert resumed.adapter_sha256 == whole.adapter_sha256
    assert resumed.candidate_manifest_sha256 == whole.candidate_manifest_sha256
    assert resumed.losses == whole.losses


@pytest.mark.slow
@pytest.mark.parametrize("method", sorted(EDITS))
def test_an_edit_made_twice_is_the_same(tiny: TinyWorld, tmp_path: Path, method: str) -> None:
    first, second = (run_unlearning(spec_for(tiny, method, tmp_path / name)) for name in ("first", "second"))
    assert first.candidate_manifest_sha256 == second.candidate_manifest_sha256


@pytest.mark.parametrize("name", METHODS)
def test_a_method_says_what_it_promises_and_needs_and_keeps_its_training_in_frozen_settings(name: str) -> None:
    method = METHODS[name]
    assert method.guarantee == ("unchanged" if name in UNCHANGING else "empirical_approximate")
    assert all(isinstance(need, Need) for need in method.needs)
    settings = method.settings()
    assert is_dataclass(settings)
    assert isinstance(settings.training, Training)
    with pytest.raises(AttributeError):
        settings.training = None
    assert method.__doc__
    assert "training" in {field.name for field in fields(settings)}


@pytest.mark.parametrize("method", [name for name in METHODS if Need.RETAIN in METHODS[name].needs])
def test_a_method_that_needs_retained_records_refuses_to_run_without_them(
    tiny: TinyWorld, tmp_path: Path, method: str
) -> None:
    empty = write_records(tmp_path / "empty.jsonl", [])
    with pytest.raises(EmptySetError, match="retain set"):
        run_unlearning(replace(spec_for(tiny, method, tmp_path), retain=empty))
    assert not (tmp_path / "candidate").exists()


@pytest.mark.slow
def test_ascent_alone_needs_no_retained_record(tiny: TinyWorld, tmp_path: Path) -> None:
    empty = write_records(tmp_path / "empty.jsonl", [])
    report = run_unlearning(replace(spec_for(tiny, "ga", tmp_path), retain=empty, neighbours=None))
    assert (report.steps, report.retain_records) == (2, 0)


def test_a_record_without_a_marked_fact_is_refused_where_only_facts_are_forgotten(
    tiny: TinyWorld, tmp_path: Path
) -> None:
    first, *others = read_records(tiny.forget, what="forget set")
    unmarked = write_records(tmp_path / "unmarked.jsonl", [replace(first, facts=()), *others])
    with pytest.raises(RecordError, match="marks no fact"):
        run_unlearning(replace(spec_for(tiny, "fact_spans", tmp_path), forget=unmarked))
    assert not (tmp_path / "candidate").exists()


@pytest.mark.parametrize("method", ["layered_grad_diff", "rmu"])
def test_a_method_for_blocks_that_the_model_lacks_is_refused_and_trains_no_others(
    tiny: TinyWorld, tmp_path: Path, method: str
) -> None:
    with pytest.raises(SpecError, match="there is no block 5; the model has 2"):
        run_unlearning(replace(spec_for(tiny, method, tmp_path), settings={"training": {**TRAINING, "blocks": [5]}}))
    assert not (tmp_path / "candidate").exists()


@pytest.mark.parametrize("method", [name for name in METHODS if Need.TEMPLATES in METHODS[name].needs])
def test_an_empty_template_pool_is_refused_before_a_model_is_loaded(
    tiny: TinyWorld, tmp_path: Path, method: str
) -> None:
    spec = replace(spec_for(tiny, method, tmp_path), settings={"training": TRAINING, "templates": []})
    seen: list[Progress] = []
    with pytest.raises(EmptySetError, match="missing template pool"):
        run_unlearning(spec, on_progress=seen.append)
    assert seen == []
