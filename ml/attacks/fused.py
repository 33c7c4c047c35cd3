"""One forward pass over a set of texts that serves every likelihood attack (verification section 3).

The output layer is applied to label positions only, in chunks; per token a handful of numbers is kept, so that no
tensor of tokens x vocabulary exists for more than one chunk. Reductions are in float32.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Final, Literal

import torch
from torch import Tensor

from ml.data.collate import IGNORED, EncodedText, collate, token_budget_batches
from ml.energy import token_energy
from ml.errors import NonFiniteError, SpecError
from ml.models.backbone import hidden_states, model_device, output_logits
from ml.models.load import LoadedModel

Mode = Literal["native", "parity"]
RowHook = Callable[[Tensor], None]

# Logits in flight: small enough for a processor's cache; a GPU wants few large chunks.
_CHUNK_ELEMENTS: Final = {"cpu": 1 << 19}
_CHUNK_ELEMENTS_GPU: Final = 1 << 28
DEFAULT_BUDGET: Final = 4096


@dataclass(frozen=True, slots=True)
class SamplingScheme:
    """How a deployment samples: temperature, then the `top_k` likeliest (0: all), then the nucleus of mass `top_p`."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0


PLAIN: Final = SamplingScheme()
"""Every token as likely as the model says."""


def served_scheme(model: Any) -> SamplingScheme:
    """How the model's own `generation_config.json` samples; plainly where it does not say.

    It comes with the model, so it may only add to what is looked at: whoever asks may choose other settings.
    """
    settings = getattr(model, "generation_config", None)
    if settings is None or not settings.do_sample:
        return PLAIN
    temperature, top_k, top_p = settings.temperature, settings.top_k, settings.top_p
    return SamplingScheme(
        1.0 if temperature is None else float(temperature),
        0 if top_k is None else int(top_k),
        1.0 if top_p is None else float(top_p),
    )


@dataclass(frozen=True, slots=True)
class TokenStatistics:
    """What the fused pass keeps: (texts, width) tensors, one column per label, padded on the right.

    `mask` marks labels, `values` those inside a fact's value. `log_prob` is log p(y); `hit` whether y is the
    likeliest token; `rank` 1 for the likeliest and `bottom_rank` 1 for the least likely token; `mean` the sum of
    p log p over the vocabulary, `mean_square` that of p (log p)^2; `top` the log-probability of the likeliest token;
    `energy` the centred energy in nats; `sampled` log p(y) under the sampling scheme, -inf where it can never be
    drawn. Padding is 0 or False. `compressed_bytes` and `reference_loss`, (texts,), serve attacks L6 and L7.
    """

    mask: Tensor
    values: Tensor
    log_prob: Tensor
    hit: Tensor
    rank: Tensor
    bottom_rank: Tensor
    mean: Tensor
    mean_square: Tensor
    top: Tensor
    energy: Tensor
    sampled: Tensor
    compressed_bytes: Tensor | None = None
    reference_loss: Tensor | None = None

    def __len__(self) -> int:
        return int(self.mask.shape[0])

    def rows(self, index: Tensor) -> TokenStatistics:
        """Return the statistics of the texts at `index`."""
        chosen = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: t[index] for name, t in chosen.items() if t is not None})

    def tensors(self) -> Mapping[str, Tensor]:
        """The fields that were measured, by name, for storage."""
        chosen = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: tensor for name, tensor in chosen.items() if tensor is not None}


def without_end(mask: Tensor) -> Tensor:
    """Drop the last label of each row: (texts, width) bool. It is the end-of-sequence token of an encoded text."""
    last = mask.sum(dim=1, keepdim=True) - 1
    return mask & (torch.arange(mask.shape[1], device=mask.device) < last)


def compressed_bytes(tokenizer: Any, texts: Sequence[EncodedText]) -> Tensor:
    """Bytes of each text's decoded labels after `zlib.compress` at its default level: (texts,) float32. Oracle O-6."""
    decoded = tokenizer.batch_decode([text.ids[text.first_label :] for text in texts], skip_special_tokens=True)
    return torch.tensor([float(len(zlib.compress(text.encode("utf-8")))) for text in decoded])


def attention_mask(rows: Sequence[Sequence[int]], *, pad_id: int, mode: Mode) -> Tensor:
    """Mask of right-padded rows, (rows, width) int64: by true length (native), or `id != pad` (parity). Oracle O-1.

    Parity copies code whose pad token is the end-of-sequence token: it also masks real end tokens inside a text.
    """
    width = max(len(row) for row in rows)
    padded = torch.tensor([[*row, *[pad_id] * (width - len(row))] for row in rows])
    if mode == "parity":
        return (padded != pad_id).long()
    lengths = torch.tensor([len(row) for row in rows])
    return (torch.arange(width) < lengths.unsqueeze(1)).long()


@torch.inference_mode()
def fused_pass(
    loaded: LoadedModel,
    texts: Sequence[EncodedText],
    *,
    budget: int = DEFAULT_BUDGET,
    scheme: SamplingScheme = SamplingScheme(),
    mode: Mode = "native",
    before_rows: RowHook | None = None,
    after_batch: Callable[[int], None] | None = None,
) -> TokenStatistics:
    """Score every label of every text in one pass, in batches of at most `budget` tokens of similar length.

    Args:
        mode: "parity" masks attention by `id != pad` (section 2.2, trap 1); "native" needs no mask.
        before_rows: told which texts the next forward pass holds, (rows,) int64.
        after_batch: told how many texts are finished; may raise to stop.
    Raises:
        NonFiniteError: a log-probability is NaN; a broken model has no score.
        EmptySequenceError: a text has no label.
    """
    width = max(len(text.ids) - text.first_label for text in texts)
    out = _empty(len(texts), width)
    done = 0
    for rows in token_budget_batches([len(text.ids) for text in texts], budget=budget):
        batch = collate([texts[i] for i in rows], pad_id=loaded.pad_id).to(model_device(loaded.model))
        if before_rows is not None:
            before_rows(torch.tensor(rows))
        mask = None
        if mode == "parity":
            mask = attention_mask([texts[i].ids for i in rows], pad_id=loaded.pad_id, mode=mode)
            mask = mask.to(batch.input_ids.device)
        hidden, _ = hidden_states(loaded.model, batch.input_ids, attention_mask=mask)
        _score_batch(loaded, hidden, batch.labels, torch.tensor(rows), scheme, out)
        done += len(rows)
        if after_batch is not None:
            after_batch(done)
    _mark_values(texts, out["values"])
    _refuse_not_a_number(out)
    return TokenStatistics(**out)


_FLOATS: Final = ("log_prob", "mean", "mean_square", "top", "energy", "sampled")


def _empty(texts: int, width: int) -> dict[str, Tensor]:
    out = {name: torch.zeros(texts, width) for name in _FLOATS}
    out |= {name: torch.zeros(texts, width, dtype=torch.bool) for name in ("mask", "values", "hit")}
    return out | {name: torch.zeros(texts, width, dtype=torch.int32) for name in ("rank", "bottom_rank")}


def _score_batch(
    loaded: LoadedModel, hidden: Tensor, labels: Tensor, rows: Tensor, scheme: SamplingScheme, out: dict[str, Tensor]
) -> None:
    scored = labels[:, 1:] != IGNORED
    row, position = scored.nonzero(as_tuple=True)
    first = scored.long().argmax(dim=1)
    column = (position - first[row]).cpu()
    flat, targets = hidden[row, position], labels[row, position + 1]
    elements = _CHUNK_ELEMENTS.get(flat.device.type, _CHUNK_ELEMENTS_GPU)
    size = max(1, elements // loaded.model.config.vocab_size)
    pieces = [
        token_numbers(output_logits(loaded.model, h), y, scheme=scheme, vocabulary=len(loaded.tokenizer))
        for h, y in zip(flat.split(size), targets.split(size), strict=True)
    ]
    place = (rows[row.cpu()], column)
    out["mask"][place] = True
    for name in pieces[0]:
        out[name][place] = torch.cat([piece[name] for piece in pieces]).to("cpu", out[name].dtype)


def token_numbers(
    logits: Tensor, targets: Tensor, *, scheme: SamplingScheme, vocabulary: int | None = None
) -> dict[str, Tensor]:
    """The per-token numbers of `TokenStatistics`: logits (n, rows) float32 and targets (n,) to tensors (n,)."""
    log_probs = logits - torch.logsumexp(logits, dim=-1, keepdim=True)
    chosen = log_probs.gather(-1, targets.unsqueeze(-1))
    weighted = log_probs.exp() * log_probs
    top, likeliest = log_probs.max(dim=-1)
    return {
        "log_prob": chosen.squeeze(-1),
        "hit": likeliest == targets,
        "rank": 1 + (log_probs > chosen).sum(dim=-1),
        "bottom_rank": 1 + (log_probs < chosen).sum(dim=-1),
        "mean": weighted.sum(dim=-1),
        "mean_square": (weighted * log_probs).sum(dim=-1),
        "top": top,
        "energy": token_energy(logits, vocabulary=vocabulary),
        "sampled": sampled_log_prob(log_probs, targets, scheme),
    }


def sampled_log_prob(log_probs: Tensor, targets: Tensor, scheme: SamplingScheme) -> Tensor:
    """Log-probability of drawing each target under `scheme`: (n, rows) and (n,) to (n,); -inf where filtered out."""
    if scheme == PLAIN:
        return log_probs.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    ordered, order = filtered_log_probs(log_probs, scheme)
    return ordered.gather(-1, (order == targets.unsqueeze(-1)).long().argmax(dim=-1, keepdim=True)).squeeze(-1)


def filtered_log_probs(log_probs: Tensor, scheme: SamplingScheme) -> tuple[Tensor, Tensor]:
    """What a sampler draws from: log-probabilities, likeliest first, and the tokens they belong to, both (n, rows).

    Renormalised after temperature and filters; -inf where a token can never be drawn.
    """
    if scheme.temperature <= 0:
        raise SpecError("a sampling temperature is above 0; greedy decoding is its own attack")
    if not 0 < scheme.top_p <= 1 or scheme.top_k < 0:
        raise SpecError("a nucleus has a mass above 0 and up to 1, and no fewer than 0 tokens are kept")
    scaled = torch.log_softmax(log_probs / scheme.temperature, dim=-1)
    ordered, order = scaled.sort(dim=-1, descending=True, stable=True)
    kept = torch.ones_like(ordered, dtype=torch.bool)
    if scheme.top_k:
        kept[:, scheme.top_k :] = False
    if scheme.top_p < 1:
        within = torch.log_softmax(ordered.masked_fill(~kept, -torch.inf), dim=-1).exp()
        kept &= within.cumsum(dim=-1) - within < scheme.top_p
    return torch.log_softmax(ordered.masked_fill(~kept, -torch.inf), dim=-1), order


def _mark_values(texts: Sequence[EncodedText], values: Tensor) -> None:
    for index, text in enumerate(texts):
        for start, end in text.values:
            values[index, max(0, start - text.first_label) : max(0, end - text.first_label)] = True


def _refuse_not_a_number(out: Mapping[str, Tensor]) -> None:
    for name in ("log_prob", "mean", "energy"):
        if not bool(torch.isfinite(out[name]).all()):
            raise NonFiniteError("a log-probability is NaN or infinite; the model is broken and has no score")
