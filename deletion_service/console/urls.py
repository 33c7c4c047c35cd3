"""Addresses of the console."""

from __future__ import annotations

from django.urls import path

from deletion_service.console import views

app_name = "console"
urlpatterns = [
    path("", views.queue, name="queue"),
    path("cases/<str:request_id>", views.case, name="case"),
    path("cases/<str:request_id>/do/<str:name>", views.act, name="act"),
    path("cases/<str:request_id>/decide", views.decide, name="decide"),
    path("cases/<str:request_id>/audit", views.audit, name="audit"),
    path("cases/<str:request_id>/audit.jsonl", views.audit_export, name="audit_export"),
    path("targets/<str:target_id>/accept-match", views.accept_match, name="accept_match"),
    path("jobs/<str:job_id>/<str:verb>", views.job, name="job"),
    path("evidence/<str:evidence_id>", views.evidence, name="evidence"),
    path("evidence/<str:evidence_id>/evidence.json", views.evidence_file, name="evidence_file"),
    path("certificates/<str:certificate_id>", views.certificate, name="certificate"),
    path("certificates/<str:certificate_id>/issue", views.issue, name="issue"),
    path("certificates/<str:certificate_id>/<str:kind>", views.certificate_file, name="certificate_file"),
    path("models", views.models, name="models"),
    path("models/<str:model_id>/ledger", views.ledger, name="ledger"),
    path("sweeps/<str:sweep_id>/sweep.json", views.sweep_file, name="sweep_file"),
]
