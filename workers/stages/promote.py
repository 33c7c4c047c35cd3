"""Project a decided promotion to the registry: one fenced writer that reads back."""

from __future__ import annotations

from django.utils import timezone

from deletion_service.certificates.models import Promotion
from deletion_service.certificates.promotion import confirm_promotion, report_conflict
from deletion_service.errors import AliasConflictError
from deletion_service.targets.catalogue import inherit_manifest
from deletion_service.targets.jobs import owe
from deletion_service.targets.ledger import spike_in_records
from deletion_service.targets.locate import sealed_matches
from deletion_service.targets.models import ModelVersion
from deletion_service.targets.registries import ModelRegistry, open_registry
from deletion_service.targets.statuses import JobKind
from ml.digests import model_manifest
from ml.errors import MlError
from workers.jobs import Lease
from workers.stores import was_exact


def run(lease: Lease) -> None:
    """1. Read the weights that were judged; nothing may point to others.  2. Tag, then move the alias, expecting the
    version the decision was about.  3. Read back alias and digest.  4. Confirm under the fence.

    The epoch makes a repetition harmless and a latecomer harmless too: the registry refuses an older epoch.
    """
    job = lease.job()
    promotion = Promotion.objects.select_related("model", "from_version", "to_version", "target__request").get(
        target=job.target, status__in=[Promotion.Status.DECIDED, Promotion.Status.CONFIRMED]
    )
    try:
        _project(promotion)
    except AliasConflictError:
        with lease.fenced():
            report_conflict(promotion)
            lease.finish()
        return
    with lease.fenced():
        confirm_promotion(promotion)
        forgotten = [record_id for m in sealed_matches(promotion.target) for record_id in m.proven]
        along = spike_in_records(promotion.target)
        inherit_manifest(
            promotion.to_version,
            without=[*forgotten, *along],
            trained_on=timezone.localdate(),
            is_exact=was_exact(promotion.evidence.run),
        )
        owe(JobKind.RETIRE, job.case, target=job.target, run=job.run, round_=job.round)
        lease.finish()


def _project(promotion: Promotion) -> None:
    registry = open_registry(promotion.model.registry)
    _check_digest(registry, promotion.to_version)
    tags = {
        "erasure.promotion_epoch": str(promotion.epoch),
        "erasure.verdict": promotion.evidence.verdict,
        "erasure.parent_version": str(promotion.from_version.number),
        "erasure.model_sha256": promotion.to_version.root_sha256,
    }
    registry.tag(promotion.to_version.number, tags)
    registry.move_alias(
        promotion.model.alias,
        expected=promotion.from_version.number,
        to=promotion.to_version.number,
        epoch=promotion.epoch,
    )
    _check_digest(registry, promotion.to_version)


def _check_digest(registry: ModelRegistry, version: ModelVersion) -> None:
    """Raise `AliasConflictError` unless the registry holds the version's files as they were judged."""
    try:
        manifest = model_manifest(registry.path(version.number))
    except MlError as exc:
        raise AliasConflictError(f"version {version.number} cannot be released: {exc}") from exc
    if manifest.manifest_sha256 != version.manifest_sha256:
        raise AliasConflictError(f"version {version.number} does not read back with its digest; restore its files")
