"""Forms of text in a signed statement."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deletion_service.certificates.canonical import DocumentFormError
from deletion_service.certificates.forms import (
    AuditKit,
    Bucket,
    Day,
    DecimalNumber,
    FilePath,
    Identifier,
    Sentence,
    Sha256,
    Time,
    Uri,
    WholeNumber,
    check_forms,
    count_bucket,
    decimal_number,
)
from ml.errors import SpecError


@dataclass(frozen=True)
class Row:
    identifier: Identifier = "crt_1"
    sha256: Sha256 = "0" * 64
    whole: WholeNumber = "0"
    decimal: DecimalNumber | None = None
    ends: tuple[DecimalNumber | None, DecimalNumber | None] = ("-0.3", None)
    bucket: Bucket = "1-10"
    time: Time = "2027-03-05T12:00:00Z"
    day: Day = "2027-03-05"
    sentence: Sentence = "Plain text."
    path: FilePath = "shards/model-1.safetensors"
    audit_kit: AuditKit = "none"
    uri: Uri = "https://lethe.example/policies/reference-1"


def test_a_row_in_form_is_accepted() -> None:
    check_forms(Row(), where="row")
    check_forms(Row(audit_kit="sealed_until:2027-12-31", ends=(None, "12.5")), where="row")


@pytest.mark.parametrize(
    ("field", "text"),
    [
        ("identifier", "Alice Example"),
        ("identifier", "alice@example.org"),
        ("identifier", "crt_1\n"),
        ("identifier", "crt_\u0661"),
        ("sha256", "A" * 64),
        ("sha256", "0" * 63),
        ("whole", "01"),
        ("whole", "-1"),
        ("whole", "\u0661"),
        ("decimal", "0.50"),
        ("decimal", ".5"),
        ("decimal", "1e-3"),
        ("decimal", "-0"),
        ("decimal", "NaN"),
        ("bucket", "7"),
        ("bucket", "11-1000"),
        ("time", "2027-03-05T12:00:00.5Z"),
        ("day", "2027-02-29"),
        ("day", "20270305"),
        ("sentence", ""),
        ("sentence", " padded"),
        ("sentence", "two\nlines"),
        ("sentence", "\x1b[2Jcleared"),
        ("sentence", "right\u202eleft"),
        ("path", "/etc/passwd"),
        ("path", "../model"),
        ("path", "a//b"),
        ("path", "a\\b"),
        ("path", "./a"),
        ("path", ""),
        ("audit_kit", "2027-12-31"),
        ("audit_kit", "sealed_until:soon"),
        ("uri", "no scheme"),
    ],
)
def test_text_out_of_form_is_refused_by_field_and_never_by_value(field: str, text: str) -> None:
    with pytest.raises(DocumentFormError, match=f"row.{field}") as refused:
        check_forms(Row(**{field: text}), where="row")
    assert text not in str(refused.value) or len(text) < 3


def test_text_out_of_form_inside_a_pair_is_refused() -> None:
    with pytest.raises(DocumentFormError, match=r"row.ends\[1\]"):
        check_forms(Row(ends=(None, "0.50")), where="row")


@given(st.floats(-1e14, 1e14, allow_nan=False))
def test_every_finite_number_has_a_decimal_form_close_to_it(number: float) -> None:
    text = decimal_number(number)

    check_forms(Row(decimal=text), where="row")
    assert abs(float(text) - number) <= max(1e-6, abs(number) * 1e-12)


def test_decimals_are_plain_and_rounded_at_six_places() -> None:
    numbers = {0.53: "0.53", -0.3: "-0.3", 1e-5: "0.00001", -1e-9: "0", 100.0: "100", 1 / 3: "0.333333"}

    assert {number: decimal_number(number) for number in numbers} == numbers


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf"), 1e16])
def test_a_number_that_is_not_finite_or_too_large_is_an_error_and_never_written(number: float) -> None:
    with pytest.raises(SpecError):
        decimal_number(number)


def test_counts_about_a_person_are_given_in_buckets() -> None:
    counts = {0: "0", 1: "1-10", 10: "1-10", 11: "11-100", 100: "11-100", 101: "101-1000"}
    counts |= {10**9: "100000001-1000000000", 10**9 + 1: "more than 1000000000"}

    assert {count: count_bucket(count) for count in counts} == counts
    with pytest.raises(SpecError):
        count_bucket(-1)


@given(st.integers(0, 10**12))
def test_every_count_has_a_bucket_in_form(count: int) -> None:
    check_forms(Row(bucket=count_bucket(count)), where="row")
