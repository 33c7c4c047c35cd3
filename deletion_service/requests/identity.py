"""The identity check by mailed link, and the link to the status page. Tokens are derived, never stored.

A link is a keyed digest of the request and a nonce: losing the database discloses none, and using one ends it.
"""

from __future__ import annotations

import json
import secrets
from datetime import datetime, timedelta

from django.conf import settings
from django.db import transaction
from django.utils import timezone
from django.utils.crypto import constant_time_compare, salted_hmac

from deletion_service.audit import trail
from deletion_service.errors import LinkError, PayloadDestroyedError
from deletion_service.requests.clocks import resume_after_identity, stop_clocks
from deletion_service.requests.codes import DataClass, Outcome, ReasonCode
from deletion_service.requests.intake import Identifier, seal_proven
from deletion_service.requests.lifecycle import move
from deletion_service.requests.models import ErasureRequest, IdentityCheck
from deletion_service.requests.payload import open_sealed, seal
from deletion_service.requests.statuses import RequestStatus


def identity_token(check: IdentityCheck) -> str:
    """Return the one-use token of a pending check."""
    return _token("identity", f"{check.request_id}:{check.link_nonce}")


def status_token(request: ErasureRequest) -> str:
    """Return the token of the status page of a request."""
    return _token("status", request.pk)


def find_by_status_link(receipt: str, token: str) -> ErasureRequest:
    """Return the request behind a status link; the answer takes as long for an unknown receipt.

    Raises:
        LinkError: receipt and token do not belong together.
    """
    request = ErasureRequest.objects.filter(receipt=receipt).first()
    expected = status_token(request) if request else _token("status", "unknown")
    if not constant_time_compare(expected, token) or request is None:
        raise LinkError("this link is not valid; use the newest link we sent you")
    return request


def pending_check(receipt: str, token: str) -> IdentityCheck:
    """Return the open identity check behind a mailed link.

    Raises:
        LinkError: the link is wrong, was used, or has expired; one sentence for all, so that it tells nothing.
    """
    check = IdentityCheck.objects.select_related("request").filter(request__receipt=receipt).first()
    expected = identity_token(check) if check else _token("identity", "unknown")
    matches = constant_time_compare(expected, token)
    if check is None or not matches or not _is_open(check):
        raise LinkError("this link was used, has expired or is not valid; ask again to get a new one")
    return check


@transaction.atomic
def confirm_identity(check: IdentityCheck) -> ErasureRequest:
    """Accept the proof: whoever holds the mailbox is the person behind its address, and nothing more is proven.

    Raises:
        LinkError: the check was decided meanwhile.
    """
    request = check.request
    decided = IdentityCheck.objects.filter(pk=check.pk, status=IdentityCheck.Status.PENDING).update(
        status=IdentityCheck.Status.ACCEPTED, decided_at=timezone.now(), link_nonce=""
    )
    if decided != 1:
        raise LinkError("this link was used before; nothing was changed")
    contact = json.loads(open_sealed(request, DataClass.CONTACT, "contact"))
    seal_proven(request, [Identifier("email", contact["email"])])
    move(request, RequestStatus.IN_REVIEW, actor="subject", reason=ReasonCode.IDENTITY_PROVEN)
    resume_after_identity(request, actor="subject")
    return request


def subject_nonce(request: ErasureRequest) -> str | None:
    """Return the nonce that only the data subject may keep, for as long as it is still kept here (compliance 6.3)."""
    try:
        contact = json.loads(open_sealed(request, DataClass.CONTACT, "contact"))
    except PayloadDestroyedError:
        return None
    nonce: str | None = contact.get("nonce")
    return nonce


@transaction.atomic
def forget_nonce(request: ErasureRequest) -> None:
    """Stop keeping the nonce, once the data subject has it. Repeating it changes nothing."""
    if subject_nonce(request) is None:
        return
    contact = json.loads(open_sealed(request, DataClass.CONTACT, "contact"))
    del contact["nonce"]
    seal(request, DataClass.CONTACT, "contact", json.dumps(contact, ensure_ascii=False).encode())
    trail.record(actor="subject", action="request.nonce_forgotten", obj=request, request_id=request.pk)


def expire_checks(*, now: datetime) -> int:
    """Close requests whose link ran out after one reminder; return how many."""
    expired = 0
    ready = IdentityCheck.objects.filter(
        status=IdentityCheck.Status.PENDING,
        expires_at__lt=now,
        reminded_at__isnull=False,
        request__status=RequestStatus.AWAITING_VERIFICATION,
    )
    for check in ready.select_related("request"):
        with transaction.atomic():
            IdentityCheck.objects.filter(pk=check.pk).update(
                status=IdentityCheck.Status.EXPIRED, decided_at=now, link_nonce=""
            )
            move(
                check.request,
                RequestStatus.EXPIRED,
                actor="clock",
                reason=ReasonCode.LINK_EXPIRED,
                outcome=Outcome.EXPIRED,
            )
            stop_clocks(check.request, cancelled=True)
        expired += 1
    return expired


def renew_checks(*, now: datetime) -> list[IdentityCheck]:
    """Give each check that ran out once a fresh link and a second term; the caller sends the reminder."""
    renewed = []
    ready = IdentityCheck.objects.filter(
        status=IdentityCheck.Status.PENDING,
        expires_at__lt=now,
        reminded_at=None,
        request__status=RequestStatus.AWAITING_VERIFICATION,
    )
    for check in ready.select_related("request"):
        check.link_nonce = secrets.token_hex(16)
        check.reminded_at = now
        check.expires_at = now + timedelta(hours=settings.IDENTITY_LINK_HOURS)
        check.save(update_fields=["link_nonce", "reminded_at", "expires_at"])
        renewed.append(check)
    return renewed


def _is_open(check: IdentityCheck) -> bool:
    return (
        check.status == IdentityCheck.Status.PENDING
        and check.expires_at is not None
        and check.expires_at > timezone.now()
        and check.request.status == RequestStatus.AWAITING_VERIFICATION
    )


def _token(purpose: str, subject: str) -> str:
    return salted_hmac(f"lethe.{purpose}-link", subject, algorithm="sha256").hexdigest()
