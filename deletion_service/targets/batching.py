"""Start the work: which targets are unlearned together, in which order, with what fixed beforehand."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from django.conf import settings
from django.db import IntegrityError, transaction

from deletion_service.access.models import StaffMember
from deletion_service.audit import trail
from deletion_service.errors import FourEyesError, GuardError
from deletion_service.requests.codes import DataClass, ReasonCode
from deletion_service.requests.lifecycle import move
from deletion_service.requests.models import ErasureRequest
from deletion_service.requests.payload import open_sealed, seal
from deletion_service.requests.statuses import RequestStatus
from deletion_service.targets import lifecycle
from deletion_service.targets.jobs import owe
from deletion_service.targets.marks import earlier_attempts
from deletion_service.targets.models import ErasureBatch, ErasureTarget, ModelVersion, UnlearningRun
from deletion_service.targets.statuses import JobKind, TargetStatus, VersionStatus
from ml.decision import unattainable
from ml.policies import load_policy
from ml.specs import seed_commitment

# Reports are canonical JSON, where integers stay below 2^53.
_SEED_BITS: Final = 52


@dataclass(frozen=True, slots=True)
class RunPlan:
    """What is fixed before a run: method and settings, the policy that will judge, and optionally the seed."""

    method: str
    policy_name: str
    policy_sha256: str
    method_settings: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None


def plan_batches(targets: Iterable[tuple[str, str]], *, busy_models: frozenset[str]) -> list[tuple[str, str]]:
    """Choose which (model id, target id) pairs start now: the oldest target of each model that is free. Pure.

    One target a batch: a candidate then carries one person's verdict and no other person waits for it.
    """
    chosen: dict[str, str] = {}
    for model, target in targets:
        if model not in busy_models:
            chosen.setdefault(model, target)
    return sorted(chosen.items())


@transaction.atomic
def start_work(request: ErasureRequest, *, starter: StaffMember | None, plan: RunPlan, actor: str) -> None:
    """Approve the start: by a second person when four eyes are on, or on the sender's instruction.

    Raises:
        FourEyesError: the starter took part in what led here.
        GuardError: no run under this policy could pass.
    """
    check_start(request, starter)
    check_attainable(request, plan)
    by_staff = request.sender_id is None
    recorded = starter if by_staff and starter is not None and not _took_part(request, starter) else None
    move(
        request,
        RequestStatus.WORKING,
        actor=actor,
        reason=ReasonCode.START_APPROVED,
        starter=recorded,
        attempt=next_attempt(request),
    )
    open_due_batches(plan)


def check_start(request: ErasureRequest, starter: StaffMember | None) -> None:
    """Raise `FourEyesError` unless `starter` may start the work: a second person, unless the sender decided."""
    if request.sender_id is not None or not settings.FOUR_EYES_ON_START:
        return
    if starter is None or _took_part(request, starter):
        raise FourEyesError(
            f"{request.pk} was reviewed by the same person, who set its ground or accepted what was found; "
            "a second reviewer must start it"
        )


def _took_part(request: ErasureRequest, member: StaffMember) -> bool:
    """Whether `member` set the ground, accepted a match that nobody proved, or accepted the targets."""
    reasons = (ReasonCode.GROUND_SET, ReasonCode.TARGETS_FIXED)
    return (
        member.pk == request.reviewer_id
        or request.events.filter(reason__in=reasons, actor=f"staff:{member.handle}").exists()
        or request.targets.filter(match_reviewer=member).exists()
    )


def check_attainable(request: ErasureRequest, plan: RunPlan) -> None:
    """Raise `GuardError` where the next attempt could not pass whatever it shows: before anything is computed.

    Later attempts are judged at a stricter level, which few twins cannot reach.
    """
    attempt = next_attempt(request)
    if families := unattainable(load_policy(plan.policy_name), attempt):
        raise GuardError(
            f"attempt {attempt} of {request.pk} could never pass: policy {plan.policy_name} has too few twins for "
            f"{', '.join(families)} at its level; configure a policy with more twins, or decide on the evidence"
        )


def next_attempt(request: ErasureRequest) -> int:
    """The number of the attempt that comes next; those of the same person's earlier requests count."""
    return request.attempt + 1 if request.attempt else earlier_attempts(request) + 1


@transaction.atomic
def open_due_batches(plan: RunPlan) -> list[ErasureBatch]:
    """Open a batch, its run and its job for each approved target whose model is free. Safe to repeat."""
    waiting = ErasureTarget.objects.filter(
        status=TargetStatus.APPROVED, request__status=RequestStatus.WORKING
    ).order_by("request__received_at", "pk")
    busy = frozenset(ErasureBatch.objects.filter(status=ErasureBatch.Status.OPEN).values_list("model_id", flat=True))
    opened = []
    for _, target in plan_batches(waiting.values_list("model_id", "pk"), busy_models=busy):
        # A rival opened a batch of this model first: the target waits for the next sweep.
        with suppress(IntegrityError), transaction.atomic():
            opened.append(_open_batch(ErasureTarget.objects.get(pk=target), plan))
    return opened


@transaction.atomic
def plan_another_attempt(request: ErasureRequest, *, plan: RunPlan, actor: str) -> None:
    """Send the request's judged targets back to work with another plan; earlier attempts stay on record.

    Raises:
        GuardError: no attempt is left, nothing failed, or the attempt could not pass.
    """
    again = check_another_attempt(request, plan)
    move(
        request,
        RequestStatus.WORKING,
        actor=actor,
        reason=ReasonCode.ANOTHER_ATTEMPT,
        attempt=request.attempt + 1,
    )
    for target in again:
        lifecycle.move(target, TargetStatus.WORKING, actor=actor, reason=ReasonCode.ANOTHER_ATTEMPT, verdict="NOT_RUN")
        if target.batch is None:
            raise GuardError(f"erasure target {target.pk} has no batch")
        _plan_run(target.batch, [target], plan, attempt=request.attempt)


def check_another_attempt(request: ErasureRequest, plan: RunPlan) -> list[ErasureTarget]:
    """Return the targets that another attempt would be about, or raise `GuardError` where there can be none."""
    if request.attempt >= settings.MAX_UNLEARNING_ATTEMPTS:
        raise GuardError(
            f"{request.pk} has used its {settings.MAX_UNLEARNING_ATTEMPTS} attempts; decide on the evidence"
        )
    again = [t for t in request.targets.filter(status=TargetStatus.JUDGED) if t.verdict != "PASS"]
    if not again:
        raise GuardError(f"every target of {request.pk} passed; there is nothing to try again")
    check_attainable(request, plan)
    return again


def close_batch(batch: ErasureBatch) -> None:
    """Free the model for the next batch."""
    ErasureBatch.objects.filter(pk=batch.pk).update(status=ErasureBatch.Status.CLOSED)


def verification_seed(run: UnlearningRun, request: ErasureRequest) -> int:
    """Return the seed that was committed to before training, from under its seal."""
    return int(open_sealed(request, DataClass.PAYLOAD, _seed_item(run)).decode())


def _open_batch(target: ErasureTarget, plan: RunPlan) -> ErasureBatch:
    before = ModelVersion.objects.filter(model=target.model, status=VersionStatus.SERVING).first()
    if before is None or before.base is None:
        raise GuardError(f"model {target.model.name} has no serving version with a base; register it first")
    batch = ErasureBatch.objects.create(model=target.model, before=before)
    lifecycle.move(target, TargetStatus.WORKING, actor="worker", reason=ReasonCode.START_APPROVED, batch=batch)
    _plan_run(batch, [target], plan, attempt=target.request.attempt)
    return batch


def _plan_run(batch: ErasureBatch, targets: Sequence[ErasureTarget], plan: RunPlan, *, attempt: int) -> UnlearningRun:
    """Fix seeds, policy and method, seal the verification seed under each request, and owe the job."""
    seed = plan.seed if plan.seed is not None else secrets.randbits(_SEED_BITS)
    run = UnlearningRun(
        batch=batch,
        attempt=attempt,
        method=plan.method,
        method_settings=dict(plan.method_settings),
        seed=str(seed),
        seed_fixed=plan.seed is not None,
        policy_name=plan.policy_name,
        policy_sha256=plan.policy_sha256,
    )
    hidden = _hidden_seed(plan.seed, attempt)
    run.verification_seed_sha256 = seed_commitment(run.pk, hidden)
    run.save(force_insert=True)
    for target in targets:
        seal(target.request, DataClass.PAYLOAD, _seed_item(run), str(hidden).encode())
        owe(JobKind.UNLEARN, target.request, target=target, run=run, round_=attempt)
    trail.record(actor="worker", action="run.planned", obj=run, reason=plan.method, request_id=targets[0].request_id)
    return run


def _hidden_seed(fixed: int | None, attempt: int) -> int:
    if fixed is None:
        return secrets.randbits(_SEED_BITS)
    return int.from_bytes(hashlib.sha256(f"verification:{fixed}:{attempt}".encode()).digest()[:6])


def _seed_item(run: UnlearningRun) -> str:
    return f"verification-seed-{run.pk}"
