"""Pages for data subjects. What was told is never shown back; a link that does not work gets one neutral page."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, Final

from django.contrib import messages
from django.core.signing import BadSignature, Signer
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods, require_safe

from deletion_service.certificates.custody import issuer_document
from deletion_service.certificates.models import ISSUED_STATUSES, Certificate
from deletion_service.certificates.revoking import latest_revocations
from deletion_service.certificates.verify import verify_certificate
from deletion_service.errors import AlreadyReceivedError, DomainError, LinkError
from deletion_service.portal.forms import AskForm, CheckForm, new_form_token
from deletion_service.portal.letters import shown_letter
from deletion_service.portal.limits import Page, limited
from deletion_service.portal.timeline import timeline
from deletion_service.requests.identity import (
    confirm_identity,
    find_by_status_link,
    forget_nonce,
    pending_check,
    status_token,
    subject_nonce,
)
from deletion_service.requests.intake import open_request, repeats, withdraw_request
from deletion_service.requests.models import ErasureRequest
from deletion_service.requests.statuses import WITHDRAWABLE
from ml.digests import canonical_json

_ASKED: Final = Signer(salt="lethe.asked")


def _neutral(page: Page) -> Page:
    """Answer every link that does not work with the same page, whatever the reason."""

    @wraps(page)
    def neutral_page(request: HttpRequest, **kwargs: str) -> HttpResponse:
        try:
            return page(request, **kwargs)
        except LinkError:
            return render(request, "portal/link.html", status=410)

    return neutral_page


@require_safe
def start(request: HttpRequest) -> HttpResponse:
    """The first page: ask, check, or read what happens."""
    return render(request, "portal/start.html", {"here": "start"})


@require_safe
def what_happens(request: HttpRequest) -> HttpResponse:
    """What happens after somebody asks."""
    return render(request, "portal/what_happens.html", {"here": "what_happens"})


# --- ask ----------------------------------------------------------------------------------------------------------


@never_cache
@limited("ask", methods=("POST",))
@require_http_methods(["GET", "HEAD", "POST"])
def ask(request: HttpRequest) -> HttpResponse:
    """The form, and its reception: a form sent twice opens one request."""
    if request.method != "POST":
        return _ask_page(request, AskForm(initial={"form_token": new_form_token()}))
    form = AskForm(request.POST)
    if not form.is_valid():
        return _ask_page(request, form)
    pk, application = form.cleaned_data["form_token"], form.application()
    try:
        open_request(application, actor="subject", request_pk=pk)
    except AlreadyReceivedError:
        if not repeats(ErasureRequest.objects.get(pk=pk), application):
            form.add_error(None, "This form was sent before with other details. Check them and send it again.")
            return _ask_page(request, form)
    return redirect("portal:asked", asked=_ASKED.sign(pk))


def _ask_page(request: HttpRequest, form: AskForm) -> HttpResponse:
    if form.errors:
        # Whoever corrects a form sends a new one.
        form.data = {**form.data.dict(), "form_token": new_form_token()}  # type: ignore[attr-defined]  # a QueryDict
    faults = form.faults() if form.is_bound else []
    return render(
        request, "portal/ask.html", {"form": form, "faults": faults, "here": "ask"}, status=422 if faults else 200
    )


@never_cache
@_neutral
@require_safe
def asked(request: HttpRequest, asked: str) -> HttpResponse:
    """The number and the due date of a request that waits for its proof."""
    try:
        row = ErasureRequest.objects.filter(pk=_ASKED.unsign(asked)).first()
    except BadSignature:
        row = None
    if row is None:
        raise LinkError("this page belongs to no request")
    return render(request, "portal/asked.html", {"receipt": row.receipt, "due_on": _due_on(row)})


@never_cache
@limited("portal")
@_neutral
@require_http_methods(["GET", "HEAD", "POST"])
def confirm(request: HttpRequest, receipt: str, token: str) -> HttpResponse:
    """The mailed link: looking at it changes nothing, pressing the button proves the mailbox."""
    check = pending_check(receipt, token)
    if request.method != "POST":
        return render(request, "portal/confirm.html", {"receipt": receipt})
    confirmed = confirm_identity(check)
    return redirect("portal:receipt", receipt=receipt, token=status_token(confirmed))


@never_cache
@limited("status")
@_neutral
@require_http_methods(["GET", "HEAD", "POST"])
def receipt(request: HttpRequest, receipt: str, token: str) -> HttpResponse:
    """Number, due date, and the code that only this person may keep; shown until they say that they have it."""
    row = find_by_status_link(receipt, token)
    if request.method == "POST":
        forget_nonce(row)
        messages.success(request, "Our copy of your proof code is deleted. Only you have it now.")
        return redirect("portal:status", receipt=receipt, token=token)
    context = {"row": row, "due_on": _due_on(row), "nonce": _in_blocks(subject_nonce(row)), "token": token}
    return render(request, "portal/receipt.html", context)


def _in_blocks(nonce: str | None) -> str | None:
    return None if nonce is None else " ".join(nonce[i : i + 8] for i in range(0, len(nonce), 8))


# --- status -------------------------------------------------------------------------------------------------------


@never_cache
@limited("status")
@_neutral
@require_safe
def status(request: HttpRequest, receipt: str, token: str) -> HttpResponse:
    """Where the request stands, our letters, and the signed documents."""
    row = find_by_status_link(receipt, token)
    context = {
        "row": row,
        "token": token,
        "due_on": _due_on(row),
        "clock": row.clocks.filter(kind="respond").first(),
        "steps": timeline(row),
        "letters": [shown_letter(letter) for letter in row.letters.exclude(text="").order_by("-owed_at", "-id")],
        "documents": _documents(row),
        "can_withdraw": row.status in WITHDRAWABLE,
        "keeps_nonce": row.status != ErasureRequest.Status.AWAITING_VERIFICATION and subject_nonce(row) is not None,
        "issuer_url": request.build_absolute_uri(reverse("issuer_document")),
    }
    return render(request, "portal/status.html", context)


@never_cache
@limited("portal")
@_neutral
@require_http_methods(["GET", "HEAD", "POST"])
def withdraw(request: HttpRequest, receipt: str, token: str) -> HttpResponse:
    """Ask once more, then withdraw."""
    row = find_by_status_link(receipt, token)
    if request.method != "POST":
        context = {"row": row, "token": token, "possible": row.status in WITHDRAWABLE}
        return render(request, "portal/withdraw.html", context)
    try:
        withdraw_request(row, actor="subject")
        messages.success(request, "Your request is withdrawn.")
    except DomainError:
        messages.warning(request, "The request could not be withdrawn any more. The page shows where it stands.")
    return redirect("portal:status", receipt=receipt, token=token)


@never_cache
@limited("status")
@_neutral
@require_safe
def document(request: HttpRequest, receipt: str, token: str, name: str) -> HttpResponse:
    """Download a signed document, its log proof, or its evidence."""
    row = find_by_status_link(receipt, token)
    identifier, _, kind = name.partition(".")
    certificate = Certificate.objects.filter(pk=identifier, target__request=row, status__in=ISSUED_STATUSES).first()
    if certificate is None or kind not in _CONTENT:
        raise Http404
    content = _CONTENT[kind](certificate)
    if content is None:
        raise Http404
    response = HttpResponse(content, content_type="application/json")
    response["Content-Disposition"] = f'attachment; filename="{name}"'
    return response


_CONTENT: Final[dict[str, Callable[[Certificate], bytes | None]]] = {
    "dsse.json": lambda certificate: bytes(certificate.envelope),
    "log.json": lambda certificate: None if certificate.log_proof is None else canonical_json(certificate.log_proof),
    "evidence.json": lambda certificate: bytes(certificate.evidence.document),
}


def _documents(row: ErasureRequest) -> list[dict[str, Any]]:
    found = Certificate.objects.filter(target__request=row, status__in=ISSUED_STATUSES).select_related("target__model")
    return [
        {
            "id": certificate.pk,
            "title": certificate.title,
            "verdict": certificate.verdict,
            "model": certificate.target.model.name,
            "published": certificate.log_proof is not None,
            "revoked": certificate.status == Certificate.Status.REVOKED,
        }
        for certificate in found
    ]


def _due_on(row: ErasureRequest) -> Any:
    clock = row.clocks.filter(kind="respond").first()
    return clock.due_on if clock else None


# --- check a certificate ------------------------------------------------------------------------------------------


@limited("portal", methods=("POST",))
@require_http_methods(["GET", "HEAD", "POST"])
def check(request: HttpRequest) -> HttpResponse:
    """Check a certificate that somebody brings, against this deployment's keys."""
    if request.method != "POST":
        return render(request, "portal/check.html", {"form": CheckForm(), "faults": [], "here": "check"})
    form = CheckForm(request.POST, request.FILES)
    if not form.is_valid():
        context = {"form": form, "faults": form.faults(), "here": "check"}
        return render(request, "portal/check.html", context, status=422)
    result = verify_certificate(
        form.content("certificate") or b"",
        issuer=issuer_document(),
        log_proof=form.content("log_proof"),
        evidence=form.content("evidence"),
        revocations=latest_revocations(),
    )
    return render(request, "portal/checked.html", {"result": result, "here": "check"})
