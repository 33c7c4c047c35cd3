"""Documents from strangers: one spelling is accepted, every other one is refused with a typed error."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deletion_service.certificates.canonical import (
    LARGEST_DEPTH,
    DocumentFormError,
    base64_bytes,
    base64_text,
    camel_document,
    read_camel,
    read_canonical,
    read_json,
    time_from_text,
    time_text,
)
from ml.digests import canonical_json

LARGEST = 10_000


def canonical(data: bytes) -> object:
    return read_canonical(data, what="the document", largest=LARGEST)


def loose(data: bytes) -> object:
    return read_json(data, what="the document", largest=LARGEST)


def reading(data: bytes) -> object:
    """What the document says, or the refusal."""
    try:
        return canonical(data)
    except DocumentFormError as exc:
        return exc


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.text(st.characters(codec="utf-8"), max_size=8),
    lambda child: st.lists(child, max_size=4) | st.dictionaries(st.text("abcXYZ_019", max_size=6), child, max_size=4),
    max_leaves=12,
)


@given(JSON)
def test_what_canonical_json_writes_is_read_back_unchanged(document: object) -> None:
    assert canonical(canonical_json(document)) == document


@given(JSON, st.data())
def test_no_second_spelling_of_a_document_is_read(document: object, data: st.DataObject) -> None:
    exact = canonical_json(document)
    position = data.draw(st.integers(0, len(exact)))
    padded = exact[:position] + data.draw(st.sampled_from([b" ", b"\n", b"\t", b"\r"])) + exact[position:]

    assert reading(padded) != document


@pytest.mark.parametrize(
    "spelling",
    [
        b'{"a":1,"b":2} ',
        b' {"a":1,"b":2}',
        b'{"b":2,"a":1}',
        b'{"a": 1,"b":2}',
        b'{"a":1,"b":2}\n',
        b'\xef\xbb\xbf{"a":1,"b":2}',
        b'{"\\u0061":1,"b":2}',
        '{"a":1,"b":2}'.encode("utf-16"),
        b'{"a":1,"b":2}{}',
        b'{"a":1,"b":2}\x00',
        b'{"a":-0,"b":2}',
        b'{"a":"\\ud800","b":2}',
    ],
)
def test_another_spelling_of_the_same_document_is_refused(spelling: bytes) -> None:
    with pytest.raises(DocumentFormError):
        canonical(spelling)


def test_a_key_that_stands_twice_is_refused_even_with_the_same_value() -> None:
    with pytest.raises(DocumentFormError, match="same key twice"):
        loose(b'{"a":1,"a":1}')


@pytest.mark.parametrize("number", [b"1.0", b"0.5", b"1e3", b"NaN", b"Infinity", b"-Infinity"])
def test_fractions_nan_and_infinity_are_refused(number: bytes) -> None:
    with pytest.raises(DocumentFormError, match="decimal strings"):
        loose(b'{"a":' + number + b"}")


def test_a_number_beyond_what_every_reader_keeps_is_refused() -> None:
    with pytest.raises(DocumentFormError):
        canonical(b'{"a":9007199254740993}')


@pytest.mark.parametrize("deep", [b"[" * 5000, b"[" * 5000 + b"]" * 5000, b'{"a":' * 3000 + b"1" + b"}" * 3000])
def test_deep_nesting_is_refused_and_does_not_exhaust_the_stack(deep: bytes) -> None:
    with pytest.raises(DocumentFormError):
        read_json(deep, what="the document", largest=1 << 20)


def test_nesting_just_above_the_limit_is_refused_and_at_the_limit_accepted() -> None:
    at_limit = b"[" * LARGEST_DEPTH + b"]" * LARGEST_DEPTH

    assert canonical(at_limit) == json.loads(at_limit)
    with pytest.raises(DocumentFormError, match="nested"):
        canonical(b"[" + at_limit + b"]")


def test_a_document_above_the_size_limit_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(DocumentFormError, match="larger"):
        canonical(b"x" * (LARGEST + 1))


def test_no_message_repeats_what_the_document_says() -> None:
    with pytest.raises(DocumentFormError) as refused:
        canonical(b'{"name":"Alice", }')
    assert "Alice" not in str(refused.value)


# --- camel case ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    public_key: str
    not_before: str | None
    sha256: str
    schema_version: int = 1


def test_keys_travel_in_camel_case_and_come_back() -> None:
    row = Row("k", None, "d")

    assert camel_document(row) == {"publicKey": "k", "notBefore": None, "sha256": "d", "schema_version": 1}
    assert read_camel(Row, camel_document(row), where="row") == row


@pytest.mark.parametrize(
    "document",
    [
        {"public_key": "k", "notBefore": None, "sha256": "d"},
        {"publicKey": "k", "notBefore": None, "sha256": "d", "extra": 1},
        {"publicKey": "k", "sha256": "d"},
        {"publicKey": 1, "notBefore": None, "sha256": "d"},
        {"PublicKey": "k", "notBefore": None, "sha256": "d"},
        ["publicKey"],
    ],
)
def test_a_key_in_another_spelling_unknown_missing_or_mistyped_is_refused(document: object) -> None:
    with pytest.raises(DocumentFormError):
        read_camel(Row, document, where="row")


# --- base64 and times ---------------------------------------------------------------------------------------------


@given(st.binary(max_size=40))
def test_base64_comes_back(data: bytes) -> None:
    assert base64_bytes(base64_text(data), what="it") == data


@pytest.mark.parametrize("text", ["QQ", "QQ=", "QR==", "QQ==\n", "Q Q==", "QQ==QQ==", "-_8=", "QQ==="])
def test_a_second_spelling_of_the_same_bytes_is_refused(text: str) -> None:
    with pytest.raises(DocumentFormError):
        base64_bytes(text, what="it")


def test_a_time_is_written_as_utc_to_the_second() -> None:
    moment = datetime(2027, 3, 5, 13, 0, 0, 999_999, tzinfo=timezone(timedelta(hours=1)))

    assert time_text(moment) == "2027-03-05T12:00:00Z"
    assert time_from_text("2027-03-05T12:00:00Z") == datetime(2027, 3, 5, 12, tzinfo=UTC)


def test_a_time_without_a_zone_is_refused() -> None:
    with pytest.raises(DocumentFormError, match="zone"):
        time_text(datetime(2027, 3, 5))  # noqa: DTZ001 - the naive time is the point


@pytest.mark.parametrize(
    "text",
    [
        "2027-3-5T12:00:00Z",
        "2027-03-05 12:00:00Z",
        "2027-03-05T12:00:00",
        "2027-02-30T12:00:00Z",
        "2027-03-05T12:00:00z",
    ],
)
def test_another_spelling_of_a_time_is_refused(text: str) -> None:
    with pytest.raises(DocumentFormError):
        time_from_text(text)
