"""Adapters on some layers only: whole names, parts of blocks, and passes that end at a block."""

from __future__ import annotations

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from ml.errors import SpecError
from ml.models.adapters import attach_adapter
from ml.models.layers import linear_layer_names, states_after

IDS = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])


def llama(layers: int = 2) -> LlamaForCausalLM:
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "vocab_size": 32}
    return LlamaForCausalLM(LlamaConfig(num_hidden_layers=layers, **shape)).eval()


def gpt2() -> GPT2LMHeadModel:
    return GPT2LMHeadModel(GPT2Config(n_layer=3, n_embd=16, n_head=2, vocab_size=32, n_positions=16)).eval()


def trained_layers(model: torch.nn.Module) -> set[str]:
    """Layers that carry an adapter, named as in the plain model."""
    prefix = "base_model.model."
    return {name.split(".lora_")[0].removeprefix(prefix) for name, p in model.named_parameters() if p.requires_grad}


def test_block_one_is_not_taken_for_blocks_ten_and_eleven() -> None:
    adapted = attach_adapter(llama(12), rank=2, alpha=2.0, seed=1, blocks=[1], part="feed_forward")
    expected = {f"model.layers.1.mlp.{name}" for name in ("gate_proj", "up_proj", "down_proj")}
    assert trained_layers(adapted) == expected


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ("all", {"attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"}),
        ("feed_forward", {"mlp.c_fc", "mlp.c_proj"}),
        ("feed_forward_output", {"mlp.c_proj"}),
    ],
)
def test_a_part_of_a_block_is_found_in_another_architecture(part: str, expected: set[str]) -> None:
    plain = gpt2()
    expected_logits = plain(IDS).logits.detach()
    adapted = attach_adapter(plain, rank=2, alpha=2.0, seed=1, blocks=[0, 2], part=part)
    assert torch.allclose(adapted(IDS).logits, expected_logits, atol=1e-5)
    assert trained_layers(adapted) == {f"transformer.h.{block}.{name}" for block in (0, 2) for name in expected}


def test_a_part_without_blocks_is_taken_from_every_block() -> None:
    assert linear_layer_names(llama(), None, "feed_forward_output") == [
        f"model.layers.{block}.mlp.down_proj" for block in (0, 1)
    ]


def test_blocks_and_parts_that_do_not_exist_are_refused() -> None:
    with pytest.raises(SpecError, match="there is no block 2; the model has 2"):
        attach_adapter(llama(), rank=2, alpha=2.0, seed=1, blocks=[0, 2])
    with pytest.raises(SpecError, match="there is no block -1"):
        attach_adapter(llama(), rank=2, alpha=2.0, seed=1, blocks=[-1])
    with pytest.raises(SpecError, match="no linear layer"):
        attach_adapter(llama(), rank=2, alpha=2.0, seed=1, blocks=[])
    odd = llama()
    for block in odd.model.layers:
        block.renamed = block.mlp
        del block.mlp
    with pytest.raises(SpecError, match="no part of a known name"):
        linear_layer_names(odd, None, "feed_forward")


@pytest.mark.parametrize("make", [llama, gpt2])
def test_a_pass_that_ends_at_a_block_brings_its_states_and_runs_nothing_above(make: type) -> None:
    model = make()
    whole = model(IDS, output_hidden_states=True).hidden_states[1]
    last = model.base_model.layers[1] if make is llama else model.base_model.h[1]
    ran: list[int] = []
    last.register_forward_hook(lambda *_: ran.append(1))
    states = states_after(model, IDS, 0)
    assert torch.allclose(states, whole, atol=1e-6)
    assert states.requires_grad
    assert ran == []
    assert model(IDS).logits.shape == (2, 4, 32)
    assert ran == [1]


def test_a_pass_to_a_block_that_does_not_exist_is_refused() -> None:
    with pytest.raises(SpecError, match="there is no block 7"):
        states_after(llama(), IDS, 7)
