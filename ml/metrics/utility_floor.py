"""How much of the original must be mixed back into an unlearned model until it keeps what it should, and what is left.

Methods are compared only at such a floor: one that forgets by breaking the model must be mixed back almost whole, and
remembers again. Weights are theta(alpha) = (1 - alpha) * unlearned + alpha * original. Source: arXiv:2406.09179 (UWC).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Final

from peft import PeftModel

from ml.attacks.extraction import extraction_strength
from ml.attacks.fused import fused_pass
from ml.data.collate import EncodedText
from ml.errors import EmptySequenceError, EmptySetError, NonFiniteError, SpecError, TokenizerMismatchError
from ml.models.adapters import scaled_adapter
from ml.models.load import LoadedModel, tokenizer_sha256
from ml.models.tampering import scaled_change

Mixed = Callable[[float], AbstractContextManager[LoadedModel]]
TAU: Final = 0.95
GRID_STEPS: Final = 20


@dataclass(frozen=True, slots=True)
class UtilityFloor:
    """The least share of the original that keeps `tau` of its retained score, with every score on the way there.

    Args:
        alpha: in [0, 1]; 0 if nothing had to be mixed back, near 1 if nothing was forgotten at no cost.
        retained_original: the original's score on what is to be kept; larger is better.
        scanned: (alpha, retained score) of each grid point from 0 to `alpha`.
    """

    alpha: float
    tau: float
    retained_original: float
    scanned: tuple[tuple[float, float], ...]

    @property
    def retained(self) -> float:
        """The score of the mixed model on what is to be kept."""
        return self.scanned[-1][1]


@dataclass(frozen=True, slots=True)
class CalibratedExtraction:
    """Mean extraction strength, in [0, 1], of what was to be forgotten; smaller is better. `at_floor` compares."""

    floor: UtilityFloor
    original: float
    unlearned: float
    at_floor: float


def utility_floor(retained: Callable[[float], float], *, tau: float = TAU, steps: int = GRID_STEPS) -> UtilityFloor:
    """Scan alpha = 0, 1/steps, ..., 1 upwards and stop at the first that retains `tau` of the original's score.

    The score is nearly monotone in alpha but not quite, so that nothing between is skipped.

    Args:
        retained: score of theta(alpha), larger is better, not below 0; asked at 1, the original, first.
        tau: in (0, 1].
    Raises:
        SpecError: `tau` or `steps` is out of range, or the original itself retains nothing.
        NonFiniteError: a score is NaN or infinite.
    """
    if not 0 < tau <= 1 or steps < 1:
        raise SpecError("a utility floor needs a share in (0, 1] and a grid of at least one step")
    original = _finite(retained(1.0), "a retained score")
    if original <= 0:
        raise SpecError("the original model retains nothing, so there is no floor; ask for what it knows")
    scanned: list[tuple[float, float]] = []
    for step in range(steps):
        scanned.append((step / steps, _finite(retained(step / steps), "a retained score")))
        if scanned[-1][1] >= tau * original:
            return UtilityFloor(scanned[-1][0], tau, original, tuple(scanned))
    return UtilityFloor(1.0, tau, original, (*scanned, (1.0, original)))


def _finite(score: float, what: str) -> float:
    if not math.isfinite(score):
        raise NonFiniteError(f"{what} is NaN or infinite; the mixed model is broken and has no floor")
    return score


def mixed_models(original: LoadedModel, unlearned: LoadedModel) -> Mixed:
    """theta(alpha) of two plain models, as a copy each time; both ends bit for bit.

    Raises:
        TokenizerMismatchError: the two read texts as different tokens.
        SpecError: when mixed: they do not have the same weights by name and shape.
    """
    if tokenizer_sha256(original) != tokenizer_sha256(unlearned):
        raise TokenizerMismatchError("the original and the unlearned model have different tokenizers; nothing to mix")

    @contextmanager
    def mixed(alpha: float) -> Iterator[LoadedModel]:
        yield scaled_change(original, unlearned, 1 - alpha)

    return mixed


def mixed_adapter(unlearned: LoadedModel) -> Mixed:
    """theta(alpha) where one adapter on the original is all that unlearned: exact, by scaling it; nothing is copied.

    Raises:
        SpecError: the model has no adapter, or more than one.
    """
    if not isinstance(unlearned.model, PeftModel) or len(unlearned.model.peft_config) != 1:
        raise SpecError("only a model with exactly one adapter can be mixed by scaling; mix plain models instead")

    @contextmanager
    def mixed(alpha: float) -> Iterator[LoadedModel]:
        with scaled_adapter(unlearned.model, 1 - alpha) as model:
            yield replace(unlearned, model=model.get_base_model())

    return mixed


def calibrated_extraction(
    mixed: Mixed, *, retain: Sequence[EncodedText], forget: Sequence[EncodedText], tau: float = TAU
) -> CalibratedExtraction:
    """Mix back as little as keeps `tau` of the retained extraction strength; measure the forgotten texts there.

    Args:
        mixed: theta(alpha), of `mixed_models` or `mixed_adapter`.
        retain, forget: texts that the original memorised, encoded for its tokenizer.
    Raises:
        EmptySetError: a set is empty.
        EmptySequenceError: a text has no label but its end.
        MlError: as for `utility_floor` and `mixed`.
    """
    if not retain or not forget:
        raise EmptySetError("a floor needs texts to keep and texts to forget")
    for what, texts in (("keep", retain), ("forget", forget)):
        if bare := sum(len(text.ids) - text.first_label < 2 for text in texts):
            raise EmptySequenceError(f"{bare} texts to {what} have nothing but their end to reproduce; leave them out")

    def strength(alpha: float, texts: Sequence[EncodedText]) -> float:
        with mixed(alpha) as loaded:
            return float(extraction_strength(fused_pass(loaded, texts)).mean())

    floor = utility_floor(lambda alpha: strength(alpha, retain), tau=tau)
    original, unlearned, at_floor = (
        _finite(strength(alpha, forget), "a score of what was to be forgotten") for alpha in (1.0, 0.0, floor.alpha)
    )
    return CalibratedExtraction(floor, original, unlearned, at_floor)
