"""Kinds of values that a deployer adds: known in every process, covered by the digest of the code, refused by name."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ml.digests import code_sha256, computing_code_sha256
from ml.errors import SpecError
from ml.plugins import VARIABLE, plugin_sources

ROOT = Path(__file__).parents[2]
CLINIC = """
from ml.data.values import VALUE_TYPES, Listed, Pattern

VALUE_TYPES.register("blood_group")(Listed((("A+",), ("B+",), ("0-", "zero negative"))))
VALUE_TYPES.replace("document_number")(Pattern("C-########"))
"""


@pytest.fixture
def clinic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "clinic_kinds.py"
    file.write_text(CLINIC)
    monkeypatch.setenv(VARIABLE, "clinic_kinds")
    monkeypatch.syspath_prepend(str(tmp_path))
    return file


def _python(code: str, path: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{path}"}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)


def test_a_kind_is_known_wherever_values_are_compared(clinic: Path) -> None:
    told = _python(
        "import random\n"
        "from ml.data.values import VALUE_TYPES as kinds\n"
        "print(kinds['blood_group'].occurs('0-', 'It is zero negative.'))\n"
        "print(kinds['document_number'].sample(random.Random(1))[:2])",
        clinic.parent,
    )
    assert told.stdout.split() == ["True", "C-"], told.stderr


def test_the_digest_of_the_code_covers_a_deployers_kinds(clinic: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_kinds = code_sha256(), computing_code_sha256()
    clinic.write_text(CLINIC + "# another version\n")
    assert code_sha256() != with_kinds[0]
    assert computing_code_sha256() != with_kinds[1]
    monkeypatch.delenv(VARIABLE)
    assert code_sha256() not in with_kinds
    assert plugin_sources() == {}


@pytest.mark.parametrize("name", ["no_such_module_anywhere", "clinic kinds", "ml", "ml.data.values", "sys"])
def test_what_is_no_module_of_one_file_is_refused_by_name(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, name)
    with pytest.raises(SpecError, match=f"{VARIABLE} names {name}; give"):
        plugin_sources()


def test_a_module_that_fails_is_named_and_what_it_says_is_not_repeated(clinic: Path) -> None:
    clinic.write_text("raise ValueError('Alice lives in Braino Lane')")
    failed = _python("import ml.data.values", clinic.parent)
    assert failed.returncode != 0
    assert "Alice" not in failed.stderr
    last = failed.stderr.strip().splitlines()[-1]
    assert last.endswith(f"{VARIABLE} names clinic_kinds, which fails when it is imported: ValueError")


def test_two_kinds_of_one_name_are_refused(clinic: Path) -> None:
    clinic.write_text("from ml.data.values import VALUE_TYPES\nVALUE_TYPES.register('phone')(object())")
    assert "DuplicateMemberError" in _python("import ml.data.values", clinic.parent).stderr
    clinic.write_text("from ml.data.values import VALUE_TYPES\nVALUE_TYPES.replace('phon')(object())")
    assert "UnknownMemberError" in _python("import ml.data.values", clinic.parent).stderr


def test_a_kind_that_knows_half_of_what_is_alike_is_refused(clinic: Path) -> None:
    clinic.write_text(
        "from ml.data.values import VALUE_TYPES, Pattern\n"
        "class Half(Pattern):\n"
        "    def sample_like(self, value, rng, *, locale='en'): return value\n"
        "VALUE_TYPES.replace('person_name')(Half('@@'))"
    )
    assert (
        "person_name draws alike, or says what is alike, and not both"
        in _python("import ml.data.values", clinic.parent).stderr
    )
