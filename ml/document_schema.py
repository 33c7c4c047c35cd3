"""JSON Schemas of what `ml` reports, decides and is told, made from the frozen dataclasses. Standard library only.

    python -m ml.document_schema --out docs/schemas      (writes one file a document; a test compares them)

A schema says what a document holds and in which form; what its numbers mean stands in the docstrings it quotes.
Reading (`ml.documents.read`) is strict without any schema library; these files are for everybody else's programs.
"""

from __future__ import annotations

import argparse
import inspect
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Final

from ml.cohort_reports import CohortReport
from ml.command_line import write_document
from ml.decision import Verdict
from ml.documents import Json
from ml.errors import SpecError
from ml.manifest import RunManifest
from ml.reports import AdaptiveReport, RedTeamReport, UnlearningReport, VerificationReport
from ml.specs import DeletionLedger, VerdictPolicy
from ml.sweep_decision import SweepVerdict
from ml.sweep_reports import SweepReport
from ml.trust import MetaEvaluation

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
DOCUMENTS: Final[Mapping[str, type]] = {
    "adaptive-report": AdaptiveReport,
    "cohort-report": CohortReport,
    "deletion-ledger": DeletionLedger,
    "meta-evaluation": MetaEvaluation,
    "red-team-report": RedTeamReport,
    "run-manifest": RunManifest,
    "sweep-report": SweepReport,
    "sweep-verdict": SweepVerdict,
    "unlearning-report": UnlearningReport,
    "verdict": Verdict,
    "verdict-policy": VerdictPolicy,
    "verification-report": VerificationReport,
}
# A decimal is a string, so that a document has one canonical form (`ml.documents.decimal_text`).
_DECIMAL: Final[dict[str, Json]] = {"type": "string", "pattern": r"^-?[0-9]+(\.[0-9]+)?(e[+-]?[0-9]+)?$"}
_SCALARS: Final[Mapping[Any, dict[str, Json]]] = {
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    float: _DECIMAL,
    str: {"type": "string"},
}


def schema_of(cls: type, *, name: str) -> dict[str, Json]:
    """The schema of one document; every dataclass that it holds is a definition of its own.

    Raises:
        SpecError: a field has a type that no document holds.
    """
    definitions: dict[str, Json] = {}
    _define(cls, definitions)
    ordered: dict[str, Json] = dict(sorted(definitions.items()))
    return {"$schema": DIALECT, "title": name, "$ref": f"#/$defs/{cls.__name__}", "$defs": ordered}


def _define(cls: type, definitions: dict[str, Json]) -> None:
    if cls.__name__ in definitions:
        return
    definitions[cls.__name__] = {}  # a class that holds itself ends here
    hints = typing.get_type_hints(cls)
    known = fields(cls)
    required: list[Json] = [f.name for f in known if f.default is MISSING and f.default_factory is MISSING]
    definitions[cls.__name__] = {
        "description": inspect.cleandoc(cls.__doc__ or ""),
        "type": "object",
        "additionalProperties": False,
        "required": required,
        "properties": {f.name: _form(hints[f.name], definitions) for f in known},
    }


def _form(kind: Any, definitions: dict[str, Json]) -> Json:
    if kind in _SCALARS:
        return dict(_SCALARS[kind])
    if is_dataclass(kind) and isinstance(kind, type):
        _define(kind, definitions)
        return {"$ref": f"#/$defs/{kind.__name__}"}
    if isinstance(kind, type) and issubclass(kind, Enum):
        return {"enum": [member.value for member in kind]}
    return _composed(kind, typing.get_origin(kind), typing.get_args(kind), definitions)


def _composed(kind: Any, origin: Any, arguments: tuple[Any, ...], definitions: dict[str, Json]) -> Json:
    if origin is typing.Literal:
        return {"enum": list(arguments)}
    if origin in (typing.Union, types.UnionType):
        some = [_form(argument, definitions) for argument in arguments if argument is not type(None)]
        nothing: Json = {"type": "null"}
        return {"anyOf": [*some, nothing] if type(None) in arguments else some}
    if origin is tuple and arguments[-1] is Ellipsis:
        return {"type": "array", "items": _form(arguments[0], definitions)}
    if origin is tuple:
        places: list[Json] = [_form(a, definitions) for a in arguments]
        return {"type": "array", "prefixItems": places, "minItems": len(places), "maxItems": len(places)}
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return {"type": "object", "additionalProperties": _form(arguments[1], definitions)}
    raise SpecError(f"no document holds {kind}; give the field a form that JSON has")


def main(arguments: Sequence[str] | None = None) -> int:
    """Write every schema below a directory."""
    parser = argparse.ArgumentParser(prog="python -m ml.document_schema", description="Write the documents' schemas.")
    parser.add_argument("--out", type=Path, required=True, help="directory of the files")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    for name, cls in DOCUMENTS.items():
        write_document(options.out / f"{name}.json", schema_of(cls, name=name))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
