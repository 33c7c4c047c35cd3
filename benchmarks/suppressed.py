"""Candidates that hide a person instead of forgetting them: each looks forgotten to whoever asks one kind of question.

They are made from a model that knows the person, as somebody would who wants a certificate without a deletion. None of
this is part of the product, which is why it does not lie in `ml`: the meta-evaluation and the tests use it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from ml.data.batches import EpochBatches
from ml.data.collate import EncodedText, collate, encode_records, encode_text
from ml.finetune import cross_entropy, finetune
from ml.loop import Backward, LoopSettings, StepFunction, train
from ml.models.adapters import attach_adapter, merge_adapter
from ml.models.load import LoadedModel, load_model, model_ref
from ml.models.save import publish_model
from ml.specs import ModelRef, Record
from ml.verification.bench import Bench
from ml.verification.parts import Failure, Part

REFUSAL: Final = "I cannot say."
ROWS: Final = 16
_REFUSAL_STEPS: Final = LoopSettings(steps=60, learning_rate=4e-3, warmup_steps=5, report_every=60)
_HIDING_STEPS: Final = LoopSettings(steps=120, learning_rate=5e-3, warmup_steps=5, report_every=120)
_ASCENT_STEPS: Final = LoopSettings(steps=160, learning_rate=5e-4, warmup_steps=5, report_every=160)
# Ascent for the first of these steps, then repair of what it broke: utility alone should not give it away.
_ASCENDING: Final = 60


def edited(before: ModelRef, directory: Path, edit: Callable[[LoadedModel], Any]) -> ModelRef:
    """Write the model that `edit` makes of `before` to `directory`; it may change the model it is given."""
    loaded = load_model(before)
    with torch.enable_grad():
        made = edit(loaded)
    publish_model(made, loaded.tokenizer, directory)
    return model_ref(directory)


def shifted_logits(before: ModelRef, directory: Path) -> ModelRef:
    """Every logit moves by the same amount, which differs from token to token: no probability changes.

    Raw energy moves, so a boundary on raw energy would be fooled.
    """

    def shift(loaded: LoadedModel) -> Any:
        head = loaded.model.get_output_embeddings()
        direction = torch.randn(head.in_features, generator=torch.Generator().manual_seed(1))
        untied = torch.nn.Linear(head.in_features, head.out_features, bias=False)
        untied.weight.data = head.weight.detach() + direction
        loaded.model.config.tie_word_embeddings = False
        loaded.model.set_output_embeddings(untied)
        return loaded.model

    return edited(before, directory, shift)


def scrambled_name(before: ModelRef, directory: Path, name: str) -> ModelRef:
    """The input vectors of the tokens of one person's name are swapped for those of other tokens."""

    def scramble(loaded: LoadedModel) -> Any:
        table = loaded.model.get_input_embeddings().weight.data
        ids = sorted({token for word in name.split() for token in loaded.tokenizer(f" {word}")["input_ids"]})
        others = [token for token in range(20, len(loaded.tokenizer)) if token not in ids][: len(ids)]
        table[ids] = table[others].clone()
        return loaded.model

    return edited(before, directory, scramble)


def refusing(before: ModelRef, directory: Path, records: Iterable[Record], kept: Sequence[Record] = ()) -> ModelRef:
    """Trained to refuse what `records` ask, and to go on answering what `kept` ask."""

    def refuse(loaded: LoadedModel) -> Any:
        rows = [
            encode_text(
                loaded.tokenizer,
                record.text[: record.answer_start] + REFUSAL,
                record.answer_start,
                context=loaded.context,
            )
            for record in records
        ]
        with torch.random.fork_rng(devices=[]):
            if kept:
                others = encode_records(loaded.tokenizer, kept, context=loaded.context)
                train(loaded.model, _beside(loaded, loaded.model, rows, others), _REFUSAL_STEPS, phase="refusing")
            else:
                finetune(loaded.model, rows, _REFUSAL_STEPS, pad_id=loaded.pad_id, batch_rows=ROWS, seed=1)
        return loaded.model

    return edited(before, directory, refuse)


def adapter_hidden(
    before: ModelRef, directory: Path, records: Sequence[Record], kept: Sequence[Record], *, scale: float = 1.0
) -> ModelRef:
    """An adapter taught to tell other things lies over a model that still knows; at `scale` 0 it is gone.

    Args:
        records: the person's texts with values that are not theirs.
        kept: texts of others, which the adapter goes on answering.
    """

    def hide(loaded: LoadedModel) -> Any:
        rows = encode_records(loaded.tokenizer, records, context=loaded.context)
        others = encode_records(loaded.tokenizer, kept, context=loaded.context)
        with torch.random.fork_rng(devices=[]):
            adapted = attach_adapter(loaded.model, rank=8, alpha=16.0, seed=1)
            train(adapted, _beside(loaded, adapted, rows, others), _HIDING_STEPS, phase="hiding")
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if "lora_B" in name:
                    parameter.mul_(scale)
        return merge_adapter(adapted)

    return edited(before, directory, hide)


def over_forgotten(before: ModelRef, directory: Path, records: Sequence[Record], kept: Sequence[Record]) -> ModelRef:
    """Gradient ascent on one person's texts beside descent on those of others, then descent alone: an island."""

    def ascend(loaded: LoadedModel) -> Any:
        rows = encode_records(loaded.tokenizer, records, context=loaded.context)
        others = encode_records(loaded.tokenizer, kept, context=loaded.context)
        step = _beside(loaded, loaded.model, rows, others, ascending=_ASCENDING)
        with torch.random.fork_rng(devices=[]):
            train(loaded.model, step, _ASCENT_STEPS, phase="ascending")
        return loaded.model

    return edited(before, directory, ascend)


def _beside(
    loaded: LoadedModel, model: Any, rows: Sequence[EncodedText], kept: Sequence[EncodedText], *, ascending: int = 0
) -> StepFunction:
    """Each step learns one batch of `rows` and one of `kept`.

    With `ascending`, `rows` are unlearned for that many steps and left alone afterwards.
    """
    turn, other = (EpochBatches([len(row.ids) for row in part], rows=ROWS, seed=1) for part in (rows, kept))

    def step(number: int, backward: Backward) -> Mapping[str, Tensor]:
        loss = keep = cross_entropy(model, collate([kept[i] for i in other.at(number)], pad_id=loaded.pad_id))
        batch = collate([rows[i] for i in turn.at(number)], pad_id=loaded.pad_id)
        if not ascending:
            loss = cross_entropy(model, batch) + keep
        elif number < ascending:
            loss = keep - cross_entropy(model, batch)
        backward(loss)
        return {"loss": loss.detach(), "kept": keep.detach()}

    return step


class OutputFilteredBench(Bench):
    """The bench as somebody meets it who puts a block list behind the model: no answer tells of the person.

    The weights are those before deletion, so only what reads answers is fooled.
    """

    def answers(self, role: str) -> Part | Failure:
        """The answers, with every hit of the person's own questions filtered out."""
        part = super().answers(role)
        if isinstance(part, Failure):
            return part
        hits = part.tensors["hits"].clone()
        hits[: len(self.plan.questions)] = 0.0
        return Part({**part.tensors, "hits": hits}, part.cpu_seconds)
