"""The description is committed, complete, and true of what the door answers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.test import Client
from jsonschema import Draft202012Validator

from deletion_service.api.views.description import openapi_document

COMMITTED = Path(__file__).parents[2] / "docs" / "openapi.json"
METHODS = ("get", "post", "put", "patch", "delete")


def operations() -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in openapi_document()["paths"].items():
        yield from ((f"{method} {path}", methods[method]) for method in METHODS if method in methods)


OPERATIONS = list(operations())
IDS = [name for name, _ in OPERATIONS]


def test_the_committed_description_has_not_drifted() -> None:
    """Renew it with `manage.py spectacular --file docs/openapi.json --format openapi-json`; read the difference."""
    assert json.loads(COMMITTED.read_text()) == openapi_document()


def test_the_description_is_openapi_3_1_and_is_served() -> None:
    assert openapi_document()["openapi"].startswith("3.1")
    assert Client().get("/v1/openapi.json").json() == openapi_document()


@pytest.mark.parametrize(("name", "operation"), OPERATIONS, ids=IDS)
def test_every_operation_has_an_example_that_fits_its_schema(name: str, operation: dict[str, Any]) -> None:
    contents = [c for r in operation["responses"].values() for c in r["content"].values()]
    if "requestBody" in operation:
        contents.append(operation["requestBody"]["content"]["application/json"])
    for content in contents:
        assert content["examples"], name
        schema = {**content["schema"], "components": openapi_document()["components"]}
        for example in content["examples"].values():
            assert [e.message for e in Draft202012Validator(schema).iter_errors(example["value"])] == []


@pytest.mark.parametrize(("name", "operation"), OPERATIONS, ids=IDS)
def test_every_operation_documents_its_problems(name: str, operation: dict[str, Any]) -> None:
    problems = {
        code for code, answer in operation["responses"].items() if "application/problem+json" in answer["content"]
    }
    assert "429" in problems
    if operation.get("security"):
        assert {"401", "403"} <= problems
    if "{" in name:
        assert "404" in problems
    if name.startswith("post") and "verify" not in name:
        assert {"400", "409"} <= problems
        assert any(parameter["name"] == "Idempotency-Key" for parameter in operation["parameters"])


@pytest.mark.parametrize(("name", "operation"), OPERATIONS, ids=IDS)
def test_every_operation_says_what_it_does(name: str, operation: dict[str, Any]) -> None:
    assert operation["summary"]
    assert operation["operationId"]


@pytest.mark.django_db
def test_the_page_for_people_needs_no_other_host() -> None:
    page = Client().get("/v1/docs").content.decode()
    assert "http://" not in page
    assert "https://" not in page
