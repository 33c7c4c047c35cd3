"""`run_unlearning(spec)`: from a model and a forget set to a merged candidate, or a typed refusal.

The candidate directory appears only when it is whole. A run that was killed continues where its last checkpoint was
and ends in the same bytes. Nothing here may read a verification statistic.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from torch import nn

from ml.data.collate import encode_records
from ml.data.probes import probe_digests, probe_set, write_probe_digests
from ml.data.questions import QuestionBank, read_bank
from ml.data.records import read_records, refuse_overlap
from ml.data.values import VALUE_TYPES
from ml.digests import (
    ModelManifest,
    canonical_json,
    code_sha256,
    computing_code_sha256,
    document_sha256,
    model_manifest,
)
from ml.documents import Json, plain_object, read
from ml.energy import EnergyBoundary
from ml.errors import DigestMismatchError, RecordError, RunStoppedError, SpecError
from ml.files import write_atomically
from ml.loop import LoopResult, ignore_progress, leave_checkpoint, never_stop, train
from ml.methods import METHODS, Method, Need, Plan, SharesSteps, Training, UnlearningTask
from ml.methods.attribution import attributed_layers
from ml.methods.beside import SecondProcess, Share, beside
from ml.methods.calibration import Calibration, calibrate
from ml.methods.output_layer import OutputLayerEdit
from ml.methods.projection import projected
from ml.methods.templates import require_templates
from ml.models.adapters import adapter_sha256, attach_adapter, merge_adapter, trained_parameters
from ml.models.layers import linear_layer_names
from ml.models.load import LoadedModel, load_model
from ml.models.save import partial_directory, publish, save_model
from ml.reports import UnlearningReport
from ml.specs import CheckpointCallback, ModelRef, Progress, ProgressCallback, Record, StopCheck, UnlearningSpec

REPORT = "report.json"
TRAINING_PROBES = "training_probes.json"
CHECKPOINT = "checkpoint.safetensors"


@dataclass(frozen=True, slots=True)
class _Inputs:
    """The sets of one run, read and checked, and the method with its settings."""

    method: Method
    settings: Any
    forget: tuple[Record, ...]
    retain: tuple[Record, ...]
    neighbours: tuple[Record, ...]
    bank: QuestionBank
    config_sha256: str


def run_unlearning(
    spec: UnlearningSpec,
    *,
    on_progress: ProgressCallback = ignore_progress,
    should_stop: StopCheck = never_stop,
    on_checkpoint: CheckpointCallback = leave_checkpoint,
    processes: int = 1,
) -> UnlearningReport:
    """Unlearn `spec.forget` from `spec.model` and write the merged candidate to `spec.output_dir`.

    1. Read the method, its settings and the sets; verify digests; refuse overlap, an empty set, a missing need.
    2. A finished run of the same configuration returns its report; nothing is done twice.
    3. Load the model, by digest, with its own tokenizer.
    4. Calibrate the energy boundary on the model as it is, before anything is trained.
    5. Attach an adapter, let the method draw its rows, train; resume from the checkpoint if there is one.
    6. Merge the adapter and save the candidate beside its final place; digest it.
    7. Write the report and the digests of all training texts, then give the candidate its name; drop the checkpoint.

    `spec.checkpoint_dir` keeps `report.json` and `training_probes.json`, the list of text digests that verification
    must not probe with. The optimiser's state and the adapter are not kept.

    Args:
        on_checkpoint: called with the path of each checkpoint when it is on disk; it may move the file elsewhere. A
            later call takes up the one that then lies in `spec.checkpoint_dir`.
        processes: with 2, on a CPU, a second process takes a part of each step of a method that allows it; no byte of
            the candidate changes. It takes as much memory again.
    Raises:
        MlError: a typed subclass that names the object and the next step; no candidate directory was made.
        RunStoppedError: `should_stop` said so; call again to resume.
    """
    started = time.process_time()
    inputs = _read_inputs(spec)
    Path(spec.checkpoint_dir).mkdir(parents=True, exist_ok=True)
    finished = _finished(spec, inputs)
    if finished is not None:
        return finished
    on_progress(Progress("loading", 0, 1))
    loaded = load_model(spec.model, device=spec.device, dtype=spec.dtype)
    calibration = _calibrate(loaded, inputs, spec)
    boundary = None if calibration is None else calibration.boundary
    task = _task(loaded, inputs, spec, boundary, _chosen_layers(loaded, inputs, spec))
    task = replace(task, on_drawn=_between_people(on_progress, should_stop))
    with _second_process(task, spec, inputs, processes) as second:
        task = replace(task, second=second)
        plan = _plan(task, inputs, spec)
        result = _train(task, plan, inputs, spec, on_progress, should_stop, on_checkpoint)
    if plan.edit is not None:
        on_progress(Progress("editing weights", 0, 1))
        plan.edit()
    adapter = adapter_sha256(task.model)
    on_progress(Progress("saving", 0, 1))
    partial = partial_directory(Path(spec.output_dir))
    save_model(merge_adapter(task.model), loaded.tokenizer, partial)
    report = _report(spec, inputs, calibration, plan, result, model_manifest(partial), adapter, started)
    write_atomically(Path(spec.checkpoint_dir) / REPORT, canonical_json(report.to_document()))
    publish(partial, Path(spec.output_dir))
    _checkpoint(spec).unlink(missing_ok=True)
    return report


def _between_people(on_progress: ProgressCallback, should_stop: StopCheck) -> Callable[[int, int], None]:
    """What a method calls while it draws its rows. There is nothing to keep then: the next run draws the same."""

    def drawn(done: int, total: int) -> None:
        if should_stop():
            raise RunStoppedError(f"unlearning was stopped before its first step, {done} of {total} people drawn for")
        on_progress(Progress("drawing rows", done, total))

    return drawn


@contextmanager
def _second_process(
    task: UnlearningTask, spec: UnlearningSpec, inputs: _Inputs, processes: int
) -> Iterator[SecondProcess | None]:
    if processes < 2 or spec.device != "cpu" or not isinstance(inputs.method, SharesSteps):
        yield None
        return
    layers = None if task.layers is None else list(task.layers)
    numbers: dict[str, Json] = {
        "spec": plain_object(spec),
        "boundary": plain_object(task.boundary),
        "layers": layers,
    }
    with beside({**numbers, "threads": torch.get_num_threads()}, trained_parameters(task.model)) as second:
        yield second


def kept_share(
    spec: UnlearningSpec, boundary: EnergyBoundary, layers: tuple[str, ...] | None
) -> tuple[list[nn.Parameter], Share]:
    """What a second process needs: the weights that are trained, and the part of a step that it takes.

    Raises:
        SpecError: no part of this method's steps can be taken elsewhere.
    """
    inputs = _read_inputs(spec)
    if not isinstance(inputs.method, SharesSteps):
        raise SpecError(f"method {spec.method} is trained by one process")
    task = _task(load_model(spec.model, device=spec.device, dtype=spec.dtype), inputs, spec, boundary, layers)
    return trained_parameters(task.model), inputs.method.kept_share(task, inputs.settings)


def _read_inputs(spec: UnlearningSpec) -> _Inputs:
    method = METHODS[spec.method]()
    settings = read(method.settings, spec.settings, where=f"settings of method {spec.method}")
    forget = read_records(spec.forget, what="forget set")
    retain = read_records(spec.retain, what="retain set", allow_empty=Need.RETAIN not in method.needs)
    neighbours = () if spec.neighbours is None else read_records(spec.neighbours, what="neighbours", allow_empty=True)
    bank = read_bank(spec.question_bank)
    refuse_overlap(forget, retain)
    refuse_overlap(forget, neighbours)
    _refuse_missing(method, settings, forget, bank)
    if settings.training.output_layer:
        _base(spec)
    config = _config_sha256(spec, method, settings)
    return _Inputs(method, settings, forget, retain, neighbours, bank, config)


def _refuse_missing(method: Method, settings: Any, forget: tuple[Record, ...], bank: QuestionBank) -> None:
    if Need.TEMPLATES in method.needs:
        require_templates(settings.templates)
    if Need.NAMES in method.needs and any(not record.name_spans for record in forget):
        raise RecordError("a record of the forget set marks no name; mark it, or use a method that needs no strangers")
    if Need.FACTS in method.needs and any(not record.facts for record in forget):
        raise RecordError("a record of the forget set marks no fact; mark it, or use a method that forgets whole texts")
    if Need.VALUE_TYPES not in method.needs:
        return
    shared = {name for name, attribute in bank.attributes.items() if attribute.shared}
    facts = [fact for record in forget for fact in record.facts if fact.attribute not in shared]
    unknown = sorted({fact.type for fact in facts} - set(VALUE_TYPES))
    if unknown:
        raise RecordError(
            f"the forget set has values of unknown type ({', '.join(unknown)}); register the type or use another method"
        )


def _config_sha256(spec: UnlearningSpec, method: Method, settings: Any) -> str:
    """Digest of everything that decides the candidate's bytes; where files lie and run ids do not."""
    return document_sha256(
        {
            "model": spec.model.manifest_sha256,
            "forget": spec.forget.sha256,
            "retain": spec.retain.sha256,
            "neighbours": None if spec.neighbours is None else spec.neighbours.sha256,
            "question_bank": spec.question_bank.sha256,
            "method": spec.method,
            "method_version": method.version,
            "settings": plain_object(settings),
            "base": spec.base.manifest_sha256 if settings.training.output_layer and spec.base is not None else None,
            "seed": spec.seed,
            "device": spec.device,
            "dtype": spec.dtype,
            "code": computing_code_sha256(),
        }
    )


def _checkpoint(spec: UnlearningSpec) -> Path:
    return Path(spec.checkpoint_dir) / CHECKPOINT


def _finished(spec: UnlearningSpec, inputs: _Inputs) -> UnlearningReport | None:
    output, path = Path(spec.output_dir), Path(spec.checkpoint_dir) / REPORT
    if not output.exists():
        return None
    if not path.exists():
        raise SpecError(f"output directory {output.name} holds something this run did not make; name another")
    report = UnlearningReport.from_document(json.loads(path.read_text(encoding="utf-8")))
    if report.config_sha256 != inputs.config_sha256:
        raise SpecError(f"output directory {output.name} holds the result of another configuration; name another")
    if model_manifest(output).manifest_sha256 != report.candidate_manifest_sha256:
        raise DigestMismatchError(f"{output.name} is not what the run produced; delete it and run again")
    _checkpoint(spec).unlink(missing_ok=True)
    return report


def _calibrate(loaded: LoadedModel, inputs: _Inputs, spec: UnlearningSpec) -> Calibration | None:
    if Need.BOUNDARY not in inputs.method.needs:
        return None
    return calibrate(
        loaded, forget=inputs.forget, retain=inputs.retain, bank=inputs.bank, seed=spec.seed, device=spec.device
    )


def _chosen_layers(loaded: LoadedModel, inputs: _Inputs, spec: UnlearningSpec) -> tuple[str, ...] | None:
    """The layers that get the adapter, where attribution chooses them."""
    training: Training = inputs.settings.training
    if training.layer_share == 1:
        return None
    forget, retain = (
        encode_records(loaded.tokenizer, records, context=loaded.context) for records in (inputs.forget, inputs.retain)
    )
    chosen = attributed_layers(
        loaded.model,
        linear_layer_names(loaded.model, training.blocks, training.part),
        training.layer_share,
        forget=forget,
        retain=retain,
        pad_id=loaded.pad_id,
        device=spec.device,
    )
    return tuple(chosen)


def _plan(task: UnlearningTask, inputs: _Inputs, spec: UnlearningSpec) -> Plan:
    training: Training = inputs.settings.training
    plan = inputs.method.plan(task, inputs.settings)
    if training.projection != "none":
        parameters = trained_parameters(task.model)
        plan = projected(plan, parameters, training.projection, directions=training.directions)
    if not training.output_layer:
        return plan
    edit = OutputLayerEdit(task, load_model(_base(spec), device=spec.device, dtype=spec.dtype))
    return replace(plan, texts=(*plan.texts, *edit.texts), edit=_one_after_the_other(plan.edit, edit))


def _one_after_the_other(first: Callable[[], None] | None, second: Callable[[], None]) -> Callable[[], None]:
    if first is None:
        return second

    def both() -> None:
        first()
        second()

    return both


def _base(spec: UnlearningSpec) -> ModelRef:
    if spec.base is None:
        raise SpecError("setting training.output_layer needs the base model; name it, or leave the setting out")
    return spec.base


def _task(
    loaded: LoadedModel,
    inputs: _Inputs,
    spec: UnlearningSpec,
    boundary: EnergyBoundary | None,
    layers: tuple[str, ...] | None,
) -> UnlearningTask:
    training = inputs.settings.training
    model = attach_adapter(
        loaded.model,
        rank=training.rank,
        alpha=training.alpha,
        seed=spec.seed,
        blocks=training.blocks,
        part=training.part,
        layers=layers,
    )
    return UnlearningTask(
        model=model,
        tokenizer=loaded.tokenizer,
        context=loaded.context,
        pad_id=loaded.pad_id,
        device=spec.device,
        seed=spec.seed,
        forget=inputs.forget,
        retain=inputs.retain,
        neighbours=inputs.neighbours,
        bank=inputs.bank,
        boundary=boundary,
        layers=layers,
    )


def _train(
    task: UnlearningTask,
    plan: Plan,
    inputs: _Inputs,
    spec: UnlearningSpec,
    on_progress: ProgressCallback,
    should_stop: StopCheck,
    on_checkpoint: CheckpointCallback,
) -> LoopResult:
    if plan.step is None or plan.loop is None:
        return LoopResult(steps=0, stopped_early=False, resumed_from_step=0)
    return train(
        task.model,
        plan.step,
        plan.loop,
        phase="unlearning",
        config_sha256=inputs.config_sha256,
        checkpoint_path=_checkpoint(spec),
        on_progress=on_progress,
        should_stop=should_stop,
        on_checkpoint=on_checkpoint,
        is_met=plan.is_met,
        state=plan.state,
    )


def _report(
    spec: UnlearningSpec,
    inputs: _Inputs,
    calibration: Calibration | None,
    plan: Plan,
    result: LoopResult,
    manifest: ModelManifest,
    adapter: str,
    started: float,
) -> UnlearningReport:
    boundary = None if calibration is None else calibration.boundary
    digests = _drawn_digests(inputs, plan, calibration)
    write_probe_digests(Path(spec.checkpoint_dir) / TRAINING_PROBES, digests)
    thin = "the energy boundary is thin: refusal by energy would not be reliable"
    return UnlearningReport(
        run_id=spec.run_id,
        method=spec.method,
        method_version=inputs.method.version,
        guarantee=inputs.method.guarantee,
        seed=spec.seed,
        steps=result.steps,
        stopped_early=result.stopped_early,
        resumed_from_step=result.resumed_from_step,
        candidate_root_sha256=manifest.root_sha256,
        candidate_manifest_sha256=manifest.manifest_sha256,
        adapter_sha256=adapter,
        config_sha256=inputs.config_sha256,
        code_sha256=code_sha256(),
        forget_records=len(inputs.forget),
        retain_records=len(inputs.retain),
        boundary={} if boundary is None else boundary.numbers(),
        losses=result.numbers,
        training_probes=probe_set("training", digests),
        environment=environment(spec.device),
        cpu_seconds=time.process_time() - started,
        notes=(*plan.notes, *((thin,) if boundary is not None and boundary.is_thin else ())),
    )


def _drawn_digests(inputs: _Inputs, plan: Plan, calibration: Calibration | None) -> frozenset[str]:
    """Digests of the texts this run made up; what was on file anyway is known by the digests of its sets."""
    on_file = probe_digests(record.text for record in (*inputs.forget, *inputs.retain))
    return probe_digests([*plan.texts, *(calibration.texts if calibration else ())]) - on_file


def environment(device: str) -> Mapping[str, str]:
    """Versions and settings on which the candidate's bytes depend."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peft": peft.__version__,
        "machine": platform.machine(),
        "device": device,
        "threads": str(torch.get_num_threads()),
    }
