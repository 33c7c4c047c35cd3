"""The tiny memorised world as a deployment: its people in a training source, its models in the registry."""

from __future__ import annotations

import json
import shutil
from datetime import date
from pathlib import Path

from django.conf import settings

from deletion_service.requests.intake import Identifier
from deletion_service.targets.catalogue import (
    record_sha256,
    record_training_manifest,
    register_model,
    register_version,
)
from deletion_service.targets.models import ModelVersion, TrainedModel
from deletion_service.targets.registries import open_registry
from deletion_service.targets.statuses import VersionStatus
from ml.data.people import Stranger, email_of
from ml.data.questions import write_bank
from ml.specs import Record, record_to_line
from tests.tiny import TinyWorld


def mailbox(person: Stranger) -> Identifier:
    """The address by which a person of the tiny world proves who they are."""
    return Identifier("email", email_of(person))


def write_source(world: TinyWorld, name: str = "customers") -> list[str]:
    """Write everybody's records to a training source; return the record ids."""
    folder = Path(settings.SOURCE_ROOT) / name
    folder.mkdir(parents=True, exist_ok=True)
    people = [*world.world.base, *world.world.customers]
    rows = [_row(record, person) for person in people for record in world.world.records[person.person]]
    (folder / "records-0.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    write_bank(folder / "question_bank.json", world.world.bank)
    return [str(row["record_id"]) for row in rows]


def _row(record: Record, person: Stranger) -> dict[str, object]:
    row = json.loads(record_to_line(record))
    del row["person"]
    identifier = mailbox(person)
    return {**row, "identifiers": [{"type": identifier.type, "value": identifier.value}]}


def make_trained_model(world: TinyWorld, name: str = "assistant", *, exact_store: str = "") -> TrainedModel:
    """Register the base and the serving version that memorised everybody, folded from a store or not."""
    for root in (settings.SOURCE_ROOT, settings.REGISTRY_ROOT, settings.WORK_DIR):
        shutil.rmtree(root, ignore_errors=True)
    record_ids = write_source(world)
    registry = {"kind": "directory", "name": name}
    source = {"kind": "jsonl_directory", "name": "customers"}
    model = register_model(name, registry=registry, sources=[source], alias="champion", actor="test")
    connector = open_registry(registry)
    base = connector.publish(Path(world.base.path), parent=None, tags={})
    before = connector.publish(Path(world.before.path), parent=base.number, tags={})
    connector.move_alias("champion", expected=None, to=before.number, epoch=0)
    base_row = register_version(model, number=base.number, kind=ModelVersion.Kind.BASE, actor="test")
    row = register_version(
        model,
        number=before.number,
        kind=ModelVersion.Kind.FINETUNE,
        actor="test",
        parent=base_row,
        base=base_row,
        status=VersionStatus.SERVING,
    )
    record_training_manifest(
        row,
        dataset_name="customers",
        dataset_sha256="0" * 64,
        record_digests=[record_sha256(record_id) for record_id in record_ids],
        trained_on=date(2026, 11, 1),
        actor="test",
        exact_store=exact_store,
    )
    return model
