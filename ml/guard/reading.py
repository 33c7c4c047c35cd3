"""How foreign a prompt is to a model, read from the logits of the answer that is being generated: no pass is added.

The score pools the energies of the first answer tokens, from what the model says before any processor, temperature or
cut: they are the caller's settings, and the threshold is not. A score read at `prefill` depends on none of them. One
read over the answer does by one way: they choose the tokens, and the model says what follows those. The threshold is
calibrated with greedy answers, so for sampled ones its budget is not proven.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList
from transformers.generation import BaseStreamer, GenerationMode

from ml.data.collate import token_budget_batches
from ml.energy import FIRST_TOKENS, RELATIVE_TEMPERATURE, EnergyIndex, token_energy
from ml.errors import ContextLengthError, EmptySetError, GuardUnsupportedError, SpecError
from ml.models.backbone import model_device
from ml.models.load import LoadedModel

ReadAt: TypeAlias = Literal["prefill", "answer"]
Pooling: TypeAlias = Literal["mean", "highest", "sum"]
TOKENS: Final = {"prefill": 1, "answer": FIRST_TOKENS}
"""Logit vectors that each reading pools: the one after the prompt, or those of the first answer tokens."""
_BATCH_TOKENS: Final = 4096


@dataclass(frozen=True, slots=True)
class Reading:
    """Where a score is read and by which index; `tokens` logit vectors are pooled, fewer where an answer ends.

    Energy is that of `ml.energy.token_energy`: nats, higher means more foreign. `mean` of the centred index is the rule
    of the method's sources. The others and the relative index are ours: an answer about a stranger is as fluent as any
    other but for some tokens at which a value begins or goes on. A mean over 8 tokens dilutes those where an answer is
    long, `highest` hears one of them, `sum` all; and the centred index hears at each place how large logits are there,
    whoever it is about.
    """

    at: ReadAt
    tokens: int
    pooling: Pooling
    index: EnergyIndex
    temperature: float
    vocabulary: int

    def pooled(self, logits: Tensor) -> Tensor:
        """Score of each row from the logits of its steps: (rows, steps, vocabulary rows) to (rows,), float32."""
        energies = token_energy(logits, vocabulary=self.vocabulary, temperature=self.temperature, index=self.index)
        if self.pooling == "mean":
            return energies.mean(dim=1)
        return energies.amax(dim=1) if self.pooling == "highest" else energies.sum(dim=1)


def make_reading(
    vocabulary: int,
    *,
    at: ReadAt = "answer",
    pooling: Pooling = "sum",
    index: EnergyIndex = "relative",
    temperature: float | None = None,
) -> Reading:
    """A reading of the length that belongs to `at`; `vocabulary` is the tokenizer's, padded rows left out.

    The defaults are the reading that tells known from unknown best; their margins are measured on the model before the
    deletion. Margins that an unlearning run stored are mean energies by the centred index at temperature 1.
    """
    if temperature is None:
        temperature = RELATIVE_TEMPERATURE if index == "relative" else 1.0
    return Reading(at, TOKENS[at], pooling, index, temperature, vocabulary)


class Watch:
    """One call of `generate`, watched: reads the score of each row and ends the rows that lie above `threshold`.

    Hand it to `generate` as `custom_generate`, once. It runs the library's own loop for greedy decoding and sampling,
    with two wrappers around what that loop calls at each step; after the first `reading.tokens` steps they do nothing,
    unless a row held no number.
    A row whose answer ends earlier is decided by the tokens it has, as in calibration; a limit of the caller that would
    end it earlier is refused. A score that is no number lies above every threshold.

    `scores` (rows,) float32, NaN before the decision, and `refused` (rows,) bool are there once `generate` has begun;
    every row is decided when `is_open` is False or generation ended. `streamer` gets tokens as from `generate`.
    """

    def __init__(self, reading: Reading, *, threshold: float = math.inf) -> None:
        self.reading = reading
        self.threshold = threshold
        self.streamer: BaseStreamer | None = None
        self.is_open = True
        self.prompt_length = 0
        self._said: list[Tensor] = []
        self._started = False

    def __call__(
        self,
        model: Any,
        input_ids: Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        **options: Any,
    ) -> Tensor:
        """Decode; called by `generate`. Returns prompt and answer ids, those of refused rows included.

        Raises:
            GuardUnsupportedError: the call searches beams, drafts by another model, returns more than tokens or may
                stop before the reading is complete; or it is the second.
        """
        if self._started:
            raise GuardUnsupportedError("a watch serves one call; make another for the next")
        _refuse_other_modes(model, generation_config)
        _refuse_shorter_limits(generation_config, input_ids.shape[1], self.reading.tokens)
        rows, device = len(input_ids), input_ids.device
        self.prompt_length = input_ids.shape[1]
        self.refused = torch.zeros(rows, dtype=torch.bool, device=device)
        self.scores = torch.full((rows,), math.nan, device=device)
        self._broken = torch.zeros(rows, dtype=torch.bool, device=device)
        self._any_broken = False
        self._undecided = torch.ones(rows, dtype=torch.bool, device=device)
        self._started = True
        if self.streamer is not None:
            self.streamer.put(input_ids.cpu())
        ids: Tensor = model._sample(
            input_ids,
            logits_processor=_ReadFirst(self, logits_processor),
            stopping_criteria=_EndRefused(self, stopping_criteria),
            generation_config=generation_config,
            streamer=self.streamer,
            **options,
        )
        return ids

    @property
    def was_used(self) -> bool:
        """True once `generate` has called it."""
        return self._started

    def read(self, logits: Tensor) -> Tensor:
        """Keep what the model says at this step: (rows, vocabulary rows), raw; return it fit for choosing a token.

        A copy is kept, for processors may write into what they are given; energies of all steps together cost little
        more than those of one. A row that holds no number at some step will be refused: it goes on with zeros, or
        sampling would fail for the whole batch.
        """
        if self.is_open:
            said = logits[:, : self.reading.vocabulary]
            self._said.append(said.clone())
            # One number a row tells whether all of it are numbers, at a third of the cost of asking each.
            if not bool(said.sum(dim=-1).isfinite().all()):
                # A sum of numbers may be too large to be one.
                self._broken = self._broken | ~torch.isfinite(said).all(dim=-1)
                self._any_broken = bool(self._broken.any())
        return logits.masked_fill((self._broken | self.refused)[:, None], 0.0) if self._any_broken else logits

    def settle(self, ended: Tensor) -> Tensor:
        """Decide the rows that have just ended, or all of them when the reading is complete.

        Args:
            ended: (rows,) bool, rows that end with the token just chosen.
        Returns:
            (rows,) bool: `ended`, and with them the refused rows, which have nothing more to say.
        """
        self.is_open = len(self._said) < self.reading.tokens
        if self.is_open and not bool(ended.any()):
            return ended
        decided = self._undecided & ended if self.is_open else self._undecided
        pooled = self.reading.pooled(torch.stack(self._said, dim=1)).masked_fill(self._broken, math.nan)
        self.scores = torch.where(decided, pooled, self.scores)
        self.refused = self.refused | (decided & ~(pooled <= self.threshold))
        self._undecided = self._undecided & ~decided
        return ended | self.refused


class _ReadFirst(LogitsProcessorList):
    """The call's own processors, after the score was read from what the model itself said.

    `generate` puts its processors before those it is given, so a score read in their midst would depend on them.
    """

    def __init__(self, watch: Watch, processors: LogitsProcessorList) -> None:
        super().__init__(processors)
        self._watch = watch

    def __call__(self, input_ids: Tensor, scores: Tensor, **options: Any) -> Tensor:
        return super().__call__(input_ids, self._watch.read(scores), **options)


class _EndRefused(StoppingCriteriaList):
    """The call's own criteria; a refused row has ended too."""

    def __init__(self, watch: Watch, criteria: StoppingCriteriaList) -> None:
        super().__init__(criteria)
        self._watch = watch

    def __call__(self, input_ids: Tensor, scores: Any, **options: Any) -> Tensor:
        ended = super().__call__(input_ids, scores, **options)
        return self._watch.settle(ended) if self._watch.is_open else ended


def _refuse_other_modes(model: Any, config: GenerationConfig) -> None:
    if model.config.is_encoder_decoder:
        raise GuardUnsupportedError("the guard reads decoder-only models; this one has an encoder")
    mode = config.get_generation_mode(None)
    if mode not in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE):
        raise GuardUnsupportedError(
            f"the guard serves greedy decoding and sampling, not {mode.value}; ask for one beam"
        )
    if config.return_dict_in_generate:
        # Scores, states and cache would tell what a refused row was about to say.
        raise GuardUnsupportedError("the guard returns tokens alone; leave return_dict_in_generate off")


def _refuse_shorter_limits(config: GenerationConfig, prompt: int, tokens: int) -> None:
    if config.max_length - prompt < tokens:
        raise GuardUnsupportedError(
            f"the guard decides by {tokens} answer tokens; allow so many, or calibrate it with --read-at prefill"
        )
    if config.max_time is not None:
        raise GuardUnsupportedError("max_time may end an answer before the guard has read it; leave it unset")


def prompt_ids(tokenizer: Any, prompts: Sequence[str]) -> list[list[int]]:
    """Tokenise prompts as they are served: special tokens as the tokenizer adds them, but no end of sequence."""
    rows: list[list[int]] = tokenizer(list(prompts), add_special_tokens=True)["input_ids"]
    for row in rows:
        while row and row[-1] == tokenizer.eos_token_id:
            row.pop()
    if not all(rows):
        raise SpecError("a prompt has no token; ask something")
    return rows


def left_padded(rows: Sequence[Sequence[int]], *, pad_id: int, device: torch.device) -> dict[str, Tensor]:
    """Pad prompts on the left, as generation wants them: `input_ids` and `attention_mask`, both (rows, longest)."""
    width = max(len(row) for row in rows)
    ids = [[pad_id] * (width - len(row)) + list(row) for row in rows]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
    return {"input_ids": torch.tensor(ids, device=device), "attention_mask": torch.tensor(mask, device=device)}


def prompt_scores(loaded: LoadedModel, prompts: Sequence[str], reading: Reading) -> Tensor:
    """Score prompts by the way that serving takes, with greedy answers: (prompts,), float32, nats.

    Raises:
        EmptySetError: there is no prompt.
        ContextLengthError: a prompt leaves no room for the tokens that are read.
    """
    if not prompts:
        raise EmptySetError("there is no prompt to score")
    rows = prompt_ids(loaded.tokenizer, prompts)
    longest = max(map(len, rows)) + reading.tokens
    if longest > loaded.context:
        raise ContextLengthError(f"a prompt and its answer have {longest} tokens, the model takes {loaded.context}")
    scores = torch.zeros(len(rows))
    device = model_device(loaded.model)
    for group in token_budget_batches([len(row) + reading.tokens for row in rows], budget=_BATCH_TOKENS):
        watch = Watch(reading)
        loaded.model.generate(
            **left_padded([rows[i] for i in group], pad_id=loaded.pad_id, device=device),
            custom_generate=watch,
            max_new_tokens=reading.tokens,
            do_sample=False,
            num_beams=1,
            pad_token_id=loaded.pad_id,
        )
        scores[group] = watch.scores.cpu()
    return scores
