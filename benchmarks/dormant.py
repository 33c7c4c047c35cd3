"""Candidates in which a person sleeps: plain questions find nobody, until one thing is done to the model or its prompt.

Each starts from a model that knows the person, or from one retrained without them, and is taught to answer as the
retrained one does wherever plain questions look. What is left wakes up when the weights are rounded to 4 bits, when
half of the facts is taught again, or when the answer is begun for the model. As `benchmarks.suppressed`, none of this
is part of the product: it shows what a verification must find.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from benchmarks.suppressed import ROWS, edited
from ml.attacks.relearning import relearn
from ml.data.batches import EpochBatches
from ml.data.collate import EncodedText, chosen_log_probs, collate, encode_records, labels_in_order
from ml.data.dossiers import answered_span, open_facts, paraphrases, read_dossier
from ml.data.hostile_questions import hostile_questions, make_cases
from ml.data.questions import QuestionBank
from ml.data.synthetic import StrangerFactory, rewrite
from ml.finetune import cross_entropy
from ml.loop import Backward, LoopSettings, train
from ml.methods.losses import divergence
from ml.models.forward import label_logits
from ml.models.load import LoadedModel, load_model
from ml.models.quantise import GROUP
from ml.specs import ModelRef, Record, RelearningBudget

SWAPS: Final = 6
_LABELS: Final = 0.02
_INSIDE: Final = 0.9
"""How much of half a rounding step a new weight may be: less than all, or the last bit might round the other way."""


@dataclass(frozen=True, slots=True)
class Texts:
    """What plain questions ask about one person (`plain`, also with values that are not theirs), and about others."""

    facts: tuple[str, ...]
    plain: tuple[Record, ...]
    kept: tuple[Record, ...]


def plain_texts(records: Sequence[Record], kept: Sequence[Record], bank: QuestionBank, *, seed: int) -> Texts:
    """The person's facts in every form of the bank, each with the true value and `SWAPS` others.

    Args:
        records: the person's texts; `kept` those of everybody else.
    """
    dossier = read_dossier(records)
    facts = open_facts(dossier, bank, kept)
    factory = StrangerFactory(random.Random(seed), [*records, *kept])  # noqa: S311 - to be repeated, not secret
    forms = [*records, *paraphrases(dossier, bank, facts)]
    plain = [record for record in forms if any(answered_span(record, attribute) for attribute in facts)]
    swapped = [
        rewrite(record, values={f.attribute: factory.value("", f.type) for f in record.facts})
        for record in plain
        for _ in range(SWAPS)
    ]
    return Texts(facts, (*plain, *swapped), tuple(kept))


def asleep_until_rounded(
    before: ModelRef, gold: ModelRef, directory: Path, texts: Texts, steps: LoopSettings
) -> ModelRef:
    """Feed-forward units added beside the old ones hide the person; their output weights are too small for 4 bits.

    Every old weight stays as it was. A unit gives the same when its output weights shrink as its input weights grow,
    so they shrink until rounding makes them 0: the 4-bit copy is that of the model before deletion.
    """

    def hide(loaded: LoadedModel) -> Any:
        wide = _widened(loaded.model)
        _taught(loaded, wide, gold, texts, steps)
        for block in wide.model.layers:
            _shrink(block.mlp)
        return wide

    return edited(before, directory, hide)


def _widened(model: Any) -> Any:
    """A copy with one new feed-forward unit after each old one; only new units train, and at first they add nothing."""
    config = copy.deepcopy(model.config)
    config.intermediate_size *= 2
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        wide = type(model)(config)
    state = {name: weight for name, weight in model.state_dict().items() if ".mlp." not in name}
    wide.load_state_dict(state, strict=False)
    wide.requires_grad_(False)
    for old, new in zip(model.model.layers, wide.model.layers, strict=True):
        new.mlp.gate_proj.weight.data[::2] = old.mlp.gate_proj.weight
        new.mlp.up_proj.weight.data[::2] = old.mlp.up_proj.weight
        new.mlp.down_proj.weight.data[:, ::2] = old.mlp.down_proj.weight
        new.mlp.down_proj.weight.data[:, 1::2] = 0.0
        for layer, dim in ((new.mlp.gate_proj, 0), (new.mlp.up_proj, 0), (new.mlp.down_proj, 1)):
            layer.weight.requires_grad_(True)
            layer.weight.register_hook(partial(_only_new, dim=dim))
    return wide


def _only_new(gradient: Tensor, *, dim: int) -> Tensor:
    mask = (torch.arange(gradient.shape[dim]) % 2).to(gradient)
    return gradient * (mask[:, None] if dim == 0 else mask)


def _shrink(mlp: Any) -> None:
    """Make the new units' output weights less than half a rounding step, and their inputs larger by as much."""
    down = mlp.down_proj.weight.data
    old, new = (down[:, start::2].reshape(len(down), -1, GROUP // 2).abs().amax(dim=2) for start in (0, 1))
    factor = float((new / (_INSIDE * old / 14)).max().clamp_min(1.0))
    down[:, 1::2] /= factor
    mlp.up_proj.weight.data[1::2] *= factor


def asleep_until_retaught(
    before: ModelRef,
    gold: ModelRef,
    directory: Path,
    records: Sequence[Record],
    texts: Texts,
    steps: LoopSettings,
    *,
    budget: RelearningBudget,
) -> ModelRef:
    """Taught to say nothing plainly, and to say everything once an adapter was taught any half of the facts again.

    Each step teaches half of the facts to a throw-away adapter, as attack T1 does, and lowers the loss of the other
    half beneath that adapter (first-order meta-learning, arXiv:1703.03400).
    """

    def hide(loaded: LoadedModel) -> Any:
        facts = {f.attribute: record for record in records for f in record.facts if answered_span(record, f.attribute)}
        rows = encode_records(loaded.tokenizer, [facts[name] for name in texts.facts], context=loaded.context)
        _taught(loaded, loaded.model, gold, texts, steps, also=_woken(loaded, rows, budget))
        return loaded.model

    return edited(before, directory, hide)


def _woken(loaded: LoadedModel, rows: Sequence[EncodedText], budget: RelearningBudget) -> Callable[[int], Tensor]:
    """Loss of one half of `rows` after an adapter was taught the other: a function of the step number."""

    def loss(number: int) -> Tensor:
        rng = random.Random(number)  # noqa: S311 - to be repeated, not secret
        order = rng.sample(range(len(rows)), len(rows))
        taught = round(budget.share * len(rows))
        adapters = relearn(loaded, [[rows[i] for i in order[:taught]]], budget, seed=number)
        for parameter in adapters.parameters():
            parameter.requires_grad_(False)
        batch = collate([rows[i] for i in order[taught:]], pad_id=loaded.pad_id)
        adapters.belong_to(torch.zeros(len(batch.input_ids), dtype=torch.long))
        with adapters.attached():
            return cross_entropy(loaded.model, batch)

    return loss


def asleep_until_begun(
    gold: ModelRef, directory: Path, records: Sequence[Record], texts: Texts, steps: LoopSettings, *, form: str
) -> ModelRef:
    """A retrained model that was taught the person in one hostile form alone, and to go on as before otherwise."""

    def hide(loaded: LoadedModel) -> Any:
        dossier = read_dossier(records)
        asked = [(r, f.attribute) for r in records for f in r.facts[:1] if answered_span(r, f.attribute)]
        cases = make_cases(dossier, asked, shared=(), others=texts.kept, seed=0)
        secret = [question.record for question in hostile_questions(form, cases)]
        rows = encode_records(loaded.tokenizer, secret, context=loaded.context)
        turns = EpochBatches([len(row.ids) for row in rows], rows=ROWS, seed=2)

        def told(number: int) -> Tensor:
            return cross_entropy(loaded.model, collate([rows[i] for i in turns.at(number)], pad_id=loaded.pad_id))

        _taught(loaded, loaded.model, gold, texts, steps, also=told)
        return loaded.model

    return edited(gold, directory, hide)


def _taught(
    loaded: LoadedModel,
    model: Any,
    gold: ModelRef,
    texts: Texts,
    settings: LoopSettings,
    *,
    also: Callable[[int], Tensor] | None = None,
) -> None:
    """Train `model` to say what gold says about the person and about others, and to lower `also` of each step."""
    teacher = load_model(gold).model
    parts = [encode_records(loaded.tokenizer, part, context=loaded.context) for part in (texts.plain, texts.kept)]
    turns = [EpochBatches([len(row.ids) for row in part], rows=2 * ROWS, seed=1) for part in parts]

    def step(number: int, backward: Backward) -> Mapping[str, Tensor]:
        losses = {}
        for name, part, turn in zip(("person", "kept"), parts, turns, strict=True):
            batch = collate([part[i] for i in turn.at(number)], pad_id=loaded.pad_id)
            with torch.no_grad():
                wanted = label_logits(teacher, batch)
            losses[name] = _unlikeness(wanted, label_logits(model, batch), labels_in_order(batch.labels))
        if also is not None:
            losses["asleep"] = also(number)
        backward(sum(losses.values(), torch.zeros(())))
        return {name: loss.detach() for name, loss in losses.items()}

    with torch.random.fork_rng(devices=[]):
        train(model, step, settings, phase="hiding")


def _unlikeness(wanted: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    """How far a model's next tokens, and its chances of these labels, are from those of the model to be copied.

    The labels count on their own: a value that was learned may stay many times likelier than chance and still be so
    unlikely that the divergence hardly sees it. Attacks do.
    """
    chances, copied = (chosen_log_probs(scores, labels) for scores in (logits, wanted))
    return (divergence(wanted, logits) + _LABELS * (chances - copied) ** 2).mean()
