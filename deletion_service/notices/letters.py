"""Letters: which moves owe one, what it says, and the thin mail that points to it.

A mail carries the receipt number and links, nothing else. The letter's text is shown on the status page. In processor
capacity nobody writes to the data subject (compliance section 1).
"""

from __future__ import annotations

import json
import smtplib
from collections.abc import Mapping
from datetime import timedelta
from email.utils import format_datetime
from typing import Any, Final

import structlog
from django.conf import settings
from django.core.mail import EmailMessage
from django.db import transaction
from django.db.models import F, Q
from django.template import Context, Engine
from django.utils import timezone

from deletion_service.audit import trail
from deletion_service.errors import PayloadDestroyedError
from deletion_service.notices.models import Letter
from deletion_service.requests.clocks import stop_clocks
from deletion_service.requests.codes import Capacity, DataClass, Outcome, ReasonCode
from deletion_service.requests.identity import identity_token, status_token
from deletion_service.requests.models import ErasureRequest, IdentityCheck, RequestEvent
from deletion_service.requests.payload import open_sealed
from deletion_service.requests.statuses import RequestStatus
from deletion_service.targets.ledger import sealed_vault
from deletion_service.targets.statuses import TargetStatus, Verdict
from ml.digests import sha256_hex

S = RequestStatus

TEMPLATE_VERSION: Final = 2
LETTER_OF: Final[dict[str, str]] = {
    S.AWAITING_VERIFICATION: "COM-01",
    S.AWAITING_SUBJECT: "COM-03",
    S.WORKING: "COM-05",
    S.COMPLETED: "COM-06",
    S.CLOSED_NO_ACTION: "COM-07",
    S.REFUSED: "COM-08",
    S.EXPIRED: "COM-09",
    S.WITHDRAWN: "COM-10",
}
KINDS: Final = (*LETTER_OF.values(), "COM-02", "COM-04")
_WITH_IDENTITY_LINK: Final = frozenset({"COM-01", "COM-02"})
_FIRST_WAIT: Final = timedelta(seconds=30)
_LONGEST_WAIT: Final = timedelta(hours=6)
_GIVE_UP_AFTER: Final = timedelta(days=3)
_PERMANENT: Final = 500
_log = structlog.get_logger(__name__)


def owe_letters() -> int:
    """Owe the letter of every move that has one; derived from events, so that a crash owes it still."""
    owed = 0
    events = RequestEvent.objects.filter(
        new_status__in=LETTER_OF, request__capacity=Capacity.CONTROLLER, letter=None
    ).exclude(old_status=S.ON_HOLD)
    # A hold that was lifted returns a case to where its letter was written already.
    for event in events.select_related("request"):
        if event.reason == ReasonCode.ANOTHER_ATTEMPT:
            continue
        owe_letter(event.request, LETTER_OF[event.new_status], occasion=f"event-{event.pk}", event=event)
        owed += 1
    return owed


@transaction.atomic
def owe_letter(
    request: ErasureRequest,
    kind: str,
    *,
    occasion: str,
    event: RequestEvent | None = None,
    facts: Mapping[str, str] | None = None,
) -> Letter:
    """Render a letter once per occasion, with `facts` of that occasion; sending it comes later and may be repeated."""
    letter, created = Letter.objects.get_or_create(
        request=request,
        kind=kind,
        occasion=occasion,
        defaults={"event": event, "template_version": TEMPLATE_VERSION, "language": request.language},
    )
    if created:
        context = {**_letter_context(request), **(facts or {})}
        letter.text = _plain_text(f"notices/{request.language}/{kind}.txt", context)
        letter.text_sha256 = sha256_hex(letter.text.encode())
        letter.save(update_fields=["text", "text_sha256"])
        trail.record(actor="notices", action="letter.owed", obj=letter, reason=kind, request_id=request.pk)
    return letter


def send_owed() -> int:
    """Mail every owed letter that is due. A crash in between sends one again, under the same Message-ID."""
    sent = 0
    due = Q(next_try_at=None) | Q(next_try_at__lte=timezone.now())
    for letter in Letter.objects.filter(due, sent_at=None, undeliverable=False).select_related("request"):
        try:
            sent += _send(letter)
        except Exception as exc:  # noqa: BLE001 - one letter that cannot be sent must not keep back all others
            _log.error("letter_not_sent", letter=letter.pk, error=type(exc).__name__)
            _try_later(letter, refused=False)
    return sent


def _send(letter: Letter) -> int:
    try:
        contact = json.loads(open_sealed(letter.request, DataClass.CONTACT, "contact"))
    except PayloadDestroyedError:
        Letter.objects.filter(pk=letter.pk).update(undeliverable=True)
        return 0
    try:
        _mail(letter, contact["email"]).send()
    except (OSError, ValueError) as exc:
        _log.warning("mail_not_sent", letter=letter.pk, error=type(exc).__name__)
        _try_later(letter, refused=_is_refused(exc))
        return 0
    with transaction.atomic():
        if Letter.objects.filter(pk=letter.pk, sent_at=None).update(sent_at=timezone.now()) != 1:
            return 0
        if letter.kind == "COM-01":
            stop_clocks(letter.request, kinds=("ack",))
        trail.record(
            actor="notices", action="letter.sent", obj=letter, reason=letter.kind, request_id=letter.request_id
        )
    return 1


def _is_refused(exc: OSError | ValueError) -> bool:
    """True when this mailbox takes nothing for good: a 5xx reply to the recipient, or an address no mail can carry."""
    if isinstance(exc, ValueError):
        return True
    if not isinstance(exc, smtplib.SMTPRecipientsRefused):
        return False
    return all(code >= _PERMANENT for code, _ in exc.recipients.values())


def _try_later(letter: Letter, *, refused: bool) -> None:
    """Wait longer after each try. An address that takes nothing is given up: it must not be kept for ever for this."""
    now, wait = timezone.now(), min(_FIRST_WAIT * 2**letter.tries, _LONGEST_WAIT)
    given_up = refused or now - letter.owed_at > _GIVE_UP_AFTER
    Letter.objects.filter(pk=letter.pk, sent_at=None).update(
        tries=F("tries") + 1, next_try_at=now + wait, undeliverable=given_up
    )
    if given_up:
        trail.record(
            actor="notices", action="letter.given_up", obj=letter, reason=letter.kind, request_id=letter.request_id
        )


def _mail(letter: Letter, address: str) -> EmailMessage:
    request = letter.request
    context: dict[str, Any] = {
        "receipt": request.receipt,
        "status_link": f"{settings.PUBLIC_URL}/status/{request.receipt}/{status_token(request)}",
    }
    check = IdentityCheck.objects.filter(request=request, status=IdentityCheck.Status.PENDING).first()
    if letter.kind in _WITH_IDENTITY_LINK and check is not None and check.expires_at is not None:
        context["identity_link"] = f"{settings.PUBLIC_URL}/confirm/{request.receipt}/{identity_token(check)}"
        context["expires_at"] = format_datetime(check.expires_at)
    return EmailMessage(
        subject=f"Your request {request.receipt}",
        body=_plain_text(f"notices/{letter.language}/mail.txt", context),
        to=[address],
        headers={"Message-ID": f"<letter-{letter.pk}.{request.pk}@lethe>", "Auto-Submitted": "auto-generated"},
    )


def _plain_text(template: str, context: Mapping[str, Any]) -> str:
    """Render without HTML escapes: a letter is plain text, and the pages that show it escape it themselves."""
    return Engine.get_default().get_template(template).render(Context(context, autoescape=False))


def _letter_context(request: ErasureRequest) -> dict[str, Any]:
    clock = request.clocks.filter(kind="respond").first()
    return {
        "receipt": request.receipt,
        "received_on": timezone.localdate(request.received_at).isoformat(),
        "due_on": clock.base_due_on.isoformat() if clock else "",
        "authority": settings.SUPERVISORY_AUTHORITY,
        "outcome": request.get_outcome_display(),
        "released": request.outcome in (Outcome.ERASED, Outcome.PARTIALLY_ERASED),
        "still_learned": request.status == S.CLOSED_NO_ACTION and request.outcome == Outcome.NOT_ERASED,
        "declined": request.targets.filter(status=TargetStatus.NOT_RELEASED, verdict=Verdict.PASS).exists(),
        "resurfaced": request.targets.filter(status=TargetStatus.NOT_RELEASED, sweeps__result=Verdict.FAIL).exists(),
        "marked": request.targets.filter(status=TargetStatus.NOT_RELEASED, marks__isnull=False).exists(),
        "tried": request.targets.filter(batch__runs__status="verified", marks__isnull=False).exists(),
        "mark_days": settings.MARK_DAYS,
        "vault": sealed_vault(request),
        "planned_on": request.planned_on.isoformat() if request.planned_on else "",
        "refusal": request.get_refusal_display(),
        "refusal_note": request.refusal_note,
    }
