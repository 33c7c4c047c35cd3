"""Take out of the output layer what it alone tells about the forgotten.

Training writes into the output layer too (often the table of token vectors as well), and adapters below it never reach
that. Whoever holds the base model reads it off: on the base model's last states, the trained layer likes the
forgotten people's values more than strangers' values (the red team's attack `output_layer`). This edit moves the rows
of these values' tokens, in closed form, until it does not; what the candidate's own last states are read as, of people
it keeps and of strangers, stays where it was as far as the same rows allow.

The form, least squares against second moments of what must stay, is that of model editing (arXiv:2202.05262,
2210.07229); target, keys and rows are ours.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from ml.data.collate import EncodedText, collate, encode_records, token_budget_batches
from ml.data.dossiers import answered_span, facts_not_in, known_values, read_dossier, strangers_of
from ml.data.records import by_person
from ml.data.synthetic import twin_records
from ml.errors import EmptySetError, NonFiniteError, RecordError, SpecError
from ml.methods.method import UnlearningTask
from ml.models.layers import blocks, final_norm, states_after
from ml.models.load import LoadedModel
from ml.specs import Record

STRANGERS: Final = 40
STRENGTH: Final = 10.0
_ROUNDS: Final = 6
# Of the mean of the diagonal: the moments of few texts are not of full rank.
_FLOOR: Final = 1e-4
_BATCH_TOKENS: Final = 4096


@dataclass(frozen=True, slots=True)
class ValueTokens:
    """Tokens of values: the last state that each is read from, (tokens, hidden) float32, and the token (tokens,)."""

    states: Tensor
    tokens: Tensor


def row_changes(
    states: Tensor, tokens: Tensor, excess: Tensor, moments: Tensor, *, strength: float
) -> tuple[Tensor, Tensor]:
    """For each distinct token the change `d` of its row that minimises
    `sum_i (h_i . d + e_i)^2 + strength * n * d' M d` over its `n` states `h_i` with excess `e_i`.

    In closed form `d = -K' (I + H K')^-1 e`, `K = H (strength * n * M)^-1`: as many equations as the token has states.

    Args:
        states: (n, hidden), after the final norm; `tokens` (n,) int64; `excess` (n,), nats to be taken away.
        moments: (hidden, hidden), symmetric and positive definite, mean of `h h'` over states that must stay.
        strength: above 0; larger keeps more and takes away less.
    Returns:
        tokens (rows,) and changes (rows, hidden).
    Oracle: one state [1, 0], excess 2, moments the identity, strength 1 -> [-1, 0]; with moments diag(1, 0.25) and
    state [1, 1] -> -2 * [1, 4] / 6.
    """
    distinct = tokens.unique()
    factor = torch.linalg.cholesky(moments)
    changes = []
    for token in distinct.tolist():
        chosen = tokens == token
        own = states[chosen]
        keys = torch.cholesky_solve(own.T, factor).T / (strength * len(own))
        system = torch.eye(len(own), dtype=own.dtype, device=own.device) + own @ keys.T
        changes.append(-torch.linalg.solve(system, excess[chosen]) @ keys)
    return distinct, torch.stack(changes)


class OutputLayerEdit:
    """The edit of one run: `texts` are all it drew, and calling it changes the model's output layer.

    Args:
        base: the model from before the training that the forgotten took part in.
    Raises:
        SpecError: the base has another tokenizer size or width than the model.
        RecordError: no value is marked that the forgotten alone have.
    """

    def __init__(self, task: UnlearningTask, base: LoadedModel) -> None:
        self.task, self.base = task, base
        model = task.model.get_base_model()
        if base.model.get_output_embeddings().weight.shape != model.get_output_embeddings().weight.shape:
            raise SpecError("the base model's output layer has another shape; give the base of this very model")
        self._own, self._strangers, self._kept = _asked(task)
        self.texts = tuple(asked.record.text for asked in self._strangers)

    @torch.no_grad()
    def __call__(self) -> None:
        """Edit in place.

        Raises:
            NonFiniteError: a number on the way is NaN or infinite; the layer is as it was.
        """
        model = self.task.model.get_base_model()
        own, strangers = (self._seen(self.base.model, asked) for asked in (self._own, self._strangers))
        keep = [
            _normed(model, seen.states)
            for seen in (self._seen(model, self._kept), self._seen(model, self._strangers), strangers)
        ]
        moments = sum(states.T @ states / len(states) for states in keep)
        moments += _FLOOR * moments.diagonal().mean() * torch.eye(len(moments), device=moments.device)
        layer = model.get_output_embeddings()
        before = layer.weight.detach().clone()
        states = _normed(model, own.states)
        for _ in range(_ROUNDS):
            ordinary = self._told(strangers).mean()
            excess = self._told(own) - ordinary
            tokens, changes = row_changes(states, own.tokens, excess, moments, strength=STRENGTH)
            layer.weight[tokens] += changes.to(layer.weight.dtype)
        if not bool(torch.isfinite(layer.weight).all()):
            layer.weight.copy_(before)
            raise NonFiniteError("the edit of the output layer is not finite; look at the base model")

    def _told(self, seen: ValueTokens) -> Tensor:
        """What the layer says of each token beyond what the base model's own says, on the base model's states: nats."""
        own, base = (_log_probs(model, seen) for model in (self.task.model.get_base_model(), self.base.model))
        return own - base

    def _seen(self, model: Any, asked: Sequence[_Asked]) -> ValueTokens:
        """Last states of `model` before the value tokens of texts, before its final norm."""
        task = self.task
        records = [one.record for one in asked]
        encoded = encode_records(task.tokenizer, records, context=task.context)
        marks = [
            [span for fact, span in zip(one.record.facts, text.values, strict=True) if fact.attribute in one.attributes]
            for one, text in zip(asked, encoded, strict=True)
        ]
        found = list(_value_tokens(model, encoded, marks, pad_id=task.pad_id, device=task.device))
        return ValueTokens(torch.cat([one.states for one in found]), torch.cat([one.tokens for one in found]))


def _normed(model: Any, states: Tensor) -> Tensor:
    """States as the output layer takes them, in float32."""
    norm = final_norm(model)
    normed: Tensor = norm(states.to(next(norm.parameters()).dtype)).float()
    return normed


def _log_probs(model: Any, seen: ValueTokens) -> Tensor:
    """log p of each token as the model's own norm and output layer read the states: (tokens,), nats."""
    logits = torch.nn.functional.linear(_normed(model, seen.states), model.get_output_embeddings().weight.float())
    return torch.log_softmax(logits, dim=-1).gather(-1, seen.tokens.unsqueeze(-1)).squeeze(-1)


@dataclass(frozen=True, slots=True)
class _Asked:
    """A text, and the attributes whose values in its answer are read."""

    record: Record
    attributes: frozenset[str]


def _asked(task: UnlearningTask) -> tuple[list[_Asked], list[_Asked], list[_Asked]]:
    """Texts about the forgotten, about strangers in the same words, and about people who are kept."""
    rng = random.Random(f"output layer:{task.seed}")  # noqa: S311 - to be reproduced, not secret
    factory = strangers_of(task.bank, rng, [*task.forget, *task.retain], sharing=task.retain)
    own: list[_Asked] = []
    strangers: list[_Asked] = []
    dossiers = [read_dossier(records) for records in by_person(task.forget).values()]
    elsewhere = known_values(task.retain)
    for dossier in dossiers:
        mine = frozenset(facts_not_in(dossier, task.bank, elsewhere))
        own += _answering(dossier.records, mine)
        for number in range(-(-STRANGERS // len(dossiers))):
            stranger = factory.stranger(f"output-layer-{number}", dossier.types, like=dossier.name)
            strangers += _answering(twin_records(dossier.records, stranger), mine)
    shared = {name for name, attribute in task.bank.attributes.items() if attribute.shared}
    everything = frozenset(fact.attribute for record in task.retain for fact in record.facts) - shared
    kept = _answering(task.retain, everything)
    if not own:
        raise RecordError("no forgotten record answers with a value of its own; leave training.output_layer out")
    if not kept:
        raise EmptySetError("no retained record answers with a value; training.output_layer needs some to protect")
    return own, strangers, kept


def _answering(records: Sequence[Record], attributes: frozenset[str]) -> list[_Asked]:
    found = []
    for record in records:
        answered = frozenset(a for a in attributes if answered_span(record, a) is not None)
        if answered:
            found.append(_Asked(record, answered))
    return found


def _value_tokens(
    model: Any, texts: Sequence[EncodedText], marks: Sequence[Sequence[tuple[int, int]]], *, pad_id: int, device: str
) -> Iterator[ValueTokens]:
    last = len(blocks(model)) - 1
    for rows in token_budget_batches([len(text.ids) for text in texts], budget=_BATCH_TOKENS):
        batch = collate([texts[i] for i in rows], pad_id=pad_id).to(device)
        places = [
            (row, position)
            for row, index in enumerate(rows)
            for start, end in marks[index]
            for position in range(max(start, texts[index].first_label), end)
        ]
        row, position = torch.tensor(places, device=device).T
        states = states_after(model, batch.input_ids, last)
        yield ValueTokens(states[row, position - 1].float(), batch.input_ids[row, position])
