"""The run manifest: it names every input by digest and nothing else, and inputs are found again by digest alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ml.digests import file_sha256, model_manifest
from ml.errors import InputsMissingError, ManifestMismatchError, SpecError
from ml.manifest import MODELS, RunManifest, find_inputs, manifest_of
from ml.reports import VerificationReport
from ml.specs import seed_commitment
from tests.ml.passing import POLICY, passing_report

FILES = {
    "forget": b"Alice lives in 3 Harbour Lane\n",
    "retain": b"Bob keeps bees\n",
    "question_bank": b"{}",
    "neighbours": b"Bob keeps bees, too\n",
    "training_probes": b"[]",
}
ENVIRONMENT = {"device": "cpu", "dtype": "float32", "threads": "2", "torch": "2", "code_sha256": "e" * 64}
SEEDS = {"verification": "5", "commitment_sha256": seed_commitment("run-1", 5)}


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    """Everything a run read, under names that say nothing, beside things that it did not read."""
    folder = tmp_path / "inputs"
    for role in (*MODELS, "another"):
        (folder / "weights" / f"m-{role[::-1]}").mkdir(parents=True)
        (folder / "weights" / f"m-{role[::-1]}" / "config.json").write_text(f'{{"of": "{role}"}}')
    for number, content in enumerate([*FILES.values(), b"unrelated"]):
        (folder / f"{number}.bin").write_bytes(content)
    return folder


def report(inputs: Path) -> VerificationReport:
    models = {role: model_manifest(inputs / "weights" / f"m-{role[::-1]}").manifest_sha256 for role in MODELS}
    return replace(passing_report(), models=models, seeds=SEEDS, environment=ENVIRONMENT)


def digests(inputs: Path) -> dict[str, str]:
    return {role: file_sha256(inputs / f"{number}.bin") for number, role in enumerate(FILES)}


@pytest.fixture
def manifest(inputs: Path) -> RunManifest:
    return manifest_of(report(inputs), policy=POLICY, files=digests(inputs))


def test_a_manifest_survives_storage_and_holds_no_path_and_no_text(manifest: RunManifest, inputs: Path) -> None:
    written = json.dumps(manifest.to_document())

    assert RunManifest.from_document(json.loads(written)) == manifest
    for secret in (str(inputs), "weights", "Alice", "Harbour", "Bob"):
        assert secret not in written


def test_inputs_are_found_by_digest_whatever_their_names(manifest: RunManifest, inputs: Path) -> None:
    found = find_inputs(manifest, inputs)

    assert {role: path.name for role, path in found.models.items()} == {r: f"m-{r[::-1]}" for r in MODELS}
    assert {role: path.read_bytes() for role, path in found.files.items()} == FILES


def test_the_spec_asks_for_the_same_again_or_for_another_seed(manifest: RunManifest, inputs: Path) -> None:
    found = find_inputs(manifest, inputs)
    same = manifest.spec(found, parts_dir=inputs / "parts")
    other = manifest.spec(found, parts_dir=inputs / "parts", seed=6, device="cuda")

    assert (same.seed, same.device, same.dtype, same.attempt, same.policy) == (5, "cpu", "float32", 1, POLICY)
    assert same.seed_commitment_sha256 == SEEDS["commitment_sha256"]
    assert same.candidate.manifest_sha256 == manifest.models["candidate"]
    assert same.neighbours is not None
    assert same.bystanders is None
    assert (other.seed, other.device) == (6, "cuda")
    assert other.seed_commitment_sha256 == seed_commitment("run-1", 6)


def test_what_is_missing_is_named_by_its_role_and_digest(manifest: RunManifest, inputs: Path) -> None:
    (inputs / "0.bin").unlink()
    (inputs / "weights" / f"m-{'before'[::-1]}" / "config.json").write_text("{}")

    with pytest.raises(InputsMissingError) as refused:
        find_inputs(manifest, inputs)
    said = str(refused.value)
    assert f"forget (sha256 {manifest.files['forget'][:16]}" in said
    assert f"before (manifest {manifest.models['before'][:16]}" in said
    assert "retain" not in said
    assert "candidate" not in said


def test_a_file_that_bears_the_name_but_not_the_digest_is_called_different(manifest: RunManifest, inputs: Path) -> None:
    (inputs / "0.bin").rename(inputs / "forget.jsonl")
    find_inputs(manifest, inputs)
    (inputs / "forget.jsonl").write_bytes(b"Alice lives elsewhere\n")

    with pytest.raises(InputsMissingError, match="forget .*what bears its name has another digest"):
        find_inputs(manifest, inputs)


def test_links_and_unsafe_model_directories_are_no_inputs(manifest: RunManifest, inputs: Path, tmp_path: Path) -> None:
    (inputs / "0.bin").rename(tmp_path / "aside")
    (inputs / "0.bin").symlink_to(tmp_path / "aside")
    (inputs / "weights" / f"m-{'base'[::-1]}" / "weights.pkl").write_bytes(b"\x80")

    with pytest.raises(InputsMissingError, match=r"base .*forget"):
        find_inputs(manifest, inputs)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("run", {"run_id": "run-2"}),
        ("attempt", {"attempt": 2}),
        ("policy", {"policy_sha256": "0" * 64}),
        ("models", {"models": {"candidate": "0" * 64}}),
        ("seeds", {"seeds": {**SEEDS, "verification": "6"}}),
        ("environment", {"environment": {**ENVIRONMENT, "dtype": "bfloat16"}}),
    ],
)
def test_a_manifest_of_another_run_is_refused_by_name(
    manifest: RunManifest, inputs: Path, name: str, changes: dict[str, Any]
) -> None:
    manifest.refuse_other(report(inputs))
    with pytest.raises(ManifestMismatchError, match=name):
        manifest.refuse_other(replace(report(inputs), **changes))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d.update(schema_version=2), "schema_version"),
        (lambda d: d.update(path="/somewhere"), "path"),
        (lambda d: d.pop("files"), "files"),
        (lambda d: d["files"].pop("forget"), "forget"),
        (lambda d: d["files"].update(letters="a" * 64), "files are"),
        (lambda d: d["files"].update(forget="A" * 64), "forget"),
        (lambda d: d["files"].update(forget="../../etc/passwd"), "forget"),
        (lambda d: d["models"].pop("base"), "models"),
        (lambda d: d["seeds"].pop("verification"), "measured nothing"),
        (lambda d: d["seeds"].update(verification="five"), "seed"),
        (lambda d: d["environment"].pop("dtype"), "dtype"),
        (lambda d: d["environment"].update(threads="0"), "threads"),
        (lambda d: d["policy"].update(alpha="0.5"), "alpha"),
    ],
)
def test_a_damaged_manifest_is_refused_and_the_field_is_named(manifest: RunManifest, change: Any, said: str) -> None:
    document = manifest.to_document()
    change(document)

    with pytest.raises(SpecError, match=said):
        RunManifest.from_document(document)


def test_a_report_that_measured_nothing_has_no_manifest(inputs: Path) -> None:
    nothing = replace(report(inputs), seeds={"commitment_sha256": "0" * 64}, environment={})
    with pytest.raises(SpecError, match="measured nothing"):
        manifest_of(nothing, policy=POLICY, files=digests(inputs))
