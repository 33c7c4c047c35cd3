"""Open and withdraw erasure requests. Every door calls these; a rule here is true on all of them."""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import Any, Final

from django.conf import settings
from django.core.exceptions import ValidationError
from django.core.mail.message import sanitize_address
from django.core.validators import EmailValidator
from django.db import IntegrityError, transaction
from django.utils import timezone
from django.utils.encoding import punycode

from deletion_service.access.models import ApiKey
from deletion_service.errors import (
    AlreadyReceivedError,
    IllegalTransitionError,
    InvalidInputError,
    PayloadDestroyedError,
)
from deletion_service.ids import request_id
from deletion_service.requests.clocks import pause_for_identity, start_clocks, stop_clocks
from deletion_service.requests.codes import Capacity, DataClass, Ground, Outcome, ReasonCode, Regime
from deletion_service.requests.lifecycle import move, record_receipt
from deletion_service.requests.models import DataSubject, ErasureRequest, IdentityCheck
from deletion_service.requests.payload import open_sealed, seal
from deletion_service.requests.statuses import WITHDRAWABLE, RequestStatus
from ml.digests import canonical_json

IDENTIFIER_TYPES: Final = ("email", "name", "phone", "account")
MAX_IDENTIFIERS: Final = 20
MAX_IDENTIFIER_LENGTH: Final = 320
MAX_STATEMENT_LENGTH: Final = 20_000
MAX_MODEL_NAMES: Final = 20
# What a certificate may repeat of a sender's own reference.
_UPSTREAM_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,63}")
# Hosts without a domain would aim the mail relay at this network.
_ADDRESS: Final = EmailValidator(allowlist=[])
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class Identifier:
    """Something a record may carry that names a person; equal when the normalised values are."""

    type: str
    value: str

    @property
    def normalised(self) -> str:
        """The form in which two spellings of one identifier are equal; of addresses, those that get the same mail."""
        if self.type == "email":
            local, at, domain = self.value.strip().rpartition("@")
            return f"{_folded(local)}{at}{mail_domain(domain)}"
        return re.sub(r"\D", "", _folded(self.value)) if self.type == "phone" else _folded(self.value)


def _folded(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def mail_domain(domain: str) -> str:
    """Return a domain as mail is sent to it: in ASCII, in lower case. One that no mail can be sent to stays as it is.

    Folding it like other text would not do: letters that fold to a plain one can stand in a domain that is somebody
    else's.
    """
    try:
        return punycode(domain).lower()
    except UnicodeError:
        return domain


@dataclass(frozen=True, slots=True)
class Application:
    """What somebody asks, as the doors hand it over; checked by `open_request`.

    `proven` marks identifiers the sender vouches for (processor capacity only).
    """

    capacity: Capacity
    regime: Regime
    identifiers: Sequence[Identifier]
    contact_email: str = ""
    statement: str = ""
    language: str = "en"
    model_names: Sequence[str] = field(default_factory=tuple)
    upstream_id: str = ""
    due_on: date | None = None


@dataclass(frozen=True, slots=True)
class Opened:
    """A new request, and the nonce that only the data subject may keep (compliance section 6.3)."""

    request: ErasureRequest
    subject_nonce: str


@transaction.atomic
def open_request(application: Application, *, actor: str, sender: ApiKey | None = None, request_pk: str = "") -> Opened:
    """Accept a request: one transaction holds all of it, so that a crash loses nothing and leaves nothing half done.

    `request_pk` names the new request beforehand, so that a form sent twice opens one request.

    1. Check the application.  2. Commit to the subject under a fresh nonce.  3. Seal what was said.
    4. Start the clocks.  5. Ask for proof (controller), or go to review on the sender's word (processor).

    Raises:
        InvalidInputError: a field is missing, malformed or too large.
        AlreadyReceivedError: a request of this `request_pk` exists.
    """
    check_application(application, sender=sender)
    nonce = secrets.token_bytes(32)
    subject = DataSubject.objects.create(commitment_sha256=commitment(nonce, application.identifiers))
    request = _create_request(application, subject, sender, request_pk or request_id())
    record_receipt(request, actor=actor)
    _seal_application(request, application, nonce)
    start_clocks(request, sender_due_on=application.due_on)
    if application.capacity == Capacity.PROCESSOR:
        _accept_senders_word(request, application, actor=actor)
    else:
        _await_verification(request, actor=actor)
    return Opened(request, nonce.hex())


def repeats(request: ErasureRequest, application: Application) -> bool:
    """Whether `application` says what `request` was opened with; False once that cannot be read any more."""
    try:
        said = json.loads(open_sealed(request, DataClass.PAYLOAD, "application"))
        contact = json.loads(open_sealed(request, DataClass.CONTACT, "contact"))
    except PayloadDestroyedError:
        return False
    same_models = request.model_names == sorted(set(application.model_names))
    return bool(same_models and said == _said(application) and contact["email"] == application.contact_email)


def commitment(nonce: bytes, identifiers: Sequence[Identifier]) -> str:
    """Return SHA-256("subject/v1" | nonce | canonical identifiers); only the holder of the nonce can recompute it."""
    canonical = canonical_json(sorted([i.type, i.normalised] for i in identifiers))
    return hashlib.sha256(b"subject/v1" + nonce + canonical).hexdigest()


def withdraw_request(request: ErasureRequest, *, actor: str) -> None:
    """Withdraw on the demand of the data subject or sender, as long as release has not begun.

    Sealed data are destroyed by the next sweep, which holds the key that signs the proof.
    """
    if request.status not in WITHDRAWABLE:
        raise IllegalTransitionError(
            f"erasure request {request.pk} is {request.get_status_display()}; it can no longer be withdrawn"
        )
    by_sender = request.capacity == Capacity.PROCESSOR
    reason = ReasonCode.WITHDRAWN_BY_SENDER if by_sender else ReasonCode.WITHDRAWN_BY_SUBJECT
    with transaction.atomic():
        move(request, RequestStatus.WITHDRAWN, actor=actor, reason=reason, outcome=Outcome.WITHDRAWN)
        stop_clocks(request, cancelled=True)


def check_application(application: Application, *, sender: ApiKey | None) -> None:
    """Raise `InvalidInputError` naming the field, never repeating its value."""
    if application.capacity == Capacity.PROCESSOR and sender is None:
        raise InvalidInputError("an instruction in processor capacity needs a sender's key", pointer="/capacity")
    if application.capacity == Capacity.CONTROLLER:
        _check_email(application.contact_email, pointer="/contact_email")
    if not 1 <= len(application.identifiers) <= MAX_IDENTIFIERS:
        raise InvalidInputError(f"1 to {MAX_IDENTIFIERS} identifiers are needed to search for", pointer="/identifiers")
    for index, identifier in enumerate(application.identifiers):
        _check_identifier(identifier, pointer=f"/identifiers/{index}")
    if len(application.statement) > MAX_STATEMENT_LENGTH or _CONTROL.search(application.statement):
        raise InvalidInputError(
            f"the statement is plain text of at most {MAX_STATEMENT_LENGTH} characters", pointer="/statement"
        )
    if len(application.model_names) > MAX_MODEL_NAMES:
        raise InvalidInputError(f"at most {MAX_MODEL_NAMES} models", pointer="/models")
    _check_sender_fields(application)
    if application.language not in dict(settings.LANGUAGES):
        raise InvalidInputError("this language is not offered", pointer="/language")


def _check_sender_fields(application: Application) -> None:
    if application.upstream_id and not _UPSTREAM_ID.fullmatch(application.upstream_id):
        raise InvalidInputError(
            "upstream_id is 1 to 64 letters, digits and . _ : -, starting with a letter or digit",
            pointer="/upstream_id",
        )
    if application.due_on is not None and application.due_on < timezone.localdate():
        raise InvalidInputError("the due date has passed; agree on a new one", pointer="/due_on")


def _check_identifier(identifier: Identifier, *, pointer: str) -> None:
    if identifier.type not in IDENTIFIER_TYPES:
        raise InvalidInputError(f"identifier types are {', '.join(IDENTIFIER_TYPES)}", pointer=f"{pointer}/type")
    if not identifier.normalised or len(identifier.value) > MAX_IDENTIFIER_LENGTH or _CONTROL.search(identifier.value):
        raise InvalidInputError(
            f"an identifier is text of 1 to {MAX_IDENTIFIER_LENGTH} characters", pointer=f"{pointer}/value"
        )
    if identifier.type == "email":
        _check_email(identifier.value, pointer=f"{pointer}/value")


def _check_email(value: str, *, pointer: str) -> None:
    """Refuse what is no address, what no mail can be sent to, or what mail would be sent elsewhere for.

    Two spellings before the @ are equal when they fold to the same text, and a Kelvin sign folds to a k: whoever owns a
    mailbox with such a letter would prove that they own the one with the plain letter.
    """
    local, _, domain = value.rpartition("@")
    try:
        _ADDRESS(value)
        is_sent_there = sanitize_address(value, "utf-8") == f"{local}@{punycode(domain)}"
    except (ValidationError, ValueError):
        is_sent_there = False
    if not is_sent_there or not local.isascii() or "=?" in local or domain.startswith("["):
        raise InvalidInputError("an e-mail address such as name@example.org is needed", pointer=pointer)


def _create_request(
    application: Application, subject: DataSubject, sender: ApiKey | None, request_pk: str
) -> ErasureRequest:
    try:
        with transaction.atomic():
            return ErasureRequest.objects.create(
                pk=request_pk,
                subject=subject,
                capacity=application.capacity,
                regime=application.regime,
                language=application.language,
                model_names=sorted(set(application.model_names)),
                upstream_id=application.upstream_id,
                sender=sender,
                received_at=timezone.now(),
            )
    except IntegrityError as exc:
        if ErasureRequest.objects.filter(pk=request_pk).exists():
            raise AlreadyReceivedError("this form was sent before; its request is under way") from exc
        raise InvalidInputError("a request with this upstream_id was received before", pointer="/upstream_id") from exc


def _seal_application(request: ErasureRequest, application: Application, nonce: bytes) -> None:
    _seal_json(request, DataClass.PAYLOAD, "application", _said(application))
    if application.capacity == Capacity.CONTROLLER:
        contact = {"email": application.contact_email, "language": application.language, "nonce": nonce.hex()}
        _seal_json(request, DataClass.CONTACT, "contact", contact)


def _said(application: Application) -> dict[str, Any]:
    claimed = [{"type": i.type, "value": i.value} for i in application.identifiers]
    return {"statement": application.statement, "claimed": claimed}


def _accept_senders_word(request: ErasureRequest, application: Application, *, actor: str) -> None:
    IdentityCheck.objects.create(
        request=request,
        level=IdentityCheck.Level.SENDER,
        status=IdentityCheck.Status.ACCEPTED,
        decided_at=timezone.now(),
    )
    seal_proven(request, application.identifiers)
    move(
        request,
        RequestStatus.IN_REVIEW,
        actor=actor,
        reason=ReasonCode.VOUCHED_BY_SENDER,
        ground=Ground.INSTRUCTION,
    )


def _await_verification(request: ErasureRequest, *, actor: str) -> None:
    IdentityCheck.objects.create(
        request=request,
        level=IdentityCheck.Level.MAIL_LINK,
        link_nonce=secrets.token_hex(16),
        expires_at=timezone.now() + timedelta(hours=settings.IDENTITY_LINK_HOURS),
    )
    move(request, RequestStatus.AWAITING_VERIFICATION, actor=actor, reason=ReasonCode.IDENTITY_LINK_SENT)
    pause_for_identity(request, actor=actor)


def seal_proven(request: ErasureRequest, identifiers: Sequence[Identifier]) -> None:
    """Seal the identifiers that the identity check proved; `locate` searches for these and no others."""
    _seal_json(request, DataClass.PAYLOAD, "proven", [{"type": i.type, "value": i.value} for i in identifiers])


def _seal_json(request: ErasureRequest, data_class: DataClass, name: str, document: object) -> None:
    seal(request, data_class, name, json.dumps(document, ensure_ascii=False).encode())
