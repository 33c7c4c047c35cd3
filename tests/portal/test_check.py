"""/check: files that anybody brings. They are looked at in memory and forgotten."""

from __future__ import annotations

from typing import Any

import pytest
from bs4 import BeautifulSoup
from django.core.files.uploadedfile import SimpleUploadedFile
from django.test import Client

pytestmark = pytest.mark.django_db


@pytest.mark.parametrize("content", [b"{}", b"not json", b"\x00\xff", b"[" * 100_000, b'{"payload": 1}'])
def test_a_file_that_is_no_certificate_fails_by_name_and_breaks_nothing(client: Client, content: bytes) -> None:
    page = client.post("/check", {"certificate": SimpleUploadedFile("x.json", content)})
    assert page.status_code == 200
    text = BeautifulSoup(page.content, "html.parser").get_text()
    assert "This does not hold" in text
    assert "envelope" in text


@pytest.mark.parametrize("files", [{}, {"certificate": SimpleUploadedFile("x.json", b"")}])
def test_no_file_or_an_empty_one_is_a_mistake_in_the_form(client: Client, files: dict[str, Any]) -> None:
    page = client.post("/check", files)
    assert page.status_code == 422
    assert 'href="#id_certificate"' in page.content.decode()


def test_a_file_over_the_limit_counts_as_not_sent(client: Client, settings: Any) -> None:
    settings.UPLOAD_MAX_BYTES = 1000
    page = client.post("/check", {"certificate": SimpleUploadedFile("x.json", b"x" * 2000)})
    assert page.status_code == 422
    assert "at most 12 MB" in page.content.decode()


def test_many_files_together_stay_below_the_limit(client: Client, settings: Any) -> None:
    settings.UPLOAD_MAX_BYTES = 3000
    files = {name: SimpleUploadedFile("x", b"x" * 2000) for name in ("certificate", "log_proof", "evidence")}
    assert client.post("/check", files).status_code == 200
    assert client.post("/check", {"log_proof": files["log_proof"], "certificate": files["evidence"]}).status_code == 422


def test_what_an_upload_is_called_appears_nowhere(client: Client) -> None:
    upload = SimpleUploadedFile("alice-korvel-secret.json", b"{}")
    assert "alice-korvel" not in client.post("/check", {"certificate": upload}).content.decode()
