"""Small models made from nothing: a byte-level BPE tokenizer and an untrained Llama-architecture network."""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

END_TOKEN: Final = "<|end|>"  # noqa: S105 - an end-of-sequence mark, not a password
PAD_TOKEN: Final = "<|pad|>"  # noqa: S105 - padding, not a password
# Digits in pairs: one token for two digits, cut the same way in every number, so that a random number costs a fixed
# number of tokens whoever it belongs to.
_PIECES: Final = r" ?\p{L}+| ?\p{N}{1,2}| ?[^\s\p{L}\p{N}]+|\s+"


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Size of a Llama-architecture model; embeddings are tied."""

    hidden: int
    layers: int
    heads: int
    feed_forward: int
    vocabulary: int
    context: int = 128


def train_tokenizer(texts: Sequence[str], *, vocabulary: int, context: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer on `texts`; deterministic in its input.

    Every pair of digits, with and without a space before it, and every letter after a space become tokens whatever
    the texts hold: a value then always begins with a token of its own, and a space never stands alone before it.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END_TOKEN, PAD_TOKEN],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*texts, *[" ".join(_beginnings())] * len(texts)], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END_TOKEN, pad_token=PAD_TOKEN, model_max_length=context
    )


def _beginnings() -> list[str]:
    pairs = [f"{number:02d}" for number in range(100)]
    return ["", *string.ascii_letters, *string.digits, *pairs, *(f"{pair}-{pair}" for pair in pairs)]


def untrained_llama(shape: ModelShape, tokenizer: Any, *, seed: int) -> LlamaForCausalLM:
    """Return a seeded, untrained float32 model for `tokenizer`, leaving the caller's random state as it was."""
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.feed_forward,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=shape.context,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).to(torch.float32)
