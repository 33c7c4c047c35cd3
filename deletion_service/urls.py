"""Doors: REST for machines, the portal for data subjects, the console for staff."""

from __future__ import annotations

from allauth.account import views as account
from django.urls import URLPattern, URLResolver, include, path

from deletion_service.health import healthz, readyz

# Only what staff need of django-allauth: no sign-up, no e-mail addresses, no password reset by mail.
_ACCOUNT = [
    path("login/", account.login, name="account_login"),
    path("logout/", account.logout, name="account_logout"),
    path("inactive/", account.account_inactive, name="account_inactive"),
    path("reauthenticate/", account.reauthenticate, name="account_reauthenticate"),
    path("password/change/", account.password_change, name="account_change_password"),
    path("2fa/", include("allauth.mfa.urls")),
]

urlpatterns: list[URLPattern | URLResolver] = [
    path("healthz", healthz),
    path("readyz", readyz),
    path("", include("deletion_service.api.urls")),
    path("console/", include("deletion_service.console.urls")),
    path("account/", include(_ACCOUNT)),
    path("", include("deletion_service.portal.urls")),
]
handler400 = "deletion_service.failures.bad_request"
handler403 = "deletion_service.failures.forbidden"
handler404 = "deletion_service.failures.not_found"
handler500 = "deletion_service.failures.internal_error"
