"""Settings that come from files: what is there is taken, what cannot be read stops the start."""

from __future__ import annotations

from pathlib import Path

import pytest
from django.core.exceptions import ImproperlyConfigured

from deletion_service.settings import env_document

NAME = "LETHE_METHOD_SETTINGS"


def test_a_document_is_read_from_the_file_that_a_variable_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(NAME, raising=False)
    assert env_document(NAME) == {}
    path = tmp_path / "settings.json"
    path.write_text('{"training": {"steps": 900, "learning_rate": 0.004}}')
    monkeypatch.setenv(NAME, str(path))
    assert env_document(NAME) == {"training": {"steps": 900, "learning_rate": "0.004"}}


@pytest.mark.parametrize(
    ("content", "says"), [(None, "cannot be read"), ("{", "cannot be read"), ("[1]", "not a JSON")]
)
def test_a_file_that_cannot_be_taken_stops_the_start_and_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None, says: str
) -> None:
    path = tmp_path / "settings.json"
    if content is not None:
        path.write_text(content)
    monkeypatch.setenv(NAME, str(path))
    with pytest.raises(ImproperlyConfigured, match=f"{NAME}: settings.json .*{says}|{NAME}: settings.json {says}"):
        env_document(NAME)
