"""Retire what still holds the data: contaminated weights, rejected candidates, rows at the source. Then probe."""

from __future__ import annotations

from collections.abc import Iterable

from django.utils import timezone

from deletion_service.audit import trail
from deletion_service.certificates.promotion import send_back
from deletion_service.requests.codes import ReasonCode
from deletion_service.requests.models import ErasureRequest
from deletion_service.targets import lifecycle
from deletion_service.targets.batching import close_batch
from deletion_service.targets.jobs import owe
from deletion_service.targets.locate import sealed_matches
from deletion_service.targets.models import (
    ContaminatedVersion,
    ErasureTarget,
    ModelVersion,
    SourceErasure,
)
from deletion_service.targets.registries import Probe, open_registry
from deletion_service.targets.sources import open_source
from deletion_service.targets.statuses import JobKind, TargetStatus, VersionStatus
from workers.jobs import Lease
from workers.workspace import RUN_TAG, wipe_run

_SETTLED = (TargetStatus.RELEASED, TargetStatus.NOT_RELEASED, TargetStatus.CANCELLED)
# Deleting again is harmless. A candidate with the bytes of a version that is in use is that version, and stays.
_REJECTED = (VersionStatus.CANDIDATE, VersionStatus.RETIRED)
_SUPERSEDED = (VersionStatus.SUPERSEDED, VersionStatus.REGISTERED, VersionStatus.RETIRED)


def run(lease: Lease) -> None:
    """1. Erase and probe the source rows.  2. Retire and probe weights.  3. Record under the fence; owe disposal.

    Deleting twice is harmless; what was found is written once. A target that is not released loses its source rows
    and its candidate, while the model that serves stays.
    """
    job = lease.job()
    if job.target is None:
        raise ValueError("a retirement job has a target")
    target = job.target
    sources = {m.source: _erase_rows(target, m.source, m.proven) for m in sealed_matches(target)}
    retire_unregistered(target)
    probes = {version.pk: _retire(version) for version in _doomed(target)}
    with lease.fenced():
        _record_sources(target, sources)
        _record_versions(target, probes)
        complaint = _what_remains(target, probes, sources)
        if complaint is not None and target.status == TargetStatus.RELEASING:
            send_back(target, reason=complaint)
        else:
            _settle(target)
        lease.finish()


def _erase_rows(target: ErasureTarget, name: str, record_ids: tuple[str, ...]) -> tuple[str, int]:
    source = next(s for s in map(open_source, target.model.sources) if s.name == name)
    action = source.erase(record_ids)
    return action, source.still_present(record_ids)


def _doomed(target: ErasureTarget) -> Iterable[ModelVersion]:
    """Every version that must go: contaminated ones once another serves, and candidates that were not released."""
    candidates = [] if target.batch is None else [r.candidate for r in target.batch.runs.all() if r.candidate]
    contaminated: list[ModelVersion] = []
    if target.status == TargetStatus.RELEASING:
        rows = target.contaminated.filter(action=ContaminatedVersion.Action.DELETE).select_related("version__model")
        contaminated = [row.version for row in rows]
    rejected = [version for version in candidates if version.status in _REJECTED]
    superseded = [version for version in contaminated if version.status in _SUPERSEDED]
    return list({version.pk: version for version in [*rejected, *superseded]}.values())


def retire_unregistered(target: ErasureTarget) -> None:
    """Retire what a killed job of this target published and never registered: weights that no row knows."""
    runs = set() if target.batch is None else {run.pk for run in target.batch.runs.all()}
    registry = open_registry(target.model.registry)
    known = set(target.model.versions.values_list("number", flat=True))
    for version in registry.list_versions():
        if version.number not in known and version.tags.get(RUN_TAG) in runs:
            registry.retire(version.number)


def _retire(version: ModelVersion) -> Probe:
    registry = open_registry(version.model.registry)
    registry.retire(version.number)
    return registry.probe_gone(version.number)


def _record_sources(target: ErasureTarget, sources: dict[str, tuple[str, int]]) -> None:
    for name, (action, present) in sources.items():
        probe = SourceErasure.Probe.STILL_PRESENT if present else SourceErasure.Probe.GONE
        SourceErasure.objects.filter(target=target, name=name).update(
            action=action, probe=probe, probed_at=timezone.now()
        )


def _record_versions(target: ErasureTarget, probes: dict[str, Probe]) -> None:
    now = timezone.now()
    for version_id, probe in probes.items():
        ContaminatedVersion.objects.filter(target=target, version_id=version_id).update(probe=probe, probed_at=now)
        if probe == "gone":
            ModelVersion.objects.filter(pk=version_id).update(status=VersionStatus.RETIRED)
            trail.record(
                actor="worker",
                action="model.retired",
                obj=ModelVersion(pk=version_id),
                reason=probe,
                request_id=target.request_id,
            )


def _what_remains(
    target: ErasureTarget, probes: dict[str, Probe], sources: dict[str, tuple[str, int]]
) -> ReasonCode | None:
    if any(present for _, present in sources.values()):
        return ReasonCode.SOURCE_STILL_PRESENT
    if any(probe != "gone" for probe in probes.values()):
        return ReasonCode.STILL_READABLE
    pending = target.contaminated.filter(action=ContaminatedVersion.Action.DELETE).exclude(
        probe=ContaminatedVersion.Probe.GONE
    )
    return ReasonCode.STILL_READABLE if target.status == TargetStatus.RELEASING and pending.exists() else None


def _settle(target: ErasureTarget) -> None:
    if target.status == TargetStatus.RELEASING:
        lifecycle.move(target, TargetStatus.RELEASED, actor="worker", reason="retired")
    if target.batch is not None:
        close_batch(target.batch)
        for unlearning in target.batch.runs.all():
            wipe_run(unlearning)
    _owe_disposal(target.request)


def _owe_disposal(request: ErasureRequest) -> None:
    """Once no target needs the payload any more, it goes."""
    if not request.targets.exclude(status__in=_SETTLED).exists():
        owe(JobKind.DISPOSE, request, round_=request.evidence_decisions.count())
