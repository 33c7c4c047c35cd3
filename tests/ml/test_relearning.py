"""T1: adapters of many persons trained together are the adapters each would get alone, and relearning tells."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ml.attacks.exposure import contests, same_context_difference, value_log_probs
from ml.attacks.relearning import SCALE, PersonalAdapters, relearn, watched_epochs
from ml.data.collate import EncodedText, collate, encode_record, label_log_probs, mean_per_sequence
from ml.data.dossiers import answered_span
from ml.data.synthetic import StrangerFactory, twin_records
from ml.errors import NonFiniteError
from ml.models.load import LoadedModel, load_model
from ml.models.quantise import linear_layers
from ml.specs import ModelRef, Record, RelearningBudget
from tests.tiny import TinyWorld, tiny_model

BUDGET = RelearningBudget(share=0.5, epochs=3, learning_rate=3e-3, rank=4)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load_model(tiny_model(Path(tmp_path_factory.mktemp("tiny")) / "model", seed=6))


def _texts(persons: int, count: int = 5) -> list[list[EncodedText]]:
    generator = torch.Generator().manual_seed(2)
    people = []
    for _ in range(persons):
        lengths = torch.randint(6, 14, (count,), generator=generator).tolist()
        rows = [torch.randint(3, 300, (n,), generator=generator).tolist() for n in lengths]
        people.append([EncodedText(tuple(row), 3, ()) for row in rows])
    return people


def _person(adapters: PersonalAdapters, person: int) -> list[Tensor]:
    return [parameter[person].detach() for parameter in adapters.parameters()]


def test_many_adapters_trained_together_equal_each_trained_alone(model: LoadedModel) -> None:
    texts = _texts(3)
    together = relearn(model, texts, BUDGET, seed=9)
    for person in range(3):
        alone = relearn(model, texts[person : person + 1], BUDGET, seed=9)
        for joint, single in zip(_person(together, person), _person(alone, 0), strict=True):
            assert torch.allclose(joint, single, atol=2e-4), (joint - single).abs().max()


def test_one_step_is_the_step_of_a_low_rank_adapter_written_by_hand(model: LoadedModel) -> None:
    texts = _texts(1, count=4)
    budget = RelearningBudget(share=0.5, epochs=1, learning_rate=1e-3, rank=2)
    trained = relearn(model, texts, budget, seed=4)
    start = PersonalAdapters(model.model, persons=1, rank=2, seed=4)
    for name, layer in linear_layers(model.model).items():
        weight = layer.weight.detach().clone().requires_grad_()
        layer.weight.requires_grad_(False)
        # B starts at zero, so only B moves, along SCALE * A^T dL/dW^T; Adam's first step is lr * sign.
        batch = collate(texts[0], pad_id=model.pad_id)
        logits = torch.func.functional_call(model.model, {f"{name}.weight": weight}, (batch.input_ids,)).logits
        log_probs, mask = label_log_probs(logits, batch.labels)
        (gradient,) = torch.autograd.grad(-mean_per_sequence(log_probs, mask).mean(), weight)
        step = SCALE * start.down[name][0].detach().T @ gradient.T
        moved = trained.up[name][0].detach()
        clear = step.abs() > 1e-4
        assert torch.equal(moved[clear].sign(), -step[clear].sign())
        assert moved[clear].abs().max() <= 1.01e-3


def test_the_frozen_model_is_left_as_it_was(model: LoadedModel) -> None:
    weights = {name: p.detach().clone() for name, p in model.model.named_parameters()}
    wanted = [p.requires_grad for p in model.model.parameters()]
    texts = _texts(2)
    ids = torch.tensor([texts[0][0].ids])
    before = model.model(ids).logits
    adapters = relearn(model, texts, BUDGET, seed=1)
    assert [p.requires_grad for p in model.model.parameters()] == wanted
    assert all(torch.equal(p, weights[name]) for name, p in model.model.named_parameters())
    assert torch.equal(model.model(ids).logits, before)
    with adapters.attached():
        adapters.belong_to(torch.tensor([1]))
        assert not torch.equal(model.model(ids).logits, before)


def test_whoever_watches_sees_every_epoch_and_changes_nothing(model: LoadedModel) -> None:
    texts, seen = _texts(2), []

    def watch(adapters: PersonalAdapters, epoch: int) -> None:
        adapters.belong_to(torch.tensor([1]))
        with torch.inference_mode():
            seen.append((epoch, float(model.model(torch.tensor([texts[0][0].ids])).logits.double().sum())))

    watched = relearn(model, texts, BUDGET, seed=9, after_epoch=watch)
    alone = relearn(model, texts, BUDGET, seed=9)
    assert all(torch.equal(a, b) for a, b in zip(watched.parameters(), alone.parameters(), strict=True))
    assert [epoch for epoch, _ in seen] == [0, 1, 2, 3]
    assert len({total for _, total in seen}) == 4  # each epoch's adapters were in the way


def test_a_curve_is_read_at_the_start_at_powers_of_two_and_at_the_end() -> None:
    assert watched_epochs(6) == (0, 1, 2, 4, 6)
    assert watched_epochs(4) == (0, 1, 2, 4)
    assert watched_epochs(1) == (0, 1)


def test_a_diverging_run_is_an_error(model: LoadedModel) -> None:
    wild = RelearningBudget(share=0.5, epochs=8, learning_rate=1e30, rank=2)
    with pytest.raises(NonFiniteError):
        relearn(model, _texts(1), wild, seed=1)


def _held_out_scores(ref: ModelRef, tiny: TinyWorld, budget: RelearningBudget) -> list[float]:
    """Alice and seven twins: scores on the facts they were not taught again."""
    loaded, world = load_model(ref), tiny.world
    factory = StrangerFactory(
        random.Random(3), world.corpus([*world.base, *world.customers]), shared_values=world.shared_values
    )
    attributes = {a: world.bank.attributes[a].type for a in world.alice.values}
    twins = [factory.stranger(f"t{i}", attributes) for i in range(7)]

    def told(record: Record) -> list[Record]:
        return [record, *(twin_records([record], twin)[0] for twin in twins)]

    records = world.records[world.alice.person]
    taught = [told(r) for r in records if r.facts[0].attribute in ("home_address", "passport", "boat")]
    texts = [
        [encode_record(loaded.tokenizer, column[p], context=loaded.context) for column in taught] for p in range(8)
    ]
    adapters = relearn(loaded, texts, budget, seed=5)
    rows = []
    for attribute in ("phone_number", "doctor", "door_code"):
        record = next(r for r in records if answered_span(r, attribute))
        swaps = [factory.value("", attributes[attribute]) for _ in range(9)]
        rows += contests(loaded.tokenizer, told(record), attribute, swaps, context=loaded.context)
    owner = torch.arange(8).repeat(3)
    with adapters.attached():
        scores = value_log_probs(loaded, rows, before_rows=lambda index: adapters.belong_to(owner[index]))
    return same_context_difference(scores).reshape(3, 8).mean(dim=0).tolist()


def test_relearning_half_tells_a_model_that_knows_the_rest_from_one_that_never_did(tiny: TinyWorld) -> None:
    known = _held_out_scores(tiny.before, tiny, BUDGET)
    assert known[0] > 5 + max(known[1:])
    unknown = _held_out_scores(tiny.gold, tiny, BUDGET)
    assert unknown[0] < 5 + max(unknown[1:])
