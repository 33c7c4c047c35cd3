"""`lethe` with broken files, keys and services: an exit status and a sentence, never a traceback; nothing is sent."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from deletion_service.cli import main
from deletion_service.terminal import FAILED_CHECK, OK, REFUSED, UNREACHABLE, USAGE
from ml.digests import canonical_json
from tests.certificates import forge

REPOSITORY = Path(__file__).resolve().parents[1]
BODY = {"identifiers": [{"type": "email", "value": "alice@mail.example"}]}


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What reached the service, which answers as it is told to."""
    monkeypatch.setenv("LETHE_URL", "http://testserver")
    monkeypatch.setenv("LETHE_API_KEY", "prefix.secret")
    return []


@pytest.fixture
def service(sent: list[Any], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A service whose next answer is `answer["content"]` under `answer["status"]`."""
    answer: dict[str, Any] = {"status": 200, "content": b"{}"}

    def respond(request: httpx.Request) -> httpx.Response:
        sent.append(request)
        return httpx.Response(answer["status"], content=answer["content"])

    def request(method: str, url: str, **options: Any) -> httpx.Response:
        with httpx.Client(transport=httpx.MockTransport(respond)) as client:
            return client.request(method, url, **options)

    monkeypatch.setattr(httpx, "request", request)
    return answer


# --- request ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"[" * 200_000,
        b'{"a":' * 100_000,
        b'{"statement": "' + b"x" * (1 << 20) + b'"}',
        b'{"statement": NaN}',
        b'{"statement": "\\ud800"}',
    ],
    ids=["empty", "cut", "a list", "null", "not utf-8", "endless", "deep", "huge", "no number", "half a character"],
)
def test_an_instruction_that_is_none_is_not_sent(
    service: dict[str, Any], sent: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes
) -> None:
    path = tmp_path / "instruction.json"
    path.write_bytes(content)
    assert main(["request", "create", str(path)]) == USAGE
    assert sent == []
    printed = capsys.readouterr()
    assert (printed.out, len(printed.err.splitlines())) == ("", 1)


def test_an_endless_instruction_on_standard_input_ends(
    service: dict[str, Any], sent: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO('{"statement": "' + "x" * (3 << 20)))
    assert main(["request", "create", "-"]) == USAGE
    assert sent == []


@pytest.mark.parametrize("key", ["clé.secret", "prefix.sec\nret", "prefix.sec\0ret"])
def test_a_key_that_no_header_can_carry_is_named_and_not_sent(
    service: dict[str, Any],
    sent: list[Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    key: str,
) -> None:
    monkeypatch.delenv("LETHE_API_KEY")
    (tmp_path / "key").write_text(key)
    monkeypatch.setenv("LETHE_API_KEY_FILE", str(tmp_path / "key"))
    assert main(["request", "list"]) in {USAGE, UNREACHABLE}
    assert "secret" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "content", [b"[]", b"7", b'"text"', b"{}", b'{"items": 7}', b'{"items": [{}], "next_cursor": 1}']
)
@pytest.mark.parametrize(
    "command", [["request", "list"], ["request", "show", "req_x"], ["request", "withdraw", "req_x"]]
)
def test_an_answer_of_some_other_service_is_called_that(
    service: dict[str, Any], capsys: pytest.CaptureFixture[str], command: list[str], content: bytes
) -> None:
    service["content"] = content
    assert main(command) == UNREACHABLE
    assert "check LETHE_URL" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("status", "content", "expected"),
    [
        (422, b"[]", REFUSED),
        (422, b'{"errors": [7, null]}', REFUSED),
        (403, b'{"title": "\\u001b[2J", "code": 7}', REFUSED),
        (500, b"{}", UNREACHABLE),
        (302, b"<html>", UNREACHABLE),
        (200, b"\xff", UNREACHABLE),
        (200, b"[" * 1000, UNREACHABLE),
    ],
)
def test_an_odd_refusal_is_still_a_refusal_and_moves_no_cursor(
    service: dict[str, Any], capsys: pytest.CaptureFixture[str], status: int, content: bytes, expected: int
) -> None:
    service.update(status=status, content=content)
    assert main(["request", "list"]) == expected
    assert "\x1b" not in capsys.readouterr().err


# --- cert verify --------------------------------------------------------------------------------------------------


@pytest.fixture
def alice(tmp_path: Path) -> forge.CertificateSet:
    """Alice's certificate on disk, with everything that belongs beside it."""
    made = forge.certificate_set(tmp_path)
    made.write(tmp_path)
    return made


def verify(folder: Path, *more: str) -> int:
    return main(["cert", "verify", str(folder / "certificate.dsse.json"), "--keys", str(folder / "issuer.json"), *more])


def failing_checks(capsys: pytest.CaptureFixture[str]) -> set[str]:
    document = json.loads(capsys.readouterr().out)
    return {check["name"] for check in document["checks"] if check["outcome"] == "failed"}


FILES = {
    "certificate.dsse.json": {"envelope", "payload_type", "signatures"},
    "certificate.log.json": {"log_checkpoint", "log_inclusion"},
    "evidence.json": {"evidence_digest"},
    **{f"model/{name}": {"model_files"} for name in forge.MODEL_FILES},
}


@pytest.mark.parametrize(("name", "checks"), FILES.items(), ids=list(FILES))
def test_one_flipped_byte_anywhere_in_any_file_fails_and_names_the_check(
    alice: forge.CertificateSet, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, checks: set[str]
) -> None:
    sound = (tmp_path / name).read_bytes()
    for position in sorted({0, len(sound) - 1, *range(0, len(sound), max(1, len(sound) // 24))}):
        flipped = bytearray(sound)
        flipped[position] ^= 1 << position % 8
        (tmp_path / name).write_bytes(flipped)
        assert verify(tmp_path, "--json", "--model", str(alice.model_dir)) == FAILED_CHECK
        found = failing_checks(capsys)
        assert found
        assert found <= checks, position
    (tmp_path / name).write_bytes(sound)
    assert verify(tmp_path, "--model", str(alice.model_dir)) == OK


@pytest.mark.parametrize("change", ["missing", "added", "renamed", "emptied"])
def test_a_model_directory_with_other_files_fails_and_names_the_file(
    alice: forge.CertificateSet, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: str
) -> None:
    weights = alice.model_dir / "model.safetensors"
    if change == "missing":
        weights.unlink()
    elif change == "added":
        (alice.model_dir / "adapter.safetensors").write_bytes(b"more")
    elif change == "renamed":
        weights.rename(alice.model_dir / "weights.safetensors")
    else:
        weights.write_bytes(b"")
    assert verify(tmp_path, "--model", str(alice.model_dir)) == FAILED_CHECK
    shown = capsys.readouterr().out
    assert "  failed      model_files" in shown
    assert ".safetensors" in shown


@pytest.mark.parametrize(
    "signers",
    [
        (forge.ISSUER, forge.ISSUER),
        (forge.APPROVER, forge.APPROVER),
        (forge.ISSUER,),
        (forge.APPROVER,),
        (forge.MALLORY, forge.MALLORY),
        (forge.ISSUER, forge.LOG),
        (),
    ],
    ids=["issuer twice", "approver twice", "issuer alone", "approver alone", "a stranger twice", "the log", "nobody"],
)
def test_two_signatures_that_are_not_of_two_keys_do_not_verify(
    alice: forge.CertificateSet, tmp_path: Path, capsys: pytest.CaptureFixture[str], signers: tuple[Any, ...]
) -> None:
    document = json.loads(alice.certificate)
    made = [json.loads(forge.signed(alice.statement, signers=[signer]))["signatures"][0] for signer in signers]
    (tmp_path / "certificate.dsse.json").write_bytes(canonical_json({**document, "signatures": made}))
    assert verify(tmp_path, "--json") == FAILED_CHECK
    assert failing_checks(capsys) & {"envelope", "signatures"}


@pytest.mark.parametrize("name", ["certificate.dsse.json", "certificate.log.json", "evidence.json"])
@pytest.mark.parametrize("content", [b"", b"{}", b"\x00\xff", b"[" * 200_000, b"null", b'{"a": NaN}'])
def test_a_file_that_is_something_else_fails_without_a_traceback(
    alice: forge.CertificateSet, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: bytes
) -> None:
    (tmp_path / name).write_bytes(content)
    assert verify(tmp_path) == FAILED_CHECK
    assert capsys.readouterr().out.startswith("NOT VERIFIED")


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"\xff", b"[" * 200_000])
def test_keys_that_are_none_are_a_usage_error(
    alice: forge.CertificateSet, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes
) -> None:
    (tmp_path / "issuer.json").write_bytes(content)
    assert verify(tmp_path) == USAGE
    assert "issuer.json" in capsys.readouterr().err


def test_a_file_without_end_is_read_only_so_far(alice: forge.CertificateSet, tmp_path: Path) -> None:
    (tmp_path / "certificate.dsse.json").unlink()
    (tmp_path / "certificate.dsse.json").symlink_to("/dev/zero")
    assert verify(tmp_path) == FAILED_CHECK


def test_output_that_nobody_reads_is_no_traceback(alice: forge.CertificateSet, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "deletion_service.cli", "cert", "verify", str(tmp_path / "certificate.dsse.json")]
    piped = subprocess.run(
        ["sh", "-c", '"$@" | true', "sh", *command, "--keys", str(tmp_path / "issuer.json")],
        capture_output=True,
        text=True,
        check=False,
        cwd=REPOSITORY,
    )
    assert "Traceback" not in piped.stderr
