"""The guard: while a model answers, refuse by one constant sentence what it has no knowledge of.

A prompt about somebody who was deleted and one about somebody never seen are refused alike, in the same words. Nothing
here may say why, for the reason would itself tell who was deleted; and nothing the model said to a refused prompt may
come out, as text, as a stream or as scores.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor
from transformers.generation import BaseStreamer

from ml.errors import DigestMismatchError, GuardNotCalibratedError, GuardUnsupportedError, SpecError
from ml.guard.calibrate import GuardCalibration, model_dtype
from ml.guard.reading import Watch
from ml.models.load import LoadedModel
from ml.wording import check_wording

WORDING: Final = "I cannot answer that reliably."

_SERVED: Final = frozenset(
    {
        "attention_mask",
        "max_new_tokens",
        "min_new_tokens",
        "do_sample",
        "num_beams",
        "temperature",
        "top_k",
        "top_p",
        "min_p",
        "typical_p",
        "repetition_penalty",
        "no_repeat_ngram_size",
        "bad_words_ids",
        "suppress_tokens",
        "pad_token_id",
        "use_cache",
    }
)
"""Options of `generate` that are numbers and cannot carry out what a refused row was about to say."""


@dataclass(frozen=True, slots=True)
class GuardedAnswers:
    """What `Guard.generate` returns: ids (rows, seq) as `generate` would, and for each row whether it was refused."""

    sequences: Tensor
    refused: tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class Guard:
    """A model behind its calibrated threshold; making one switches the guard on.

    Raises:
        GuardNotCalibratedError: the calibration does not hold, or was made at another precision.
        DigestMismatchError: the calibration was made on another model.
        SpecError: the wording tells of deletion, or the tokenizer cannot write it.
    """

    loaded: LoadedModel
    calibration: GuardCalibration
    wording: str = WORDING
    _reply: Tensor = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.calibration.status != "calibrated":
            raise GuardNotCalibratedError(
                f"the guard stays off: not calibrated on this model ({self.calibration.reason}); "
                "check the deletion, or measure the margins by the guard's own reading"
            )
        if self.calibration.model_manifest_sha256 != self.loaded.manifest_sha256:
            raise DigestMismatchError("the guard was calibrated on another model; calibrate it on the one that serves")
        if (served := model_dtype(self.loaded)) != self.calibration.dtype:
            raise GuardNotCalibratedError(
                f"the guard was calibrated at {self.calibration.dtype}, the model serves at {served}; calibrate again"
            )
        object.__setattr__(self, "_reply", _reply_ids(self.loaded.tokenizer, check_wording(self.wording)))

    def generate(self, input_ids: Tensor, *, streamer: BaseStreamer | None = None, **options: Any) -> GuardedAnswers:
        """Answer by the model's own `generate`, or refuse, row by row; the model does no pass more than without.

        A refused row holds the prompt, the wording and the end token, whole even where `max_new_tokens` is shorter
        (which may not be less than the reading takes);
        its generation stops at once, and the other rows are what they would have been. A stream is held back until
        every row is decided.

        Args:
            input_ids: (rows, seq), padded on the left where rows differ in length.
            options: of `generate`, those of greedy decoding and sampling that are plain numbers. Everything else is
                refused: processors, criteria and caches of the caller would see the tokens of refused rows.
        Raises:
            GuardUnsupportedError: another option, beams, or fewer answer tokens than the reading takes.
        """
        for name, value in options.items():
            if value is not None and name not in _SERVED:
                raise GuardUnsupportedError(f"the guard does not serve {name}; leave it out")
        pad_id = options.setdefault("pad_token_id", self.loaded.pad_id)
        watch = Watch(self.calibration.reading, threshold=self.calibration.threshold)
        if streamer is not None:
            watch.streamer = _HeldStreamer(streamer, watch, self._reply, pad_id)
        ids = self.loaded.model.generate(input_ids, custom_generate=watch, **options)
        if not watch.was_used:
            raise GuardUnsupportedError("these options generate without the loop that the guard watches")
        sequences = _with_refusals(ids, watch.refused, self._reply, pad_id=pad_id, start=watch.prompt_length)
        return GuardedAnswers(sequences, tuple(watch.refused.tolist()))


def _reply_ids(tokenizer: Any, wording: str) -> Tensor:
    """The wording's tokens and the end token: (n,)."""
    ids = tokenizer(wording, add_special_tokens=False)["input_ids"]
    if tokenizer.decode(ids, skip_special_tokens=True).strip() != wording.strip():
        raise SpecError("the tokenizer cannot write the refusal's wording; choose other words")
    return torch.tensor([*ids, tokenizer.eos_token_id])


def _with_refusals(ids: Tensor, refused: Tensor, reply: Tensor, *, pad_id: int, start: int) -> Tensor:
    """Put the reply into refused rows, from `start` on, and pad what follows it: (rows, seq) to (rows, other seq)."""
    if not bool(refused.any()):
        return ids
    end = start + len(reply)
    width = end if bool(refused.all()) else max(ids.shape[1], end)
    out = ids.new_full((len(ids), width), pad_id)
    kept = min(width, ids.shape[1])
    out[:, :kept] = ids[:, :kept]
    out[refused, start:] = pad_id
    out[refused, start:end] = reply.to(ids.device)
    return out


class _HeldStreamer(BaseStreamer):
    """Passes the prompt on, holds tokens back until every row is decided, and gives refused rows the reply instead."""

    def __init__(self, streamer: BaseStreamer, watch: Watch, reply: Tensor, pad_id: int) -> None:
        self._streamer = streamer
        self._watch = watch
        self._reply = reply
        self._pad_id = pad_id
        self._held: list[Tensor] = []
        self._given = 0

    def put(self, value: Tensor) -> None:
        """Take the prompt (rows, seq), then one token of each row (rows,) at a time."""
        if value.dim() > 1:
            self._streamer.put(value)
            return
        self._held.append(value)
        if not self._watch.is_open:
            self._release()

    def end(self) -> None:
        """Give what is left, refused rows' reply to its last token; every row has been decided by now."""
        refused = self._watch.refused.cpu()
        if bool(refused.any()):
            missing = len(self._reply) - self._given - len(self._held)
            self._held += [torch.full((len(refused),), self._pad_id)] * missing
        self._release()
        self._streamer.end()

    def _release(self) -> None:
        refused = self._watch.refused.cpu()
        for value in self._held:
            said = int(self._reply[self._given]) if self._given < len(self._reply) else self._pad_id
            self._streamer.put(value.masked_fill(refused, said))
            self._given += 1
        self._held.clear()
