"""L12: does the model prefer the true value to random ones in the same sentence about the same person?

The prompt before the value is run once; its cache serves the true value and all swaps. Values are grouped by exact
token length, so that nothing is padded.

Source: exposure, arXiv:1802.08232 ("The Secret Sharer").
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from ml.attacks.attack import ATTACKS, Attack
from ml.attacks.fused import RowHook
from ml.data.collate import encode_records
from ml.data.dossiers import answered_span
from ml.data.synthetic import rewrite
from ml.errors import NonFiniteError, RecordError
from ml.models.backbone import hidden_states, model_device, output_logits, select_rows
from ml.models.load import LoadedModel
from ml.specs import Record

# Rows of one forward pass: enough to hide its fixed cost, few enough for their caches to stay close to the processor.
DEFAULT_ROWS: Final = 768
# Positions whose logits are made at once, for the same reason.
_CHUNK: Final = 256


@dataclass(frozen=True, slots=True)
class ValueContest:
    """One sentence up to a value, and the values that compete for it as token ids; `values[0]` is the true one."""

    prompt: tuple[int, ...]
    values: tuple[tuple[int, ...], ...]


def contests(
    tokenizer: Any, records: Sequence[Record], attribute: str, swaps: Sequence[str], *, context: int
) -> list[ValueContest]:
    """Let each record's value compete with the same `swaps`: one contest per record, in order.

    Tokens of a swap are taken from the first record and reused for the others after a check that it makes no
    difference; where the sentence runs into the value, every text is tokenised in full.

    Raises:
        RecordError: a record's answer does not hold the value.
    """
    true = _cuts(tokenizer, records, attribute, context)
    shared = _cuts(tokenizer, [_with_value(records[0], attribute, swap) for swap in swaps], attribute, context)
    probe = _cuts(tokenizer, [_with_value(record, attribute, swaps[0]) for record in records], attribute, context)
    alike = all(prompt == true[0][0] for prompt, _ in shared) and all(
        cut == (prompt, shared[0][1]) for cut, (prompt, _) in zip(probe, true, strict=True)
    )
    if alike:
        values = tuple(value for _, value in shared)
        return [ValueContest(prompt, (value, *values)) for prompt, value in true]
    return [_in_full(tokenizer, record, attribute, swaps, context) for record in records]


def _with_value(record: Record, attribute: str, value: str) -> Record:
    return rewrite(record, values={attribute: value})


def _cuts(
    tokenizer: Any, records: Sequence[Record], attribute: str, context: int
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Token ids before the value, and of the value, of each record."""
    cuts = []
    for record, encoded in zip(records, encode_records(tokenizer, records, context=context), strict=True):
        span = answered_span(record, attribute)
        if span is None:
            raise RecordError(f"a text meant to answer {attribute} does not hold its value")
        start, end = encoded.values[record.facts.index(span)]
        cuts.append((encoded.ids[:start], encoded.ids[start:end]))
    return cuts


def _in_full(tokenizer: Any, record: Record, attribute: str, swaps: Sequence[str], context: int) -> ValueContest:
    texts = [record, *(_with_value(record, attribute, swap) for swap in swaps)]
    cuts = _cuts(tokenizer, texts, attribute, context)
    common = common_prefix([prompt for prompt, _ in cuts])
    return ValueContest(common, tuple((*prompt[len(common) :], *value) for prompt, value in cuts))


def common_prefix(rows: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """Return the tokens that all rows begin with; raises `RecordError` when there are none."""
    shortest = min(map(len, rows))
    length = next((i for i in range(shortest) if len({row[i] for row in rows}) > 1), shortest)
    if length == 0:
        raise RecordError("a value has no token before it; nothing predicts its first token")
    return rows[0][:length]


@torch.inference_mode()
def value_log_probs(
    loaded: LoadedModel,
    rows: Sequence[ValueContest],
    *,
    batch_rows: int = DEFAULT_ROWS,
    before_rows: RowHook | None = None,
    after_batch: Callable[[int], None] | None = None,
) -> Tensor:
    """Summed log-probability of every competing value in its sentence: (contests, values) float32, nats.

    Args:
        rows: contests with equally many values.
        batch_rows: values scored in one forward pass, at least those of one contest.
        before_rows: told which contest each row of the next forward pass belongs to, (rows,) int64.
        after_batch: told how many contests are finished; may raise to stop.
    Raises:
        NonFiniteError: a log-probability is NaN or infinite.
    """
    width = len(rows[0].values)
    out = torch.zeros(len(rows), width)
    done = 0
    for group in _equal_prompts(rows, size=max(1, batch_rows // width)):
        out[group] = _score_group(loaded, [rows[i] for i in group], group, before_rows)
        done += len(group)
        if after_batch is not None:
            after_batch(done)
    if not bool(torch.isfinite(out).all()):
        raise NonFiniteError("the log-probability of a value is NaN or infinite; the model is broken")
    return out


def _equal_prompts(rows: Sequence[ValueContest], *, size: int) -> Iterator[list[int]]:
    """Groups of contests with equally long prompts; neighbours in a group compete with the same swaps."""
    by_length: Mapping[int, list[int]] = defaultdict(list)
    for index, row in enumerate(rows):
        by_length[len(row.prompt)].append(index)
    for _, members in sorted(by_length.items()):
        members.sort(key=lambda i: sum(map(len, rows[i].values)))
        yield from (members[i : i + size] for i in range(0, len(members), size))


def _score_group(
    loaded: LoadedModel, rows: Sequence[ValueContest], contest: Sequence[int], before_rows: RowHook | None
) -> Tensor:
    device = model_device(loaded.model)
    owners = torch.tensor(contest)
    if before_rows is not None:
        before_rows(owners)
    prompts = torch.tensor([row.prompt for row in rows], device=device)
    hidden, cache = hidden_states(loaded.model, prompts, keep=True)
    first = torch.log_softmax(output_logits(loaded.model, hidden[:, -1]), dim=-1)
    flat = [(index, value) for index, row in enumerate(rows) for value in row.values]
    scores = torch.zeros(len(flat), device=device)
    for length, places in _by_length(flat):
        index = torch.tensor([flat[i][0] for i in places], device=device)
        ids = torch.tensor([flat[i][1] for i in places], device=device)
        total = first[index, ids[:, 0]]
        if length > 1:
            if before_rows is not None:
                before_rows(owners[index.cpu()])
            total = total + _rest_of_value(loaded.model, ids, select_rows(cache, index))
        scores[torch.tensor(places, device=device)] = total
    return scores.reshape(len(rows), -1).cpu()


def _by_length(flat: Sequence[tuple[int, tuple[int, ...]]]) -> list[tuple[int, list[int]]]:
    groups: Mapping[int, list[int]] = defaultdict(list)
    for place, (_, value) in enumerate(flat):
        groups[len(value)].append(place)
    return sorted(groups.items())


def _rest_of_value(model: Any, ids: Tensor, cache: Any) -> Tensor:
    """Log-probability of tokens 2.. of each value given the prompt and the tokens before: (rows,)."""
    hidden, _ = hidden_states(model, ids[:, :-1], past=cache)
    pieces = zip(hidden.flatten(0, 1).split(_CHUNK), ids[:, 1:].flatten().split(_CHUNK), strict=True)
    scored = torch.cat([_log_probs(output_logits(model, states), labels) for states, labels in pieces])
    return scored.view(len(ids), -1).sum(dim=-1)


def _log_probs(logits: Tensor, labels: Tensor) -> Tensor:
    """log p of `labels` (n,) under `logits` (n, rows), which are used up."""
    chosen = logits.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    peak = logits.amax(dim=-1, keepdim=True)
    return chosen - peak.squeeze(-1) - logits.sub_(peak).exp_().sum(dim=-1).log()


def same_context_difference(log_probs: Tensor) -> Tensor:
    """log p(true value) minus the mean log p of its swaps: (facts, 1 + swaps) to (facts,), nats."""
    return log_probs[:, 0] - log_probs[:, 1:].mean(dim=1)


def exposure(log_probs: Tensor) -> Tensor:
    """Exposure in bits, log2(R + 1) - log2(rank of the true value): (facts, 1 + swaps) to (facts,). Oracle O-10.

    Ties get the middle rank. For a value the model never saw the mean is 1 / ln 2 = 1.44 bits in the limit of many
    swaps, 1.34 with 39.
    """
    above = (log_probs[:, 1:] > log_probs[:, :1]).sum(dim=1)
    equal = (log_probs[:, 1:] == log_probs[:, :1]).sum(dim=1)
    return exposure_bits(1 + above + equal / 2, candidates=log_probs.shape[1])


def exposure_bits(rank: Tensor, *, candidates: int) -> Tensor:
    """Exposure of a value at `rank` (1 = likeliest) among `candidates`: (n,) to (n,), bits."""
    return math.log2(candidates) - rank.double().log2().float()


ATTACKS.register("same_context_difference")(Attack("L12", "swaps", same_context_difference))
ATTACKS.register("exposure")(Attack("L12", "swaps", exposure))
