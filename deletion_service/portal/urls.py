"""Addresses of the portal. Mailed links end without a slash."""

from __future__ import annotations

from django.urls import path

from deletion_service.portal import views

app_name = "portal"
urlpatterns = [
    path("", views.start, name="start"),
    path("what-happens", views.what_happens, name="what_happens"),
    path("ask", views.ask, name="ask"),
    path("asked/<str:asked>", views.asked, name="asked"),
    path("confirm/<str:receipt>/<str:token>", views.confirm, name="confirm"),
    path("receipt/<str:receipt>/<str:token>", views.receipt, name="receipt"),
    path("status/<str:receipt>/<str:token>", views.status, name="status"),
    path("status/<str:receipt>/<str:token>/withdraw", views.withdraw, name="withdraw"),
    path("status/<str:receipt>/<str:token>/documents/<str:name>", views.document, name="document"),
    path("check", views.check, name="check"),
]
