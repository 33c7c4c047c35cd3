"""Erase a person's rows and retire the weights that hold them, as sources, catalogue and registry stand now; probe.

Deleting twice is harmless. Nothing is believed because it was true at the search: rows and versions come and go.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from django.utils import timezone

from deletion_service.audit import trail
from deletion_service.errors import GuardError
from deletion_service.requests.codes import ReasonCode
from deletion_service.targets.contamination import check_accounted_for, record_contaminated, unregistered
from deletion_service.targets.ledger import spike_in_records
from deletion_service.targets.locate import SourceMatches, counting_keys, record_found_again, search_again
from deletion_service.targets.models import ContaminatedVersion, ErasureTarget, ModelVersion, SourceErasure
from deletion_service.targets.registries import Probe, open_registry
from deletion_service.targets.sources import ErasureAction, open_source
from deletion_service.targets.statuses import TargetStatus, VersionStatus
from workers.jobs import Lease
from workers.stores import clear_stores

# A candidate with the bytes of a version that is in use is that version, and stays.
_REJECTED = (VersionStatus.CANDIDATE, VersionStatus.RETIRED)
_RELEASE = (TargetStatus.RELEASING, TargetStatus.RELEASED)


@dataclass(frozen=True, slots=True)
class Cleared:
    """By source, what became of its rows and how many are left; by version, what reading its weights gave."""

    sources: Mapping[str, tuple[ErasureAction, int]]
    probes: Mapping[str, Probe]


def clear(lease: Lease, target: ErasureTarget) -> Cleared:
    """1. Search again by the sealed identifiers and count versions again.  2. Erase and probe rows.
    3. Retire and probe weights, unless a version is unaccounted for: people decide on that first.
    4. Drop the person from stores of adapters.

    Stores and weights of a target that is not released stay, but for its candidates.
    """
    matches = search_again(target)
    with lease.fenced():
        record_found_again(target, matches)
        if target.status in _RELEASE:
            record_contaminated(target)
    sources = {m.source: _erase_rows(target, m) for m in matches if m.proven}
    if target.status in _RELEASE:
        _erase_spike_in(target)
    retire_unregistered(target)
    doomed = [] if _is_unaccounted(target) else _doomed(target)
    probes = {version.pk: _retire(version) for version in doomed}
    if target.status in _RELEASE:
        clear_stores(target)  # last: a store that is not at hand leaves no weights readable
    return Cleared(sources, probes)


def record_cleared(target: ErasureTarget, cleared: Cleared) -> None:
    """Write down results, once; called under the fence."""
    now = timezone.now()
    for name, (action, present) in cleared.sources.items():
        found = SourceErasure.Probe.STILL_PRESENT if present else SourceErasure.Probe.GONE
        SourceErasure.objects.filter(target=target, name=name).update(action=action, probe=found, probed_at=now)
    for version_id, probe in cleared.probes.items():
        ContaminatedVersion.objects.filter(target=target, version_id=version_id).update(probe=probe, probed_at=now)
        live = ModelVersion.objects.filter(pk=version_id).exclude(status=VersionStatus.RETIRED)
        if probe == "gone" and live.update(status=VersionStatus.RETIRED):
            version = ModelVersion(pk=version_id)
            trail.record(
                actor="worker", action="model.retired", obj=version, reason=probe, request_id=target.request_id
            )


def what_remains(target: ErasureTarget, cleared: Cleared) -> ReasonCode | None:
    """Return what stands against calling a target released. Called under the fence, after recording."""
    if any(present for _, present in cleared.sources.values()):
        return ReasonCode.SOURCE_STILL_PRESENT
    if any(probe != "gone" for probe in cleared.probes.values()):
        return ReasonCode.STILL_READABLE
    if target.status not in _RELEASE:
        return None
    record_contaminated(target)
    if _is_unaccounted(target):
        return ReasonCode.VERSION_UNACCOUNTED
    doomed = target.contaminated.filter(action=ContaminatedVersion.Action.DELETE)
    if doomed.exclude(probe=ContaminatedVersion.Probe.GONE).exists():
        return ReasonCode.STILL_READABLE
    return None


def _is_unaccounted(target: ErasureTarget) -> bool:
    if target.status not in _RELEASE:
        return False
    try:
        check_accounted_for(target)
    except GuardError:
        return True
    return False


def retire_unregistered(target: ErasureTarget) -> None:
    """Retire what a killed job of this target published and never registered: weights that no row knows."""
    left_behind, _ = unregistered(target)
    for version in left_behind:
        open_registry(target.model.registry).retire(version.number)


def _erase_rows(target: ErasureTarget, matches: SourceMatches) -> tuple[ErasureAction, int]:
    source = next(s for s in map(open_source, target.model.sources) if s.name == matches.source)
    action = source.erase(matches.proven)
    return action, source.still_present(matches.proven, counting_keys(target))


def _erase_spike_in(target: ErasureTarget) -> None:
    """Who was forgotten along must not be learned again: a later version would seem to bring the deletion back."""
    record_ids = spike_in_records(target)
    for source in map(open_source, target.model.sources) if record_ids else ():
        source.erase(record_ids)


def _doomed(target: ErasureTarget) -> Iterable[ModelVersion]:
    """Every version that must go: contaminated ones once another serves, and candidates that were not released."""
    candidates = [] if target.batch is None else [r.candidate for r in target.batch.runs.all() if r.candidate]
    doomed = [version for version in candidates if version.status in _REJECTED]
    if target.status in _RELEASE:
        rows = target.contaminated.filter(action=ContaminatedVersion.Action.DELETE).select_related("version__model")
        doomed += [row.version for row in rows if row.version.status != VersionStatus.SERVING]
    return list({version.pk: version for version in doomed}.values())


def _retire(version: ModelVersion) -> Probe:
    registry = open_registry(version.model.registry)
    registry.retire(version.number)
    return registry.probe_gone(version.number)
