"""Which versions hold what a person must be forgotten from, as catalogue and registry stand now.

Never a list made once: versions are trained and registered while a case is at work. It is made again when release is
decided, when weights are retired, and before the keys go that it is made with.
"""

from __future__ import annotations

from collections.abc import Sequence

from django.db import transaction

from deletion_service.errors import GuardError, RegistryError
from deletion_service.targets.catalogue import lock_model, versions_that_learned
from deletion_service.targets.locate import sealed_matches
from deletion_service.targets.models import ContaminatedVersion, ErasureTarget, ModelVersion, UnlearningRun
from deletion_service.targets.registries import RUN_TAG, ModelRegistry, RegisteredVersion, open_registry
from deletion_service.targets.statuses import VersionStatus


@transaction.atomic
def record_contaminated(target: ErasureTarget) -> None:
    """Write down every version that must go before the target is released: those that learned from any of the
    records, the one that was unlearned from, and all that descend from these. The candidate stays."""
    lock_model(target.model)
    record_ids = [record_id for m in sealed_matches(target) for record_id in m.proven]
    roots = versions_that_learned(target.model, record_ids)
    if target.batch is not None:
        roots.append(target.batch.before)
    candidate = candidate_of(target)
    for version in [*roots, *descendants(roots, candidate=candidate)]:
        if version != candidate and version.status != VersionStatus.RETIRED:
            ContaminatedVersion.objects.get_or_create(target=target, version=version)


def check_accounted_for(target: ErasureTarget) -> None:
    """Raise `GuardError` naming a version of which nobody can say whether it holds the person's data."""
    if open_question := _unregistered(target) or _without_manifest(target):
        raise GuardError(open_question)


def descendants(roots: Sequence[ModelVersion], *, candidate: ModelVersion | None) -> list[ModelVersion]:
    """Return the registered versions that descend from `roots`, oldest first, but for `candidate` and its own.

    Both records count: parents as registered here, and the lineage of the registry.
    """
    if not roots:
        return []
    model = roots[0].model
    registry = open_registry(model.registry)
    spared = set() if candidate is None else {candidate.number, *registry.lineage(candidate.number)}
    found = {number for root in roots for number in registry.lineage(root.number)} - spared
    rows = list(model.versions.order_by("number"))
    reached = {root.pk for root in roots} | {row.pk for row in rows if row.number in found}
    known = 0
    while known != len(reached):
        known = len(reached)
        reached |= {row.pk for row in rows if row.parent_id in reached and row != candidate}
    reached -= {root.pk for root in roots}
    return [row for row in rows if row.pk in reached]


def candidate_of(target: ErasureTarget) -> ModelVersion | None:
    """Return the version that the newest attempt made."""
    run = None if target.batch is None else target.batch.runs.order_by("-attempt").first()
    return None if run is None else run.candidate


def unregistered(target: ErasureTarget) -> tuple[list[RegisteredVersion], list[RegisteredVersion]]:
    """Return versions with weights that no row knows: what jobs of this target left behind, and everything else."""
    runs = set() if target.batch is None else {run.pk for run in target.batch.runs.all()}
    registry = open_registry(target.model.registry)
    known = set(target.model.versions.values_list("number", flat=True))
    found = [v for v in registry.list_versions() if v.number not in known and _has_weights(registry, v.number)]
    return [v for v in found if v.tags.get(RUN_TAG) in runs], [v for v in found if v.tags.get(RUN_TAG) not in runs]


def _has_weights(registry: ModelRegistry, number: int) -> bool:
    try:
        registry.path(number)
    except RegistryError:
        return False
    return True


def _unregistered(target: ErasureTarget) -> str:
    _, others = unregistered(target)
    for version in others:
        return (
            f"version {version.number} lies in the registry of {target.model.name} and is not registered; register it "
            "with its training manifest or remove it, then release again"
        )
    return ""


def _without_manifest(target: ErasureTarget) -> str:
    """The base of the model before never saw the person, which the verification checks; candidates rest on what they
    were made from, and the model before goes anyway.

    Of everything else a manifest must say what it learned, even if it descends from what goes: no version that
    somebody made is deleted by surprise.
    """
    rows = target.model.versions.filter(training_manifest=None).exclude(status=VersionStatus.RETIRED)
    candidates = UnlearningRun.objects.filter(batch__model=target.model, candidate__isnull=False).values("candidate")
    before = None if target.batch is None else target.batch.before
    spared = [] if before is None else [before.pk, before.base_id]
    for version in rows.exclude(pk__in=candidates).exclude(pk__in=[pk for pk in spared if pk]):
        return (
            f"version {version.number} of {target.model.name} has no training manifest, so nobody can say whether it "
            "learned from this person; record its manifest, then release again"
        )
    return ""
