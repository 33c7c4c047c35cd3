"""A subject of a pool measures nothing itself: each measurement of a bench must have its view."""

from __future__ import annotations

import inspect

import pytest

from ml.verification.bench import Bench
from ml.verification.pooled import SubjectBench

MEASUREMENTS = sorted(
    name
    for name, method in vars(Bench).items()
    if inspect.isfunction(method)
    and "Failure" in str(inspect.signature(method).return_annotation)
    and not name.startswith("_")
    and name != "part"
)


def test_there_are_measurements_to_look_at() -> None:
    assert {"tokens", "kept_tokens", "unused_tokens", "relearned", "determinism"} <= set(MEASUREMENTS)


@pytest.mark.parametrize("name", MEASUREMENTS)
def test_a_measurement_of_a_bench_has_a_view_for_one_subject_of_a_pool(name: str) -> None:
    assert name in vars(SubjectBench)
