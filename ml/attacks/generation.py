"""G1, G2 and G7: ask, greedily decode, and see whether the value comes out (verification section 4).

Prompts of equal length run together on one cache, without padding; a finished answer leaves the batch. A prompt whose
true answer is reproduced up to the value by greedy decoding (L10) is settled without generating a token.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias

import torch
from torch import Tensor

from ml.attacks.attack import ATTACKS, Attack
from ml.attacks.value_hit import value_hit
from ml.data.collate import EncodedText, encode_records
from ml.data.dossiers import answered_span
from ml.errors import RecordError
from ml.models.backbone import hidden_states, model_device, output_logits, select_rows
from ml.models.load import LoadedModel
from ml.specs import Record

NEW_TOKENS: Final = 200
DEFAULT_ROWS: Final = 256


@dataclass(frozen=True, slots=True)
class Prompt:
    """A question with the first `prefilled` tokens of its true answer, and the value that must not come out.

    `encoded` is the whole text with its true answer; what the model is given are its first `length` tokens.
    """

    encoded: EncodedText
    prefilled: int
    value: str
    type: str

    @property
    def length(self) -> int:
        """Tokens given to the model."""
        return self.encoded.first_label + self.prefilled

    @property
    def shows_value(self) -> bool:
        """True when the prefilled words reach into the value."""
        return self.length > self.encoded.values[0][0]


def make_prompt(tokenizer: Any, record: Record, attribute: str, *, prefill: float, context: int) -> Prompt:
    """Build one prompt; see `make_prompts`."""
    return make_prompts(tokenizer, [record], [attribute], prefill=prefill, context=context)[0]


def make_prompts(
    tokenizer: Any, records: Sequence[Record], attributes: Sequence[str], *, prefill: float, context: int
) -> list[Prompt]:
    """Build a prompt from each text, about the attribute it answers.

    Args:
        prefill: share of the answer's tokens, its end left out, that the answer already begins with (G7).
    Raises:
        RecordError: a text's answer does not hold the value.
    """
    prompts = []
    texts = encode_records(tokenizer, records, context=context)
    for record, attribute, encoded in zip(records, attributes, texts, strict=True):
        span = answered_span(record, attribute)
        if span is None:
            raise RecordError(f"a text meant to answer {attribute} does not hold its value")
        given = int(prefill * (len(encoded.ids) - 1 - encoded.first_label))
        own = replace(encoded, values=(encoded.values[record.facts.index(span)],))
        prompts.append(Prompt(own, given, record.text[span.start : span.end], span.type))
    return prompts


Choose: TypeAlias = Callable[[Tensor, Tensor, int], Tensor]
"""How the next token is taken: logits (rows, vocabulary), which prompts the rows are, (rows,) int64 on the logits'
device, and how many tokens each has been given so far, to tokens (rows,)."""


def most_likely(logits: Tensor, prompts: Tensor, given: int) -> Tensor:
    """Greedy decoding."""
    return logits.argmax(dim=-1)


def greedy_answers(
    loaded: LoadedModel,
    prompts: Sequence[Sequence[int]],
    *,
    new_tokens: int = NEW_TOKENS,
    batch_rows: int = DEFAULT_ROWS,
    after_batch: Callable[[int], None] | None = None,
) -> list[list[int]]:
    """`continuations` by the most likely token."""
    return continuations(
        loaded, prompts, choose=most_likely, new_tokens=new_tokens, batch_rows=batch_rows, after_batch=after_batch
    )


@torch.inference_mode()
def continuations(
    loaded: LoadedModel,
    prompts: Sequence[Sequence[int]],
    *,
    choose: Choose,
    new_tokens: int = NEW_TOKENS,
    batch_rows: int = DEFAULT_ROWS,
    after_batch: Callable[[int], None] | None = None,
) -> list[list[int]]:
    """Continue each prompt until its end token, `new_tokens`, or the model's context: ids without the end."""
    answers: list[list[int]] = [[] for _ in prompts]
    done = 0
    for group in _equal_lengths(prompts, size=batch_rows):
        limit = min(new_tokens, loaded.context - len(prompts[group[0]]))
        for index, answer in zip(group, _continue(loaded, prompts, group, limit, choose), strict=True):
            answers[index] = answer
        done += len(group)
        if after_batch is not None:
            after_batch(done)
    return answers


def _equal_lengths(prompts: Sequence[Sequence[int]], *, size: int) -> Iterator[list[int]]:
    by_length: Mapping[int, list[int]] = defaultdict(list)
    for index, prompt in enumerate(prompts):
        by_length[len(prompt)].append(index)
    for _, members in sorted(by_length.items()):
        yield from (members[i : i + size] for i in range(0, len(members), size))


def _continue(
    loaded: LoadedModel, prompts: Sequence[Sequence[int]], group: Sequence[int], limit: int, choose: Choose
) -> list[list[int]]:
    answers: list[list[int]] = [[] for _ in group]
    ids = torch.tensor([list(prompts[i]) for i in group], device=model_device(loaded.model))
    members = torch.tensor(group, device=ids.device)
    active = torch.arange(len(group), device=ids.device)
    cache: Any = None
    for given in range(limit):
        hidden, cache = hidden_states(loaded.model, ids, past=cache, keep=True)
        chosen = choose(output_logits(loaded.model, hidden[:, -1]), members[active], given)
        going = chosen != loaded.tokenizer.eos_token_id
        for row, token in zip(active[going].tolist(), chosen[going].tolist(), strict=True):
            answers[row].append(token)
        if not bool(going.any()):
            break
        if not bool(going.all()):
            cache = select_rows(cache, going.nonzero().squeeze(1))
        active, ids = active[going], chosen[going].unsqueeze(1)
    return answers


def settled(prompt: Prompt, greedy_match: int) -> bool:
    """True when the fused pass already shows that greedy decoding yields the value.

    Args:
        greedy_match: labels of the prompt's text that greedy decoding from the bare question reproduces (L10).
    """
    return not prompt.shows_value and prompt.encoded.first_label + greedy_match >= prompt.encoded.values[0][1]


def answer_hits(tokenizer: Any, prompts: Sequence[Prompt], answers: Sequence[Sequence[int]]) -> Tensor:
    """Which answers give the value away: (prompts,) float32, 1 for a hit.

    What was prefilled belongs to the prompt: a value it holds is not leaked, and one it begins counts when completed.
    """
    given = [prompt.encoded.ids[: prompt.length] for prompt in prompts]
    starts = [prompt.encoded.ids[prompt.encoded.first_label : prompt.length] for prompt in prompts]
    questions = tokenizer.batch_decode(given, skip_special_tokens=True)
    full = tokenizer.batch_decode(
        [[*start, *answer] for start, answer in zip(starts, answers, strict=True)], skip_special_tokens=True
    )
    hits = [
        value_hit(text, prompt.value, type_=prompt.type, prompt=question)
        for text, prompt, question in zip(full, prompts, questions, strict=True)
    ]
    return torch.tensor(hits, dtype=torch.float32)


def hit_rate(hits: Tensor) -> Tensor:
    """Hits as scores: (prompts,) to (prompts,); their mean over a person's prompts is the hit rate."""
    return hits.float()


ATTACKS.register("hit_rate")(Attack("G1, G2, G7", "answers", hit_rate))
