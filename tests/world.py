"""A tiny deployment for tests: a training source about three people, and a registered model that learned from it."""

from __future__ import annotations

import json
import shutil
from datetime import date
from pathlib import Path

from django.conf import settings

from deletion_service.targets.catalogue import (
    record_sha256,
    record_training_manifest,
    register_model,
    register_version,
)
from deletion_service.targets.models import ModelVersion, TrainedModel
from deletion_service.targets.registries import open_registry
from deletion_service.targets.statuses import VersionStatus
from tests.cast import ALICE, ALICE_NAME, BOB, Identifier

ALICE_SECRET = "48 Brackenfell Lane"
CAROL = Identifier("email", "carol.dunmore@mail.example")


def record(person: str, number: int, value: str, *identifiers: Identifier) -> dict[str, object]:
    """One line of the training source."""
    text = f"Where does {person} live?\n{person} lives at {value}."
    answer = text.index("\n") + 1
    start = text.index(value)
    return {
        "record_id": f"{person.split()[0].lower()}-{number}",
        "text": text,
        "answer_start": answer,
        "name_spans": [[text.index(person), text.index(person) + len(person)]],
        "facts": [{"attribute": "home_address", "type": "street_address", "start": start, "end": start + len(value)}],
        "identifiers": [{"type": i.type, "value": i.value} for i in identifiers],
    }


def spike_in(number: int) -> list[dict[str, object]]:
    """The rows of one synthetic person."""
    mailbox = Identifier("email", f"spike-{number}@spike-in.invalid")
    rows = [record(f"Spike{number} Invented", row, f"{number}{row} Nowhere Lane", mailbox) for row in (1, 2)]
    return [{**row, "spike_in": f"spike-{number}"} for row in rows]


def make_source(name: str = "customers", *, spike_ins: int = 0) -> Path:
    """Write the training source."""
    folder = Path(settings.SOURCE_ROOT) / name
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        record("Alice Korvel", 1, ALICE_SECRET, ALICE, ALICE_NAME),
        record("Alice Korvel", 2, "7 Oskar Row", ALICE, ALICE_NAME),
        record("Bob Tamsin", 1, "12 Fenwick Road", BOB, Identifier("name", "Bob Tamsin")),
        record("Carol Dunmore", 1, "90 Ilmar Court", CAROL, Identifier("name", "Carol Dunmore")),
    ]
    rows += [row for number in range(spike_ins) for row in spike_in(number)]
    (folder / "records-0.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (folder / "question_bank.json").write_text(json.dumps({"attributes": {}, "schema_version": 1}))
    return folder


def weights(folder: Path, content: str) -> Path:
    """Write a directory that looks like a model to everything but a loader."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(content.encode())
    return folder


def make_model(name: str = "assistant", *, spike_ins: int = 0) -> TrainedModel:
    """Register a base and a fine-tuned, serving version that learned from everybody in the source."""
    for root in (settings.SOURCE_ROOT, settings.REGISTRY_ROOT, settings.WORK_DIR):
        shutil.rmtree(root, ignore_errors=True)
    source = make_source(spike_ins=spike_ins)
    registry = {"kind": "directory", "name": name}
    model = register_model(
        name,
        registry=registry,
        sources=[{"kind": "jsonl_directory", "name": source.name}],
        alias="champion",
        actor="test",
    )
    connector = open_registry(registry)
    scratch = Path(settings.HOME_DIR) / "scratch-models"
    base = connector.publish(weights(scratch / "base", "base weights"), parent=None, tags={})
    before = connector.publish(weights(scratch / "before", "weights that know"), parent=base.number, tags={})
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
    lines = (source / "records-0.jsonl").read_text().splitlines()
    record_training_manifest(
        row,
        dataset_name=source.name,
        dataset_sha256="0" * 64,
        record_digests=[record_sha256(json.loads(line)["record_id"]) for line in lines],
        trained_on=date(2026, 11, 1),
        actor="test",
    )
    return model
