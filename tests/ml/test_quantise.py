"""Rounded weights stay within half a step, and only linear layers below the output are touched."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ml.errors import NonFiniteError, SpecError
from ml.models.load import LoadedModel, load_model
from ml.models.quantise import linear_layers, quantised, round_int4, round_int8
from tests.tiny import tiny_model


def test_eight_bits_have_one_step_per_output_channel() -> None:
    weight = torch.tensor([[1.27, -0.014, 0.006], [0.0, 0.0, 0.0]])
    # the step of the first row is 1.27 / 127 = 0.01
    assert round_int8(weight)[0].tolist() == pytest.approx([1.27, -0.01, 0.01], abs=1e-6)
    assert round_int8(weight)[1].tolist() == [0.0, 0.0, 0.0]


def test_four_bits_have_one_step_per_group_of_inputs() -> None:
    weight = torch.tensor([[0.7, 0.16, -0.04, 7.0, 1.4]])
    # groups (.7 .16 -.04) with step .1 and (7 1.4) with step 1
    assert round_int4(weight, group=3)[0].tolist() == pytest.approx([0.7, 0.2, 0.0, 7.0, 1.0], abs=1e-6)


@pytest.mark.parametrize(("rounding", "levels", "group"), [(round_int8, 127, 96), (round_int4, 7, 32)])
def test_no_weight_moves_by_more_than_half_a_step(rounding: object, levels: int, group: int) -> None:
    weight = torch.randn(40, 96, generator=torch.Generator().manual_seed(1))
    rounded = round_int8(weight) if levels == 127 else round_int4(weight)
    steps = weight.reshape(40, -1, group).abs().amax(-1, keepdim=True) / levels
    moved = (rounded - weight).reshape(40, -1, group).abs()
    assert bool((moved <= steps / 2 + 1e-6).all())
    assert torch.allclose(round_int8(round_int8(weight)), round_int8(weight), atol=1e-6)


def test_a_weight_that_is_no_number_cannot_be_rounded() -> None:
    with pytest.raises(NonFiniteError):
        round_int8(torch.tensor([[float("nan")]]))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load_model(tiny_model(Path(tmp_path_factory.mktemp("tiny")) / "model", seed=2))


@pytest.mark.parametrize("artefact", ["int8", "int4"])
def test_a_rounded_copy_leaves_the_model_embeddings_and_output_alone(model: LoadedModel, artefact: str) -> None:
    original = {name: p.detach().clone() for name, p in model.model.named_parameters()}
    copy = quantised(model, artefact)
    rounded = {f"{name}.weight" for name in linear_layers(model.model)}
    for name, parameter in copy.model.named_parameters():
        assert torch.equal(parameter, original[name]) == (name not in rounded), name
    assert all(torch.equal(p, original[name]) for name, p in model.model.named_parameters())
    assert copy.model.get_output_embeddings().weight is copy.model.get_input_embeddings().weight


def test_an_unknown_artefact_or_a_model_without_linear_layers_is_refused(model: LoadedModel) -> None:
    with pytest.raises(SpecError, match="known: int4, int8"):
        quantised(model, "int2")

    class Bare(torch.nn.Module):
        def get_output_embeddings(self) -> None:
            return None

    with pytest.raises(SpecError):
        quantised(replace(model, model=Bare()), "int8")
