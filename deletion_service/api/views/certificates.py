"""Certificates, their proofs, their issue and their check."""

from __future__ import annotations

import base64
import binascii
from typing import Any, Final

from django.http import HttpResponse
from drf_spectacular.types import OpenApiTypes
from rest_framework.request import Request
from rest_framework.response import Response

from deletion_service.access.permissions import Action
from deletion_service.api import examples
from deletion_service.api.authentication import principal_of
from deletion_service.api.description import (
    IDEMPOTENCY_KEY,
    READING,
    STARTING,
    operation,
)
from deletion_service.api.idempotency import idempotent
from deletion_service.api.permissions import PUBLIC
from deletion_service.api.serializers import (
    CertificateBriefOut,
    VerificationOut,
    VerifyIn,
)
from deletion_service.api.views.base import View, file_answer, person_of, read_body
from deletion_service.api.visible import (
    find,
    visible_certificates,
)
from deletion_service.certificates.custody import issuer_document
from deletion_service.certificates.issuing import issue_certificate
from deletion_service.certificates.revoking import latest_revocations
from deletion_service.certificates.verify import verify_certificate
from deletion_service.errors import InvalidInputError, NotFoundError
from ml.digests import canonical_json

ENVELOPE_TYPE: Final = "application/vnd.dsse.envelope.v1+json"


class CertificateDetail(View):
    """A certificate or attempt report."""

    actions = {"GET": Action.READ_CERTIFICATES}

    @operation(
        "get_certificate",
        "Get a certificate",
        description="A DSSE envelope, exactly the bytes that were signed and logged.",
        media_type=ENVELOPE_TYPE,
        answer=OpenApiTypes.OBJECT,
        example=examples.ENVELOPE,
        problems=READING,
    )
    def get(self, request: Request, certificate_id: str) -> HttpResponse:
        """Return the envelope as stored."""
        row = find(visible_certificates(principal_of(request)), certificate_id)
        return file_answer(bytes(row.envelope), media_type=ENVELOPE_TYPE, name=f"{row.pk}.dsse.json")


class CertificateLogProof(View):
    """Where a certificate stands in the log."""

    actions = {"GET": Action.READ_CERTIFICATES}

    @operation(
        "get_log_proof",
        "Get the log proof of a certificate",
        answer=OpenApiTypes.OBJECT,
        example=examples.LOG_PROOF,
        problems=READING,
    )
    def get(self, request: Request, certificate_id: str) -> HttpResponse:
        """Return the inclusion proof and the signed checkpoint."""
        row = find(visible_certificates(principal_of(request)), certificate_id)
        if row.log_proof is None:
            raise NotFoundError(f"certificate {row.pk} is not in a signed log yet; ask again when it is published")
        return file_answer(canonical_json(row.log_proof), media_type="application/json", name=f"{row.pk}.log.json")


class CertificateEvidence(View):
    """The evidence that a certificate names."""

    actions = {"GET": Action.READ_CERTIFICATES}

    @operation(
        "get_certificate_evidence",
        "Get the evidence of a certificate",
        answer=OpenApiTypes.OBJECT,
        example=examples.EVIDENCE_DOCUMENT,
        problems=READING,
    )
    def get(self, request: Request, certificate_id: str) -> HttpResponse:
        """Return the sealed bytes."""
        row = find(visible_certificates(principal_of(request)), certificate_id)
        return file_answer(bytes(row.evidence.document), media_type="application/json", name=f"{row.pk}.evidence.json")


class CertificateIssue(View):
    """A second person signs."""

    actions = {"POST": Action.ISSUE}

    @operation(
        "issue_certificate",
        "Issue a drafted certificate",
        description="Needs another person than the one who approved the evidence; the database refuses the same.",
        status=202,
        answer=CertificateBriefOut,
        example=examples.TARGET["certificates"][0],
        parameters=[IDEMPOTENCY_KEY],
        problems=(*STARTING, 503),
    )
    @idempotent
    def post(self, request: Request, certificate_id: str) -> Response:
        """Sign as approver and log."""
        principal = principal_of(request)
        row = find(visible_certificates(principal), certificate_id)
        issued = issue_certificate(row, member=person_of(principal))
        location = f"/v1/certificates/{issued.pk}"
        return Response(CertificateBriefOut(issued).data, status=202, headers={"Location": location})


class CertificateVerification(View):
    """Checks files that anybody brings. Keeps nothing."""

    actions = {"POST": PUBLIC}
    max_body_bytes = 12 << 20

    @operation(
        "verify_certificate",
        "Check a certificate",
        description="Against this deployment's own keys. For an independent check use `lethe cert verify` offline.",
        answer=VerificationOut,
        example=examples.VERIFICATION,
        body=VerifyIn,
        body_example=examples.VERIFY_IN,
        problems=(400, 413, 422, 429, 503),
        public=True,
    )
    def post(self, request: Request) -> Response:
        """Return each check and always what was not shown."""
        body = read_body(VerifyIn, request)
        result = verify_certificate(
            _decoded(body, "certificate") or b"",
            issuer=issuer_document(),
            log_proof=_decoded(body, "log_proof"),
            evidence=_decoded(body, "evidence"),
            revocations=latest_revocations(),
            expect=body["expect"],
        )
        return Response(VerificationOut(result.to_document()).data)


def _decoded(body: dict[str, Any], name: str) -> bytes | None:
    if body[name] is None:
        return None
    try:
        return base64.b64decode(body[name], validate=True)
    except (binascii.Error, ValueError) as exc:
        raise InvalidInputError("send the file in base64", pointer=f"/{name}") from exc


class IssuerDocumentView(View):
    """The root of trust of this deployment's certificates."""

    actions = {"GET": PUBLIC}

    @operation(
        "get_issuer_document",
        "Get the issuer document",
        description="Public keys with their validity, the log's origin, every verdict policy ever used.",
        answer=OpenApiTypes.OBJECT,
        example=examples.ISSUER,
        problems=(429, 503),
        public=True,
    )
    def get(self, request: Request) -> HttpResponse:
        """Return the document that `lethe cert verify --keys` takes."""
        return file_answer(issuer_document().to_bytes(), media_type="application/json", name="issuer.json")


class RevocationsView(View):
    """Every certificate of this deployment that was revoked."""

    actions = {"GET": PUBLIC}

    @operation(
        "get_revocations",
        "Get the signed list of revoked certificates",
        description="A DSSE envelope by the issuer's key. It says what was revoked when it was signed, not since.",
        media_type=ENVELOPE_TYPE,
        answer=OpenApiTypes.OBJECT,
        example=examples.ENVELOPE,
        problems=(404, 429),
        public=True,
    )
    def get(self, request: Request) -> HttpResponse:
        """Return the list that `lethe cert verify --revocations` takes."""
        listed = latest_revocations()
        if listed is None:
            raise NotFoundError("no list has been signed yet; there is one as soon as a certificate is published")
        return file_answer(listed, media_type=ENVELOPE_TYPE, name="revocations.dsse.json")
