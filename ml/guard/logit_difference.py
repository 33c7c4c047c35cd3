"""Take an assistant's logits away from a model's while it answers: suppression, never erasure.

ULD (arXiv:2406.08607), the serving side. The assistant remembers what is to be suppressed and is indifferent to the
rest, so it holds that knowledge itself, and so do the model's weights, which are not touched: whoever leaves the
processor out has everything back. Every result carries `filter_only`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final, Literal

import torch
from torch import Tensor
from transformers import LogitsProcessor

from ml.documents import Stored, read_version
from ml.errors import DigestMismatchError, GuardUnsupportedError, SpecError
from ml.models.load import LoadedModel

SCHEMA_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class LogitDifference(Stored):
    """How an assistant, named by its manifest digest, is taken away.

    `weight` multiplies its logits and is below 0; `threshold` is the share of the model's top probability below which
    a token is left alone, in [0, 1).
    """

    assistant_manifest_sha256: str
    weight: float = -1.0
    threshold: float = 0.1
    guarantee: Literal["filter_only"] = "filter_only"
    schema_version: int = SCHEMA_VERSION

    @classmethod
    def from_document(cls, document: object) -> LogitDifference:
        """Read the settings; raises `SpecError` naming the field that does not fit."""
        return read_version(cls, document, where="logit difference", version=SCHEMA_VERSION)


def logit_difference(base: Tensor, assistant: Tensor, *, weight: float = -1.0, threshold: float = 0.1) -> Tensor:
    """`z_base + weight * z_assistant`, the latter 0 for tokens below `threshold` times the top probability of base.

    Args:
        base, assistant: (..., vocabulary), any float dtype.
    Returns:
        (..., vocabulary), float32.
    Raises:
        SpecError: the vocabularies differ, `weight` is not below 0, or `threshold` is outside [0, 1).
    """
    if base.shape[-1] != assistant.shape[-1]:
        raise SpecError("model and assistant have different vocabularies; make the assistant from the model")
    if not weight < 0 or not 0 <= threshold < 1:
        raise SpecError("an assistant is taken away: its weight is below 0, its threshold in [0, 1)")
    plain = base.float()
    floor = plain.amax(dim=-1, keepdim=True) + (math.log(threshold) if threshold else -math.inf)
    return plain + weight * assistant.float().masked_fill(plain < floor, 0.0)


class SubtractAssistant(LogitsProcessor):
    """Subtracts an assistant's logits in one call of `generate`; the assistant reads along on a cache of its own.

    It should come first: what other processors changed is no longer the model's probability. Each step costs a pass of
    the assistant, and beams that change places are refused, because its cache does not follow them.

    Args:
        attention_mask: (rows, seq) of the prompts, where they are padded.
    Raises:
        DigestMismatchError: the assistant is not the one that the settings name.
    """

    def __init__(
        self, assistant: LoadedModel, settings: LogitDifference, *, attention_mask: Tensor | None = None
    ) -> None:
        if assistant.manifest_sha256 != settings.assistant_manifest_sha256:
            raise DigestMismatchError("the assistant is not the one that was recorded; train or name the right one")
        self._model = assistant.model
        self._settings = settings
        self._mask = attention_mask
        self._cache: Any = None
        self._read: Tensor | None = None

    @torch.no_grad()
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The difference of `scores` (rows, vocabulary), which predict what follows `input_ids` (rows, seq).

        Raises:
            GuardUnsupportedError: these rows do not continue those of the last step.
        """
        assistant = self._next_logits(input_ids)
        return logit_difference(scores, assistant, weight=self._settings.weight, threshold=self._settings.threshold)

    def _next_logits(self, input_ids: Tensor) -> Tensor:
        if self._read is not None and not torch.equal(input_ids[:, :-1], self._read):
            raise GuardUnsupportedError(
                "rows changed places, or this is another call; use one beam and one processor each"
            )
        fresh = input_ids if self._read is None else input_ids[:, -1:]
        mask = torch.ones_like(input_ids)
        if self._mask is not None:
            mask[:, : self._mask.shape[1]] = self._mask.to(mask)
        positions = (mask.cumsum(dim=-1) - 1).clamp_min(0)[:, -fresh.shape[1] :]
        output = self._model(
            input_ids=fresh,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self._cache, self._read = output.past_key_values, input_ids
        logits: Tensor = output.logits[:, -1]
        return logits
