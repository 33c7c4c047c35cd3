"""The ledger of deletions of a trained model: what later versions are tested for, by the ids of requests alone.

Must never hold a person's record in the clear: a spike-in is synthetic, a vault is sealed under a key of its own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import date, timedelta
from typing import Any, Final

from django.conf import settings
from django.utils import timezone

from deletion_service.audit import trail
from deletion_service.errors import PayloadDestroyedError
from deletion_service.requests.codes import DataClass
from deletion_service.requests.models import ErasureRequest, SealedItem
from deletion_service.requests.payload import open_sealed, seal
from deletion_service.targets.catalogue import lock_model, training_batch
from deletion_service.targets.models import ErasureTarget, LedgerEntry, ModelVersion, Sentinel, TrainedModel
from deletion_service.targets.statuses import TargetStatus
from ml.digests import sha256_hex

Scores = Mapping[str, Mapping[str, Any]]
_GIVEN_UP: Final = (TargetStatus.NOT_RELEASED, TargetStatus.CANCELLED)


def earlier_deletions(model: TrainedModel) -> list[LedgerEntry]:
    """Return every deletion of a model that is on record, oldest first."""
    return list(model.ledger.select_related("target").prefetch_related("target__sentinels").order_by("number"))


def enter(target: ErasureTarget) -> LedgerEntry:
    """Write a released target into the ledger, once; called in the transaction that releases it."""
    lock_model(target.model)
    if entered := LedgerEntry.objects.filter(target=target).first():
        return entered
    entry = LedgerEntry.objects.create(target=target, model=target.model, number=target.model.ledger.count() + 1)
    kinds = sorted(target.sentinels.values_list("kind", flat=True))
    trail.record(
        actor="worker",
        action="ledger.entered",
        obj=entry,
        reason="-".join(kinds) or "no_sentinel",
        request_id=target.request_id,
    )
    return entry


# --- spike-ins ----------------------------------------------------------------------------------------------------


def choose_spike_in(
    target: ErasureTarget,
    before: ModelVersion,
    planted: Mapping[str, Sequence[str]],
    *,
    learned: frozenset[str] | None,
    theirs: Sequence[str],
    seed: str,
) -> str:
    """Return the mark of an unused spike-in of the same training batch, or "" where none was planted.

    Which one is decided by the run's seed: no operator can keep the ones that forget well for last.

    Args:
        planted: record ids by mark, as they stand in the sources now.
        learned: digests of the record ids that the model learned; `None` takes every row for learned.
        theirs: the record ids of the data subject.
    """
    if own := target.sentinels.filter(kind=Sentinel.Kind.SPIKE_IN).first():
        # An earlier attempt has taken it, and it stands for this deletion already.
        return own.mark if own.mark in planted else ""
    used = Sentinel.objects.filter(target__model=target.model, kind=Sentinel.Kind.SPIKE_IN)
    taken = set(used.exclude(target__status__in=_GIVEN_UP).values_list("mark", flat=True))
    batch = training_batch(before, theirs)
    free = [
        mark
        for mark, record_ids in planted.items()
        if mark not in taken
        and (learned is None or {sha256_hex(i.encode()) for i in record_ids} <= learned)
        and training_batch(before, record_ids) == batch
    ]
    return min(free, key=lambda mark: sha256_hex(f"{seed}:{mark}".encode()), default="")


def spike_in_records(target: ErasureTarget) -> list[str]:
    """Return the record ids of the spike-in that was deleted along with a target's data."""
    kept = target.sentinels.filter(kind=Sentinel.Kind.SPIKE_IN).first()
    lines = b"" if kept is None or kept.probes is None else bytes(kept.probes)
    return [str(json.loads(line)["record_id"]) for line in lines.splitlines()]


def keep_spike_in(target: ErasureTarget, *, mark: str, probes: bytes, scores: Scores) -> Sentinel:
    """Keep a spike-in's records and what was seen of it before the deletion, for every later version; once."""
    row, _ = Sentinel.objects.get_or_create(
        target=target,
        kind=Sentinel.Kind.SPIKE_IN,
        defaults={"mark": mark, "probes": probes, "probes_sha256": sha256_hex(probes), "scores": scores},
    )
    return row


# --- the vault ----------------------------------------------------------------------------------------------------


def keep_vault(target: ErasureTarget, *, probes: bytes, scores: Scores) -> Sentinel:
    """Seal a person's own probes under a key of their own, until the last day this deployment allows; once."""
    if kept := target.sentinels.filter(kind=Sentinel.Kind.VAULT).first():
        return kept
    seal(target.request, DataClass.VAULT, vault_item(target), probes)
    return Sentinel.objects.create(
        target=target,
        kind=Sentinel.Kind.VAULT,
        probes_sha256=sha256_hex(probes),
        scores=scores,
        basis=settings.VAULT_BASIS,
        vault_days=settings.VAULT_DAYS,
        expires_on=timezone.localdate() + timedelta(days=settings.VAULT_DAYS),
    )


def vault_item(target: ErasureTarget) -> str:
    """Return the name of the sealed item that holds a target's probes."""
    return f"probes-{target.pk}"


def open_probes(sentinel: Sentinel) -> bytes | None:
    """Return the records that stand for a deletion, or `None` where a vault has expired or its key is gone."""
    if sentinel.kind == Sentinel.Kind.SPIKE_IN:
        return bytes(sentinel.probes or b"")
    if is_expired(sentinel, on=timezone.localdate()):
        return None
    try:
        return open_sealed(sentinel.target.request, DataClass.VAULT, vault_item(sentinel.target))
    except PayloadDestroyedError:
        return None


def is_expired(sentinel: Sentinel, *, on: date) -> bool:
    """Whether a vault must not be opened any more; a spike-in never expires."""
    return sentinel.expires_on is not None and sentinel.expires_on <= on


def must_destroy_vault(request: ErasureRequest, *, on: date) -> bool:
    """Whether a vault has no further use: a probe of it expired, or its request closed and nothing was released.

    All probes of a request share a key, so the first day ends them all.
    """
    rows = Sentinel.objects.filter(target__request=request, kind=Sentinel.Kind.VAULT)
    if rows.filter(expires_on__lte=on).exists():
        return True
    return request.is_terminal and not rows.filter(target__status=TargetStatus.RELEASED).exists()


def vault_until(target: ErasureTarget) -> date | None:
    """Return the day on which a target's sealed probes end; `None` where none are sealed now."""
    kept = target.sentinels.filter(kind=Sentinel.Kind.VAULT).first()
    sealed = SealedItem.objects.filter(request=target.request, data_class=DataClass.VAULT, name=vault_item(target))
    return kept.expires_on if kept is not None and sealed.exists() else None


def sealed_vault(request: ErasureRequest) -> Sentinel | None:
    """Return the sealed probes of a request that end first; the key of all of them goes on that day."""
    rows = Sentinel.objects.filter(target__request=request, kind=Sentinel.Kind.VAULT).order_by("expires_on")
    sealed = SealedItem.objects.filter(request=request, data_class=DataClass.VAULT)
    return rows.filter(target__status=TargetStatus.RELEASED).first() if sealed.exists() else None
