"""`manage.py register_model`: publish a base and a fine-tuned model to the directory registry and register both,
with the training source the fine-tuned one learned from."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import transaction

from deletion_service.errors import DomainError, SameFilesError
from deletion_service.targets.catalogue import (
    check_store_name,
    record_sha256,
    record_training_manifest,
    register_model,
    register_version,
)
from deletion_service.targets.models import ModelVersion
from deletion_service.targets.registries import open_registry
from deletion_service.targets.sources import open_source
from deletion_service.targets.statuses import VersionStatus
from ml.digests import document_sha256, model_manifest

_ACTOR = "cli"


class Command(BaseCommand):
    help = "Publish and register a base model, a fine-tuned model that serves, and their training source."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("name", help="name of the trained model, and of its registry")
        parser.add_argument("--base", type=Path, required=True, help="model directory that never saw the customers")
        parser.add_argument("--model", type=Path, required=True, help="model directory that did")
        parser.add_argument("--source", required=True, help="name of the training source below LETHE_SOURCE_ROOT")
        parser.add_argument("--alias", default="champion")
        parser.add_argument(
            "--exact-store", default="", help="store below LETHE_EXACT_STORES that the model was folded from"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            with transaction.atomic():
                serving = _register(options)
        except DomainError as exc:
            raise CommandError(exc.message) from exc
        self.stdout.write(f"{serving.model.name} version {serving.number} serves, manifest {serving.manifest_sha256}")


def _register(options: dict[str, Any]) -> ModelVersion:
    check_store_name(options["exact_store"])
    model = register_model(
        options["name"],
        registry={"kind": "directory", "name": options["name"]},
        sources=[{"kind": "jsonl_directory", "name": options["source"]}],
        alias=options["alias"],
        actor=_ACTOR,
    )
    # Read before anything is published: a source that cannot be read must leave no weights behind.
    source = open_source(model.sources[0])
    digests = sorted(record_sha256(found.record.record_id) for found in source.records())
    if model_manifest(options["base"]) == model_manifest(options["model"]):
        raise SameFilesError(
            "the base and the model have the same files; the base must be one that never saw the source"
        )
    registry = open_registry(model.registry)
    base = registry.publish(options["base"], parent=None, tags={})
    serving = registry.publish(options["model"], parent=base.number, tags={})
    registry.move_alias(model.alias, expected=None, to=serving.number, epoch=0)
    base_row = register_version(model, number=base.number, kind=ModelVersion.Kind.BASE, actor=_ACTOR)
    row = register_version(
        model,
        number=serving.number,
        kind=ModelVersion.Kind.FINETUNE,
        actor=_ACTOR,
        parent=base_row,
        base=base_row,
        status=VersionStatus.SERVING,
    )
    # The fine-tuned model learned from everything that is in its source now.
    record_training_manifest(
        row,
        dataset_name=source.name,
        dataset_sha256=document_sha256(digests),
        record_digests=digests,
        trained_on=date.today(),  # noqa: DTZ011 - a calendar day on a document, not a moment
        actor=_ACTOR,
        exact_store=options["exact_store"],
    )
    return row
