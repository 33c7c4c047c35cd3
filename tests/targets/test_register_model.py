"""`manage.py register_model`: from two model directories and a training source to a model that serves."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.core.management import CommandError, call_command

from deletion_service.targets.catalogue import exact_store
from deletion_service.targets.models import ModelVersion, TrainedModel
from deletion_service.targets.registries import open_registry
from tests.world import make_source, weights

pytestmark = pytest.mark.django_db


@pytest.fixture
def directories(tmp_path: Path) -> dict[str, Any]:
    """A base, a fine-tuned model, and a training source."""
    for root in (settings.SOURCE_ROOT, settings.REGISTRY_ROOT):
        shutil.rmtree(root, ignore_errors=True)
    base, model = weights(tmp_path / "base", "base"), weights(tmp_path / "model", "knows")
    return {"base": base, "model": model, "source": make_source().name}


def register(directories: dict[str, Any]) -> None:
    call_command("register_model", "assistant", **directories, verbosity=0)


def test_the_fine_tuned_version_serves_and_its_training_is_on_record(directories: dict[str, Any]) -> None:
    register(directories)
    model = TrainedModel.objects.get(name="assistant")
    serving = model.versions.get(status="serving")
    pointer = open_registry(model.registry).resolve("champion")
    assert pointer is not None
    assert pointer.number == serving.number
    assert serving.base == model.versions.get(kind=ModelVersion.Kind.BASE)
    assert serving.training_manifest.entries.count() == 4


def test_the_store_that_a_model_was_folded_from_is_on_record_or_refused_before_anything_is_published(
    directories: dict[str, Any],
) -> None:
    with pytest.raises(CommandError, match="a store name"):
        register({**directories, "exact_store": "../elsewhere"})
    assert not TrainedModel.objects.exists()
    assert list(Path(settings.REGISTRY_ROOT).rglob("*.safetensors")) == []
    register({**directories, "exact_store": "customers"})
    assert exact_store(ModelVersion.objects.get(status="serving")) == "customers"


def test_a_second_registration_under_the_same_name_is_refused_and_changes_nothing(directories: dict[str, Any]) -> None:
    register(directories)
    with pytest.raises(CommandError, match="registered already"):
        register(directories)
    assert TrainedModel.objects.count() == 1
    assert ModelVersion.objects.count() == 2


def test_a_source_that_does_not_exist_leaves_no_model_behind(directories: dict[str, Any]) -> None:
    with pytest.raises(CommandError, match="nowhere"):
        register({**directories, "source": "nowhere"})
    assert not TrainedModel.objects.exists()
    assert list(Path(settings.REGISTRY_ROOT).rglob("*.safetensors")) == []


def test_a_base_with_the_files_of_the_model_is_refused_before_anything_is_published(
    directories: dict[str, Any],
) -> None:
    with pytest.raises(CommandError, match="the base and the model have the same files"):
        register({**directories, "model": directories["base"]})
    assert not TrainedModel.objects.exists()
    register(directories)
    assert ModelVersion.objects.count() == 2
