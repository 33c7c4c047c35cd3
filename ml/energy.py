"""How foreign a text is to a model, as energy in nats: sign, temperature, centring and pooling are defined here only.

Higher energy means more foreign. The index works on logits alone, so nothing here may load a model or a record.

Source: energy of logits, arXiv:2010.03759. The centred index, the boundary and its calibration are our reconstruction
of what energy-boundary deletion (arXiv:2605.16776) describes; the paper's equations were not available to us. The
feature is therefore called energy-boundary deletion (EUA-style) and claims none of the paper's numbers.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Final, Literal

import torch
from torch import Tensor

from ml.data.collate import mean_over_tokens, mean_per_sequence
from ml.errors import EmptySetError, EnergyNotSeparatingError, NonFiniteError, SpecError

EnergyIndex = Literal["centred", "raw", "relative"]

RETAINED_QUANTILE: Final = 0.90
NEVER_SEEN_QUANTILE: Final = 0.50
SMALLEST_AUROC: Final = 0.80
THIN_BOUNDARY_SD: Final = 0.5
RELATIVE_TEMPERATURE: Final = 1.5
"""For the relative index: on a reference model it told known from unknown best among 1, 1.5, 2 and 3."""
FIRST_TOKENS: Final = 8
"""How many tokens of an answer tell whether it is known: a guard buffers no more."""


class ThinBoundaryWarning(UserWarning):
    """The two margins lie so close together that refusal by energy would not be reliable."""


def token_energy(
    logits: Tensor, *, vocabulary: int | None = None, temperature: float = 1.0, index: EnergyIndex = "centred"
) -> Tensor:
    """Energy at each position, in nats: `-T * logsumexp((z - c) / T)` with `c` = mean(z) (centred) or 0 (raw), or
    `T * logsumexp((z - max(z)) / T)` (relative): by how much the best token's energy lies above that of all together.

    Softmax ignores a constant added to all logits and raw energy does not; the other two do. The centred index never
    exceeds `-T * ln(vocabulary)`, which only uniform logits reach. The relative index is ours: it lies in [0, T *
    ln(vocabulary)], is -log of the best token's probability at T = 1, and hears of weaker rivals at T above 1. Centred
    energy also tells how large logits are, which differs from place to place in a text, whoever it is about.

    Args:
        logits: (..., rows), any float dtype; reduced in float32.
        vocabulary: rows that stand for a token; rows from there on are padding and enter neither mean nor sum.
        temperature: T, above 0.
    Returns:
        (...), float32. Higher means more foreign to the model.
    Raises:
        SpecError: `temperature` is not above 0, or `vocabulary` is not within the rows.
    """
    rows = logits.shape[-1]
    size = rows if vocabulary is None else vocabulary
    if temperature <= 0 or not 0 < size <= rows:
        raise SpecError(f"energy needs a temperature above 0 and a vocabulary of 1 to {rows} rows")
    scores = logits[..., :size].float()
    if index == "relative":
        scores = scores - scores.amax(dim=-1, keepdim=True)
        return temperature * torch.logsumexp(scores / temperature, dim=-1)
    if index == "centred":
        scores = scores - scores.mean(dim=-1, keepdim=True)
    return -temperature * torch.logsumexp(scores / temperature, dim=-1)


def sequence_energy(
    logits: Tensor,
    mask: Tensor,
    *,
    vocabulary: int | None = None,
    temperature: float = 1.0,
    index: EnergyIndex = "centred",
) -> Tensor:
    """Mean energy per sequence over the positions in `mask`, in nats.

    Args:
        logits: (batch, seq, rows), aligned so that position i predicts the token that `mask[:, i]` counts
            (`ml.data.collate.shift`).
        mask: (batch, seq), bool; True where a position counts.
    Returns:
        (batch,), float32. Higher means more foreign to the model.
    Raises:
        EmptySequenceError: a row of `mask` is all False; the mean of nothing is not 0.
    """
    energies = token_energy(logits, vocabulary=vocabulary, temperature=temperature, index=index)
    return mean_per_sequence(energies, mask)


def energy_ceiling(vocabulary: int, *, temperature: float = 1.0) -> float:
    """The highest centred energy, `-T * ln(vocabulary)`: uniform logits, nothing known."""
    return -temperature * math.log(vocabulary)


def forget_hinge(energies: Tensor, boundary: float) -> Tensor:
    """Squared shortfall `relu(m_f - E)^2` elementwise, nats squared: 0 once an energy has reached the far side."""
    return torch.relu(boundary - energies.float()).square()


def retain_hinge(energies: Tensor, boundary: float) -> Tensor:
    """Squared excess `relu(E - m_r)^2` elementwise, nats squared: 0 while an energy stays on the near side."""
    return torch.relu(energies.float() - boundary).square()


def boundary_loss(
    energies: Tensor, mask: Tensor, *, boundary: float, side: Literal["forget", "retain"], pooling: str = "token"
) -> Tensor:
    """Hinge loss of one batch against one margin, nats squared.

    Args:
        energies: (batch, seq), from `token_energy`.
        mask: (batch, seq), bool; True where a position counts.
        side: "forget" pushes energy up to the margin, "retain" keeps it below.
        pooling: "token" averages the hinge over tokens, so that one confident token cannot hide behind flat ones;
            "sequence" applies it to each sequence's mean energy.
    Raises:
        SpecError: `pooling` is neither.
        EmptySequenceError: nothing to average.
    """
    hinge = forget_hinge if side == "forget" else retain_hinge
    if pooling == "token":
        return mean_over_tokens(hinge(energies, boundary), mask)
    if pooling == "sequence":
        return hinge(mean_per_sequence(energies, mask), boundary).mean()
    raise SpecError(f"energy pooling {pooling!r} is unknown; known: token, sequence")


@dataclass(frozen=True, slots=True)
class EnergyBoundary:
    """Where known ends and unknown begins, measured before training and never on the edited model.

    `retained_margin` (m_r) and `never_seen_margin` (m_f) are sequence energies in nats; `auroc` is the chance that a
    never-seen text has the higher energy; `pooled_sd` is the pooled standard deviation of both sets. The digests name
    the texts it was calibrated on.
    """

    index: EnergyIndex
    temperature: float
    vocabulary: int
    retained_margin: float
    never_seen_margin: float
    auroc: float
    pooled_sd: float
    retained_sha256: str
    never_seen_sha256: str

    @property
    def is_thin(self) -> bool:
        """True when the margins are less than half a pooled standard deviation apart: too thin for refusal."""
        return self.never_seen_margin - self.retained_margin < THIN_BOUNDARY_SD * self.pooled_sd

    def energies(self, logits: Tensor) -> Tensor:
        """Token energies under this boundary's index, temperature and vocabulary."""
        return token_energy(logits, vocabulary=self.vocabulary, temperature=self.temperature, index=self.index)

    def numbers(self) -> Mapping[str, float]:
        """The numeric fields by name, for a report."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: float(value) for name, value in values.items() if isinstance(value, int | float)}


def auroc(higher: Tensor, lower: Tensor) -> float:
    """Chance that a value of `higher` exceeds a value of `lower`, ties counting half: 1.0 means full separation.

    Args:
        higher, lower: (n,) and (m,), any float dtype, neither empty.
    Raises:
        EmptySetError: one of them is empty.
        NonFiniteError: a value is NaN or infinite.
    """
    if not len(higher) or not len(lower):
        raise EmptySetError("separation needs values on both sides")
    if not bool(torch.isfinite(higher).all() and torch.isfinite(lower).all()):
        raise NonFiniteError("a value to be ranked is NaN or infinite")
    ordered = lower.double().sort().values
    queries = higher.double().contiguous()
    below = torch.searchsorted(ordered, queries, right=False)
    not_above = torch.searchsorted(ordered, queries, right=True)
    return float((below + not_above).double().mean() / (2 * len(lower)))


def calibrate_boundary(
    retained: Tensor,
    never_seen: Tensor,
    *,
    vocabulary: int,
    retained_sha256: str,
    never_seen_sha256: str,
    temperature: float = 1.0,
    index: EnergyIndex = "centred",
) -> EnergyBoundary:
    """Set the boundary from sequence energies of the model as it was before unlearning.

    Args:
        retained: (n,), energies of retained texts; 100 or more make the quantile steady.
        never_seen: (m,), energies of texts of the same format about people nobody was trained on; never the forget
            set.
    Returns:
        m_r = 0.90 quantile of `retained`, m_f = 0.50 quantile of `never_seen`. Warns (`ThinBoundaryWarning`) when they
        lie less than half a pooled standard deviation apart.
    Raises:
        EnergyNotSeparatingError: AUROC below 0.80, or m_f not above m_r: there is no boundary to drive anything to.
        EmptySetError, NonFiniteError: an empty set, or an energy that is no number.
    """
    separation = auroc(never_seen, retained)
    m_r = float(torch.quantile(retained.double(), RETAINED_QUANTILE))
    m_f = float(torch.quantile(never_seen.double(), NEVER_SEEN_QUANTILE))
    if separation < SMALLEST_AUROC or m_f <= m_r:
        raise EnergyNotSeparatingError(
            f"energy does not separate known from unknown on this model: AUROC {separation:.3f}, "
            f"{SMALLEST_AUROC:.2f} needed; use a method without an energy boundary"
        )
    boundary = EnergyBoundary(
        index=index,
        temperature=temperature,
        vocabulary=vocabulary,
        retained_margin=m_r,
        never_seen_margin=m_f,
        auroc=separation,
        pooled_sd=_pooled_sd(retained.double(), never_seen.double()),
        retained_sha256=retained_sha256,
        never_seen_sha256=never_seen_sha256,
    )
    if boundary.is_thin:
        warnings.warn("the energy boundary is too thin for refusal by energy", ThinBoundaryWarning, stacklevel=2)
    return boundary


def _pooled_sd(first: Tensor, second: Tensor) -> float:
    squares = sum(float((values - values.mean()).square().sum()) for values in (first, second))
    return math.sqrt(squares / max(1, len(first) + len(second) - 2))
