"""Trained models, their versions, and what each version learned from."""

from __future__ import annotations

from rest_framework.request import Request
from rest_framework.response import Response

from deletion_service.access.permissions import Action
from deletion_service.api import examples
from deletion_service.api.authentication import principal_of
from deletion_service.api.description import (
    CREATING,
    IDEMPOTENCY_KEY,
    READING,
    listing,
    operation,
)
from deletion_service.api.idempotency import idempotent
from deletion_service.api.pages import page_of
from deletion_service.api.serializers import (
    ModelIn,
    ModelOut,
    TrainingManifestIn,
    TrainingManifestOut,
    VersionIn,
    VersionOut,
)
from deletion_service.api.views.base import View, read_body
from deletion_service.api.visible import (
    find,
)
from deletion_service.errors import InvalidInputError, NotFoundError
from deletion_service.targets.catalogue import (
    record_training_manifest,
    register_model,
    register_version,
)
from deletion_service.targets.models import ModelVersion, TrainedModel
from deletion_service.targets.statuses import VersionStatus


class Models(View):
    """Trained models."""

    actions = {"GET": Action.READ_MODELS, "POST": Action.MANAGE_MODELS}

    @listing("list_models", "List trained models", item=ModelOut, example=examples.MODEL)
    def get(self, request: Request) -> Response:
        """List models, newest first."""
        rows = TrainedModel.objects.prefetch_related("versions")
        return page_of(rows, request, lambda found: ModelOut(found, many=True).data)

    @operation(
        "create_model",
        "Register a trained model",
        status=201,
        answer=ModelOut,
        example={**examples.MODEL, "serving": None},
        body=ModelIn,
        body_example=examples.MODEL_IN,
        parameters=[IDEMPOTENCY_KEY],
        problems=CREATING,
    )
    @idempotent
    def post(self, request: Request) -> Response:
        """Register a lineage of versions."""
        body = read_body(ModelIn, request)
        model = register_model(
            body["name"],
            registry=body["registry"],
            sources=[_source(row) for row in body["sources"]],
            alias=body["alias"],
            actor=principal_of(request).label,
        )
        return Response(ModelOut(model).data, status=201, headers={"Location": f"/v1/models/{model.pk}"})


def _source(row: dict[str, str]) -> dict[str, str]:
    """Deleting is what a source does unless it is told otherwise."""
    return {name: value for name, value in row.items() if (name, value) != ("erase_by", "delete")}


class ModelDetail(View):
    """One trained model."""

    actions = {"GET": Action.READ_MODELS}

    @operation("show_model", "Show a trained model", answer=ModelOut, example=examples.MODEL, problems=READING)
    def get(self, request: Request, model_id: str) -> Response:
        """Show registry, sources and the version that serves."""
        return Response(ModelOut(find(TrainedModel.objects.prefetch_related("versions"), model_id)).data)


class Versions(View):
    """Versions of one model."""

    actions = {"GET": Action.READ_MODELS, "POST": Action.MANAGE_MODELS}

    @listing(
        "list_versions", "List the versions of a model", item=VersionOut, example=examples.VERSION, more_problems=(404,)
    )
    def get(self, request: Request, model_id: str) -> Response:
        """List versions, newest first."""
        model = find(TrainedModel.objects.all(), model_id)
        rows = model.versions.select_related("model", "parent", "base", "training_manifest")
        return page_of(rows, request, lambda found: VersionOut(found, many=True).data)

    @operation(
        "create_version",
        "Register a version that the registry holds",
        description="Digests are recomputed from its files.",
        status=201,
        answer=VersionOut,
        example={**examples.VERSION, "training_manifest": None},
        body=VersionIn,
        body_example=examples.VERSION_IN,
        parameters=[IDEMPOTENCY_KEY],
        problems=(*CREATING, 404, 503),
    )
    @idempotent
    def post(self, request: Request, model_id: str) -> Response:
        """Register a version."""
        model = find(TrainedModel.objects.all(), model_id)
        body = read_body(VersionIn, request)
        version = register_version(
            model,
            number=body["number"],
            kind=body["kind"],
            actor=principal_of(request).label,
            parent=_version(model, body["parent"], pointer="/parent"),
            base=_version(model, body["base"], pointer="/base"),
            status=VersionStatus.SERVING if body["serving"] else VersionStatus.REGISTERED,
        )
        location = f"/v1/models/{model.pk}/versions/{version.number}"
        return Response(VersionOut(version).data, status=201, headers={"Location": location})


class VersionDetail(View):
    """One version of a model."""

    actions = {"GET": Action.READ_MODELS}

    @operation(
        "show_version", "Show a version of a model", answer=VersionOut, example=examples.VERSION, problems=READING
    )
    def get(self, request: Request, model_id: str, number: int) -> Response:
        """Show digests, lineage and what it learned from."""
        return Response(VersionOut(_known_version(find(TrainedModel.objects.all(), model_id), number)).data)


class TrainingManifests(View):
    """What a version learned from."""

    actions = {"POST": Action.MANAGE_MODELS}
    max_body_bytes = 80 << 20

    @operation(
        "create_training_manifest",
        "State which records a version learned from",
        description="Stated once, never changed. Without it no search can tell which versions learned from a person. "
        "`exact_store` names the store of adapters that the version was folded from: exact deletion is tried.",
        status=201,
        answer=TrainingManifestOut,
        example=examples.TRAINING_MANIFEST,
        body=TrainingManifestIn,
        body_example=examples.TRAINING_MANIFEST_IN,
        parameters=[IDEMPOTENCY_KEY],
        problems=(*CREATING, 404),
    )
    @idempotent
    def post(self, request: Request, model_id: str, number: int) -> Response:
        """Record the manifest."""
        version = _known_version(find(TrainedModel.objects.all(), model_id), number)
        body = read_body(TrainingManifestIn, request)
        manifest = record_training_manifest(
            version,
            dataset_name=body["dataset_name"],
            dataset_sha256=body["dataset_sha256"],
            record_digests=body["record_sha256"],
            trained_on=body["trained_on"],
            exact_store=body["exact_store"],
            actor=principal_of(request).label,
        )
        location = f"/v1/models/{model_id}/versions/{number}"
        return Response(TrainingManifestOut(manifest).data, status=201, headers={"Location": location})


def _known_version(model: TrainedModel, number: int) -> ModelVersion:
    version = (
        model.versions.select_related("model", "parent", "base", "training_manifest").filter(number=number).first()
    )
    if version is None:
        raise NotFoundError(f"{model.name} has no version of this number; list its versions")
    return version


def _version(model: TrainedModel, number: int | None, *, pointer: str) -> ModelVersion | None:
    if number is None:
        return None
    version = model.versions.filter(number=number).first()
    if version is None:
        raise InvalidInputError(f"{model.name} has no version of this number; register it first", pointer=pointer)
    return version
