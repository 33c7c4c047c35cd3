"""Copies of a model as somebody who holds the weights could make them (T5, T6)."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ml.errors import NonFiniteError, SpecError
from ml.models.load import LoadedModel, load_model
from ml.models.quantise import linear_layers
from ml.models.tampering import noised_weights, pruned_weights, scaled_change, truncated_change
from tests.tiny import tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load_model(tiny_model(Path(tmp_path_factory.mktemp("tiny")) / "model", seed=2))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load_model(tiny_model(Path(tmp_path_factory.mktemp("tiny")) / "model", seed=3))


def _same(first: LoadedModel, second: LoadedModel) -> bool:
    pairs = zip(first.model.state_dict().items(), second.model.state_dict().items(), strict=True)
    return all(a == b and torch.equal(p, q) for (a, p), (b, q) in pairs)


def test_a_scaling_of_0_and_of_1_are_the_two_models_bit_for_bit(model: LoadedModel, other: LoadedModel) -> None:
    assert not _same(model, other)
    assert _same(scaled_change(model, other, 0.0), model)
    assert _same(scaled_change(model, other, 1.0), other)
    assert scaled_change(model, other, 1.0).model is not other.model


def test_a_scaling_between_and_beyond_lies_on_the_line_through_both(model: LoadedModel, other: LoadedModel) -> None:
    for share in (0.5, 0.75, 1.25):
        copy = dict(scaled_change(model, other, share).model.named_parameters())
        for (name, old), new in zip(model.model.named_parameters(), other.model.parameters(), strict=True):
            assert torch.allclose(copy[name], old + share * (new - old), atol=1e-6)


def test_a_scaling_in_half_precision_keeps_both_ends(model: LoadedModel, other: LoadedModel) -> None:
    halves = [load_model_copy(m, torch.bfloat16) for m in (model, other)]
    assert _same(scaled_change(*halves, 0.0), halves[0])
    assert _same(scaled_change(*halves, 1.0), halves[1])


def load_model_copy(loaded: LoadedModel, dtype: torch.dtype) -> LoadedModel:
    return replace(loaded, model=pruned_weights(loaded, share=0.0).model.to(dtype))


def test_half_the_rank_keeps_the_stronger_half_of_a_change(model: LoadedModel) -> None:
    """A change of rank 3 with strengths 3, 2, 1 keeps the first two; one of rank 1 stays; vectors keep theirs."""
    generator = torch.Generator().manual_seed(4)
    changed = deepcopy(model.model)
    name, weight = next((n, p) for n, p in changed.named_parameters() if p.dim() == 2 and "proj" in n)
    other, single = next((n, p) for n, p in changed.named_parameters() if p.dim() == 2 and "proj" in n and n != name)
    vector_name, vector = next((n, p) for n, p in changed.named_parameters() if p.dim() == 1)
    left = torch.linalg.qr(torch.randn(weight.shape[0], 3, generator=generator)).Q
    right = torch.linalg.qr(torch.randn(weight.shape[1], 3, generator=generator)).Q
    with torch.no_grad():
        weight += left @ torch.diag(torch.tensor([3.0, 2.0, 1.0])) @ right.T
        single += torch.outer(torch.ones(single.shape[0]), torch.arange(single.shape[1]) / single.shape[1])
        vector += 0.25
    after = replace(model, model=changed)
    made = dict(truncated_change(model, after).model.named_parameters())
    before = dict(model.model.named_parameters())
    kept = left[:, :2] @ torch.diag(torch.tensor([3.0, 2.0])) @ right[:, :2].T
    assert torch.allclose(made[name] - before[name], kept, atol=1e-4)
    assert torch.allclose(made[other], single, atol=1e-4)
    assert torch.allclose(made[vector_name], vector)
    assert _same(truncated_change(model, model), model)


def test_models_of_another_shape_cannot_be_scaled(model: LoadedModel) -> None:
    odd = replace(model, model=torch.nn.Linear(2, 2))
    with pytest.raises(SpecError):
        scaled_change(odd, model, 0.5)


def test_noise_depends_on_the_seed_and_on_nothing_else(model: LoadedModel) -> None:
    first = noised_weights(model, seed=5)
    torch.manual_seed(99)
    assert _same(first, noised_weights(model, seed=5))
    assert not _same(first, noised_weights(model, seed=6))
    for (_, old), new in zip(model.model.named_parameters(), first.model.parameters(), strict=True):
        moved = ((new - old).square().mean() / old.square().mean()).sqrt().detach()
        # 1e-3 of the tensor's size, give or take what a draw of 64 values leaves open
        assert float(moved) == pytest.approx(1e-3, rel=0.4)


def test_pruning_zeroes_the_smallest_tenth_of_each_linear_layer(model: LoadedModel) -> None:
    pruned = pruned_weights(model)
    layers = linear_layers(pruned.model)
    for name, layer in layers.items():
        old, gone = linear_layers(model.model)[name].weight, layer.weight == 0
        assert int(gone.sum()) == int(0.1 * old.numel())
        assert old[gone].abs().max() <= old[~gone].abs().min()
        assert torch.equal(layer.weight[~gone], old[~gone])
    kept = {name for name, _ in model.model.named_parameters()} - {f"{name}.weight" for name in layers}
    assert kept
    assert all(torch.equal(pruned.model.get_parameter(name), model.model.get_parameter(name)) for name in kept)


def test_the_model_that_was_given_stays_as_it_was(model: LoadedModel, other: LoadedModel) -> None:
    weights = {name: p.detach().clone() for name, p in model.model.named_parameters()}
    for copy in (noised_weights(model, seed=1), pruned_weights(model), scaled_change(other, model, 0.5)):
        assert not _same(copy, model)
        assert copy.model.get_output_embeddings().weight is copy.model.get_input_embeddings().weight
    assert all(torch.equal(p, weights[name]) for name, p in model.model.named_parameters())


def test_weights_that_are_no_numbers_and_odd_shares_are_refused(model: LoadedModel) -> None:
    spoiled = pruned_weights(model, share=0.0)
    next(spoiled.model.parameters()).data[0, 0] = torch.nan
    with pytest.raises(NonFiniteError):
        noised_weights(spoiled, seed=1)
    with pytest.raises(SpecError):
        pruned_weights(model, share=1.0)
