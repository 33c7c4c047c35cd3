"""Gradient norms without gradients, against the gradients themselves."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from ml.attacks.gradient_norm import ghost_square, gradient_norms
from ml.data.collate import EncodedText
from ml.errors import EmptySequenceError, SpecError
from ml.models.load import LoadedModel, load_model
from tests.tiny import tiny_model

TEXTS = (
    EncodedText((5, 9, 11, 3, 17, 2), 2, ()),
    EncodedText((8, 9, 8, 9, 8, 9, 30, 31, 2), 1, ()),
    EncodedText((40, 41, 2), 1, ()),
)


def _norm_of_each_gradient(loaded: LoadedModel, text: EncodedText) -> Tensor:
    """The definition: one text, one backward pass, the mean of the norms of all gradients."""
    model = loaded.model
    counted = [p for p in model.parameters() if p.requires_grad]
    ids = torch.tensor([text.ids])
    log_probs = torch.log_softmax(model(input_ids=ids).logits[0].float(), dim=-1)
    labels = ids[0, text.first_label : -1]
    loss = -log_probs[text.first_label - 1 : -2].gather(-1, labels.unsqueeze(-1)).mean()
    gradients = torch.autograd.grad(loss, counted, allow_unused=True)
    return torch.stack([gradient.norm() for gradient in gradients if gradient is not None]).mean()


def _agree(loaded: LoadedModel) -> None:
    expected = torch.stack([_norm_of_each_gradient(loaded, text) for text in TEXTS]).detach()
    assert torch.allclose(gradient_norms(loaded, TEXTS), expected, rtol=1e-4, atol=1e-6)
    assert torch.allclose(gradient_norms(loaded, TEXTS, budget=1), expected, rtol=1e-4, atol=1e-6)


def test_the_norm_of_a_linear_layer_needs_no_gradient() -> None:
    # O-12, by both ways of computing it: few tokens, and more tokens than weights
    inputs, gradients = torch.tensor([[[1.0, 1.0], [0.0, 1.0]]]), torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
    assert float(ghost_square(inputs, gradients)[0]) == 57
    padded = torch.zeros(1, 3, 2)
    longer = torch.cat([inputs, padded], dim=1), torch.cat([gradients, padded], dim=1)
    assert float(ghost_square(*longer)[0]) == 57


def test_tied_embeddings_norms_and_linear_layers_together(tmp_path: Path) -> None:
    loaded = load_model(tiny_model(tmp_path / "model"))
    loaded.model.requires_grad_(True)
    _agree(loaded)
    assert all(p.requires_grad and p.grad is None for p in loaded.model.parameters())


def test_layers_with_biases_and_transposed_weights(tmp_path: Path) -> None:
    tiny = load_model(tiny_model(tmp_path / "model"))
    torch.manual_seed(0)
    shape = GPT2Config(vocab_size=64, n_embd=16, n_layer=2, n_head=2, n_positions=32)
    other = LoadedModel(GPT2LMHeadModel(shape).eval(), tiny.tokenizer, tiny.context, tiny.manifest_sha256)
    _agree(other)


def test_only_an_adapter_counts_where_only_an_adapter_is_trained(tmp_path: Path) -> None:
    loaded = load_model(tiny_model(tmp_path / "model"))
    adapted = get_peft_model(loaded.model, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    _agree(LoadedModel(adapted.eval(), loaded.tokenizer, loaded.context, loaded.manifest_sha256))


def test_a_text_without_a_label_of_its_own_has_no_norm(tmp_path: Path) -> None:
    loaded = load_model(tiny_model(tmp_path / "model"))
    with pytest.raises(EmptySequenceError):
        gradient_norms(loaded, [EncodedText((5, 9, 2), 2, ())])


def test_a_parameter_shared_in_an_unknown_way_is_refused(tmp_path: Path) -> None:
    loaded = load_model(tiny_model(tmp_path / "model"))
    layers = [m for m in loaded.model.modules() if isinstance(m, nn.Linear) and m.in_features == m.out_features]
    layers[1].weight = layers[0].weight
    with pytest.raises(SpecError, match="shared"):
        gradient_norms(loaded, TEXTS)
