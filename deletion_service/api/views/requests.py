"""Instructions to erase, and what people decide about requests."""

from __future__ import annotations

from typing import Any

from rest_framework.request import Request
from rest_framework.response import Response

from deletion_service.access.permissions import Action
from deletion_service.api import examples
from deletion_service.api.authentication import principal_of
from deletion_service.api.description import (
    CREATING,
    IDEMPOTENCY_KEY,
    IF_MATCH,
    READING,
    STARTING,
    listing,
    operation,
)
from deletion_service.api.etags import check_if_match, etag_of
from deletion_service.api.idempotency import idempotent
from deletion_service.api.pages import page_of
from deletion_service.api.serializers import (
    EvidenceDecisionIn,
    OpenedOut,
    RequestIn,
    RequestOut,
)
from deletion_service.api.views.base import View, person_of, read_body, sender_of
from deletion_service.api.visible import (
    find,
    visible_requests,
)
from deletion_service.certificates.promotion import decide_evidence
from deletion_service.requests.codes import Capacity, Regime
from deletion_service.requests.intake import Application, Identifier, withdraw_request
from deletion_service.requests.models import ErasureRequest
from deletion_service.targets.locate import receive_instruction


class Requests(View):
    """Instructions to erase."""

    actions = {"GET": Action.READ_REQUESTS, "POST": Action.SEND_REQUESTS}

    @listing("list_requests", "List requests", item=RequestOut, example=examples.REQUEST)
    def get(self, request: Request) -> Response:
        """List what the caller may see, newest first."""
        rows = visible_requests(principal_of(request))
        return page_of(rows, request, lambda found: RequestOut(found, many=True).data)

    @operation(
        "create_request",
        "Send an instruction to erase",
        description="In processor capacity: you have decided, you talk to the person, your due date counts. The search "
        "starts at once; nothing is released before two people here have judged the evidence.",
        status=201,
        answer=OpenedOut,
        example=examples.OPENED,
        body=RequestIn,
        body_example=examples.REQUEST_IN,
        parameters=[IDEMPOTENCY_KEY],
        problems=CREATING,
    )
    @idempotent
    def post(self, request: Request) -> Response:
        """Open a request on the sender's word, and start the search."""
        principal = principal_of(request)
        body = read_body(RequestIn, request)
        opened = receive_instruction(_application(body), sender=sender_of(principal), actor=principal.label)
        shown = OpenedOut(opened.request, context={"subject_nonce": opened.subject_nonce})
        return Response(shown.data, status=201, headers={"Location": f"/v1/requests/{opened.request.pk}"})


def _application(body: dict[str, Any]) -> Application:
    return Application(
        capacity=Capacity.PROCESSOR,
        regime=Regime(body["regime"]),
        identifiers=tuple(Identifier(row["type"], row["value"]) for row in body["identifiers"]),
        statement=body["statement"],
        model_names=tuple(body["models"]),
        upstream_id=body["upstream_id"],
        due_on=body["due_on"],
    )


class RequestDetail(View):
    """One request."""

    actions = {"GET": Action.READ_REQUESTS}

    @operation(
        "show_request",
        "Show a request",
        description="The ETag names this state; send it as If-Match when you decide.",
        answer=RequestOut,
        example=examples.REQUEST,
        problems=READING,
    )
    def get(self, request: Request, request_id: str) -> Response:
        """Show status, clocks and targets."""
        return _shown(find(visible_requests(principal_of(request)), request_id))


class RequestWithdrawal(View):
    """The sender takes an instruction back."""

    actions = {"POST": Action.SEND_REQUESTS}

    @operation(
        "withdraw_request",
        "Withdraw a request",
        description="Possible until release begins. What was sent is destroyed.",
        answer=RequestOut,
        example={**examples.REQUEST, "status": "withdrawn", "outcome": "withdrawn"},
        parameters=[IDEMPOTENCY_KEY, IF_MATCH],
        problems=STARTING,
    )
    @idempotent
    def post(self, request: Request, request_id: str) -> Response:
        """Withdraw one of the caller's own requests."""
        principal = principal_of(request)
        row = find(visible_requests(principal).filter(sender=principal.key), request_id)
        check_if_match(request, RequestOut(row).data)
        withdraw_request(row, actor=principal.label)
        return _shown(row)


class EvidenceDecisions(View):
    """A person decides on the evidence."""

    actions = {"POST": Action.APPROVE_EVIDENCE}

    @operation(
        "decide_evidence",
        "Decide on the evidence of a request",
        description="Needs a person: a session with a second factor, or a key bound to a member of staff. Another "
        "person issues the certificate later.",
        status=202,
        answer=RequestOut,
        example={**examples.REQUEST, "status": "releasing"},
        body=EvidenceDecisionIn,
        body_example=examples.EVIDENCE_DECISION_IN,
        parameters=[IDEMPOTENCY_KEY, IF_MATCH],
        problems=STARTING,
    )
    @idempotent
    def post(self, request: Request, request_id: str) -> Response:
        """Release what passed, or decline."""
        principal = principal_of(request)
        row = find(visible_requests(principal), request_id)
        check_if_match(request, RequestOut(row).data)
        body = read_body(EvidenceDecisionIn, request)
        decide_evidence(row, **body, reviewer=person_of(principal))
        return _shown(row, status=202)


def _shown(row: ErasureRequest, *, status: int = 200) -> Response:
    fresh = ErasureRequest.objects.prefetch_related("clocks", "targets__model").get(pk=row.pk)
    document = RequestOut(fresh).data
    headers = {"ETag": etag_of(document)}
    if status == 202:
        headers["Location"] = f"/v1/requests/{row.pk}"
    return Response(document, status=status, headers=headers)
