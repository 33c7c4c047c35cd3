"""The utility floor: mixed back as little as needed, scanned and not searched, exact where one adapter unlearned."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft.tuners.lora.layer import Linear as LoraLinear

import ml.metrics.utility_floor as floors
import ml.models.adapters as adapters
from ml.attacks.extraction import extraction_strength
from ml.data.collate import EncodedText, encode_records
from ml.data.records import read_records
from ml.errors import EmptySequenceError, EmptySetError, NonFiniteError, SpecError, TokenizerMismatchError
from ml.finetune import cross_entropy_step
from ml.loop import LoopSettings, train
from ml.metrics.utility_floor import calibrated_extraction, mixed_adapter, mixed_models, utility_floor
from ml.models.adapters import adapter_tensors, attach_adapter, merge_adapter, scaled_adapter
from ml.models.load import LoadedModel, load_model
from ml.specs import ModelRef
from tests.ml.test_likelihood_attacks import _hits
from tests.tiny import TinyWorld, tiny_model

IDS = torch.tensor([[300, 301, 302, 303, 304]])


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> ModelRef:
    return tiny_model(tmp_path_factory.mktemp("floor") / "model", seed=1)


@pytest.fixture
def loaded(directory: ModelRef) -> LoadedModel:
    return load_model(directory)


def filled(loaded: LoadedModel, value: float) -> LoadedModel:
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            parameter.fill_(value)
    return loaded


def adapted(loaded: LoadedModel) -> LoadedModel:
    model = attach_adapter(loaded.model, rank=4, alpha=8.0, seed=2)
    with torch.no_grad():
        for number, parameter in enumerate(p for p in model.parameters() if p.requires_grad):
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)))
    return replace(loaded, model=model)


# --- oracles ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hits", "strength"),
    [("nyyy", 0.75), ("nnnn", 0.0), ("yyyy", 1.0), ("yyyn", 0.0)],
)
def test_extraction_strength_is_the_longest_right_end_and_nothing_right_is_nothing(hits: str, strength: float) -> None:
    assert float(extraction_strength(_hits([hit == "y" for hit in hits]))[0]) == pytest.approx(strength, abs=1e-6)


def test_a_quarter_of_the_original_2_mixed_into_0_is_a_half(directory: ModelRef) -> None:
    original, unlearned = filled(load_model(directory), 2.0), filled(load_model(directory), 0.0)
    with mixed_models(original, unlearned)(0.25) as found:
        assert all(torch.equal(p, torch.full_like(p, 0.5)) for p in found.model.parameters())


def test_a_quarter_of_the_original_takes_a_quarter_off_the_adapters_scaling(loaded: LoadedModel) -> None:
    unlearned = adapted(loaded)
    layers = [layer for layer in unlearned.model.modules() if isinstance(layer, LoraLinear)]
    assert {scale for layer in layers for scale in layer.scaling.values()} == {2.0}
    with mixed_adapter(unlearned)(0.25):
        assert {scale for layer in layers for scale in layer.scaling.values()} == {1.5}
    assert {scale for layer in layers for scale in layer.scaling.values()} == {2.0}


# --- mixing -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folded_weights", [adapters.FOLDED_WEIGHTS, 0])
@pytest.mark.parametrize("alpha", [0.0, 0.35, 1.0])
def test_scaling_the_adapter_is_mixing_the_weights(
    directory: ModelRef, monkeypatch: pytest.MonkeyPatch, folded_weights: int, alpha: float
) -> None:
    monkeypatch.setattr(adapters, "FOLDED_WEIGHTS", folded_weights)
    unlearned = adapted(load_model(directory))
    merged = adapted(load_model(directory))
    merged = replace(merged, model=merge_adapter(merged.model))
    with (
        torch.no_grad(),
        mixed_adapter(unlearned)(alpha) as scaled,
        mixed_models(load_model(directory), merged)(alpha) as mixed,
    ):
        assert torch.allclose(scaled.model(IDS).logits, mixed.model(IDS).logits, atol=1e-5)


def test_both_ends_of_an_adapter_are_the_two_models_bit_for_bit(directory: ModelRef) -> None:
    unlearned = adapted(load_model(directory))
    with torch.no_grad():
        after, before = unlearned.model(IDS).logits, load_model(directory).model(IDS).logits
        for alpha, wanted in ((0.0, after), (1.0, before)):
            with mixed_adapter(unlearned)(alpha) as mixed:
                assert torch.equal(mixed.model(IDS).logits, wanted)
        assert torch.equal(unlearned.model(IDS).logits, after)


def test_the_scaling_comes_back_whatever_is_raised_inside(loaded: LoadedModel) -> None:
    model = adapted(loaded).model
    weights = {name: tensor.clone() for name, tensor in adapter_tensors(model).items()}
    with pytest.raises(KeyboardInterrupt), scaled_adapter(model, 0.5):
        raise KeyboardInterrupt
    assert {s for m in model.modules() if isinstance(m, LoraLinear) for s in m.scaling.values()} == {2.0}
    assert all(torch.equal(weights[name], tensor) for name, tensor in adapter_tensors(model).items())


def test_models_that_do_not_fit_each_other_are_refused(
    directory: ModelRef, loaded: LoadedModel, tmp_path: Path
) -> None:
    stranger = load_model(tiny_model(tmp_path / "other", seed=5))
    with pytest.raises(TokenizerMismatchError, match="nothing to mix"):
        mixed_models(loaded, stranger)
    shorter = load_model(directory)
    shorter.model.model.layers = shorter.model.model.layers[:1]
    with pytest.raises(SpecError, match="same weights"), mixed_models(loaded, shorter)(0.5):
        pass
    with pytest.raises(SpecError, match="exactly one adapter"):
        mixed_adapter(loaded)
    two = adapted(load_model(directory))
    two.model.add_adapter("second", two.model.peft_config["default"])
    with pytest.raises(SpecError, match="exactly one adapter"):
        mixed_adapter(two)


# --- the floor ----------------------------------------------------------------------------------------------------


def test_the_least_share_on_the_grid_that_retains_enough_is_taken() -> None:
    floor = utility_floor(lambda alpha: 0.5 + 0.5 * alpha, tau=0.95)
    assert floor.alpha == 0.9  # .5 + .45 = .95
    assert floor.retained == pytest.approx(0.95)
    assert [alpha for alpha, _ in floor.scanned] == [step / 20 for step in range(19)]


def test_a_model_that_kept_everything_needs_nothing_back_and_a_broken_one_all_of_it() -> None:
    assert utility_floor(lambda alpha: 0.8).alpha == 0.0
    broken = utility_floor(lambda alpha: 0.8 if alpha == 1 else 0.0)
    assert (broken.alpha, broken.retained, len(broken.scanned)) == (1.0, 0.8, 21)


def test_a_dip_on_the_way_is_not_skipped() -> None:
    # enough at .1, not at .5: halving the interval would end above .5
    scores = {0.0: 0.1, 0.05: 0.2, 0.1: 0.96, 0.5: 0.3}
    assert utility_floor(lambda alpha: scores.get(alpha, 1.0)).alpha == 0.1


@given(st.lists(st.floats(0, 1), min_size=20, max_size=20), st.floats(0.01, 1), st.floats(0.05, 1))
def test_the_floor_is_the_first_grid_point_that_retains_enough(
    scores: list[float], original: float, tau: float
) -> None:
    floor = utility_floor(lambda alpha: original if alpha == 1 else scores[round(alpha * 20)], tau=tau)
    assert floor.retained >= tau * original
    assert all(score < tau * original for _, score in floor.scanned[:-1])
    assert len(floor.scanned) == round(floor.alpha * 20) + 1


@pytest.mark.parametrize("tau", [0.0, 1.1, float("nan")])
def test_a_share_that_means_nothing_is_refused(tau: float) -> None:
    with pytest.raises(SpecError, match="share in"):
        utility_floor(lambda alpha: 1.0, tau=tau)


def test_an_original_that_retains_nothing_has_no_floor() -> None:
    with pytest.raises(SpecError, match="retains nothing"):
        utility_floor(lambda alpha: 0.0)
    with pytest.raises(SpecError, match="at least one step"):
        utility_floor(lambda alpha: 1.0, steps=0)


@pytest.mark.parametrize("broken_at", [0.0, 0.3, 1.0])
def test_a_score_that_is_no_number_is_never_passed_on(broken_at: float) -> None:
    with pytest.raises(NonFiniteError):
        utility_floor(lambda alpha: float("nan") if alpha == broken_at else 0.5 + 0.5 * (alpha == 1))


def test_a_floor_without_texts_is_refused(loaded: LoadedModel) -> None:
    with pytest.raises(EmptySetError):
        calibrated_extraction(mixed_models(loaded, loaded), retain=[], forget=[])


@pytest.mark.parametrize("bare", ["retain", "forget"])
def test_a_text_that_is_nothing_but_its_end_is_blamed_and_not_the_model(loaded: LoadedModel, bare: str) -> None:
    texts = {"retain": [EncodedText((300, 301, 302), 1, ())], "forget": [EncodedText((300, 301, 302), 1, ())]}
    texts[bare].append(EncodedText((300, 301), 1, ()))
    with pytest.raises(EmptySequenceError, match="1 texts .* nothing but their end"):
        calibrated_extraction(mixed_models(loaded, loaded), **texts)


def test_a_forget_score_that_is_no_number_is_never_passed_on(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    retain, forget = [EncodedText((300, 301, 302), 1, ())], [EncodedText((303, 304, 305), 1, ())]
    monkeypatch.setattr(floors, "fused_pass", lambda _, texts: texts)
    monkeypatch.setattr(
        floors, "extraction_strength", lambda texts: torch.tensor([float("nan") if texts is forget else 1.0])
    )
    with pytest.raises(NonFiniteError, match="to be forgotten"):
        calibrated_extraction(mixed_models(loaded, loaded), retain=retain, forget=forget)


@pytest.mark.slow
def test_a_model_broken_by_ascent_remembers_again_at_its_floor(tiny: TinyWorld) -> None:
    loaded = load_model(tiny.before)
    forget, retain = (
        encode_records(loaded.tokenizer, read_records(ref, what="set"), context=loaded.context)
        for ref in (tiny.forget, tiny.retain)
    )
    model = attach_adapter(loaded.model, rank=4, alpha=8.0, seed=0)
    down = cross_entropy_step(model, forget, pad_id=loaded.pad_id, batch_rows=16, seed=0, device="cpu")
    train(
        model,
        lambda number, backward: down(number, lambda loss: backward(-loss)),
        LoopSettings(steps=30, learning_rate=1e-2),
        phase="ascent",
    )
    unlearned = replace(loaded, model=model)
    found = calibrated_extraction(mixed_adapter(unlearned), retain=retain, forget=forget)
    assert found.original > 0.9
    assert found.unlearned < 0.1
    assert 0 < found.floor.alpha < 1
    assert found.floor.retained >= 0.95 * found.floor.retained_original > found.floor.scanned[0][1]
    assert found.at_floor > found.unlearned

    merged = load_model(tiny.before)
    plain = replace(loaded, model=merge_adapter(model))
    same = calibrated_extraction(mixed_models(merged, plain), retain=retain, forget=forget)
    assert same.floor.alpha == pytest.approx(found.floor.alpha, abs=0.05)
