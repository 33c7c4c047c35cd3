"""Adapters: attached without changing anything, switched off for the reference, merged for release."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import ml.models.adapters as adapters
from ml.data.collate import collate, encode_text, labels_in_order
from ml.digests import model_manifest
from ml.errors import SpecError
from ml.models.adapters import (
    adapter_sha256,
    adapter_tensors,
    attach_adapter,
    merge_adapter,
    put_adapter_tensors,
    reference_model,
    trained_parameters,
)
from ml.models.forward import label_logits, logits_before
from ml.models.load import LoadedModel, load_model, model_ref
from ml.models.save import partial_directory, publish_model
from ml.models.scratch import ModelShape, untrained_llama
from ml.specs import ModelRef
from tests.tiny import tiny_model

IDS = torch.tensor([[300, 301, 302, 303, 304]])


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> ModelRef:
    return tiny_model(tmp_path_factory.mktemp("adapters") / "model", seed=1)


@pytest.fixture
def loaded(directory: ModelRef) -> LoadedModel:
    return load_model(directory)


def shaken(loaded: LoadedModel, seed: int = 2, rank: int = 4) -> object:
    model = attach_adapter(loaded.model, rank=rank, alpha=8.0, seed=seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return model


def test_a_fresh_adapter_changes_nothing_and_trains_only_itself(loaded: LoadedModel) -> None:
    with torch.no_grad():
        before = loaded.model(IDS).logits
        model = attach_adapter(loaded.model, rank=4, alpha=8.0, seed=2)
        assert torch.equal(model(IDS).logits, before)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained
    assert all("lora_" in name for name in trained)
    # every linear layer of the 2 blocks (q k v o gate up down), with A and B; not the output layer
    assert len(trained) == 2 * 7 * 2


def test_the_seed_decides_the_adapter_and_the_callers_random_state_stays(directory: ModelRef) -> None:
    torch.manual_seed(9)
    state = torch.get_rng_state()
    first, same, other = (
        adapter_sha256(attach_adapter(load_model(directory).model, rank=4, alpha=4.0, seed=seed)) for seed in (1, 1, 2)
    )
    assert first == same != other
    assert torch.equal(torch.get_rng_state(), state)


def test_the_reference_is_the_model_before_whatever_the_adapter_learned(loaded: LoadedModel) -> None:
    with torch.no_grad():
        before = loaded.model(IDS).logits
    model = shaken(loaded)
    with reference_model(model) as reference:
        seen = reference(IDS).logits
    assert torch.equal(seen, before)
    assert not seen.requires_grad
    after = model(IDS).logits
    assert after.requires_grad
    assert not torch.allclose(after, before)


@pytest.mark.parametrize("rank", [4, 32])
def test_a_folded_adapter_says_and_learns_what_its_own_path_does(
    directory: ModelRef, monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    """A narrow one by a backward of its own, a wide one by the whole weight's gradient."""
    narrow: list[int] = []
    apply = adapters._FoldedLinear.apply
    monkeypatch.setattr(adapters._FoldedLinear, "apply", lambda *given: narrow.append(rank) or apply(*given))
    folded = shaken(load_model(directory), rank=rank)
    monkeypatch.setattr(adapters, "FOLDED_WEIGHTS", 0)
    plain = shaken(load_model(directory), rank=rank)
    outputs = [model(IDS).logits for model in (folded, plain)]
    assert torch.allclose(*outputs, atol=1e-5)
    for logits in outputs:
        torch.nn.functional.cross_entropy(logits[0, :-1], IDS[0, 1:]).backward()
    assert bool(narrow) == (rank == 4)
    for one, other in zip(trained_parameters(folded), trained_parameters(plain), strict=True):
        assert one.grad is not None
        assert torch.allclose(one.grad, other.grad, atol=1e-5)


def test_the_reference_inside_the_reference_ends_with_the_outer_one(loaded: LoadedModel) -> None:
    with torch.no_grad():
        before = loaded.model(IDS).logits
    model = shaken(loaded)
    with reference_model(model):
        with reference_model(model) as inner:
            assert torch.equal(inner(IDS).logits, before)
        assert torch.equal(model(IDS).logits, before)
        assert not model(IDS).logits.requires_grad
    assert not torch.allclose(model(IDS).logits, before)


def test_the_merged_model_says_what_the_adapter_said(loaded: LoadedModel, tmp_path: Path) -> None:
    model = shaken(loaded)
    with torch.no_grad():
        adapted = model(IDS).logits
    publish_model(merge_adapter(model), loaded.tokenizer, tmp_path / "merged")
    merged = load_model(model_ref(tmp_path / "merged"))
    assert not any("lora" in name for name, _ in merged.model.named_parameters())
    with torch.no_grad():
        assert torch.allclose(merged.model(IDS).logits, adapted, atol=1e-5)


def test_a_saved_model_has_the_same_tokenizer_and_no_local_path(loaded: LoadedModel, tmp_path: Path) -> None:
    publish_model(loaded.model, loaded.tokenizer, tmp_path / "copy")
    assert load_model(model_ref(tmp_path / "copy")).tokenizer.get_vocab() == loaded.tokenizer.get_vocab()
    texts = [p.read_text(encoding="utf-8") for p in (tmp_path / "copy").glob("*.json")]
    assert not any(str(tmp_path.parent) in text for text in texts)


def test_saving_twice_gives_the_same_digest(loaded: LoadedModel, tmp_path: Path) -> None:
    for name in ("one", "two"):
        publish_model(loaded.model, loaded.tokenizer, tmp_path / name)
    digests = {model_manifest(tmp_path / name).manifest_sha256 for name in ("one", "two")}
    assert len(digests) == 1


def test_what_a_killed_save_left_behind_is_thrown_away(tmp_path: Path) -> None:
    (tmp_path / "model.partial").mkdir()
    (tmp_path / "model.partial" / "half.safetensors").write_bytes(b"torn")
    assert list(partial_directory(tmp_path / "model").iterdir()) == []


def test_an_adapter_needs_a_rank(loaded: LoadedModel) -> None:
    with pytest.raises(SpecError, match="rank of at least 1"):
        attach_adapter(loaded.model, rank=0, alpha=1.0, seed=0)


def blocks_with(model: object) -> set[str]:
    return {name.split(".layers.")[1].split(".")[0] for name in adapter_tensors(model)}


@pytest.mark.parametrize("numbers", [{3}, {3, 30, 31}, {0}, {31}])
def test_an_adapter_for_block_3_is_not_one_for_block_30(loaded: LoadedModel, numbers: set[int]) -> None:
    shape = ModelShape(hidden=8, layers=32, heads=2, feed_forward=8, vocabulary=768)
    model = attach_adapter(untrained_llama(shape, loaded.tokenizer, seed=0), rank=1, alpha=1.0, seed=0, blocks=numbers)
    assert blocks_with(model) == {str(number) for number in numbers}
    assert len(adapter_tensors(model)) == len(numbers) * 7 * 2


def test_stored_adapter_weights_come_back_frozen_and_only_where_they_fit(
    directory: ModelRef, loaded: LoadedModel
) -> None:
    model = shaken(loaded)
    stored = adapter_tensors(model)
    upper = {name: tensor for name, tensor in stored.items() if ".layers.1." in name}
    other = attach_adapter(load_model(directory).model, rank=4, alpha=8.0, seed=5)
    put_adapter_tensors(other, upper)
    assert blocks_with(other) == {"0"}  # what is left to be trained
    put_adapter_tensors(other, stored)
    assert trained_parameters(other) == []
    with torch.no_grad():
        assert torch.equal(other(IDS).logits, model(IDS).logits)
    narrow = attach_adapter(load_model(directory).model, rank=2, alpha=8.0, seed=5)
    base_weight = "base_model.model.model.norm.weight"
    for wrong in (stored, {"elsewhere": torch.zeros(1)}, {base_weight: dict(narrow.named_parameters())[base_weight]}):
        with pytest.raises(SpecError, match="do not fit"):
            put_adapter_tensors(narrow, wrong)


def test_adapter_tensors_are_copies_of_the_trained_weights_alone(loaded: LoadedModel) -> None:
    model = attach_adapter(loaded.model, rank=2, alpha=2.0, seed=0)
    assert set(adapter_tensors(model)) == {name for name, p in model.named_parameters() if p.requires_grad}


def test_logits_of_labels_and_before_positions_are_those_of_the_whole_pass(loaded: LoadedModel) -> None:
    texts = [("What is it?\nA boat.", 12), ("And the name of that boat, please?\nNo.", 35)]
    rows = [encode_text(loaded.tokenizer, text, start, context=loaded.context) for text, start in texts]
    batch = collate(rows, pad_id=loaded.pad_id)
    with torch.no_grad():
        full = loaded.model(batch.input_ids).logits
        cut = label_logits(loaded.model, batch)
        positions = [range(row.first_label, len(row.ids)) for row in rows]
        flat = logits_before(loaded.model, rows, positions, pad_id=loaded.pad_id, device="cpu")
        again = loaded.model(batch.input_ids).logits
    wanted = torch.cat([full[i, row.first_label - 1 : len(row.ids) - 1] for i, row in enumerate(rows)])
    assert torch.allclose(cut, wanted, atol=1e-5)
    assert torch.allclose(flat, wanted, atol=1e-5)
    assert labels_in_order(batch.labels).tolist() == [i for row in rows for i in row.ids[row.first_label :]]
    assert torch.equal(again, full)  # nothing stays behind on the output layer


def test_a_model_that_does_not_call_its_output_layer_is_refused(loaded: LoadedModel) -> None:
    """Its logits would be those of all positions, and the first of them would be taken for the labels'."""
    row = encode_text(loaded.tokenizer, "What is it?\nA boat.", 12, context=loaded.context)
    batch = collate([row], pad_id=loaded.pad_id)
    head = loaded.model.get_output_embeddings()
    for wrong in (torch.nn.Identity(), None, loaded.model.get_input_embeddings()):
        loaded.model.get_output_embeddings = lambda wrong=wrong: wrong
        with pytest.raises(SpecError, match="no output layer"):
            label_logits(loaded.model, batch)
    loaded.model.get_output_embeddings = lambda: head
    assert label_logits(loaded.model, batch).shape[0] == len(row.ids) - row.first_label
