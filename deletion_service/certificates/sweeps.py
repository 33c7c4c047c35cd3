"""Seal what a sweep over earlier deletions showed on a version, and say what may be done with that version.

Must never let a missing sweep read as a pass, and names requests, never persons.
"""

from __future__ import annotations

from typing import Final

import structlog
from django.db import transaction
from django.db.models import QuerySet

from deletion_service.audit import trail
from deletion_service.certificates.canonical import DocumentFormError
from deletion_service.certificates.evaluation import DigestSet
from deletion_service.certificates.facts import LaterTests, Sustainability
from deletion_service.certificates.models import Sweep
from deletion_service.certificates.policies import record_policy
from deletion_service.certificates.statement import NO_EARLIER_DELETIONS
from deletion_service.certificates.sweep_document import SweepDocument, read_sweep, sweep_bytes
from deletion_service.errors import EvidenceMissingError, ResurfacedError
from deletion_service.targets import lifecycle
from deletion_service.targets.ledger import vault_until
from deletion_service.targets.models import ErasureTarget, ModelVersion, Sentinel
from deletion_service.targets.statuses import TargetStatus, Verdict
from ml.digests import sha256_hex
from ml.specs import VerdictPolicy
from ml.sweep_reports import SweepReport

RESURFACED: Final = "resurfaced"
# Why nothing was tested on a version that could not be released anyway.
NOT_PASSED: Final = "did_not_pass"
_log = structlog.get_logger(__name__)


@transaction.atomic
def seal_sweep(
    version: ModelVersion, *, target: ErasureTarget | None, policy: VerdictPolicy, report: SweepReport
) -> Sweep:
    """Judge a report and keep both; a FAIL raises an alarm in the case of every deletion that came back.

    The worker calls this inside its fenced transaction, so that a replaced worker seals nothing.
    """
    record_policy(policy)
    content = sweep_bytes(policy, report)
    document = read_sweep(content)
    sweep = Sweep.objects.create(
        version=version,
        target=target,
        attempt=version.sweeps.count() + 1,
        earlier=document.coverage.earlier,
        result=document.judged_again().result,
        document=content,
        sha256=sha256_hex(content),
    )
    _record(sweep, "sweep.sealed", sweep.result)
    for request_id in document.brought_back:
        trail.record(actor="worker", action="sweep.resurfaced", obj=version, reason=sweep.pk, request_id=request_id)
        _log.error("deletion_resurfaced", version=version.pk, request=request_id)
    return sweep


@transaction.atomic
def record_not_swept(
    version: ModelVersion, *, target: ErasureTarget | None, reason: Sweep.Reason, earlier: int
) -> Sweep:
    """Keep why nothing was tested: there was nobody to test, or the job failed for good."""
    sweep = Sweep.objects.create(
        version=version,
        target=target,
        attempt=version.sweeps.count() + 1,
        earlier=earlier,
        result=Sweep.Result.NOT_RUN,
        reason=reason,
    )
    _record(sweep, "sweep.not_run", reason)
    return sweep


def judge_swept(target: ErasureTarget, sweep: Sweep, *, verdict: str) -> None:
    """Give a target its verdict: that of its own evidence, and never better than that of the sweep's alarm."""
    failed = sweep.result == Sweep.Result.FAIL
    if target.status == TargetStatus.WORKING:
        told = Verdict.FAIL if failed else verdict
        reason = RESURFACED if failed else verdict.lower()
        lifecycle.move(target, TargetStatus.JUDGED, actor="worker", reason=reason, verdict=told)
    elif failed:
        lifecycle.lower_verdict(target, actor="worker", reason=RESURFACED)


def latest_sweep(version: ModelVersion | None) -> Sweep | None:
    """Return the newest sweep of a version."""
    return None if version is None else version.sweeps.order_by("-attempt").first()


def open_sweep(sweep: Sweep) -> SweepDocument | None:
    """Return the document of a sweep after checking it: digest, form, version, and the verdict judged again.

    `None` for one that was not run.

    Raises:
        EvidenceMissingError: the bytes are not those that were sealed, or do not carry the verdict they name.
    """
    if sweep.document is None:
        return None
    content = bytes(sweep.document)
    if sha256_hex(content) != sweep.sha256:
        raise EvidenceMissingError(f"sweep {sweep.pk} does not match its digest; restore it from a backup")
    try:
        document = read_sweep(content)
    except DocumentFormError as exc:
        raise EvidenceMissingError(f"sweep {sweep.pk} is malformed; sweep the version again") from exc
    again = document.judged_again()
    if again.to_document() != document.stated_verdict or again.result != sweep.result:
        raise EvidenceMissingError(f"sweep {sweep.pk} does not carry the verdict it names; sweep the version again")
    if document.report.models.get("candidate") != sweep.version.manifest_sha256:
        raise EvidenceMissingError(f"sweep {sweep.pk} is about other weights; sweep the version again")
    return document


def swept_bytes(version: ModelVersion | None) -> bytes | None:
    """Return the sealed bytes of a version's newest sweep; `None` where there are none."""
    sweep = latest_sweep(version)
    return None if sweep is None or sweep.document is None else bytes(sweep.document)


def check_swept(version: ModelVersion) -> None:
    """Raise unless earlier deletions were tested again on a version and none was found to be back.

    Raises:
        ResurfacedError: the version brings a deletion back; the message names its request.
        EvidenceMissingError: the version was not tested.
    """
    sweep = latest_sweep(version)
    if sweep is None or sweep.reason == Sweep.Reason.ERROR:
        raise EvidenceMissingError(
            f"version {version.number} of {version.model.name} was not tested for earlier deletions; "
            "try its sweep again"
        )
    document = open_sweep(sweep)
    if document is not None and document.brought_back:
        raise ResurfacedError(
            f"version {version.number} of {version.model.name} brings back what was deleted for "
            f"{', '.join(document.brought_back)}; make another version, or release nothing"
        )


def sustainability_of(target: ErasureTarget, version: ModelVersion | None) -> Sustainability:
    """Return what a statement about `target` says of earlier deletions on its candidate, and of this one later."""
    later = LaterTests(
        target.sentinels.filter(kind=Sentinel.Kind.SPIKE_IN).exists(),
        None if (until := vault_until(target)) is None else until.isoformat(),
    )
    sweep = latest_sweep(version)
    document = None if sweep is None else open_sweep(sweep)
    if sweep is None or document is None:
        earlier = str(_earlier(target) if sweep is None else sweep.earlier)
        reason = NO_EARLIER_DELETIONS if earlier == "0" else NOT_PASSED if sweep is None else sweep.reason
        return Sustainability("NOT_RUN", reason, earlier, "0", "0", earlier, None, later)
    shown = document.coverage
    return Sustainability(
        result=sweep.result,  # type: ignore[arg-type]  # the constraint on the row holds the same words
        reason=None,
        earlier=str(shown.earlier),
        by_spike_in=str(shown.by_spike_in),
        by_vault=str(shown.by_vault),
        not_tested=str(shown.not_tested),
        sweep_digest=DigestSet(sweep.sha256),
        later=later,
    )


def _earlier(target: ErasureTarget) -> int:
    return target.model.ledger.exclude(target=target).count()


def alarms() -> QuerySet[Sweep]:
    """Return the sweeps that found a deletion back in a version that still has weights, newest first."""
    live = Sweep.objects.filter(result=Sweep.Result.FAIL).exclude(version__status="retired")
    return live.select_related("version__model").order_by("-sealed_at")


def _record(sweep: Sweep, action: str, reason: str) -> None:
    request_id = "" if sweep.target is None else sweep.target.request_id
    trail.record(actor="worker", action=action, obj=sweep, reason=reason, request_id=request_id)
