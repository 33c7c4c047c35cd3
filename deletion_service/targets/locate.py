"""Find a data subject's training records: only by identifiers that were proven, unless a reviewer answers for more."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from django.db import transaction

from deletion_service.access.models import ApiKey, StaffMember
from deletion_service.audit import trail
from deletion_service.errors import GuardError
from deletion_service.requests.clocks import stop_clocks
from deletion_service.requests.codes import DataClass, Ground, MatchReason, Outcome, ReasonCode
from deletion_service.requests.intake import Application, Identifier, Opened, open_request
from deletion_service.requests.lifecycle import move
from deletion_service.requests.models import ErasureRequest
from deletion_service.requests.payload import open_sealed, seal
from deletion_service.requests.statuses import RequestStatus
from deletion_service.targets import lifecycle
from deletion_service.targets.catalogue import check_model_names, versions_that_learned
from deletion_service.targets.jobs import owe
from deletion_service.targets.marks import mark_subject, still_learned
from deletion_service.targets.models import ContaminatedVersion, ErasureTarget, SourceErasure, TrainedModel
from deletion_service.targets.sources import Keys, open_source, wanted_keys
from deletion_service.targets.statuses import JobKind, TargetStatus, VersionStatus

_LAYERS = {
    "training": "rows deleted at the source",
    "finetuning": "rows deleted at the source",
    "weights": "unlearned and verified",
    "outputs": "verified by attack",
    "prompts": "not stored here",
}


@dataclass(frozen=True, slots=True)
class SourceMatches:
    """Record ids found in one source: by proven identifiers, and by claimed ones nobody proved."""

    source: str
    proven: tuple[str, ...]
    unproven: tuple[str, ...]


@transaction.atomic
def receive_instruction(application: Application, *, sender: ApiKey, actor: str) -> Opened:
    """Accept an instruction in processor capacity and owe the search: its sender has decided already.

    Raises:
        UnknownModelError: a model named is not registered.
        InvalidInputError: a field is missing, malformed or too large.
    """
    check_model_names(application.model_names)
    opened = open_request(application, actor=actor, sender=sender)
    start_search(opened.request, ground=Ground.INSTRUCTION, reviewer=None, actor=actor)
    return opened


@transaction.atomic
def start_search(request: ErasureRequest, *, ground: Ground, reviewer: StaffMember | None, actor: str) -> None:
    """Accept the ground and owe the search."""
    move(
        request,
        RequestStatus.LOCATING,
        actor=actor,
        reason=ReasonCode.GROUND_SET,
        ground=ground,
        reviewer=reviewer,
    )
    owe(JobKind.LOCATE, request)


def search_sources(request: ErasureRequest) -> dict[str, list[SourceMatches]]:
    """Return matches by model id. Reads the sources; writes nothing, holds no transaction."""
    proven = wanted_keys(_identifiers(request, "proven"))
    claimed = wanted_keys(_claimed(request)) - proven
    models = models_to_search(request)
    return {model.pk: [_search(source, proven, claimed) for source in model.sources] for model in models}


def models_to_search(request: ErasureRequest) -> list[TrainedModel]:
    """Every model, or those named and all that share a training source with them.

    Rows leave a source for good: a model that learned the same ones could never be asked about them afterwards.
    """
    models = list(TrainedModel.objects.order_by("pk"))
    if not request.model_names:
        return models
    chosen = [model for model in models if model.name in request.model_names]
    while more := [m for m in models if m not in chosen and any(s in c.sources for c in chosen for s in m.sources)]:
        chosen += more
    return chosen


@transaction.atomic
def record_search(request: ErasureRequest, found: Mapping[str, Sequence[SourceMatches]]) -> list[ErasureTarget]:
    """Write targets, contaminated versions and sources for what was found; seal the record ids (class A)."""
    keys = wanted_keys(_identifiers(request, "proven"))
    targets = []
    for model in TrainedModel.objects.filter(pk__in=found).order_by("pk"):
        matches = found[model.pk]
        if any(m.proven or m.unproven for m in matches):
            targets.append(_record_target(request, model, matches))
            mark_subject(targets[-1], keys)
    return targets


@transaction.atomic
def accept_unproven(target: ErasureTarget, *, reason: MatchReason, reviewer: StaffMember) -> None:
    """Let records count that only unproven identifiers point to, for a coded reason a reviewer answers for."""
    if target.status != TargetStatus.LOCATED or not target.unproven_count:
        raise GuardError(f"erasure target {target.pk} has no unproven match to accept now")
    matches = [SourceMatches(m.source, (*m.proven, *m.unproven), ()) for m in sealed_matches(target)]
    _seal_matches(target, matches)
    _record_contamination(target, matches)
    target.record_count, target.unproven_count = _count(matches), 0
    target.match_reason, target.match_reviewer = reason, reviewer
    mark_subject(target, wanted_keys(_claimed(target.request)))
    target.save(update_fields=["record_count", "unproven_count", "match_reason", "match_reviewer"])
    actor = f"staff:{reviewer.handle}"
    trail.record(
        actor=actor, action="target.unproven_accepted", obj=target, reason=reason, request_id=target.request_id
    )


@transaction.atomic
def fix_targets(request: ErasureRequest, *, actor: str) -> list[ErasureTarget]:
    """Accept what was found: targets with records are approved, targets with none are cancelled.

    Raises:
        GuardError: the search has not finished, or found no record that counts.
    """
    check_found(request)
    targets = list(request.targets.filter(status=TargetStatus.LOCATED))
    for target in targets:
        to = TargetStatus.APPROVED if target.record_count else TargetStatus.CANCELLED
        lifecycle.move(target, to, actor=actor, reason=ReasonCode.TARGETS_FIXED)
    move(request, RequestStatus.APPROVED, actor=actor, reason=ReasonCode.TARGETS_FIXED)
    return [target for target in targets if target.record_count]


def check_found(request: ErasureRequest) -> None:
    """Raise `GuardError` unless the search has finished and found records that count."""
    _check_search_finished(request)
    if not request.targets.filter(status=TargetStatus.LOCATED, record_count__gt=0).exists():
        raise GuardError(f"no record of {request.pk} was found by a proven identifier; close it or accept a match")


def check_nothing_found(request: ErasureRequest) -> None:
    """Raise `GuardError` unless the search has finished and found no record that counts."""
    _check_search_finished(request)
    if request.targets.filter(record_count__gt=0).exists():
        raise GuardError(f"records of {request.pk} were found; accept the targets or refuse with a code")


@transaction.atomic
def close_nothing_found(request: ErasureRequest, *, actor: str) -> None:
    """Close after a search that found nothing by a proven identifier.

    Where an earlier deletion of the same person was not released, their rows are gone and a model still learned from
    them: that is said, and never that there is nothing.
    """
    check_nothing_found(request)
    learned = still_learned(wanted_keys(_identifiers(request, "proven")), model_names=request.model_names)
    reason = ReasonCode.STILL_LEARNED if learned else ReasonCode.NOTHING_FOUND
    for target in request.targets.filter(status=TargetStatus.LOCATED):
        lifecycle.move(target, TargetStatus.CANCELLED, actor=actor, reason=ReasonCode.NOTHING_FOUND)
    move(
        request,
        RequestStatus.CLOSED_NO_ACTION,
        actor=actor,
        reason=reason,
        outcome=Outcome.NOT_ERASED if learned else Outcome.NO_PERSONAL_DATA_FOUND,
    )
    stop_clocks(request)


def sealed_matches(target: ErasureTarget) -> list[SourceMatches]:
    """Return the record ids of a target, from under its seal."""
    rows = json.loads(open_sealed(target.request, DataClass.PAYLOAD, f"matches-{target.pk}"))
    return [SourceMatches(row["source"], tuple(row["proven"]), tuple(row["unproven"])) for row in rows]


def counting_keys(target: ErasureTarget) -> Keys:
    """Return the identifiers by which rows are a target's: proven ones, and claimed ones a reviewer answered for."""
    proven = wanted_keys(_identifiers(target.request, "proven"))
    return proven | wanted_keys(_claimed(target.request)) if target.match_reason else proven


def search_again(target: ErasureTarget) -> list[SourceMatches]:
    """Return a target's matches as they are now: what was found before, and what came since. Writes nothing."""
    wanted = counting_keys(target)
    earlier = {m.source: m for m in sealed_matches(target)}
    for settings in target.model.sources:
        source = open_source(settings)
        m = earlier.get(source.name, SourceMatches(source.name, (), ()))
        now = [found.record.record_id for found in source.records() if found.matches(wanted)]
        proven = tuple(dict.fromkeys((*m.proven, *now)))
        earlier[source.name] = replace(m, proven=proven, unproven=tuple(i for i in m.unproven if i not in proven))
    return list(earlier.values())


@transaction.atomic
def record_found_again(target: ErasureTarget, matches: Sequence[SourceMatches]) -> None:
    """Seal what another search found, and count it; a search that found nothing new changes nothing."""
    if {m.source: set(m.proven) for m in sealed_matches(target)} == {m.source: set(m.proven) for m in matches}:
        return
    _seal_matches(target, matches)
    _record_contamination(target, matches)
    target.record_count, target.unproven_count = _count(matches), sum(len(m.unproven) for m in matches)
    target.save(update_fields=["record_count", "unproven_count"])
    trail.record(actor="worker", action="target.found_again", obj=target, request_id=target.request_id)


def _check_search_finished(request: ErasureRequest) -> None:
    if not request.jobs.filter(kind=JobKind.LOCATE, state="done").exists():
        raise GuardError(f"the search of {request.pk} has not finished; wait for its job")


def _identifiers(request: ErasureRequest, name: str) -> list[Identifier]:
    rows = json.loads(open_sealed(request, DataClass.PAYLOAD, name))
    return [Identifier(row["type"], row["value"]) for row in rows]


def _claimed(request: ErasureRequest) -> list[Identifier]:
    application = json.loads(open_sealed(request, DataClass.PAYLOAD, "application"))
    return [Identifier(row["type"], row["value"]) for row in application["claimed"]]


def _search(settings: Mapping[str, str], proven: Keys, claimed: Keys) -> SourceMatches:
    source = open_source(settings)
    by_proof, by_claim = [], []
    for found in source.records():
        if found.matches(proven):
            by_proof.append(found.record.record_id)
        elif found.matches(claimed):
            by_claim.append(found.record.record_id)
    return SourceMatches(source.name, tuple(by_proof), tuple(by_claim))


def _record_target(request: ErasureRequest, model: TrainedModel, matches: Sequence[SourceMatches]) -> ErasureTarget:
    target, created = ErasureTarget.objects.get_or_create(
        request=request,
        model=model,
        defaults={
            "record_count": _count(matches),
            "unproven_count": sum(len(m.unproven) for m in matches),
            "layers": _LAYERS,
        },
    )
    if created:
        lifecycle.record_located(target, actor="worker")
        _seal_matches(target, matches)
        _record_contamination(target, matches)
    return target


def _record_contamination(target: ErasureTarget, matches: Sequence[SourceMatches]) -> None:
    record_ids = [record_id for m in matches for record_id in m.proven]
    for version in versions_that_learned(target.model, record_ids):
        if version.status == VersionStatus.RETIRED:
            continue
        ContaminatedVersion.objects.get_or_create(target=target, version=version)
    for m in matches:
        if m.proven:
            SourceErasure.objects.update_or_create(
                target=target, name=m.source, defaults={"record_count": len(m.proven)}
            )


def _seal_matches(target: ErasureTarget, matches: Sequence[SourceMatches]) -> None:
    rows = [{"source": m.source, "proven": m.proven, "unproven": m.unproven} for m in matches]
    seal(target.request, DataClass.PAYLOAD, f"matches-{target.pk}", json.dumps(rows).encode())


def _count(matches: Sequence[SourceMatches]) -> int:
    return sum(len(m.proven) for m in matches)
