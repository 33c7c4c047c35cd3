"""Addresses of REST v1. They have no trailing slash."""

from __future__ import annotations

from django.urls import path

from deletion_service.api.views import certificates, description, models, requests, work

urlpatterns = [
    path("v1/requests", requests.Requests.as_view()),
    path("v1/requests/<str:request_id>", requests.RequestDetail.as_view()),
    path("v1/requests/<str:request_id>/withdraw", requests.RequestWithdrawal.as_view()),
    path("v1/requests/<str:request_id>/evidence-decision", requests.EvidenceDecisions.as_view()),
    path("v1/targets", work.Targets.as_view()),
    path("v1/targets/<str:target_id>", work.TargetDetail.as_view()),
    path("v1/jobs", work.Jobs.as_view()),
    path("v1/jobs/<str:job_id>", work.JobDetail.as_view()),
    path("v1/jobs/<str:job_id>/cancel", work.JobCancellation.as_view()),
    path("v1/jobs/<str:job_id>/retry", work.JobRetry.as_view()),
    path("v1/evidence/<str:evidence_id>", work.EvidenceDetail.as_view()),
    path("v1/evidence/<str:evidence_id>/document", work.EvidenceDocumentBytes.as_view()),
    path("v1/certificates/verify", certificates.CertificateVerification.as_view()),
    path("v1/certificates/<str:certificate_id>", certificates.CertificateDetail.as_view()),
    path("v1/certificates/<str:certificate_id>/log-proof", certificates.CertificateLogProof.as_view()),
    path("v1/certificates/<str:certificate_id>/evidence", certificates.CertificateEvidence.as_view()),
    path("v1/certificates/<str:certificate_id>/issue", certificates.CertificateIssue.as_view()),
    path("v1/models", models.Models.as_view()),
    path("v1/models/<str:model_id>", models.ModelDetail.as_view()),
    path("v1/models/<str:model_id>/versions", models.Versions.as_view()),
    path("v1/models/<str:model_id>/versions/<int:number>", models.VersionDetail.as_view()),
    path("v1/models/<str:model_id>/versions/<int:number>/training-manifest", models.TrainingManifests.as_view()),
    path(".well-known/erasure-issuer.json", certificates.IssuerDocumentView.as_view(), name="issuer_document"),
    path(".well-known/erasure-revocations.json", certificates.RevocationsView.as_view()),
    path("v1/openapi.json", description.openapi, name="openapi"),
    path("v1/docs", description.docs, name="api_docs"),
]
