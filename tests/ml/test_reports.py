"""Reports: histograms that show nobody, and a document that keeps every number."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml.errors import SpecError
from ml.reports import MINIMUM_BIN, EnergyPicture, Histogram, VerificationReport, histogram
from tests.ml.passing import passing_report

EDGES = (0.0, 1.0, 2.0, 3.0, 4.0)


@given(st.lists(st.floats(-10, 10), max_size=60))
def test_a_histogram_keeps_everybody_and_shows_no_bin_of_fewer_than_five(values: list[float]) -> None:
    shape = histogram(values, edges=EDGES)
    if len(values) < MINIMUM_BIN:
        assert shape is None
        return
    assert shape is not None
    assert sum(shape.counts) == len(values)
    assert min(shape.counts) >= MINIMUM_BIN
    assert len(shape.edges) == len(shape.counts) + 1
    assert shape.edges[0] == EDGES[0]
    assert shape.edges[-1] == EDGES[-1]
    assert set(shape.edges) <= set(EDGES)


def test_neighbouring_bins_merge_until_each_holds_five() -> None:
    values = [0.5] * 3 + [1.5] * 4 + [2.5] * 6 + [3.5] * 2
    assert histogram(values, edges=EDGES) == Histogram((0.0, 2.0, 4.0), (7, 8))


def test_values_outside_the_edges_count_in_the_outer_bins() -> None:
    assert histogram([-9.0] * 5 + [99.0] * 5, edges=EDGES) == Histogram((0.0, 1.0, 4.0), (5, 5))


def test_a_report_document_is_read_strictly() -> None:
    document = passing_report().to_document()
    with pytest.raises(SpecError, match="schema_version"):
        VerificationReport.from_document(document | {"schema_version": 2})
    with pytest.raises(SpecError, match="unknown field"):
        VerificationReport.from_document(document | {"verdict": "PASS"})
    with pytest.raises(SpecError, match=r"attacks\[0\].status"):
        VerificationReport.from_document(document | {"attacks": [document["attacks"][0] | {"status": "fine"}]})  # type: ignore[index,operator]


def test_a_missing_number_stays_missing_and_never_becomes_zero() -> None:
    picture = EnergyPicture("deleted", "after", None, -6.5)
    assert picture.shape is None
    report = passing_report()
    again = VerificationReport.from_document(report.to_document())
    assert again.attacks[0].twins_before is not None
    assert again.attacks[0].twins_before.shape is None
