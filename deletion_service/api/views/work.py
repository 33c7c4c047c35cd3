"""Targets, jobs and evidence."""

from __future__ import annotations

from typing import Final

from django.http import HttpResponse
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter
from rest_framework.request import Request
from rest_framework.response import Response

from deletion_service.access.permissions import Action
from deletion_service.api import examples
from deletion_service.api.authentication import principal_of
from deletion_service.api.description import (
    IDEMPOTENCY_KEY,
    READING,
    STARTING,
    listing,
    operation,
)
from deletion_service.api.idempotency import idempotent
from deletion_service.api.pages import page_of
from deletion_service.api.serializers import (
    EvidenceOut,
    JobOut,
    TargetOut,
)
from deletion_service.api.views.base import View, file_answer
from deletion_service.api.visible import (
    find,
    visible_evidence,
    visible_jobs,
    visible_targets,
)
from deletion_service.certificates.evaluation import gate_rows
from deletion_service.certificates.evidence import open_evidence
from deletion_service.targets.jobs import cancel_job, retry_job
from deletion_service.targets.models import Job

_BY_REQUEST: Final = OpenApiParameter("request", OpenApiTypes.STR, description="Only those of this request.")


class Targets(View):
    """Request x model."""

    actions = {"GET": Action.READ_TARGETS}

    @listing("list_targets", "List targets", item=TargetOut, example=examples.TARGET, parameters=[_BY_REQUEST])
    def get(self, request: Request) -> Response:
        """List targets, newest first."""
        principal = principal_of(request)
        rows = visible_targets(principal)
        if of := request.query_params.get("request"):
            rows = rows.filter(request_id=of)
        context = {"staff": principal.staff is not None}
        return page_of(rows, request, lambda found: TargetOut(found, many=True, context=context).data)


class TargetDetail(View):
    """One target."""

    actions = {"GET": Action.READ_TARGETS}

    @operation("show_target", "Show a target", answer=TargetOut, example=examples.TARGET, problems=READING)
    def get(self, request: Request, target_id: str) -> Response:
        """Show what was found, what became of it, and the verdict."""
        principal = principal_of(request)
        row = find(visible_targets(principal), target_id)
        return Response(TargetOut(row, context={"staff": principal.staff is not None}).data)


class Jobs(View):
    """Leased pieces of work."""

    actions = {"GET": Action.READ_JOBS}

    @listing("list_jobs", "List jobs", item=JobOut, example=examples.JOB, parameters=[_BY_REQUEST])
    def get(self, request: Request) -> Response:
        """List jobs, newest first."""
        rows = visible_jobs(principal_of(request))
        if of := request.query_params.get("request"):
            rows = rows.filter(request_id=of)
        return page_of(rows, request, lambda found: JobOut(found, many=True).data)


class JobDetail(View):
    """One job."""

    actions = {"GET": Action.READ_JOBS}

    @operation("show_job", "Show a job", answer=JobOut, example=examples.JOB, problems=READING)
    def get(self, request: Request, job_id: str) -> Response:
        """Show state and progress."""
        return Response(JobOut(find(visible_jobs(principal_of(request)), job_id)).data)


class JobCancellation(View):
    """Ask a job to stop."""

    actions = {"POST": Action.MANAGE_JOBS}

    @operation(
        "cancel_job",
        "Ask a job to stop",
        description="A ready job ends at once, a running one at its next heartbeat.",
        status=202,
        answer=JobOut,
        example={**examples.JOB, "cancel_requested": True},
        parameters=[IDEMPOTENCY_KEY],
        problems=STARTING,
    )
    @idempotent
    def post(self, request: Request, job_id: str) -> Response:
        """Cancel."""
        principal = principal_of(request)
        job = find(visible_jobs(principal), job_id)
        cancel_job(job, actor=principal.label)
        return _job(job)


class JobRetry(View):
    """Give a failed job fresh attempts."""

    actions = {"POST": Action.MANAGE_JOBS}

    @operation(
        "retry_job",
        "Try a failed or cancelled job again",
        status=202,
        answer=JobOut,
        example={**examples.JOB, "state": "ready", "attempts": 0},
        parameters=[IDEMPOTENCY_KEY],
        problems=STARTING,
    )
    @idempotent
    def post(self, request: Request, job_id: str) -> Response:
        """Retry."""
        principal = principal_of(request)
        job = find(visible_jobs(principal), job_id)
        retry_job(job, actor=principal.label)
        return _job(job)


def _job(job: Job) -> Response:
    return Response(JobOut(job).data, status=202, headers={"Location": f"/v1/jobs/{job.pk}"})


class EvidenceDetail(View):
    """Sealed evidence, opened and judged again."""

    actions = {"GET": Action.READ_EVIDENCE}

    @operation(
        "show_evidence", "Show evidence", answer=EvidenceOut, example=examples.EVIDENCE, problems=(*READING, 409)
    )
    def get(self, request: Request, evidence_id: str) -> Response:
        """Show the gate table and the findings."""
        row = find(visible_evidence(principal_of(request)), evidence_id)
        document = open_evidence(row)
        verdict = document.judged_again()
        gates = gate_rows(verdict, report=document.report, policy=document.policy)
        return Response(EvidenceOut(row, context={"document": document, "verdict": verdict, "gates": gates}).data)


class EvidenceDocumentBytes(View):
    """The sealed bytes of evidence."""

    actions = {"GET": Action.READ_EVIDENCE}

    @operation(
        "get_evidence_document",
        "Get the sealed bytes of evidence",
        description="Exactly the bytes whose SHA-256 a certificate names.",
        answer=OpenApiTypes.OBJECT,
        example=examples.EVIDENCE_DOCUMENT,
        problems=READING,
    )
    def get(self, request: Request, evidence_id: str) -> HttpResponse:
        """Return the bytes as stored."""
        row = find(visible_evidence(principal_of(request)), evidence_id)
        return file_answer(bytes(row.document), media_type="application/json", name="evidence.json")
