"""The published JSON Schemas (draft 2020-12) of what is signed and sealed, and the check against them.

Must never know Django. Loading this module needs the standard library alone: whoever checks a document offline reads
it strictly (`read_statement`, `read_evidence`) and has no schema library.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import resources
from typing import Any, Final, Literal, TypeAlias

SchemaName: TypeAlias = Literal["model-erasure-v1", "evidence-v1"]
_PACKAGE: Final = "deletion_service.certificates"


def published_schema(name: SchemaName) -> dict[str, Any]:
    """Return one published JSON Schema."""
    text = resources.files(_PACKAGE).joinpath(f"schemas/{name}.json").read_text("utf-8")
    schema: dict[str, Any] = json.loads(text)
    return schema


def schema_fault(document: Mapping[str, Any], name: SchemaName) -> str | None:
    """Say which member breaks which rule of a schema, never with its content; `None` when none does."""
    # The offline verifier must start without this library.
    from jsonschema import Draft202012Validator

    faults = Draft202012Validator(published_schema(name)).iter_errors(document)
    fault = min(faults, key=lambda error: len(error.absolute_path), default=None)
    return None if fault is None else f"member {fault.json_path} breaks the schema rule {fault.validator!r}"
