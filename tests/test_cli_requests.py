"""`lethe request` and `lethe doctor`: over real HTTP paths, with the exit statuses of compliance 9.4."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from django.core.cache import cache
from django.db import connection
from django.test import Client

from deletion_service.access.keys import revoke_key
from deletion_service.cli import main
from deletion_service.requests.models import ErasureRequest
from deletion_service.targets.models import TrainingManifest
from deletion_service.terminal import FAILED_CHECK, OK, REFUSED, UNREACHABLE, USAGE
from tests.cast import ALICE
from tests.doors import Machine
from tests.world import make_model

pytestmark = pytest.mark.django_db
BODY = {"identifiers": [{"type": "email", "value": ALICE.value}], "upstream_id": "case-1"}


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """A machine at a terminal: its HTTP calls reach this service through the test client."""
    cache.clear()
    sender = Machine("requests:write", "requests:read")
    monkeypatch.setenv("LETHE_URL", "http://testserver")
    monkeypatch.setenv("LETHE_API_KEY", sender.secret)
    monkeypatch.setattr(httpx, "request", _through_the_door)
    yield sender
    cache.clear()


def _through_the_door(method: str, url: str, *, json: Any, headers: dict[str, str], timeout: float) -> httpx.Response:
    client = Client(raise_request_exception=False)
    content = b"" if json is None else httpx.Request(method, url, json=json).content
    answer = client.generic(
        method, url.removeprefix("http://testserver"), content, content_type="application/json", headers=headers
    )
    return httpx.Response(answer.status_code, content=answer.content, headers=dict(answer.headers))


@pytest.fixture
def instruction(tmp_path: Path) -> str:
    """An instruction in a file."""
    path = tmp_path / "instruction.json"
    path.write_text(json.dumps(BODY))
    return str(path)


def test_an_instruction_is_sent_shown_listed_and_withdrawn(
    machine: Machine, instruction: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["request", "create", instruction, "--json", "--due-on", "2099-01-01"]) == OK
    created = json.loads(capsys.readouterr().out)
    assert (created["upstream_id"], created["due_on"]) == ("case-1", "2099-01-01")
    assert main(["request", "show", created["id"]]) == OK
    shown = capsys.readouterr().out
    assert "locating" in shown
    assert ALICE.value not in shown
    assert main(["request", "list"]) == OK
    assert created["id"] in capsys.readouterr().out
    assert main(["request", "withdraw", created["id"]]) == OK
    assert ErasureRequest.objects.get().status == "withdrawn"


def test_the_nonce_is_printed_once_with_what_to_do_with_it(
    machine: Machine, instruction: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["request", "create", instruction]) == OK
    out = capsys.readouterr().out
    assert "subject_nonce" in out
    assert "Give subject_nonce to the person" in out


def test_the_instruction_may_come_by_standard_input(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(BODY)))
    assert main(["request", "create", "-"]) == OK
    assert ErasureRequest.objects.count() == 1


def test_the_same_idempotency_key_sends_nothing_twice(machine: Machine, instruction: str) -> None:
    for _ in range(2):
        assert main(["request", "create", instruction, "--idempotency-key", "k-1"]) == OK
    assert ErasureRequest.objects.count() == 1


def test_a_refusal_names_code_and_place_and_ends_with_its_own_status(
    machine: Machine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.json"
    bad.write_text(json.dumps({**BODY, "models": ["nowhere"]}))
    assert main(["request", "create", str(bad)]) == REFUSED
    assert "model_unknown" in capsys.readouterr().err
    assert main(["request", "show", "req_nobody"]) == REFUSED
    assert main(["request", "show", "../models"]) == REFUSED
    revoke_key(machine.key)
    assert main(["request", "list"]) == REFUSED
    assert "authentication_failed" in capsys.readouterr().err


def test_a_service_that_does_not_answer_has_its_own_status(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def nobody(*_: Any, **__: Any) -> httpx.Response:
        raise httpx.ConnectError("refused")

    monkeypatch.setattr(httpx, "request", nobody)
    assert main(["request", "list"]) == UNREACHABLE
    assert "check LETHE_URL" in capsys.readouterr().err
    monkeypatch.setattr(httpx, "request", lambda *_, **__: httpx.Response(502, text="<html>bad gateway"))
    assert main(["request", "list"]) == UNREACHABLE


@pytest.mark.parametrize(
    ("variable", "value"),
    [("LETHE_URL", ""), ("LETHE_URL", "ftp://x"), ("LETHE_API_KEY", ""), ("LETHE_API_KEY_FILE", "/nowhere")],
)
def test_without_an_address_or_a_key_nothing_is_sent(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    if variable == "LETHE_API_KEY_FILE":
        monkeypatch.delenv("LETHE_API_KEY")
    monkeypatch.setenv(variable, value)
    assert main(["request", "list"]) == USAGE


def test_the_key_may_lie_in_a_file(machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text(machine.secret + "\n")
    monkeypatch.delenv("LETHE_API_KEY")
    monkeypatch.setenv("LETHE_API_KEY_FILE", str(path))
    assert main(["request", "list"]) == OK


@pytest.mark.parametrize("content", ["", "[]", "{", "7"])
def test_a_file_that_is_no_instruction_is_a_usage_error(machine: Machine, tmp_path: Path, content: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(content)
    assert main(["request", "create", str(path)]) == USAGE
    assert main(["request", "create", str(tmp_path / "absent")]) == USAGE


# --- doctor -------------------------------------------------------------------------------------------------------


@pytest.fixture
def healthy(settings: Any, tmp_path: Path) -> Any:
    """A host on which every check holds."""
    for name in ("WORK_DIR", "REGISTRY_ROOT", "SOURCE_ROOT"):
        path = tmp_path / name
        path.mkdir()
        setattr(settings, name, path)
    settings.VERDICT_POLICY = "reference-2"
    settings.KEY_STORE_DIR = tmp_path / "elsewhere"
    return settings


def checks(capsys: pytest.CaptureFixture[str], *, expect: int) -> dict[str, list[str]]:
    """Run the doctor; return the outcomes by check."""
    assert main(["doctor", "--json"]) == expect
    found: dict[str, list[str]] = {}
    for row in json.loads(capsys.readouterr().out)["checks"]:
        assert row["outcome"] == "ok" or row["next"], row
        found.setdefault(row["name"], []).append(row["outcome"])
    return found


def test_on_a_healthy_host_no_check_fails(healthy: Any, capsys: pytest.CaptureFixture[str]) -> None:
    found = checks(capsys, expect=OK)
    for name in ("python", "database", "migrations", "issuer key", "key store", "queue", "clock"):
        assert found[name] == ["ok"], name
    # Only SQLite keeps a journal beside the file.
    assert found.get("journal mode") == (["ok"] if connection.vendor == "sqlite" else None)
    assert found["key custody"] == ["warning"]


def test_a_readable_key_a_missing_key_and_a_closed_directory_are_named(
    healthy: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loose = tmp_path / "kek"
    loose.write_text("0" * 64)
    loose.chmod(0o644)
    healthy.KEY_ENCRYPTION_KEY_FILE = loose
    healthy.LOG_KEY_FILE = tmp_path / "gone"
    healthy.REGISTRY_ROOT = tmp_path / "absent"
    found = checks(capsys, expect=FAILED_CHECK)
    assert found["key encryption key"] == found["log key"] == ["failed"]
    assert found["registry"] == ["warning"]


def test_a_store_of_adapters_that_a_manifest_names_is_looked_for(
    healthy: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_model()
    TrainingManifest.objects.update(exact_store="customers")
    healthy.EXACT_STORES = str(tmp_path / "stores")
    assert checks(capsys, expect=OK)["store customers"] == ["warning"]
    (tmp_path / "stores" / "customers").mkdir(parents=True)
    assert checks(capsys, expect=OK)["store customers"] == ["ok"]


@pytest.mark.parametrize(
    ("gone", "ends"),
    [
        (("issuer", "log"), OK),
        (("approver",), OK),
        (("log",), FAILED_CHECK),
        (("issuer", "log", "approver"), FAILED_CHECK),
    ],
    ids=["a web host", "a worker", "half a worker", "no key at all"],
)
def test_a_host_holds_the_keys_of_its_own_part(
    healthy: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], gone: tuple[str, ...], ends: int
) -> None:
    for name in gone:
        setattr(healthy, f"{name.upper()}_KEY_FILE", tmp_path / "gone")
    found = checks(capsys, expect=ends)
    assert ("failed" in {found.get(f"{name} key", ["ok"])[0] for name in gone}) == (ends == FAILED_CHECK)


def test_a_key_store_that_cannot_be_written_is_named(
    healthy: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    healthy.KEY_STORE_DIR = blocked
    assert checks(capsys, expect=FAILED_CHECK)["key store"] == ["failed"]


@pytest.mark.parametrize(
    ("setting", "value", "check"),
    [
        ("REDIS_URL", "redis://127.0.0.1:1/0", "queue"),
        ("EMAIL_BACKEND", "django.core.mail.backends.smtp.EmailBackend", "mail"),
        ("VERDICT_POLICY", "no-such-policy", "verdict policy"),
    ],
)
def test_a_part_that_does_not_answer_is_named(
    healthy: Any, capsys: pytest.CaptureFixture[str], setting: str, value: str, check: str
) -> None:
    setattr(healthy, setting, value)
    healthy.EMAIL_PORT = 1
    assert checks(capsys, expect=FAILED_CHECK)[check] == ["failed"]


def test_the_doctor_prints_each_next_step_for_people(healthy: Any, capsys: pytest.CaptureFixture[str]) -> None:
    healthy.KEY_ENCRYPTION_KEY_FILE = Path("/nowhere")
    assert main(["doctor"]) == FAILED_CHECK
    out = capsys.readouterr().out
    assert "failed   key encryption key: missing" in out
    assert "next: python manage.py create_keys" in out
    assert "\x1b" not in out
