"""Pages for reviewers. They show dates, codes, counts and evidence; never an identifier or a word of what was said."""

from __future__ import annotations

import json
from typing import Any, Final

from django.contrib import messages
from django.core.paginator import Paginator
from django.db.models import Prefetch
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseBase, StreamingHttpResponse
from django.shortcuts import redirect, render
from django.utils import timezone
from django.utils.safestring import mark_safe
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from deletion_service.access.accounts import second_factor_missing
from deletion_service.access.models import StaffMember
from deletion_service.access.permissions import Action, staff_principal
from deletion_service.audit.models import AuditEvent
from deletion_service.audit.trail import event_document
from deletion_service.certificates.canonical import read_canonical
from deletion_service.certificates.envelope import LARGEST_ENVELOPE, read_envelope
from deletion_service.certificates.evaluation import gate_rows
from deletion_service.certificates.evidence import open_evidence
from deletion_service.certificates.issuing import check_draft, check_issuer, examine, issue_certificate
from deletion_service.certificates.models import Certificate, Evidence, EvidenceDecision, Sweep
from deletion_service.certificates.promotion import check_choice, decide_evidence
from deletion_service.certificates.statement import Statement, read_statement
from deletion_service.certificates.sweeps import alarms
from deletion_service.console.access import staff_page
from deletion_service.console.actions import Offer, actor_of, closed_because, find_action, offers
from deletion_service.console.forms import EvidenceForm, MatchForm, QueueFilter
from deletion_service.console.ledger import entry_lines, ledger_section, sweep_line, tested_points
from deletion_service.console.queue import filtered_cases, queue_row
from deletion_service.console.tables import gate_lines
from deletion_service.errors import DomainError, NotFoundError
from deletion_service.requests.clocks import elapsed_share
from deletion_service.requests.codes import MatchReason
from deletion_service.requests.models import ErasureRequest
from deletion_service.requests.statuses import RequestStatus
from deletion_service.targets.jobs import cancel_job, retry_job
from deletion_service.targets.locate import accept_unproven
from deletion_service.targets.models import ErasureTarget, Job, ModelVersion, TrainedModel
from deletion_service.targets.statuses import JobState
from ml.digests import canonical_json
from ml.pictures.evidence import Section, bounds_section, sections

PAGE_LENGTH: Final = 50


@require_safe
@staff_page(Action.READ_CASES)
def queue(request: HttpRequest, member: StaffMember) -> HttpResponse:
    """Cases by due date."""
    today = timezone.localdate()
    chosen = QueueFilter(request.GET)
    cases = filtered_cases(chosen.cleaned_data if chosen.is_valid() else {}, today=today)
    page = Paginator(cases, PAGE_LENGTH).get_page(request.GET.get("page"))
    query = request.GET.copy()
    query.pop("page", None)
    context = {
        "rows": [queue_row(case, today=today) for case in page],
        "page": page,
        "alarms": [sweep_line(row) for row in alarms()],
        "filter": chosen,
        "query": query.urlencode(),
        "here": "queue",
    }
    return render(request, "console/queue.html", context)


# --- one case -----------------------------------------------------------------------------------------------------


@require_safe
@staff_page(Action.READ_CASES)
def case(request: HttpRequest, member: StaffMember, request_id: str) -> HttpResponse:
    """Facts and clock, what was found and what became of it, what can be done now."""
    row = _case(request_id)
    clocks = [{"clock": clock, "share": elapsed_share(clock, today=timezone.localdate())} for clock in row.clocks.all()]
    targets = row.targets.select_related("model").prefetch_related(
        "contaminated__version",
        "sources",
        "evidence",
        "sweeps__version__model",
        Prefetch("certificates", Certificate.objects.all()),
    )
    context = {
        "case": row,
        "clocks": clocks,
        "targets": targets,
        "swept": [(target, sweep_line(sweep)) for target in targets for sweep in target.sweeps.all()],
        "jobs": row.jobs.select_related("target__model", "request"),
        "letters": row.letters.all(),
        "disposals": row.disposals.all(),
        "searched": row.jobs.filter(kind="locate", state=JobState.DONE).exists(),
        "offers": _offers(request, member, row),
        "can_decide": row.status == RequestStatus.EVIDENCE_REVIEW,
        "manages_jobs": staff_principal(member).may(Action.MANAGE_JOBS),
        "reviews": staff_principal(member).may(Action.REVIEW),
        "here": "queue",
    }
    return render(request, "console/case.html", context)


def _offers(request: HttpRequest, member: StaffMember, row: ErasureRequest) -> list[Offer]:
    """Add to what the domain says that this session lacks a second factor."""
    found = []
    for offer in offers(row, member):
        lacking = not offer.closed_because and second_factor_missing(request, member.user, offer.action.needs)
        found.append(Offer(offer.action, "sign in with your authenticator code first") if lacking else offer)
    return found


@require_http_methods(["GET", "HEAD", "POST"])
def act(request: HttpRequest, request_id: str, name: str) -> HttpResponseBase:
    """One decision of the table of actions."""
    action = find_action(name)
    if action is None:
        raise Http404

    @staff_page(action.needs)
    def page(request: HttpRequest, member: StaffMember) -> HttpResponse:
        row = _case(request_id)
        form = action.form(request.POST or None, case=row)
        if request.method == "POST" and form.is_valid():
            try:
                messages.success(request, action.act(row, member, form.cleaned_data))
                return redirect("console:case", request_id=row.pk)
            except DomainError as exc:
                form.add_error(None, _sentence(exc.message))
        closed = "" if not action.fits(row) else closed_because(action, row, member)
        context = {
            "case": row,
            "action": action,
            "form": form,
            "faults": form.faults() if form.is_bound else [],
            "closed_because": closed,
            "fits": action.fits(row),
            "here": "queue",
        }
        return render(request, "console/act.html", context, status=409 if form.errors else 200)

    return page(request)


@require_http_methods(["GET", "HEAD", "POST"])
@staff_page(Action.REVIEW)
def accept_match(request: HttpRequest, member: StaffMember, target_id: str) -> HttpResponse:
    """Let records count that only unproven identifiers point to, for a coded reason."""
    target = ErasureTarget.objects.select_related("request", "model").filter(pk=target_id).first()
    if target is None:
        raise NotFoundError("no such target")
    form = MatchForm(request.POST or None, case=target.request)
    if request.method == "POST" and form.is_valid():
        try:
            accept_unproven(target, reason=MatchReason(form.cleaned_data["reason"]), reviewer=member)
            messages.success(request, "The match counts now; your reason is on record.")
            return redirect("console:case", request_id=target.request_id)
        except DomainError as exc:
            form.add_error(None, _sentence(exc.message))
    context = {
        "case": target.request,
        "target": target,
        "form": form,
        "faults": form.faults() if form.is_bound else [],
        "here": "queue",
    }
    return render(request, "console/accept_match.html", context, status=409 if form.errors else 200)


@require_POST
@staff_page(Action.MANAGE_JOBS)
def job(request: HttpRequest, member: StaffMember, job_id: str, verb: str) -> HttpResponse:
    """Cancel a job or try it again."""
    row = Job.objects.select_related("version").filter(pk=job_id).first()
    if row is None or verb not in {"cancel", "retry"}:
        raise NotFoundError("no such job")
    try:
        (cancel_job if verb == "cancel" else retry_job)(row, actor=actor_of(member))
        messages.success(request, "The job was asked to stop." if verb == "cancel" else "The job is tried again.")
    except DomainError as exc:
        messages.error(request, _sentence(exc.message))
    if row.version is not None:
        return redirect("console:ledger", model_id=row.version.model_id)
    return redirect("console:case", request_id=row.request_id)


# --- evidence -----------------------------------------------------------------------------------------------------


@require_safe
@staff_page(Action.READ_EVIDENCE)
def evidence(request: HttpRequest, member: StaffMember, evidence_id: str) -> HttpResponse:
    """Findings, how much may remain, gate table, pictures of every attack and of the energies, the run's manifest."""
    row = _evidence(evidence_id)
    document = open_evidence(row)
    verdict, report = document.judged_again(), document.report
    context = {
        "evidence": row,
        "case": row.target.request,
        "target": row.target,
        "verdict": verdict,
        "policy": document.policy,
        "lines": gate_lines(gate_rows(verdict, report=report, policy=document.policy), report.attacks),
        "bounds": _drawn(bounds_section(report, document.policy)),
        "sections": [_drawn(section) for section in sections(report, document.policy)],
        "report": report,
        "unlearning": document.unlearning,
        "run": row.run,
        "here": "queue",
    }
    return render(request, "console/evidence.html", context)


def _drawn(section: Section) -> dict[str, Any]:
    """A section for the template, which trusts nothing that does not say so."""
    # Built from numbers and fixed words; every word in it is escaped.
    return {"id": section.id, "title": section.title, "html": mark_safe(section.html)}  # noqa: S308 # nosec B308 B703


@require_safe
@staff_page(Action.READ_EVIDENCE)
def evidence_file(request: HttpRequest, member: StaffMember, evidence_id: str) -> HttpResponse:
    """The sealed bytes."""
    row = _evidence(evidence_id)
    return _file(bytes(row.document), f"{row.pk}.evidence.json")


@require_http_methods(["GET", "HEAD", "POST"])
@staff_page(Action.APPROVE_EVIDENCE)
def decide(request: HttpRequest, member: StaffMember, request_id: str) -> HttpResponse:
    """Release, release in part, or decline."""
    row = _case(request_id)
    form = EvidenceForm(request.POST or None, case=row)
    if request.method == "POST" and form.is_valid():
        chosen = form.cleaned_data
        try:
            decide_evidence(
                row,
                choice=chosen["choice"],
                reason=chosen["reason"],
                reviewer=member,
                retrain_on=chosen["retrain_on"],
            )
            messages.success(request, "Your decision is recorded. The workers do what follows from it.")
            return redirect("console:case", request_id=row.pk)
        except DomainError as exc:
            form.add_error(None, _sentence(exc.message))
    targets = row.targets.filter(status="judged").select_related("model")
    judged = targets.prefetch_related("evidence", "sweeps__version__model")
    context = {
        "case": row,
        "form": form,
        "faults": form.faults() if form.is_bound else [],
        "choices": [_choice(row, value, label) for value, label in EvidenceDecision.Choice.choices],
        "targets": judged,
        "swept": [(target, sweep_line(sweep)) for target in judged for sweep in target.sweeps.all()],
        "here": "queue",
    }
    return render(request, "console/decide.html", context, status=409 if form.errors else 200)


def _choice(row: ErasureRequest, value: str, label: str) -> dict[str, Any]:
    """Say of a choice whether it is open, and what the domain says where it is open for some reasons only."""
    objections = [_objection(row, value, reason) for reason in EvidenceDecision.Reason.values]
    return {
        "value": value,
        "label": label,
        "closed": all(objections),
        "objection": next((objection for objection in objections if objection), ""),
    }


def _objection(row: ErasureRequest, choice: str, reason: str) -> str:
    try:
        check_choice(row, choice, reason)
    except DomainError as exc:
        return exc.message.replace(row.pk, "this case")
    return ""


# --- certificates -------------------------------------------------------------------------------------------------


@require_safe
@staff_page(Action.READ_CERTIFICATES)
def certificate(request: HttpRequest, member: StaffMember, certificate_id: str) -> HttpResponse:
    """The statement, the checks that anybody can make, and who may issue it."""
    row = _certificate(certificate_id)
    context = {
        "certificate": row,
        "case": row.target.request,
        "statement": _statement(row),
        "result": examine(row),
        "events": row.events.all(),
        "closed_because": _issue_closed_because(request, member, row),
        "here": "queue",
    }
    return render(request, "console/certificate.html", context)


@require_POST
@staff_page(Action.ISSUE)
def issue(request: HttpRequest, member: StaffMember, certificate_id: str) -> HttpResponse:
    """Sign as approver and log."""
    row = _certificate(certificate_id)
    try:
        issue_certificate(row, member=member)
        messages.success(request, f"{row.title} issued. The worker files it in the log.")
    except DomainError as exc:
        messages.error(request, _sentence(exc.message))
    return redirect("console:certificate", certificate_id=row.pk)


@require_safe
@staff_page(Action.READ_CERTIFICATES)
def certificate_file(request: HttpRequest, member: StaffMember, certificate_id: str, kind: str) -> HttpResponse:
    """The envelope or the log proof, as stored."""
    row = _certificate(certificate_id)
    if kind == "dsse.json":
        return _file(bytes(row.envelope), f"{row.pk}.{kind}")
    if kind == "log.json" and row.log_proof is not None:
        return _file(canonical_json(row.log_proof), f"{row.pk}.{kind}")
    raise NotFoundError("no such file")


def _statement(row: Certificate) -> Statement:
    """Read what is signed; a draft carries one signature, so that no check of it can hold yet."""
    payload = read_envelope(bytes(row.envelope)).payload
    return read_statement(read_canonical(payload, what="the statement", largest=LARGEST_ENVELOPE))


def _issue_closed_because(request: HttpRequest, member: StaffMember, row: Certificate) -> str:
    if not staff_principal(member).may(Action.ISSUE):
        return "your role does not allow this"
    try:
        check_issuer(row, member)
        check_draft(row)
    except DomainError as exc:
        return exc.message
    lacking = second_factor_missing(request, member.user, Action.ISSUE)
    return "sign in with your authenticator code first" if lacking else ""


# --- audit and models ---------------------------------------------------------------------------------------------


@require_safe
@staff_page(Action.READ_AUDIT)
def audit(request: HttpRequest, member: StaffMember, request_id: str) -> HttpResponse:
    """Who did what to a case, and the seal over it."""
    row = _case(request_id)
    events = AuditEvent.objects.filter(request_id=row.pk).select_related("seal_entry__seal").order_by("id")
    page = Paginator(events, 200).get_page(request.GET.get("page"))
    return render(request, "console/audit.html", {"case": row, "page": page, "here": "queue"})


@require_safe
@staff_page(Action.READ_AUDIT)
def audit_export(request: HttpRequest, member: StaffMember, request_id: str) -> StreamingHttpResponse:
    """The same as JSON Lines, in the form that is hashed."""
    row = _case(request_id)
    events = AuditEvent.objects.filter(request_id=row.pk).order_by("id")
    lines = (f"{json.dumps(event_document(event), sort_keys=True)}\n" for event in events.iterator())
    response = StreamingHttpResponse(lines, content_type="application/jsonl")
    response["Content-Disposition"] = f'attachment; filename="{row.pk}.audit.jsonl"'
    return response


@require_safe
@staff_page(Action.READ_MODELS)
def models(request: HttpRequest, member: StaffMember) -> HttpResponse:
    """Models, their versions, and what the retirement probes found."""
    versions = ModelVersion.objects.select_related("parent", "training_manifest").prefetch_related("contaminations")
    rows = TrainedModel.objects.order_by("name").prefetch_related(Prefetch("versions", versions.order_by("-number")))
    return render(request, "console/models.html", {"models": rows, "here": "models"})


@require_safe
@staff_page(Action.READ_MODELS)
def ledger(request: HttpRequest, member: StaffMember, model_id: str) -> HttpResponse:
    """Earlier deletions by request, what remains of each over versions, alarms."""
    model = TrainedModel.objects.filter(pk=model_id).first()
    if model is None:
        raise NotFoundError("no such model")
    sweeps = list(Sweep.objects.filter(version__model=model).select_related("version__model").order_by("-sealed_at"))
    points = tested_points(sweeps)
    waiting = Job.objects.filter(version__model=model).exclude(state=JobState.DONE).select_related("version")
    context = {
        "model": model,
        "alarms": [sweep_line(row) for row in alarms().filter(version__model=model)],
        "entries": entry_lines(model, points),
        "section": _drawn(ledger_section(sweeps, points)),
        "lines": [sweep_line(row) for row in sweeps],
        "jobs": waiting,
        "manages_jobs": staff_principal(member).may(Action.MANAGE_JOBS),
        "here": "models",
    }
    return render(request, "console/ledger.html", context)


@require_safe
@staff_page(Action.READ_EVIDENCE)
def sweep_file(request: HttpRequest, member: StaffMember, sweep_id: str) -> HttpResponse:
    """The sealed bytes of a sweep."""
    row = Sweep.objects.filter(pk=sweep_id, document__isnull=False).first()
    if row is None:
        raise NotFoundError("no such sweep")
    return _file(bytes(row.document or b""), f"{row.pk}.sweep.json")


# --- finding rows -------------------------------------------------------------------------------------------------


def _case(request_id: str) -> ErasureRequest:
    row = ErasureRequest.objects.select_related("reviewer", "starter", "sender").filter(pk=request_id).first()
    if row is None:
        raise NotFoundError("no such case")
    return row


def _evidence(evidence_id: str) -> Evidence:
    row = Evidence.objects.select_related("target__request", "target__model", "run__batch__before", "run__candidate")
    found = row.filter(pk=evidence_id).first()
    if found is None:
        raise NotFoundError("no such evidence")
    return found


def _certificate(certificate_id: str) -> Certificate:
    row = Certificate.objects.select_related(
        "target__request", "target__model", "evidence", "evidence_approver", "issued_by"
    )
    found = row.filter(pk=certificate_id).first()
    if found is None:
        raise NotFoundError("no such certificate")
    return found


def _file(content: bytes, name: str) -> HttpResponse:
    response = HttpResponse(content, content_type="application/json")
    response["Content-Disposition"] = f'attachment; filename="{name}"'
    return response


def _sentence(message: str) -> str:
    return f"{message[:1].upper()}{message[1:]}."
