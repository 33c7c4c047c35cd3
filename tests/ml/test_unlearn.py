"""`run_unlearning`: refusals, a candidate that appears whole, and a run that survives being killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
from safetensors.torch import load_file
from torch import Tensor, nn

import ml.methods.beside as besides
from ml.data.probes import probe_digests, read_probe_digests
from ml.data.records import read_records, write_records
from ml.digests import file_sha256, model_manifest
from ml.documents import Json, plain_object
from ml.errors import (
    ContextLengthError,
    DigestMismatchError,
    EmptySetError,
    NonFiniteError,
    OverlapError,
    RecordError,
    RunStoppedError,
    SpecError,
    TokenizerMismatchError,
    UnknownMemberError,
)
from ml.methods.beside import SecondProcess
from ml.models.load import load_model, model_ref
from ml.reports import UnlearningReport
from ml.specs import FileRef, Progress, UnlearningSpec
from ml.unlearn import CHECKPOINT, TRAINING_PROBES, run_unlearning
from tests.ml.specs import unlearning_spec
from tests.tiny import TinyWorld, tiny_model

# Enough steps to be stopped, killed and resumed; nothing here asks whether the person was forgotten.
SHORT = {
    "draws": 1,
    "reworded_forms": 0,
    "relearning": {"steps": 1, "rows": 4},
    "training": {"steps": 12, "learning_rate": "0.001", "rank": 4, "checkpoint_every": 4, "retain_rows": 8},
}


def spec_for(tiny: TinyWorld, directory: Path, **changes: object) -> UnlearningSpec:
    return unlearning_spec(tiny, directory, **({"settings": SHORT} | changes))


@pytest.fixture(scope="module")
def finished(tiny: TinyWorld, tmp_path_factory: pytest.TempPathFactory) -> tuple[UnlearningSpec, UnlearningReport]:
    spec = spec_for(tiny, tmp_path_factory.mktemp("finished"))
    return spec, run_unlearning(spec)


def test_the_report_names_the_candidate_by_its_bytes(finished: tuple[UnlearningSpec, UnlearningReport]) -> None:
    spec, report = finished
    manifest = model_manifest(Path(spec.output_dir))
    assert report.candidate_manifest_sha256 == manifest.manifest_sha256
    assert report.candidate_root_sha256 == manifest.root_sha256
    assert load_model(model_ref(Path(spec.output_dir))).manifest_sha256 == manifest.manifest_sha256
    assert report.steps == 12
    assert (report.forget_records, report.retain_records) == (20, 200)
    assert report.boundary["never_seen_margin"] > report.boundary["retained_margin"]
    assert UnlearningReport.from_document(report.to_document()) == report


def test_running_again_returns_the_same_report_and_touches_nothing(
    finished: tuple[UnlearningSpec, UnlearningReport],
) -> None:
    spec, report = finished
    before = {path: path.stat().st_mtime_ns for path in Path(spec.output_dir).iterdir()}
    assert run_unlearning(spec) == report
    assert {path: path.stat().st_mtime_ns for path in Path(spec.output_dir).iterdir()} == before


def test_neither_checkpoint_nor_adapter_outlives_the_run(finished: tuple[UnlearningSpec, UnlearningReport]) -> None:
    spec, _ = finished
    assert sorted(p.name for p in Path(spec.checkpoint_dir).iterdir()) == ["report.json", "training_probes.json"]
    assert not Path(f"{spec.output_dir}.partial").exists()


def test_the_drawn_texts_are_listed_by_digest_and_none_was_on_file(
    tiny: TinyWorld, finished: tuple[UnlearningSpec, UnlearningReport]
) -> None:
    spec, report = finished
    path = Path(spec.checkpoint_dir) / TRAINING_PROBES
    drawn = read_probe_digests(FileRef(str(path), file_sha256(path)))
    assert report.training_probes.count == len(drawn) > 500
    on_file = [r.text for r in (*read_records(tiny.forget, what="f"), *read_records(tiny.retain, what="r"))]
    assert not drawn & probe_digests(on_file)


def test_no_report_or_progress_shows_a_name_or_value(tiny: TinyWorld, tmp_path: Path) -> None:
    seen: list[Progress] = []
    report = run_unlearning(spec_for(tiny, tmp_path, method="none", settings={}), on_progress=seen.append)
    shown = json.dumps(report.to_document()) + repr(seen)
    alice = tiny.world.alice
    assert not any(secret in shown for secret in (alice.name, *alice.values.values()))


def test_doing_nothing_returns_the_weights_as_they_were(tiny: TinyWorld, tmp_path: Path) -> None:
    spec = spec_for(tiny, tmp_path, method="none", settings={})
    report = run_unlearning(spec)
    assert report.steps == 0
    assert report.guarantee == "unchanged"
    weights = Path(spec.output_dir) / "model.safetensors"
    assert file_sha256(weights) == file_sha256(Path(tiny.before.path) / "model.safetensors")


def test_a_stopped_run_resumes_to_the_same_bytes(
    tiny: TinyWorld, tmp_path: Path, finished: tuple[UnlearningSpec, UnlearningReport]
) -> None:
    spec = spec_for(tiny, tmp_path)
    calls = iter(range(100))
    with pytest.raises(RunStoppedError):
        # It is asked once while rows are drawn for the one person, and then before every step.
        run_unlearning(spec, should_stop=lambda: next(calls) == 8)
    assert not Path(spec.output_dir).exists()
    report = run_unlearning(spec)
    assert report.resumed_from_step == 7
    assert report.candidate_manifest_sha256 == finished[1].candidate_manifest_sha256
    assert report.adapter_sha256 == finished[1].adapter_sha256


def test_a_run_can_be_stopped_between_the_people_it_draws_rows_for(tiny: TinyWorld, tmp_path: Path) -> None:
    spec = spec_for(tiny, tmp_path)
    seen: list[Progress] = []
    with pytest.raises(RunStoppedError, match="before its first step, 0 of 1 people"):
        run_unlearning(spec, on_progress=seen.append, should_stop=lambda: True)
    assert not Path(spec.output_dir).exists()
    assert not (Path(spec.checkpoint_dir) / CHECKPOINT).exists()
    assert {progress.phase for progress in seen} == {"loading"}


# --- a second process ---------------------------------------------------------------------------------------------


class Watched(SecondProcess):
    """Remembers whether each step was answered."""

    answered: ClassVar[list[bool]]

    def answer(self, parameters: Sequence[nn.Parameter]) -> Mapping[str, Tensor] | None:
        numbers = super().answer(parameters)
        self.answered.append(numbers is not None)
        return numbers


@pytest.mark.slow
def test_a_second_process_changes_no_byte_of_the_candidate(
    tiny: TinyWorld,
    tmp_path: Path,
    finished: tuple[UnlearningSpec, UnlearningReport],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Living(Watched):
        answered: ClassVar[list[bool]] = []

    monkeypatch.setattr(besides, "SecondProcess", Living)
    report = run_unlearning(spec_for(tiny, tmp_path), processes=2)
    assert Living.answered == [True] * report.steps
    assert report.candidate_manifest_sha256 == finished[1].candidate_manifest_sha256
    assert report.adapter_sha256 == finished[1].adapter_sha256
    assert report.losses == finished[1].losses


@pytest.mark.slow
@pytest.mark.parametrize("dies", ["before the first step", "between two steps", "while it answers"])
def test_a_second_process_that_dies_is_missed_by_nobody(
    tiny: TinyWorld,
    tmp_path: Path,
    finished: tuple[UnlearningSpec, UnlearningReport],
    monkeypatch: pytest.MonkeyPatch,
    dies: str,
) -> None:
    class Mortal(Watched):
        answered: ClassVar[list[bool]] = []

        def ask(self, step: int, parameters: Sequence[nn.Parameter]) -> None:
            if (dies, step) in (("before the first step", 0), ("between two steps", 5)):
                _end(self)
            super().ask(step, parameters)
            if (dies, step) == ("while it answers", 5):
                _end(self)

    monkeypatch.setattr(besides, "SecondProcess", Mortal)
    report = run_unlearning(spec_for(tiny, tmp_path), processes=2)
    assert Mortal.answered[-1] is False
    assert report.candidate_manifest_sha256 == finished[1].candidate_manifest_sha256


def _end(second: SecondProcess) -> None:
    process = second._process
    assert process is not None
    process.kill()
    process.wait()


def test_a_method_whose_steps_cannot_be_shared_is_trained_by_one_process(
    tiny: TinyWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "Popen", None)
    settings = {"training": {"steps": 2, "learning_rate": "0.001", "rank": 2, "retain_rows": 4}}
    run_unlearning(spec_for(tiny, tmp_path, method="grad_diff", settings=settings), processes=2)


@pytest.mark.slow
def test_another_seed_gives_another_candidate(
    tiny: TinyWorld, tmp_path: Path, finished: tuple[UnlearningSpec, UnlearningReport]
) -> None:
    report = run_unlearning(spec_for(tiny, tmp_path, seed=12))
    assert report.candidate_manifest_sha256 != finished[1].candidate_manifest_sha256
    assert report.training_probes.sha256 != finished[1].training_probes.sha256


def test_a_directory_this_run_did_not_make_is_left_alone(tiny: TinyWorld, tmp_path: Path) -> None:
    (tmp_path / "candidate").mkdir()
    (tmp_path / "candidate" / "thesis.txt").write_text("two years of work")
    with pytest.raises(SpecError, match="did not make"):
        run_unlearning(spec_for(tiny, tmp_path))
    assert (tmp_path / "candidate" / "thesis.txt").read_text() == "two years of work"


def test_a_finished_candidate_is_not_taken_for_another_configurations(tiny: TinyWorld, tmp_path: Path) -> None:
    run_unlearning(spec_for(tiny, tmp_path, method="none", settings={}))
    with pytest.raises(SpecError, match="another configuration"):
        run_unlearning(spec_for(tiny, tmp_path, method="none", settings={}, seed=99))


def test_a_finished_candidate_with_a_flipped_byte_is_refused(tiny: TinyWorld, tmp_path: Path) -> None:
    spec = spec_for(tiny, tmp_path, method="none", settings={})
    run_unlearning(spec)
    weights = Path(spec.output_dir) / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    with pytest.raises(DigestMismatchError, match="not what the run produced"):
        run_unlearning(spec)


@pytest.mark.parametrize("part", ["model", "forget", "retain", "question_bank"])
def test_an_input_of_another_digest_is_refused(tiny: TinyWorld, tmp_path: Path, part: str) -> None:
    spec = spec_for(tiny, tmp_path)
    field = "manifest_sha256" if part == "model" else "sha256"
    wrong = replace(getattr(spec, part), **{field: "0" * 64})
    with pytest.raises(DigestMismatchError):
        run_unlearning(replace(spec, **{part: wrong}))
    assert not Path(spec.output_dir).exists()


def test_an_unknown_method_or_setting_is_refused(tiny: TinyWorld, tmp_path: Path) -> None:
    with pytest.raises(UnknownMemberError, match="energy_boundary"):
        run_unlearning(spec_for(tiny, tmp_path, method="amnesia"))
    with pytest.raises(SpecError, match="settings of method npo"):
        run_unlearning(spec_for(tiny, tmp_path, method="npo", settings={"betta": "0.1"}))


def test_empty_and_overlapping_sets_are_refused(tiny: TinyWorld, tmp_path: Path) -> None:
    empty = write_records(tmp_path / "empty.jsonl", [])
    with pytest.raises(EmptySetError, match="forget set"):
        run_unlearning(spec_for(tiny, tmp_path, forget=empty))
    for method in ("energy_boundary", "grad_diff", "npo", "energy_only"):
        with pytest.raises(EmptySetError, match="retain set"):
            run_unlearning(spec_for(tiny, tmp_path, retain=empty, method=method, settings={}))
    with pytest.raises(OverlapError):
        run_unlearning(spec_for(tiny, tmp_path, retain=tiny.forget))
    with pytest.raises(OverlapError):
        run_unlearning(spec_for(tiny, tmp_path, neighbours=tiny.forget))
    assert not (tmp_path / "candidate").exists()


def test_an_adapter_larger_than_a_layer_is_refused(tiny: TinyWorld, tmp_path: Path) -> None:
    settings: dict[str, Json] = {"training": {"steps": 2, "learning_rate": "0.001", "rank": 65}}
    with pytest.raises(SpecError, match="rank 65 is larger than layer .*; choose a rank of at most"):
        run_unlearning(spec_for(tiny, tmp_path, method="grad_diff", settings=settings))
    assert not (tmp_path / "candidate").exists()


def test_a_text_longer_than_the_context_is_refused(tiny: TinyWorld, tmp_path: Path) -> None:
    first, *others = read_records(tiny.forget, what="forget set")
    forget = write_records(tmp_path / "long.jsonl", [replace(first, text=first.text + " again" * 2000), *others])
    with pytest.raises(ContextLengthError):
        run_unlearning(spec_for(tiny, tmp_path, forget=forget, method="grad_diff", settings={}))
    assert not (tmp_path / "candidate").exists()


def test_numbers_that_explode_end_the_run_with_the_reason_and_leave_the_last_good_checkpoint(
    tiny: TinyWorld, tmp_path: Path
) -> None:
    # The first step is good and kept; it is so large that the second has no gradient.
    training: dict[str, Json] = {"steps": 5, "learning_rate": "1e30", "rank": 2, "warmup_steps": 0}
    spec = spec_for(tiny, tmp_path, method="ga", settings={"training": {**training, "checkpoint_every": 1}})
    with pytest.raises(NonFiniteError, match="step 1 is not finite; lower the learning rate"):
        run_unlearning(spec)
    assert not Path(spec.output_dir).exists()
    kept = load_file(Path(spec.checkpoint_dir) / "checkpoint.safetensors")
    assert all(bool(tensor.isfinite().all()) for tensor in kept.values() if tensor.is_floating_point())
    # Taken up again, it comes to the same end, and not to a candidate.
    with pytest.raises(NonFiniteError, match="step 1"):
        run_unlearning(spec)
    assert not Path(spec.output_dir).exists()


def test_a_forget_set_whose_values_cannot_be_drawn_is_refused(tiny: TinyWorld, tmp_path: Path) -> None:
    records = read_records(tiny.forget, what="forget set")
    odd = [replace(r, facts=tuple(replace(f, attribute="aura", type="aura_colour") for f in r.facts)) for r in records]
    forget = write_records(tmp_path / "odd.jsonl", odd)
    with pytest.raises(RecordError, match="aura_colour"):
        run_unlearning(spec_for(tiny, tmp_path, forget=forget))


def test_a_nameless_forget_set_is_refused_where_strangers_are_needed(tiny: TinyWorld, tmp_path: Path) -> None:
    records = [replace(r, name_spans=()) for r in read_records(tiny.forget, what="forget set")]
    forget = write_records(tmp_path / "nameless.jsonl", records)
    with pytest.raises(RecordError, match="marks no name"):
        run_unlearning(spec_for(tiny, tmp_path, forget=forget))


def test_a_tokenizer_that_does_not_fit_is_refused(tiny: TinyWorld, tmp_path: Path) -> None:
    ref = tiny_model(tmp_path / "model", seed=2)
    path = Path(ref.path) / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config["eos_token"] = "<|pad|>"
    path.write_text(json.dumps(config))
    with pytest.raises(TokenizerMismatchError):
        run_unlearning(spec_for(tiny, tmp_path, model=model_ref(Path(ref.path))))


RUNNER = """
import json, sys, torch
from ml.documents import read
from ml.specs import UnlearningSpec
from ml.unlearn import run_unlearning
torch.set_num_threads(1)
def show(progress):
    print(progress.phase, progress.done, flush=True)
spec = read(UnlearningSpec, json.loads(sys.argv[1]), where="spec")
run_unlearning(spec, on_progress=show)
"""


def start(spec: UnlearningSpec) -> subprocess.Popen:
    document = json.dumps(plain_object(spec))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", RUNNER, document],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["loading 0", "unlearning 12", "saving 0"])
def test_a_run_killed_at_any_moment_ends_in_the_same_candidate(
    tiny: TinyWorld, tmp_path: Path, finished: tuple[UnlearningSpec, UnlearningReport], moment: str
) -> None:
    spec = spec_for(tiny, tmp_path)
    process = start(spec)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(moment):
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    report = run_unlearning(spec)
    assert report.candidate_manifest_sha256 == finished[1].candidate_manifest_sha256


@pytest.mark.slow
def test_a_run_killed_again_and_again_ends_in_the_same_candidate(
    tiny: TinyWorld, tmp_path: Path, finished: tuple[UnlearningSpec, UnlearningReport]
) -> None:
    spec = spec_for(tiny, tmp_path)
    for delay in (2.0, 4.0, 6.0, 7.0, 8.0, 9.0):
        process = start(spec)
        time.sleep(delay)
        process.kill()
        process.wait()
    assert run_unlearning(spec).candidate_manifest_sha256 == finished[1].candidate_manifest_sha256
