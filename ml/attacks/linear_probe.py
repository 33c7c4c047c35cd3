"""W2: does a layer's state before a value still say, to a learned linear map, which value comes? White box.

An open value belongs to one person, so there are no classes that a classifier could learn on other people and find
again in this one. What carries over is the map from states to values: a logistic probe that picks the true value among
alternatives (a conditional logit), logit = state' W features(value), with one W for everybody. It is trained on
retained people alone: their states do hold their values, while the state of somebody never seen has nothing to teach
it. The probe can learn the task itself (which values are likely at all), so its score means nothing but as a
difference to twins.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from ml.attacks.exposure import ValueContest
from ml.attacks.fused import DEFAULT_BUDGET
from ml.attacks.value_states import mean_value_states
from ml.data.collate import EncodedText
from ml.errors import EmptySetError, NonFiniteError
from ml.models.load import LoadedModel

STRENGTHS: Final = (1e-3, 1e-2, 1e-1)
_HELD_OUT: Final = 4
_ITERATIONS: Final = 60
_HISTORY: Final = 10
# Contests whose features are laid out at once.
_CHUNK: Final = 256


@dataclass(frozen=True, slots=True)
class SeenContests:
    """Contests as a probe sees them.

    `states` (layers, contests, hidden) float32 before the value; `values` (contests, values) int64, the true one
    first, are rows of `features` (distinct values, features) float32.
    """

    states: Tensor
    values: Tensor
    features: Tensor

    def rows(self, index: Tensor) -> SeenContests:
        """The contests at `index`."""
        return SeenContests(self.states[:, index], self.values[index], self.features)


@dataclass(frozen=True, slots=True)
class LinearProbe:
    """A map from one layer's states, centred and scaled as in training, to features of values."""

    layer: int
    weights: Tensor
    centre: Tensor
    spread: Tensor

    def scores(self, seen: SeenContests) -> Tensor:
        """How well each value fits the state before it: (contests, values) float32; larger = fits better."""
        mapped = (seen.states[self.layer] - self.centre) / self.spread @ self.weights
        pieces = zip(mapped.split(_CHUNK), seen.values.split(_CHUNK), strict=True)
        return torch.cat([_fit_of_values(part, seen.features[values]) for part, values in pieces])


def _fit_of_values(mapped: Tensor, features: Tensor) -> Tensor:
    return torch.einsum("nf,nvf->nv", mapped, features)


def see_contests(
    loaded: LoadedModel,
    contests: Sequence[ValueContest],
    *,
    budget: int = DEFAULT_BUDGET,
    after_batch: Callable[[int], None] | None = None,
) -> SeenContests:
    """Read the states before the values; a value's features are its first and its mean input vector.

    Raises:
        NonFiniteError: a state is NaN or infinite.
    """
    texts = [
        EncodedText((*c.prompt, c.values[0][0]), len(c.prompt), ((len(c.prompt), len(c.prompt) + 1),)) for c in contests
    ]
    states = mean_value_states(loaded, texts, budget=budget, after_batch=after_batch)
    if not bool(torch.isfinite(states).all()):
        raise NonFiniteError("a state is NaN or infinite; the model is broken and cannot be probed")
    table = loaded.model.get_input_embeddings().weight.detach().float().cpu()
    places = {value: place for place, value in enumerate(dict.fromkeys(v for c in contests for v in c.values))}
    values = torch.tensor([[places[value] for value in contest.values] for contest in contests])
    return SeenContests(states, values, torch.stack([_features(table, value) for value in places]))


def _features(table: Tensor, value: Sequence[int]) -> Tensor:
    vectors = table[list(value)] / table.square().mean().sqrt()
    return torch.cat([vectors[0], vectors.mean(dim=0)])


def fit_probe(
    seen: SeenContests, persons: Sequence[str], *, seed: int, strengths: Sequence[float] = STRENGTHS
) -> LinearProbe:
    """Train a probe; layer and L2 strength are the ones that do best on a quarter of the people, held out.

    Args:
        seen: contests of retained people.
        persons: whose each contest is; a person is held out as a whole.
        seed: decides who is held out.
    Raises:
        EmptySetError: fewer than four people.
    """
    everybody = sorted(set(persons))
    if len(everybody) < _HELD_OUT:
        raise EmptySetError(f"a probe needs at least {_HELD_OUT} retained people, some to choose its settings on")
    order = torch.randperm(len(everybody), generator=torch.Generator().manual_seed(seed)).tolist()
    out = {everybody[i] for i in order[: max(1, len(everybody) // _HELD_OUT)]}
    held = torch.tensor([person in out for person in persons])
    train, test = seen.rows((~held).nonzero()[:, 0]), seen.rows(held.nonzero()[:, 0])
    choices = [(layer, strength) for layer in range(len(seen.states)) for strength in strengths]
    losses = [_loss(_fit(train, layer, strength).scores(test)) for layer, strength in choices]
    layer, strength = choices[int(torch.stack(losses).argmin())]
    return _fit(seen, layer, strength)


def _loss(scores: Tensor) -> Tensor:
    return -torch.log_softmax(scores, dim=-1)[:, 0].mean()


def _fit(seen: SeenContests, layer: int, strength: float) -> LinearProbe:
    states = seen.states[layer]
    centre, spread = states.mean(dim=0), states.std(dim=0).clamp_min(1e-6)
    inputs = (states - centre) / spread
    features = seen.features[seen.values]
    weights = torch.zeros(inputs.shape[1], features.shape[2], requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=_ITERATIONS, history_size=_HISTORY, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = _loss(_fit_of_values(inputs @ weights, features)) + strength / 2 * weights.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    return LinearProbe(layer, weights.detach(), centre, spread)
