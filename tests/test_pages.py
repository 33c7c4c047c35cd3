"""What every page has in common: headers, cookies, failures, health."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from bs4 import BeautifulSoup
from django.core.cache import cache
from django.test import Client

from deletion_service.requests.identity import identity_token, status_token
from deletion_service.requests.intake import open_request
from tests.cast import application, rhea
from tests.doors import signed_in

pytestmark = pytest.mark.django_db
PUBLIC = ["/", "/what-happens", "/ask", "/check", "/nowhere", "/account/login/", "/v1/docs", "/status/LT-A/0"]
STAFF = ["/console/", "/console/models", "/account/2fa/", "/account/password/change/", "/console/cases/req_nobody"]


@pytest.fixture(autouse=True)
def _fresh_limits() -> Iterator[None]:
    cache.clear()
    yield
    cache.clear()


def policy_of(answer: Any) -> dict[str, str]:
    parts = (part.strip().partition(" ") for part in answer.headers["Content-Security-Policy"].split(";"))
    return {name: value for name, _, value in parts}


def check_headers(answer: Any) -> None:
    policy = policy_of(answer)
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["form-action"] == "'self'"
    assert policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert "unsafe" not in answer.headers["Content-Security-Policy"]
    assert answer.headers["X-Frame-Options"] == "DENY"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Referrer-Policy"] == "same-origin"
    assert answer.headers["Cross-Origin-Opener-Policy"] == "same-origin"


def check_markup(answer: Any) -> None:
    page = BeautifulSoup(answer.content, "html.parser")
    assert page.html is not None
    assert page.html["lang"] == "en"
    assert page.title is not None
    assert page.title.string
    assert page.find(style=True) is None
    assert [s for s in page.find_all("script") if not s.get("src")] == []
    for tag in page.find_all(True):
        assert not [name for name in tag.attrs if name.startswith("on")]
        for name in ("src", "href", "action"):
            assert not str(tag.get(name, "")).startswith(("http:", "https:", "//", "javascript:"))


@pytest.mark.parametrize("path", PUBLIC)
def test_every_public_page_has_the_headers_and_no_inline_code(client: Client, path: str) -> None:
    answer = client.get(path)
    check_headers(answer)
    check_markup(answer)


@pytest.mark.parametrize("path", STAFF)
def test_every_staff_page_has_the_headers_and_no_inline_code(path: str) -> None:
    answer = signed_in(rhea()).get(path)
    check_headers(answer)
    check_markup(answer)
    assert "no-store" in answer.headers["Cache-Control"]


def test_the_pages_behind_mailed_links_have_the_headers_and_are_never_stored(client: Client) -> None:
    request = open_request(application(), actor="subject").request
    links = [
        f"/confirm/{request.receipt}/{identity_token(request.identity_check)}",
        f"/status/{request.receipt}/{status_token(request)}",
        f"/receipt/{request.receipt}/{status_token(request)}",
        f"/status/{request.receipt}/{status_token(request)}/withdraw",
    ]
    for link in links:
        answer = client.get(link)
        assert answer.status_code == 200
        check_headers(answer)
        check_markup(answer)
        assert "no-store" in answer.headers["Cache-Control"]


def test_no_cookie_is_set_where_none_is_needed(client: Client) -> None:
    request = open_request(application(), actor="subject").request
    status = f"/status/{request.receipt}/{status_token(request)}"
    for path in ("/", "/what-happens", "/nowhere", "/healthz", "/v1/openapi.json", "/v1/docs", status):
        assert client.get(path).cookies == {}, path
    assert set(client.get("/ask").cookies) == {"csrftoken"}


def test_cookies_are_closed_to_scripts_and_to_other_sites(client: Client) -> None:
    cookie = client.get("/ask").cookies["csrftoken"]
    assert cookie["httponly"]
    assert cookie["samesite"] == "Lax"


def test_over_https_cookies_are_secure_and_the_browser_is_told_to_stay(monkeypatch: Any) -> None:
    """Settings are read once per process, so that another process reads them with an https address."""
    import os
    import subprocess
    import sys

    code = (
        "import json, django; django.setup(); from django.conf import settings as s; print(json.dumps("
        "[s.SESSION_COOKIE_SECURE, s.CSRF_COOKIE_SECURE, s.SECURE_SSL_REDIRECT, s.SECURE_HSTS_SECONDS]))"
    )
    environment = {**os.environ, "LETHE_PUBLIC_URL": "https://privacy.example"}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert json.loads(result.stdout) == [True, True, True, 31_536_000]


def test_a_page_that_fails_is_plain_and_says_nothing_about_the_cause(client: Client, monkeypatch: Any) -> None:
    def crash(*_: Any, **__: Any) -> None:
        raise RuntimeError("alice.korvel@mail.example")

    monkeypatch.setattr("deletion_service.portal.views.find_by_status_link", crash)
    client.raise_request_exception = False
    answer = client.get("/status/LT-A/0")
    assert answer.status_code == 500
    assert "failed on our side" in answer.content.decode()
    assert "alice" not in answer.content.decode()


def test_a_form_without_its_token_gets_a_plain_page() -> None:
    answer = Client(enforce_csrf_checks=True).post("/ask", {"email": "a@b.example"})
    assert answer.status_code == 403
    assert "open for too long" in answer.content.decode()


def test_health_tells_strangers_one_word(client: Client, settings: Any, tmp_path: Any) -> None:
    assert client.get("/healthz").content == b"ok"
    assert client.get("/readyz").content == b"ready"
    settings.KEY_ENCRYPTION_KEY_FILE = tmp_path / "gone"
    answer = client.get("/readyz")
    assert (answer.status_code, answer.content) == (503, b"not ready")


def test_static_files_are_served_from_a_fresh_clone(client: Client) -> None:
    for path in ("lethe/base.css", "lethe/console.css", "lethe/icon.svg", "api/docs.js"):
        assert client.get(f"/static/{path}").status_code == 200


def test_behind_a_proxy_the_service_wants_to_know_how_many_there_are() -> None:
    environment = {**os.environ, "LETHE_BEHIND_PROXY": "true"}
    command = [sys.executable, "-c", "import deletion_service.settings"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert "LETHE_NUM_PROXIES" in result.stderr
    environment["LETHE_NUM_PROXIES"] = "1"
    assert subprocess.run(command, env=environment, capture_output=True, check=False).returncode == 0
