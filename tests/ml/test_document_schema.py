"""The published schemas are those of the documents that are really written."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from ml.decision import judge
from ml.document_schema import DOCUMENTS, main, schema_of
from ml.errors import SpecError
from ml.policies import load_policy, policy_names
from tests.ml.passing import POLICY, passing_report, quiet_red_team

PUBLISHED = Path(__file__).parents[2] / "docs" / "schemas"


def _validator(name: str) -> Draft202012Validator:
    schema = json.loads((PUBLISHED / f"{name}.json").read_text(encoding="utf-8"))
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def test_every_document_has_a_published_schema_and_it_is_current(tmp_path: Path) -> None:
    assert main(["--out", str(tmp_path)]) == 0
    written = {path.name: path.read_text(encoding="utf-8") for path in tmp_path.iterdir()}
    assert written.keys() == {f"{name}.json" for name in DOCUMENTS}
    assert written == {path.name: path.read_text(encoding="utf-8") for path in PUBLISHED.iterdir()}


def test_what_is_written_fits_its_schema() -> None:
    report = passing_report()
    documents: dict[str, Any] = {
        "verification-report": report.to_document(),
        "verdict": judge(report, POLICY).to_document(),
        "red-team-report": quiet_red_team(report).to_document(),
    }
    for name, document in documents.items():
        assert list(_validator(name).iter_errors(document)) == [], name
    for policy in map(load_policy, policy_names()):
        assert _validator("verdict-policy").is_valid(policy.to_document())


def test_what_does_not_fit_is_refused() -> None:
    document = passing_report().to_document()
    assert not _validator("verification-report").is_valid({**document, "certainly": True})
    assert not _validator("verification-report").is_valid({k: v for k, v in document.items() if k != "attacks"})
    assert not _validator("verification-report").is_valid({**document, "attempt": "first"})
    attacks = document["attacks"]
    assert isinstance(attacks, list)
    assert isinstance(attacks[0], dict)
    for wrong in ({"status": "guessed"}, {"p_detect": "NaN"}, {"p_detect": 0.5}):
        broken = {**document, "attacks": [{**attacks[0], **wrong}, *attacks[1:]]}
        assert not _validator("verification-report").is_valid(broken), wrong


def test_a_field_that_no_document_holds_has_no_schema() -> None:
    @dataclass(frozen=True)
    class Odd:
        numbers: set[int]

    with pytest.raises(SpecError, match="no document holds"):
        schema_of(Odd, name="odd")
