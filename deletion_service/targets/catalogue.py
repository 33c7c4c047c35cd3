"""Trained models, their versions, and which records each version learned from."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any, Final

from django.db import IntegrityError, transaction

from deletion_service.audit import trail
from deletion_service.errors import InvalidInputError, NotFoundError, RegistryError, SameFilesError, UnknownModelError
from deletion_service.targets.jobs import owe_sweep
from deletion_service.targets.models import ModelVersion, TrainedModel, TrainingManifest, TrainingManifestEntry
from deletion_service.targets.registries import ModelRegistry, open_registry
from deletion_service.targets.sources import open_source
from deletion_service.targets.statuses import VersionStatus
from ml.digests import model_manifest

_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_ALIAS: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_RESERVED_ALIAS: Final = re.compile(r"latest|v[0-9]+")
MAX_MANIFEST_ENTRIES: Final = 1_000_000


def record_sha256(record_id: str) -> str:
    """Return the digest by which training manifests name a record."""
    return hashlib.sha256(record_id.encode()).hexdigest()


def check_model_names(names: Sequence[str]) -> None:
    """Raise `UnknownModelError` naming the place of the first name that is not registered."""
    known = set(TrainedModel.objects.filter(name__in=names).values_list("name", flat=True))
    for index, name in enumerate(names):
        if name not in known:
            raise UnknownModelError(
                "no model of this name is registered; list models to see names", pointer=f"/models/{index}"
            )


@transaction.atomic
def register_model(
    name: str, *, registry: Mapping[str, Any], sources: Sequence[Mapping[str, Any]], alias: str, actor: str
) -> TrainedModel:
    """Register a lineage of versions and where its training texts live.

    Raises:
        InvalidInputError: an unknown registry or source kind, a source named twice, a malformed name or alias, or a
            name or a registry that is taken.
    """
    if not _NAME.fullmatch(name):
        raise InvalidInputError("a model name is 1 to 64 letters, digits and . _ -", pointer="/name")
    if not _ALIAS.fullmatch(alias) or _RESERVED_ALIAS.fullmatch(alias):
        raise InvalidInputError("an alias is 1 to 64 letters, digits, _ and -, not latest or v<n>", pointer="/alias")
    open_registry(registry)
    names = [open_source(source).name for source in sources]
    if len(set(names)) != len(names):
        raise InvalidInputError("a source is named twice; its records would count twice", pointer="/sources")
    others = TrainedModel.objects.exclude(name=name).values_list("registry", flat=True)
    if any(dict(registry) == other for other in others):
        raise InvalidInputError("another model has this registry; versions of two must not mix", pointer="/registry")
    try:
        with transaction.atomic():
            model = TrainedModel.objects.create(name=name, registry=registry, sources=list(sources), alias=alias)
    except IntegrityError as exc:
        raise InvalidInputError("a model of this name is registered already", pointer="/name") from exc
    trail.record(actor=actor, action="model.registered", obj=model)
    return model


@transaction.atomic
def register_version(
    model: TrainedModel,
    *,
    number: int,
    kind: str,
    actor: str,
    parent: ModelVersion | None = None,
    base: ModelVersion | None = None,
    status: str = VersionStatus.REGISTERED,
) -> ModelVersion:
    """Record a version that the registry holds, with the digests recomputed from its files.

    Raises:
        NotFoundError: the registry has no such version.
        RegistryError: its files are not what the registry says, or its alias serves another version.
        SameFilesError: the same files stood as another version that was retired since.
        InvalidInputError: a trained version without a base, or a second serving version.
    """
    if kind != ModelVersion.Kind.BASE and base is None:
        raise InvalidInputError("name the base version that never saw the data in question", pointer="/base")
    lock_model(model)
    registry = open_registry(model.registry)
    if status == VersionStatus.SERVING:
        _check_serving(model, registry, number)
    known = {v.number: v for v in registry.list_versions()}
    if number not in known:
        raise NotFoundError(f"the registry of {model.name} has no version {number}; publish it first")
    manifest = model_manifest(registry.path(number))
    if manifest.manifest_sha256 != known[number].manifest_sha256:
        raise RegistryError(f"version {number} of {model.name} differs from its registered digest; do not use it")
    _refuse_twin(model, number, manifest.manifest_sha256)
    version, created = ModelVersion.objects.get_or_create(
        model=model,
        number=number,
        defaults={
            "kind": kind,
            "status": status,
            "parent": parent,
            "base": base,
            "root_sha256": manifest.root_sha256,
            "manifest_sha256": manifest.manifest_sha256,
            "manifest": manifest.to_document(),
        },
    )
    if created:
        trail.record(actor=actor, action="version.registered", obj=version)
    if created and status == VersionStatus.REGISTERED and version.base is not None and model.ledger.exists():
        # It was made elsewhere and may bring back what was deleted; nobody else will look.
        owe_sweep(version)
    return version


def _refuse_twin(model: TrainedModel, number: int, manifest_sha256: str) -> None:
    twin = model.versions.filter(manifest_sha256=manifest_sha256).exclude(number=number).first()
    if twin is not None:
        raise SameFilesError(f"version {number} of {model.name} has the files of version {twin.number}, {twin.status}")


def lock_model(model: TrainedModel) -> None:
    """Keep others from registering versions of a model, or counting them, until the transaction ends."""
    TrainedModel.objects.select_for_update().get(pk=model.pk)


def _check_serving(model: TrainedModel, registry: ModelRegistry, number: int) -> None:
    pointer = registry.resolve(model.alias)
    if pointer is None or pointer.number != number:
        raise RegistryError(f"alias {model.alias} of {model.name} does not point to version {number}; move it first")
    if model.versions.filter(status=VersionStatus.SERVING).exclude(number=number).exists():
        raise InvalidInputError(f"{model.name} has a serving version already; promotion alone replaces it")


@transaction.atomic
def record_training_manifest(
    version: ModelVersion,
    *,
    dataset_name: str,
    dataset_sha256: str,
    record_digests: Sequence[str],
    trained_on: date,
    actor: str,
    exact_store: str = "",
) -> TrainingManifest:
    """State which records a version learned from (compliance section 10.1); stated once, never changed.

    Args:
        exact_store: name of the store of stacked adapters (`ml.exact`) below `LETHE_EXACT_STORES` that the version was
            folded from; a deletion then drops what learned from the records instead of training it away.
    Raises:
        InvalidInputError: no digests, too many, a malformed one, a malformed name, another model's store, or a second
            statement.
    """
    digests = sorted(set(record_digests))
    if not digests or len(digests) > MAX_MANIFEST_ENTRIES:
        raise InvalidInputError(f"1 to {MAX_MANIFEST_ENTRIES} record digests", pointer="/record_sha256")
    if not _NAME.fullmatch(dataset_name):
        raise InvalidInputError("a data set name is 1 to 64 letters, digits and . _ -", pointer="/dataset_name")
    if not all(_SHA256.fullmatch(d) for d in [*digests, dataset_sha256]):
        raise InvalidInputError("digests are 64 lower-case hexadecimal digits", pointer="/record_sha256")
    check_store_name(exact_store)
    if exact_store and TrainingManifest.objects.filter(exact_store=exact_store).exclude(version__model=version.model):
        raise InvalidInputError("another model has this store; no deletion may change two", pointer="/exact_store")
    if TrainingManifest.objects.filter(version=version).exists():
        raise InvalidInputError(f"{version.pk} has a training manifest already; it cannot be changed")
    manifest = TrainingManifest.objects.create(
        version=version,
        dataset_name=dataset_name,
        dataset_sha256=dataset_sha256,
        record_count=len(digests),
        trained_on=trained_on,
        exact_store=exact_store,
    )
    TrainingManifestEntry.objects.bulk_create(
        (TrainingManifestEntry(manifest=manifest, record_sha256=digest) for digest in digests), batch_size=2000
    )
    trail.record(actor=actor, action="version.manifest_recorded", obj=version)
    return manifest


def versions_that_learned(model: TrainedModel, record_ids: Sequence[str]) -> list[ModelVersion]:
    """Return the versions of `model` that learned from any of the records, retired ones too; oldest first."""
    digests = [record_sha256(record_id) for record_id in record_ids]
    found: set[str] = set()
    for start in range(0, len(digests), 500):
        entries = TrainingManifestEntry.objects.filter(
            manifest__version__model=model, record_sha256__in=digests[start : start + 500]
        )
        found |= set(entries.values_list("manifest__version_id", flat=True).distinct())
    return list(ModelVersion.objects.filter(pk__in=found).order_by("number"))


def training_batch(version: ModelVersion, record_ids: Sequence[str]) -> str | None:
    """Return the id of the first version in the lineage of `version` that learned any of the records: the training
    batch they came with. `None` where no manifest lists them."""
    lineage: list[str] = []
    row: ModelVersion | None = version
    while row is not None:
        lineage.append(row.pk)
        row = row.parent
    found: set[str] = set()
    digests = [record_sha256(record_id) for record_id in record_ids]
    for start in range(0, len(digests), 500):
        entries = TrainingManifestEntry.objects.filter(
            manifest__version__in=lineage, record_sha256__in=digests[start : start + 500]
        )
        found |= set(entries.values_list("manifest__version_id", flat=True))
    return next((version_id for version_id in reversed(lineage) if version_id in found), None)


def check_store_name(name: str) -> None:
    """Raise `InvalidInputError` unless `name` is empty or the name of a directory."""
    if name and not _NAME.fullmatch(name):
        raise InvalidInputError("a store name is 1 to 64 letters, digits and . _ -", pointer="/exact_store")


def exact_store(version: ModelVersion) -> str:
    """Name of the store of adapters that a version was folded from; empty where no manifest names one."""
    manifest = getattr(version, "training_manifest", None)
    return "" if manifest is None else manifest.exact_store


def store_names(model: TrainedModel) -> list[str]:
    """Names of the stores that versions of `model` were folded from, retired ones too."""
    rows = TrainingManifest.objects.filter(version__model=model).exclude(exact_store="")
    return sorted(set(rows.values_list("exact_store", flat=True)))


def inherit_manifest(
    candidate: ModelVersion, *, without: Sequence[str], trained_on: date, is_exact: bool
) -> TrainingManifest | None:
    """State what an unlearned version still rests on: its parent's records without the forgotten ones.

    Args:
        is_exact: it was folded from its parent's store again; any other method leaves a model that no store made.
    """
    if candidate.parent is None or not hasattr(candidate.parent, "training_manifest"):
        return None
    parent = candidate.parent.training_manifest
    gone = {record_sha256(record_id) for record_id in without}
    kept = [d for d in parent.entries.values_list("record_sha256", flat=True) if d not in gone]
    manifest, created = TrainingManifest.objects.get_or_create(
        version=candidate,
        defaults={
            "dataset_name": parent.dataset_name,
            "dataset_sha256": parent.dataset_sha256,
            "record_count": len(kept),
            "trained_on": trained_on,
            "exact_store": parent.exact_store if is_exact else "",
        },
    )
    if created:
        rows = (TrainingManifestEntry(manifest=manifest, record_sha256=digest) for digest in kept)
        TrainingManifestEntry.objects.bulk_create(rows, batch_size=2000)
    return manifest
