"""Energy: sign, centring, pooling, hinges and the boundary's calibration."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ml.energy import (
    EnergyBoundary,
    ThinBoundaryWarning,
    auroc,
    boundary_loss,
    calibrate_boundary,
    energy_ceiling,
    forget_hinge,
    sequence_energy,
    token_energy,
)
from ml.errors import EmptySequenceError, EmptySetError, EnergyNotSeparatingError, NonFiniteError, SpecError
from ml.finetune import cross_entropy_of
from tests.ml.fixture_z import FORGET, MASK, RETAIN, RETAIN_LABELS

CLOSE = {"abs": 1e-6}
LOGITS = st.lists(st.floats(-30, 30), min_size=2, max_size=12)


def calibrated(retained: torch.Tensor, never_seen: torch.Tensor) -> EnergyBoundary:
    return calibrate_boundary(retained, never_seen, vocabulary=4, retained_sha256="a" * 64, never_seen_sha256="b" * 64)


@pytest.mark.parametrize(
    ("options", "forget", "retain"),
    [
        ({"index": "raw"}, [-2.3423496, -3.1755154], [-3.1392063, -2.4938117]),
        ({"index": "raw", "temperature": 2.0}, [-3.4486871, -4.0293499], None),
        ({"index": "centred"}, [-1.9673496, -2.6755154], [-2.3892063, -1.7438117]),
        # The best logits are 2 and 3: 2.3423496 - 2 and 3.1755154 - 3; at T = 2, 3.4486871 - 2 and 4.0293499 - 3.
        ({"index": "relative"}, [0.3423496, 0.1755154], None),
        ({"index": "relative", "temperature": 2.0}, [1.4486871, 1.0293499], None),
    ],
)
def test_energies_of_the_fixture(options: dict, forget: list[float], retain: list[float] | None) -> None:
    assert token_energy(FORGET, **options).tolist() == pytest.approx(forget, **CLOSE)
    if retain is not None:
        assert token_energy(RETAIN, **options).tolist() == pytest.approx(retain, **CLOSE)


def test_a_constant_moves_raw_energy_and_leaves_centred_energy_alone() -> None:
    assert token_energy(FORGET + 5, index="raw").tolist() == pytest.approx([-7.3423496, -8.1755154], **CLOSE)
    assert token_energy(FORGET + 5).tolist() == pytest.approx(token_energy(FORGET).tolist(), abs=1e-5)


@given(LOGITS, st.floats(0.5, 4), st.floats(-20, 20))
def test_relative_energy_is_how_sure_the_best_token_is_whatever_is_added_to_all_logits(
    values: list[float], temperature: float, constant: float
) -> None:
    logits = torch.tensor(values)
    found = token_energy(logits, index="relative", temperature=temperature)
    assert -1e-6 <= float(found) <= temperature * math.log(len(values)) + 1e-5
    moved = token_energy(logits + constant, index="relative", temperature=temperature)
    assert float(moved) == pytest.approx(float(found), abs=1e-4)
    best = torch.log_softmax(logits, dim=-1).max()
    assert float(token_energy(logits, index="relative")) == pytest.approx(-float(best), abs=1e-5)


def test_energy_plus_logit_is_log_probability() -> None:
    # 2 + (-2.3423496) = -0.3423496 = log p of token 0
    energy = token_energy(FORGET, index="raw")
    assert float(FORGET[0, 0] + energy[0]) == pytest.approx(float(torch.log_softmax(FORGET[0], 0)[0]), **CLOSE)


def test_the_gradient_of_raw_energy_is_minus_softmax() -> None:
    logits = FORGET[0].clone().requires_grad_(True)
    token_energy(logits, index="raw").backward()
    assert logits.grad.tolist() == pytest.approx([-0.7100999, -0.0961016, -0.0353538, -0.1584447], **CLOSE)


@given(LOGITS)
def test_centred_energy_never_exceeds_its_ceiling(values: list[float]) -> None:
    assert float(token_energy(torch.tensor(values))) <= energy_ceiling(len(values)) + 1e-5


def test_only_uniform_logits_reach_the_ceiling() -> None:
    assert float(token_energy(torch.full((4,), 3.0))) == pytest.approx(-math.log(4), **CLOSE)
    assert energy_ceiling(4) == pytest.approx(-1.3862944, **CLOSE)


def test_padded_vocabulary_rows_do_not_count() -> None:
    padded = torch.cat([FORGET, torch.full((2, 3), 50.0)], dim=-1)
    for index in ("raw", "centred", "relative"):
        expected = token_energy(FORGET, index=index)
        assert token_energy(padded, vocabulary=4, index=index).tolist() == pytest.approx(expected.tolist(), **CLOSE)


def test_half_precision_logits_are_reduced_in_float32() -> None:
    assert token_energy(FORGET.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"vocabulary": 5}, {"vocabulary": 0}])
def test_a_temperature_or_vocabulary_out_of_range_is_refused(options: dict) -> None:
    with pytest.raises(SpecError):
        token_energy(FORGET, **options)


def test_sequence_energy_averages_counted_positions_only() -> None:
    logits = torch.stack([FORGET[0], FORGET[1], torch.full((4,), 9.0)]).unsqueeze(0)
    mask = torch.tensor([[True, True, False]])
    # (-1.9673496 - 2.6755154) / 2
    assert float(sequence_energy(logits, mask)) == pytest.approx(-2.3214325, **CLOSE)


def test_the_energy_of_nothing_is_refused() -> None:
    with pytest.raises(EmptySequenceError):
        sequence_energy(FORGET.unsqueeze(0), torch.zeros(1, 2, dtype=torch.bool))


def test_hinges_of_the_fixture_by_token_and_by_sequence() -> None:
    forget = token_energy(FORGET, index="raw").unsqueeze(0)
    retain = token_energy(RETAIN, index="raw").unsqueeze(0)
    assert forget_hinge(forget, -1.5).flatten().tolist() == pytest.approx([0.7095528, 2.8073517], **CLOSE)
    by_token = boundary_loss(forget, MASK, boundary=-1.5, side="forget")
    by_sequence = boundary_loss(forget, MASK, boundary=-1.5, side="forget", pooling="sequence")
    assert float(by_token) == pytest.approx(1.7584523, **CLOSE)
    assert float(by_sequence) == pytest.approx(1.5849110, **CLOSE)
    assert float(boundary_loss(retain, MASK, boundary=-2.5, side="retain")) == pytest.approx(1.9147e-5, abs=1e-8)
    assert float(boundary_loss(retain, MASK, boundary=-2.5, side="retain", pooling="sequence")) == 0.0
    with pytest.raises(SpecError):
        boundary_loss(retain, MASK, boundary=-2.5, side="retain", pooling="row")


def test_the_whole_objective_of_the_fixture() -> None:
    forget = token_energy(FORGET, index="raw").unsqueeze(0)
    retain = token_energy(RETAIN, index="raw").unsqueeze(0)
    energy = boundary_loss(forget, MASK, boundary=-1.5, side="forget") + boundary_loss(
        retain, MASK, boundary=-2.5, side="retain"
    )
    kept = cross_entropy_of(RETAIN, RETAIN_LABELS)
    assert float(kept) == pytest.approx(0.3165090, **CLOSE)
    assert float(0.1 * energy + kept) == pytest.approx(0.4923562, **CLOSE)


def test_a_text_beyond_its_boundary_feels_no_push() -> None:
    logits = (FORGET * 0.01).requires_grad_(True)
    boundary_loss(token_energy(logits).unsqueeze(0), MASK, boundary=-2.0, side="forget").backward()
    assert float(logits.grad.abs().sum()) == 0.0


def test_auroc_counts_ties_as_half() -> None:
    # pairs (higher, lower): 2>1, 2=2, 3>1, 3>2 -> (1 + 0.5 + 1 + 1) / 4
    assert auroc(torch.tensor([2.0, 3.0]), torch.tensor([1.0, 2.0])) == pytest.approx(0.875)
    assert auroc(torch.tensor([1.0]), torch.tensor([1.0])) == 0.5


@pytest.mark.parametrize(
    ("higher", "error"), [(torch.tensor([]), EmptySetError), (torch.tensor([math.nan]), NonFiniteError)]
)
def test_auroc_of_nothing_or_of_no_number_is_refused(higher: torch.Tensor, error: type[Exception]) -> None:
    with pytest.raises(error):
        auroc(higher, torch.tensor([1.0]))


def test_margins_are_the_retained_ninetieth_percentile_and_the_never_seen_median() -> None:
    boundary = calibrated(torch.linspace(-20, -19, 101), torch.linspace(-15, -11, 101))
    assert boundary.retained_margin == pytest.approx(-19.1)
    assert boundary.never_seen_margin == pytest.approx(-13.0)
    assert boundary.auroc == 1.0
    assert not boundary.is_thin
    assert boundary.numbers()["never_seen_margin"] == boundary.never_seen_margin
    assert "retained_sha256" not in boundary.numbers()


def test_energies_that_do_not_separate_are_refused() -> None:
    same = torch.linspace(-20, -10, 101)
    with pytest.raises(EnergyNotSeparatingError, match="does not separate"):
        calibrated(same, same + 1)


def test_never_seen_texts_that_look_better_known_than_retained_ones_are_refused() -> None:
    with pytest.raises(EnergyNotSeparatingError):
        calibrated(torch.linspace(-15, -11, 101), torch.linspace(-20, -19, 101))


def test_a_thin_boundary_warns() -> None:
    generator = torch.Generator().manual_seed(0)
    retained = torch.randn(400, generator=generator)
    with pytest.warns(ThinBoundaryWarning):
        thin = calibrated(retained, torch.randn(400, generator=generator) + 1.4)
    assert thin.is_thin
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        calibrated(retained, torch.randn(400, generator=generator) + 6)
