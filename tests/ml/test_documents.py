"""Documents: strict reading, one canonical form, and no silent loss on the way there and back."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml.decision import judge
from ml.digests import canonical_json
from ml.documents import decimal_text, plain, plain_object, read
from ml.errors import SpecError
from ml.reports import VerificationReport
from ml.specs import Record, VerdictPolicy, record_from_document, record_to_line
from tests.ml.passing import POLICY, edited, passing_report


@dataclass(frozen=True, slots=True)
class Leaf:
    side: Literal["left", "right"]
    weight: float | None = None


@dataclass(frozen=True, slots=True)
class Tree:
    name: str
    size: int
    leaves: tuple[Leaf, ...]
    numbers: Mapping[str, float]
    pair: tuple[int, str]
    is_old: bool = False


TREE = Tree("oak", 3, (Leaf("left", 0.1), Leaf("right")), {"height": 2.5}, (1, "x"))


def test_a_document_reads_back_to_what_was_written() -> None:
    assert read(Tree, plain(TREE), where="tree") == TREE
    assert read(Tree, json.loads(canonical_json(plain(TREE))), where="tree") == TREE


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_decimal_survives_as_text(number: float) -> None:
    text = decimal_text(number)
    assert isinstance(text, str)
    assert float(text) == number


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_has_no_document_form(bad: float) -> None:
    with pytest.raises(SpecError):
        plain(Leaf("left", bad))


@pytest.mark.parametrize("text", ["nan", "inf", "-Infinity", "1e999", "", "one", "0x10"])
def test_a_decimal_text_must_be_a_finite_number(text: str) -> None:
    with pytest.raises(SpecError, match="tree"):
        read(Leaf, {"side": "left", "weight": text}, where="tree")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"size": True}, "size"),
        ({"size": 2.0}, "size"),
        ({"size": "3"}, "size"),
        ({"name": 4}, "name"),
        ({"is_old": 1}, "is_old"),
        ({"leaves": {"side": "left"}}, "leaves"),
        ({"leaves": [{"side": "up"}]}, r"leaves\[0\].side"),
        ({"leaves": [{"side": "left", "wait": 1}]}, r"leaves\[0\]"),
        ({"numbers": [1]}, "numbers"),
        ({"numbers": {"height": False}}, "numbers.height"),
        ({"pair": [1]}, "pair"),
        ({"pair": ["x", 1]}, r"pair\[0\]"),
    ],
)
def test_a_field_that_does_not_fit_is_named_by_its_path(change: dict[str, Any], named: str) -> None:
    document = plain_object(TREE) | change
    with pytest.raises(SpecError, match=named):
        read(Tree, document, where="tree")


def test_unknown_and_missing_fields_are_refused() -> None:
    document = plain_object(TREE)
    with pytest.raises(SpecError, match="unknown field 'colour'"):
        read(Tree, document | {"colour": "green"}, where="tree")
    document.pop("size")
    with pytest.raises(SpecError, match="'size' is missing"):
        read(Tree, document, where="tree")
    with pytest.raises(SpecError, match="expected an object"):
        read(Tree, [document], where="tree")


def test_an_error_names_the_path_and_never_the_content() -> None:
    with pytest.raises(SpecError) as caught:
        read(Leaf, {"side": "left", "weight": "Alice's number"}, where="leaf")
    assert "Alice" not in str(caught.value)


@pytest.mark.parametrize("value", [object(), b"bytes", {1, 2}, 1 + 2j])
def test_what_has_no_plain_form_is_refused(value: object) -> None:
    with pytest.raises(SpecError):
        plain(value)
    with pytest.raises(SpecError):
        plain_object([1])


# --- reports and policies -----------------------------------------------------------------------------------------

_P = st.one_of(st.none(), st.floats(1 / 240, 1))


@given(_P, _P, _P, st.floats(-2, 2), st.sampled_from(["measured", "missing", "error"]))
def test_a_report_is_judged_alike_before_and_after_storage(
    residual: float | None, over: float | None, assay: float | None, ratio: float, status: str
) -> None:
    report = edited(
        passing_report(),
        "attacks",
        0,
        status=status,
        p_residual=residual,
        p_over=over,
        p_assay=assay,
        residual_ratio=ratio,
    )
    again = VerificationReport.from_document(json.loads(canonical_json(report.to_document())))
    assert again == report
    assert again.sha256 == report.sha256
    assert judge(again, POLICY) == judge(report, POLICY)


def _leaves(node: object, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    if isinstance(node, dict):
        return [leaf for key, child in node.items() for leaf in _leaves(child, (*path, key))]
    if isinstance(node, list):
        return [leaf for index, child in enumerate(node) for leaf in _leaves(child, (*path, index))]
    return [path]


def _changed(document: Any, path: tuple[str | int, ...]) -> Any:
    copy = json.loads(json.dumps(document))
    parent = copy
    for step in path[:-1]:
        parent = parent[step]
    old = parent[path[-1]]
    parent[path[-1]] = "0.125" if isinstance(old, str) else 7
    return copy


def test_every_leaf_of_a_policy_is_covered_by_its_digest() -> None:
    document = POLICY.to_document()
    for path in _leaves(document):
        try:
            other = VerdictPolicy.from_document(_changed(document, path))
        except SpecError:
            continue
        assert other.sha256 != POLICY.sha256, path


@pytest.mark.parametrize(
    "change",
    [
        {"alpha": "0.06"},
        {"alpha": "0"},
        {"schema_version": 2},
        {"families": []},
        {"utility": []},
        {"purpose": "demo"},
    ],
)
def test_a_policy_that_could_not_protect_anyone_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(SpecError):
        VerdictPolicy.from_document(POLICY.to_document() | change)


def test_an_id_stands_once_in_a_policy() -> None:
    twice = replace(POLICY, families=(POLICY.families[0], replace(POLICY.families[1], id="F1")))
    with pytest.raises(SpecError, match="twice"):
        VerdictPolicy.from_document(twice.to_document())


# --- records ------------------------------------------------------------------------------------------------------


def test_a_record_line_reads_back_and_points_into_its_text() -> None:
    text = "Where does Alice Quill live?\nAlice Quill lives in Bren."
    record = Record("r1", "p1", text, 29, ((11, 22), (29, 40)), ())
    assert record_from_document(json.loads(record_to_line(record)), where="line 1") == record


@pytest.mark.parametrize(
    "change",
    [
        {"text": ""},
        {"answer_start": 99},
        {"answer_start": True},
        {"name_spans": [[5, 5]]},
        {"name_spans": [[0, 99]]},
        {"facts": [{"attribute": "city", "type": "place_name", "start": 3, "end": 1}]},
        {"facts": [{"attribute": "city"}]},
        {"record_id": 7},
    ],
)
def test_a_malformed_record_names_its_line_and_shows_nothing_of_it(change: dict[str, Any]) -> None:
    document = {"record_id": "r1", "person": "p1", "text": "Alice lives here.", "answer_start": 0}
    with pytest.raises(SpecError) as caught:
        record_from_document(document | change, where="forget set, line 3")
    assert "forget set, line 3" in str(caught.value)
    assert "Alice" not in str(caught.value)


def test_no_dataclass_of_the_seam_can_be_changed() -> None:
    report = passing_report()
    for node in (report, POLICY, report.attacks[0], POLICY.families[0]):
        assert is_dataclass(node)
        with pytest.raises(AttributeError):
            setattr(node, fields(node)[0].name, "changed")
