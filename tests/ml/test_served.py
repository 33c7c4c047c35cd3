"""Every form in which a candidate is served is attacked: rounded, by the real loaders, with adapters on top."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from ml.data.collate import encode_records
from ml.decision import Result, judge
from ml.digests import model_manifest
from ml.errors import DigestMismatchError, LoaderMissingError, ModelDirectoryError, SpecError
from ml.finetune import finetune
from ml.loop import LoopSettings, ignore_progress, never_stop
from ml.manifest import find_inputs
from ml.models.load import LoadedModel, load_model, model_ref
from ml.models.served import combinations_of, copies, served, with_every_adapter
from ml.policies import load_policy
from ml.reports import VerificationReport
from ml.specs import ModelRef, VerdictPolicy
from ml.verification.measure import roles, shares
from ml.verification.policy_check import refuse_unknown
from ml.verify import gate_table, run_manifest, run_verification
from tests.flow.stand import missing
from tests.ml.adapters import QUANTISED, logits, made_adapter
from tests.ml.specs import verification_spec
from tests.tiny import TinyWorld, tiny_model

POLICY = load_policy("unit-1")


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> ModelRef:
    return tiny_model(Path(tmp_path_factory.mktemp("served")) / "model", seed=6)


def test_every_combination_of_adapters_is_a_form_of_its_own() -> None:
    assert combinations_of(0) == ()
    assert combinations_of(2) == ("with_1", "with_2", "with_1_2")
    assert len(combinations_of(4)) == 15
    assert copies(1) == ("int8", "int4", "bnb_int8", "bnb_nf4", "with_1")


def test_a_form_with_adapters_computes_what_a_server_computes_that_switches_them_on(
    untrained: ModelRef, tmp_path: Path
) -> None:
    both = [made_adapter(untrained, tmp_path / name, seed=seed) for name, seed in (("a", 1), ("b", 2))]
    candidate = load_model(untrained)
    before = logits(candidate.model)
    made = {
        role: served(role, candidate, untrained, adapters=both, device="cpu", dtype="float32")
        for role in combinations_of(2)
    }
    live = PeftModel.from_pretrained(load_model(untrained).model, both[0].path, adapter_name="a")
    live.load_adapter(both[1].path, adapter_name="b")
    for role, chosen in (("with_1", ["a"]), ("with_2", ["b"]), ("with_1_2", ["a", "b"])):
        live.base_model.set_adapter(chosen)
        assert torch.allclose(logits(made[role].model), logits(live), atol=1e-4), role
    assert torch.equal(logits(candidate.model), before)


def test_an_adapter_of_the_output_layer_leaves_tied_token_vectors_alone(untrained: ModelRef, tmp_path: Path) -> None:
    candidate = load_model(untrained)
    assert candidate.model.get_output_embeddings().weight is candidate.model.get_input_embeddings().weight
    head = made_adapter(untrained, tmp_path / "head", seed=3, layers=["lm_head"])
    made = served("with_1", candidate, untrained, adapters=[head], device="cpu", dtype="float32")
    live = PeftModel.from_pretrained(load_model(untrained).model, head.path)
    assert torch.allclose(logits(made.model), logits(live), atol=1e-4)
    assert not torch.allclose(logits(made.model), logits(candidate.model), atol=1e-2)
    vectors = made.model.get_input_embeddings().weight
    assert torch.equal(vectors, candidate.model.get_input_embeddings().weight)


def test_two_adapters_of_the_output_layer_are_both_in_force(untrained: ModelRef, tmp_path: Path) -> None:
    both = [
        made_adapter(untrained, tmp_path / name, seed=seed, layers=["lm_head"]) for name, seed in (("a", 1), ("b", 2))
    ]
    candidate = load_model(untrained)
    live = PeftModel.from_pretrained(load_model(untrained).model, both[0].path, adapter_name="a")
    live.load_adapter(both[1].path, adapter_name="b")
    live.base_model.set_adapter(["a", "b"])
    made = served("with_1_2", candidate, untrained, adapters=both, device="cpu", dtype="float32")
    assert torch.allclose(logits(made.model), logits(live), atol=1e-4)


def _with_a_whole_head(start: ModelRef, directory: Path) -> ModelRef:
    """An adapter that brings an output layer of its own along."""
    adapted = get_peft_model(load_model(start).model, LoraConfig(r=4, modules_to_save=["lm_head"]))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "modules_to_save" in name:
                parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    adapted.save_pretrained(str(directory))
    (directory / "README.md").unlink(missing_ok=True)
    return ModelRef(str(directory), model_manifest(directory).manifest_sha256)


def test_a_whole_layer_that_an_adapter_brings_along_is_attacked_or_the_combination_is_refused(
    untrained: ModelRef, tmp_path: Path
) -> None:
    plain = made_adapter(untrained, tmp_path / "plain", seed=1)
    whole = _with_a_whole_head(untrained, tmp_path / "whole")
    candidate = load_model(untrained)
    made = served("with_1", candidate, untrained, adapters=[whole], device="cpu", dtype="float32")
    live = PeftModel.from_pretrained(load_model(untrained).model, whole.path)
    assert torch.allclose(logits(made.model), logits(live), atol=1e-4)
    assert not torch.allclose(logits(made.model), logits(candidate.model), atol=1e-2)
    assert not made.model.config.tie_word_embeddings
    for both in ([plain, whole], [whole, plain]):
        with pytest.raises(ModelDirectoryError, match="adapter of whole brings whole layers along"):
            served("with_1_2", candidate, untrained, adapters=both, device="cpu", dtype="float32")


def test_adapters_with_broken_numbers_are_refused(untrained: ModelRef, tmp_path: Path) -> None:
    broken = made_adapter(untrained, tmp_path / "broken", seed=1)
    path = Path(broken.path) / "adapter_model.safetensors"
    tensors = load_file(path)
    name = next(name for name in sorted(tensors) if "lora_B" in name)
    save_file(tensors | {name: torch.full_like(tensors[name], float("nan"))}, path)
    ref = ModelRef(broken.path, model_manifest(Path(broken.path)).manifest_sha256)
    with pytest.raises(ModelDirectoryError, match="broken cannot be added up"):
        served("with_1", load_model(untrained), untrained, adapters=[ref], device="cpu", dtype="float32")


def test_an_adapter_cannot_make_the_verifier_look_anything_up(
    untrained: ModelRef, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = made_adapter(untrained, tmp_path / "named", seed=1)
    path = Path(named.path) / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": "mallory/base"}))
    asked: list[object] = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda *where, **_: asked.append(where) or [])
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    ref = ModelRef(named.path, model_manifest(Path(named.path)).manifest_sha256)
    served("with_1", load_model(untrained), untrained, adapters=[ref], device="cpu", dtype="float32")
    assert asked == []


def test_weights_that_say_how_they_are_quantised_are_refused(untrained: ModelRef, tmp_path: Path) -> None:
    for number, changed in enumerate(
        ({"quantization_config": {"load_in_4bit": True}}, {"text_config": {"quantization_config": {"bits": 8}}})
    ):
        directory = tmp_path / str(number)
        shutil.copytree(untrained.path, directory)
        config = directory / "config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), **changed}))
        with pytest.raises(ModelDirectoryError, match="quantization_config"):
            load_model(model_ref(directory))


def test_adapters_that_are_broken_or_another_one_are_refused(untrained: ModelRef, tmp_path: Path) -> None:
    sound = made_adapter(untrained, tmp_path / "sound", seed=1)

    def refused(name: str, spoil: Callable[[Path], object], error: type[Exception], match: str) -> None:
        directory = tmp_path / name
        shutil.copytree(sound.path, directory)
        spoil(directory)
        ref = ModelRef(str(directory), model_manifest(directory).manifest_sha256)
        with pytest.raises(error, match=match):
            served("with_1", load_model(untrained), untrained, adapters=[ref], device="cpu", dtype="float32")

    def config(**changes: object) -> Callable[[Path], object]:
        def write(directory: Path) -> None:
            path = directory / "adapter_config.json"
            path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

        return write

    refused("coded", config(megatron_config={"a": 1}, megatron_core="os"), ModelDirectoryError, "a module to import")
    refused("start", config(init_lora_weights="pissa"), ModelDirectoryError, "init_lora_weights")
    refused("other", config(peft_type="IA3"), ModelDirectoryError, "no LoRA adapter")
    refused("narrow", config(r=4), ModelDirectoryError, "cannot be loaded")
    refused("fewer", config(target_modules=["q_proj"]), ModelDirectoryError, "not those of its own layers")
    refused("gone", lambda d: (d / "adapter_model.safetensors").unlink(), ModelDirectoryError, "has no adapter_model")
    refused("torn", lambda d: (d / "adapter_config.json").write_text("{"), ModelDirectoryError, "not JSON")
    another = replace(sound, manifest_sha256="0" * 64)
    with pytest.raises(DigestMismatchError):
        served("with_1", load_model(untrained), untrained, adapters=[another], device="cpu", dtype="float32")
    for role in ("with_2", "with_", "gguf"):
        with pytest.raises(SpecError):
            served(role, load_model(untrained), untrained, adapters=[sound], device="cpu", dtype="float32")


def test_a_policy_asks_of_adapters_what_it_asks_of_rounded_copies() -> None:
    asked = with_every_adapter(POLICY, 2)
    assert with_every_adapter(POLICY, 0) is POLICY
    more = {rule.id for rule in asked.families if rule not in POLICY.families}
    assert more == {rule.id for rule in POLICY.families if len(rule.artefacts) > 1} == {"F5"}
    refuse_unknown(asked, adapters=2)
    with pytest.raises(SpecError, match="no artefact 'with_1'"):
        refuse_unknown(asked)
    with pytest.raises(SpecError, match="asks nothing of 4 combinations"):
        refuse_unknown(asked, adapters=3)
    with pytest.raises(SpecError, match="asks nothing of 1 combinations"):
        refuse_unknown(POLICY, adapters=1)
    assert "Adapter combinations" not in " ".join(asked.not_tested)
    assert "Adapters other than those named" in asked.not_tested[0]
    with pytest.raises(SpecError, match="at most 4"):
        with_every_adapter(POLICY, 5)
    alone = replace(POLICY, families=POLICY.families[:1])
    with pytest.raises(SpecError, match="no family"):
        with_every_adapter(alone, 1)
    assert with_every_adapter(asked, 2) is asked  # what is asked already is not asked twice
    mine, theirs = shares(asked)
    assert sorted((*mine, *theirs)) == sorted(roles(asked))


def test_a_loader_that_is_not_installed_is_named_before_anything_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(LoaderMissingError, match=r"bnb_nf4 is served by bitsandbytes.*lethe\[quantised\]"):
        refuse_unknown(_served_only("merged", "bnb_nf4"))


def _served_only(*artefacts: str) -> VerdictPolicy:
    """What `unit-1` asks of served copies alone: over one family so few twins can call a leak a FAIL."""
    families = tuple(replace(rule, artefacts=artefacts) for rule in POLICY.families if rule.id == "F5")
    return replace(POLICY, name="unit-served", families=families, utility=POLICY.utility[:1], hard_rules=())


def _verified(
    spec_policy: VerdictPolicy, tiny: TinyWorld, root: Path, adapters: tuple[ModelRef, ...]
) -> VerificationReport:
    spec = verification_spec(tiny, tiny.gold, root, policy=spec_policy, adapters=adapters)
    return run_verification(spec, on_progress=ignore_progress, should_stop=never_stop)


@pytest.mark.slow
def test_an_adapter_that_brings_the_person_back_fails_a_candidate_that_is_clean_without_it(
    tiny: TinyWorld, tmp_path: Path
) -> None:
    records = tiny.world.records[tiny.world.alice.person]

    def teach(loaded: LoadedModel) -> None:
        rows = encode_records(loaded.tokenizer, records, context=loaded.context)
        settings = LoopSettings(steps=60, learning_rate=1e-2, warmup_steps=5, report_every=60)
        finetune(loaded.model, rows, settings, pad_id=loaded.pad_id, batch_rows=32, seed=1)

    remembering = made_adapter(tiny.gold, tmp_path / "remembering", seed=1, teach=teach)
    harmless = made_adapter(tiny.gold, tmp_path / "harmless", seed=2, teach=lambda loaded: None)
    policy = with_every_adapter(_served_only("merged", "int8"), 2)
    report = _verified(policy, tiny, tmp_path, (harmless, remembering))
    verdict = judge(report, policy)
    assert verdict.result is Result.FAIL, gate_table(report, verdict)
    leaks = {finding.artefact for finding in verdict.findings if finding.code == "residual"}
    assert leaks == {"with_2", "with_1_2"}
    assert report.models["adapter_2"] == remembering.manifest_sha256
    assert len(set(report.artefacts.values())) == 5

    # Whoever repeats the run finds the adapters by their digests.
    spec = verification_spec(tiny, tiny.gold, tmp_path, policy=policy, adapters=(harmless, remembering))
    manifest = run_manifest(spec, report)
    for name, ref in (("candidate", tiny.gold), ("before", tiny.before), ("base", tiny.base)):
        shutil.copytree(ref.path, tmp_path / "inputs" / name)
    for ref in (tiny.forget, tiny.retain, tiny.neighbours, tiny.bank, spec.training_probes):
        assert ref is not None
        shutil.copy(ref.path, tmp_path / "inputs" / ref.sha256)
    for ref in (harmless, remembering):
        shutil.copytree(ref.path, tmp_path / "inputs" / Path(ref.path).name)
    again = manifest.spec(find_inputs(manifest, tmp_path / "inputs"), parts_dir=tmp_path / "again")
    assert [ref.manifest_sha256 for ref in again.adapters] == [harmless.manifest_sha256, remembering.manifest_sha256]


@pytest.mark.slow
def test_the_real_quantised_loaders_make_what_is_attacked(tiny: TinyWorld, tmp_path: Path) -> None:
    if not (QUANTISED / "bitsandbytes").is_dir():
        missing("no bitsandbytes beside this environment; `make test-slow` puts it there")
    policy = tmp_path / "policy.json"
    policy.write_text(json.dumps(_served_only("merged", "bnb_nf4", "bnb_int8").to_document()))
    probes = verification_spec(tiny, tiny.gold, tmp_path).training_probes
    assert probes is not None
    # Without F1 nobody looks at the placebo, so that gold is no PASS as a whole.
    for name, candidate, code, gate in (("gold", tiny.gold, 3, "PASS"), ("kept", tiny.before, 1, "FAIL")):
        words = {
            "--model": candidate.path,
            "--before": tiny.before.path,
            "--base": tiny.base.path,
            "--subject": tiny.forget.path,
            "--retain": tiny.retain.path,
            "--bank": tiny.bank.path,
            "--training-probes": probes.path,
            "--policy": str(policy),
            "--out": str(tmp_path / name),
            "--seed": "5",
            "--threads": "1",
        }
        command = [sys.executable, "-m", "ml.verify", *(word for pair in words.items() for word in pair)]
        environment = {**os.environ, "PYTHONPATH": str(QUANTISED)}
        told = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert told.returncode == code, told.stdout + told.stderr
        gates = json.loads((tmp_path / name / "verdict.json").read_text())["gates"]
        assert [row["result"] for row in gates if row["gate"] == "F5"] == [gate]
        report = VerificationReport.from_document(json.loads((tmp_path / name / "report.json").read_text()))
        rows = [row for row in report.attacks if row.family == "F5"]
        assert {row.artefact for row in rows} == {"merged", "bnb_nf4", "bnb_int8"}
        assert {row.status for row in rows} == {"measured"}
        scores = {row.artefact: row.subject_after for row in rows if row.attack == "same_context_difference"}
        assert len(set(scores.values())) == 3  # neither copy is the candidate itself, and they are not one
        assert set(report.artefacts) == {"merged", "bnb_nf4", "bnb_int8"}
