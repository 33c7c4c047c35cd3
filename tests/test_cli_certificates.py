"""`lethe cert verify` and `lethe model digest`, as a stranger runs them."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import venv
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deletion_service.certificates.revocation import RevocationList, RevokedCertificate, sign_revocations
from deletion_service.certificates.verify import CHECKS
from deletion_service.cli import COMMANDS, main
from deletion_service.terminal import FAILED_CHECK, OK, USAGE
from ml.digests import model_manifest
from tests.certificates import forge

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture
def alice(tmp_path: Path) -> forge.CertificateSet:
    """Alice's certificate on disk, with everything that belongs beside it."""
    made = forge.certificate_set(tmp_path)
    made.write(tmp_path)
    return made


def verify(folder: Path, *more: str) -> int:
    return main(["cert", "verify", str(folder / "certificate.dsse.json"), "--keys", str(folder / "issuer.json"), *more])


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


# --- cert verify --------------------------------------------------------------------------------------------------


def test_a_valid_certificate_prints_title_verdict_checks_and_what_was_not_shown(
    alice: forge.CertificateSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = verify(tmp_path, "--model", str(alice.model_dir))

    lines = capsys.readouterr().out.splitlines()
    assert status == OK
    assert lines[0] == "Erasure certificate: PASS"
    assert lines[1].startswith("At 95 % confidence at most 20 %")
    checks = [line.split(":")[0].split()[-1] for line in lines[lines.index("Checks") + 1 :][: len(CHECKS)]]
    assert checks == list(CHECKS)
    assert lines.index("Checks") < lines.index("Limitations stated") < lines.index("Not shown")
    assert lines[-1] == f"Result: every check that was made holds; 2 of {len(CHECKS)} were not made."


def test_a_complete_check_fails_where_something_was_not_given(
    alice: forge.CertificateSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify(tmp_path, "--model", str(alice.model_dir), "--expect", "PASS", "--complete") == FAILED_CHECK

    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f"Result: 1 of {len(CHECKS)} checks failed, first revocation."


def test_proof_and_evidence_beside_the_certificate_are_used_and_named(
    alice: forge.CertificateSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify(tmp_path) == OK

    shown = capsys.readouterr().out
    assert str(tmp_path / "certificate.log.json") in shown
    assert str(tmp_path / "evidence.json") in shown


def test_files_that_are_not_there_are_reported_as_not_checked(
    alice: forge.CertificateSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "certificate.log.json").unlink()
    (tmp_path / "evidence.json").unlink()

    assert verify(tmp_path) == OK
    shown = capsys.readouterr().out
    assert "not checked log_inclusion: no log proof was given" in shown
    assert "not checked evidence_verdict: no evidence was given" in shown


def test_files_may_be_named_when_they_lie_elsewhere(alice: forge.CertificateSet, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "certificate.log.json").rename(elsewhere / "proof")
    (tmp_path / "evidence.json").rename(elsewhere / "proven")

    assert verify(tmp_path, "--log", str(elsewhere / "proof"), "--evidence", str(elsewhere / "proven")) == OK
    assert verify(tmp_path, "--log", str(elsewhere / "proven")) == FAILED_CHECK


@pytest.mark.parametrize(
    ("name", "check"),
    [
        ("certificate.dsse.json", "signatures"),
        ("certificate.log.json", "log_"),
        ("evidence.json", "evidence_digest"),
        ("model/model.safetensors", "model_files"),
        ("model/config.json", "model_files"),
    ],
)
def test_one_flipped_byte_fails_and_names_the_check(
    alice: forge.CertificateSet, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, check: str
) -> None:
    flip(tmp_path / name, 13)

    assert verify(tmp_path, "--model", str(alice.model_dir)) == FAILED_CHECK
    shown = capsys.readouterr().out
    assert f"  failed      {check}" in shown
    assert shown.startswith("NOT VERIFIED")


def test_a_failed_attempt_verifies_as_a_report_and_fails_the_expectation_of_a_pass(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    forge.certificate_set(tmp_path, leaking=True).write(tmp_path)

    assert verify(tmp_path) == OK
    assert capsys.readouterr().out.startswith("Erasure attempt report: FAIL\nErasure was not shown")
    assert verify(tmp_path, "--expect", "FAIL") == OK
    assert verify(tmp_path, "--expect", "PASS") == FAILED_CHECK


def test_a_revoked_certificate_fails(alice: forge.CertificateSet, tmp_path: Path) -> None:
    row = RevokedCertificate("crt_01jalice", "weights_restored", "2027-05-30T08:00:00Z")
    listed = RevocationList("Lethe test issuer", "2027-06-01T00:00:00Z", (row,))
    (tmp_path / "revoked.json").write_bytes(sign_revocations(listed, signer=forge.ISSUER))
    (tmp_path / "none.json").write_bytes(sign_revocations(replace(listed, revoked=()), signer=forge.ISSUER))

    assert verify(tmp_path, "--revocations", str(tmp_path / "none.json")) == OK
    assert verify(tmp_path, "--revocations", str(tmp_path / "revoked.json")) == FAILED_CHECK


def test_json_says_the_same_as_the_page(
    alice: forge.CertificateSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify(tmp_path, "--json", "--model", str(alice.model_dir)) == OK

    document = json.loads(capsys.readouterr().out)
    assert (document["ok"], document["title"], document["verdict"]) == (True, "Erasure certificate", "PASS")
    assert [check["name"] for check in document["checks"]] == list(CHECKS)
    assert document["model_sha256"] == alice.manifest.root_sha256
    assert document["not_shown"]
    assert document["files"]["evidence"] == str(tmp_path / "evidence.json")


def test_json_of_an_unverified_certificate_repeats_nothing_of_it(
    alice: forge.CertificateSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flip(tmp_path / "certificate.dsse.json", 13)

    assert verify(tmp_path, "--json") == FAILED_CHECK
    document = json.loads(capsys.readouterr().out)
    assert document["ok"] is False
    assert document["title"] is document["verdict"] is document["claim"] is document["limitations"] is None


def test_there_is_no_colour_where_there_is_no_terminal(
    alice: forge.CertificateSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    verify(tmp_path)

    assert "\x1b" not in capsys.readouterr().out


def test_a_file_name_cannot_move_the_cursor(
    alice: forge.CertificateSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (alice.model_dir / "a\x1b[2J\nok          model_files").write_bytes(b"{}")

    assert verify(tmp_path, "--model", str(alice.model_dir)) == FAILED_CHECK
    assert "\x1b" not in capsys.readouterr().out
    main(["model", "digest", str(alice.model_dir)])
    assert "\x1b" not in capsys.readouterr().out


# --- usage --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["cert"],
        ["cert", "verify"],
        ["cert", "verify", "certificate.dsse.json"],
        ["cert", "forge"],
        ["cert", "verify", "certificate.dsse.json", "--keys", "issuer.json", "--expect", "pass"],
    ],
)
def test_a_command_that_is_none_ends_with_usage(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == USAGE


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--keys", "missing.json"),
        ("--log", "missing.json"),
        ("--evidence", "."),
        ("--model", "missing"),
        ("--model", "issuer.json"),
    ],
)
def test_an_unreadable_file_ends_with_usage_and_is_named(
    alice: forge.CertificateSet, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, value: str
) -> None:
    assert verify(tmp_path, option, str(tmp_path / value)) == USAGE

    printed = capsys.readouterr()
    assert printed.out == ""
    assert str(tmp_path / value) in printed.err


def test_a_missing_certificate_ends_with_usage(tmp_path: Path) -> None:
    assert verify(tmp_path) == USAGE


def test_keys_that_are_no_issuer_document_end_with_usage(
    alice: forge.CertificateSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "issuer.json").write_bytes(alice.certificate)

    assert verify(tmp_path) == USAGE
    assert "issuer document" in capsys.readouterr().err


def test_every_command_says_what_it_is_for(capsys: pytest.CaptureFixture[str]) -> None:
    for command in COMMANDS:
        with pytest.raises(SystemExit) as ended:
            main([*command.words, "--help"])
        assert ended.value.code == OK
        assert command.summary in capsys.readouterr().out


# --- model digest -------------------------------------------------------------------------------------------------


def test_the_digest_of_a_model_directory_is_the_one_in_its_certificate(
    alice: forge.CertificateSet, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["model", "digest", str(alice.model_dir)]) == OK

    lines = capsys.readouterr().out.split()
    assert alice.statement["subject"][0]["digest"]["sha256"] in lines
    assert alice.statement["predicate"]["manifestSha256"] in lines


def test_the_digest_as_json_lists_every_file(alice: forge.CertificateSet, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model", "digest", str(alice.model_dir), "--json"]) == OK

    manifest = model_manifest(alice.model_dir)
    assert json.loads(capsys.readouterr().out) == {
        "sha256": manifest.root_sha256,
        "manifest_sha256": manifest.manifest_sha256,
        "files": manifest.to_document(),
    }


def test_an_unsafe_model_directory_fails_and_a_missing_one_is_usage(
    alice: forge.CertificateSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (alice.model_dir / "weights.bin").write_bytes(b"\x80\x04.")

    assert main(["model", "digest", str(alice.model_dir)]) == FAILED_CHECK
    assert "weights.bin" in capsys.readouterr().err
    assert main(["model", "digest", str(tmp_path / "missing")]) == USAGE


# --- what it needs ------------------------------------------------------------------------------------------------


def test_starting_the_command_loads_no_framework() -> None:
    code = "import sys, deletion_service.cli; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)

    loaded = set(finished.stdout.split())
    assert "cryptography" in loaded
    assert loaded.isdisjoint({"django", "rest_framework", "celery", "torch", "transformers", "numpy", "jsonschema"})


@pytest.fixture
def bare_python(tmp_path: Path) -> Path:
    """A fresh virtual environment with `cryptography`, what that needs, this repository, and nothing else."""
    home = tmp_path / "bare"
    venv.create(home, with_pip=False, symlinks=True)
    libraries = tmp_path / "libraries"
    libraries.mkdir()
    for name in ("cryptography", "cffi", "_cffi_backend", "pycparser"):
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.origin is not None
        source = Path(spec.origin).parent if spec.submodule_search_locations else Path(spec.origin)
        (libraries / source.name).symlink_to(source)
    (site,) = home.glob("lib/python*/site-packages")
    (site / "verifier.pth").write_text(f"{libraries}\n{REPOSITORY}\n")
    return home / "bin" / "python"


def run_bare(python: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    command: list[Any] = [python, "-I", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, env=kept)


@pytest.mark.slow
def test_a_certificate_is_checked_where_nothing_but_cryptography_is_installed(
    bare_python: Path, alice: forge.CertificateSet, tmp_path: Path
) -> None:
    for absent in ("django", "jsonschema", "torch", "numpy", "rest_framework"):
        assert run_bare(bare_python, "-c", f"import {absent}", cwd=tmp_path).returncode == 1
    command = ["-m", "deletion_service.cli", "cert", "verify", "certificate.dsse.json", "--keys", "issuer.json"]

    valid = run_bare(bare_python, *command, "--model", "model", "--expect", "PASS", cwd=tmp_path)
    flip(tmp_path / "model" / "model.safetensors", 3)
    altered = run_bare(bare_python, *command, "--model", "model", cwd=tmp_path)
    unreadable = run_bare(bare_python, *command, "--log", "missing", cwd=tmp_path)

    assert (valid.returncode, valid.stderr) == (OK, "")
    assert valid.stdout.startswith("Erasure certificate: PASS\n")
    assert (altered.returncode, altered.stderr) == (FAILED_CHECK, "")
    assert "failed      model_files" in altered.stdout
    assert unreadable.returncode == USAGE
