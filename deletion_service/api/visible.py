"""What a principal may see: staff what their role reads, a key what it sent. Anything else does not exist."""

from __future__ import annotations

from typing import TypeVar

from django.db.models import Model, QuerySet

from deletion_service.access.permissions import Principal
from deletion_service.certificates.models import ISSUED_STATUSES, Certificate, Evidence
from deletion_service.errors import NotFoundError
from deletion_service.requests.models import ErasureRequest
from deletion_service.targets.models import ErasureTarget, Job

Row = TypeVar("Row", bound=Model)


def visible_requests(principal: Principal) -> QuerySet[ErasureRequest]:
    """Return the requests that exist for a principal."""
    rows = ErasureRequest.objects.prefetch_related("clocks", "targets__model")
    return rows if principal.staff is not None else rows.filter(sender=principal.key)


def visible_targets(principal: Principal) -> QuerySet[ErasureTarget]:
    """Return the targets of visible requests."""
    rows = ErasureTarget.objects.filter(request__in=visible_requests(principal)).select_related("model")
    return rows.prefetch_related("contaminated__version", "sources", "evidence", "certificates")


def visible_jobs(principal: Principal) -> QuerySet[Job]:
    """Return the jobs of visible requests."""
    return Job.objects.filter(request__in=visible_requests(principal))


def visible_evidence(principal: Principal) -> QuerySet[Evidence]:
    """Return the evidence on visible targets."""
    return Evidence.objects.filter(target__request__in=visible_requests(principal)).select_related("policy")


def visible_certificates(principal: Principal) -> QuerySet[Certificate]:
    """Return the certificates of visible requests; drafts are for staff."""
    rows = Certificate.objects.filter(target__request__in=visible_requests(principal))
    rows = rows.select_related("target__request", "evidence")
    return rows if principal.staff is not None else rows.filter(status__in=ISSUED_STATUSES)


def find(rows: QuerySet[Row], pk: str) -> Row:
    """Return a row, or raise the one error for what is absent and what is somebody else's."""
    row = rows.filter(pk=pk).first()
    if row is None:
        raise NotFoundError("there is nothing of this id, or nothing that you may see; list what you can see")
    return row
