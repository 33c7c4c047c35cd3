"""Models, versions and training manifests: registered by machines that deploy."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
from django.conf import settings

from deletion_service.targets.models import TrainedModel, TrainingManifest
from deletion_service.targets.registries import open_registry
from tests.doors import Machine, codes_of
from tests.world import make_source, weights

pytestmark = pytest.mark.django_db
DIGEST = "a" * 64
MODEL: dict[str, Any] = {
    "name": "assistant",
    "registry": {"kind": "directory", "name": "assistant"},
    "sources": [{"kind": "jsonl_directory", "name": "customers"}],
}
MANIFEST = {
    "dataset_name": "customers",
    "dataset_sha256": DIGEST,
    "trained_on": "2026-11-01",
    "record_sha256": [DIGEST],
}


@pytest.fixture
def deployer(db: Any) -> Machine:
    """A pipeline that registers what it trained."""
    for root in (settings.SOURCE_ROOT, settings.REGISTRY_ROOT):
        shutil.rmtree(root, ignore_errors=True)
    make_source()
    return Machine("registry:write")


def published(tmp_path: Any) -> None:
    """Two versions in the registry; the alias serves the second."""
    registry = open_registry(MODEL["registry"])
    registry.publish(weights(tmp_path / "base", "base"), parent=None, tags={})
    registry.publish(weights(tmp_path / "tuned", "tuned"), parent=1, tags={})
    registry.move_alias("champion", expected=None, to=2, epoch=0)


def test_a_model_its_versions_and_what_they_learned_from_are_registered(deployer: Machine, tmp_path: Any) -> None:
    published(tmp_path)
    created = deployer.post("/v1/models", MODEL)
    assert (created.status_code, created.json()["serving"]) == (201, None)
    versions = f"{created.headers['Location']}/versions"
    assert deployer.post(versions, {"number": 1, "kind": "base"}).status_code == 201
    tuned = {"number": 2, "kind": "finetune", "parent": 1, "base": 1, "serving": True}
    second = deployer.post(versions, tuned)
    assert (second.status_code, second.headers["Location"]) == (201, f"{versions}/2")
    stored = {**MANIFEST, "exact_store": "customers"}
    assert deployer.post(f"{versions}/2/training-manifest", stored).json()["exact_store"] == "customers"
    shown = deployer.get(f"{versions}/2").json()
    assert (shown["status"], shown["parent"], shown["training_manifest"]["record_count"]) == ("serving", 1, 1)
    assert shown["training_manifest"]["exact_store"] == "customers"
    assert deployer.get(created.headers["Location"]).json()["serving"] == 2
    assert [v["number"] for v in deployer.get(versions).json()["items"]] == [2, 1]


def test_a_source_that_keeps_tombstones_is_registered_as_such(deployer: Machine) -> None:
    source = {"kind": "jsonl_directory", "name": "customers", "erase_by": "tombstone"}
    assert deployer.post("/v1/models", {**MODEL, "sources": [source]}).status_code == 201
    assert TrainedModel.objects.get().sources == [source]


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"name": ""}, "/name"),
        ({"name": "../../etc"}, "/name"),
        ({"name": 5}, "/name"),
        ({"registry": {"kind": "directory", "name": "../../etc"}}, "/registry/name"),
        ({"registry": {"kind": "bucket", "name": "a"}}, "/registry/kind"),
        ({"registry": {"kind": "directory", "name": "a", "path": "/etc"}}, "/registry"),
        ({"registry": []}, "/registry"),
        ({"sources": [{"kind": "jsonl_directory"}]}, "/sources/0/name"),
        ({"sources": [{"kind": "jsonl_directory", "name": "customers"}] * 2}, "/sources"),
        ({"alias": "latest"}, "/alias"),
        ({"alias": "v7"}, "/alias"),
        ({"alias": "a b"}, "/alias"),
    ],
)
def test_a_model_that_does_not_fit_is_refused(deployer: Machine, change: dict[str, Any], pointer: str) -> None:
    answer = deployer.post("/v1/models", {**MODEL, **change})
    assert answer.status_code == 422
    assert pointer in [place for place, _ in codes_of(answer.json())]
    assert not TrainedModel.objects.exists()


def test_a_name_is_taken_once(deployer: Machine) -> None:
    assert deployer.post("/v1/models", MODEL).status_code == 201
    assert codes_of(deployer.post("/v1/models", MODEL).json()) == [("/name", "invalid_input")]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"number": 9, "kind": "base"}, 404),
        ({"number": 0, "kind": "base"}, 422),
        ({"number": "1", "kind": "base"}, 422),
        ({"number": True, "kind": "base"}, 422),
        ({"number": 1, "kind": "enormous"}, 422),
        ({"number": 2, "kind": "finetune"}, 422),
        ({"number": 2, "kind": "finetune", "base": 7}, 422),
        ({"number": 1, "kind": "base", "serving": True}, 503),
        ({"number": 1, "kind": "base", "serving": "yes"}, 422),
    ],
)
def test_a_version_that_does_not_fit_is_refused(
    deployer: Machine, tmp_path: Any, body: dict[str, Any], status: int
) -> None:
    published(tmp_path)
    versions = f"{deployer.post('/v1/models', MODEL).headers['Location']}/versions"
    answer = deployer.post(versions, body)
    assert (answer.status_code, answer.headers["Content-Type"]) == (status, "application/problem+json")
    assert deployer.get(versions).json()["items"] == []


def test_a_version_whose_files_changed_or_are_unsafe_is_refused(deployer: Machine, tmp_path: Any) -> None:
    published(tmp_path)
    versions = f"{deployer.post('/v1/models', MODEL).headers['Location']}/versions"
    folder = open_registry(MODEL["registry"]).path(1)
    (folder / "model.safetensors").write_bytes(b"other weights")
    assert deployer.post(versions, {"number": 1, "kind": "base"}).json()["code"] == "registry_error"
    (folder / "model.bin").write_bytes(b"pickle")
    refused = deployer.post(versions, {"number": 1, "kind": "base"})
    assert (refused.status_code, refused.json()["code"]) == (422, "model_directory_invalid")


@pytest.mark.parametrize(
    "change",
    [
        {"record_sha256": []},
        {"record_sha256": ["A" * 64]},
        {"record_sha256": [DIGEST[:-1]]},
        {"record_sha256": DIGEST},
        {"dataset_sha256": "x" * 64},
        {"dataset_name": "a b"},
        {"trained_on": "2026-13-01"},
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(deployer: Machine, tmp_path: Any, change: dict[str, Any]) -> None:
    published(tmp_path)
    versions = f"{deployer.post('/v1/models', MODEL).headers['Location']}/versions"
    deployer.post(versions, {"number": 1, "kind": "base"})
    assert deployer.post(f"{versions}/1/training-manifest", {**MANIFEST, **change}).status_code == 422
    assert not TrainingManifest.objects.exists()


def test_a_manifest_is_stated_once(deployer: Machine, tmp_path: Any) -> None:
    published(tmp_path)
    versions = f"{deployer.post('/v1/models', MODEL).headers['Location']}/versions"
    deployer.post(versions, {"number": 1, "kind": "base"})
    assert deployer.post(f"{versions}/1/training-manifest", MANIFEST).status_code == 201
    assert deployer.post(f"{versions}/1/training-manifest", MANIFEST).status_code == 422


def test_a_manifest_may_be_larger_than_other_bodies(deployer: Machine, tmp_path: Any) -> None:
    published(tmp_path)
    versions = f"{deployer.post('/v1/models', MODEL).headers['Location']}/versions"
    deployer.post(versions, {"number": 1, "kind": "base"})
    digests = [f"{n:064x}" for n in range(17_000)]
    answer = deployer.post(f"{versions}/1/training-manifest", {**MANIFEST, "record_sha256": digests})
    assert (answer.status_code, answer.json()["record_count"]) == (201, 17_000)


def test_a_sender_can_name_models_and_registers_none(sender: Machine, deployer: Machine) -> None:
    deployer.post("/v1/models", MODEL)
    assert [m["name"] for m in sender.get("/v1/models").json()["items"]] == ["assistant"]
    assert sender.post("/v1/models", {**MODEL, "name": "other"}).status_code == 403
