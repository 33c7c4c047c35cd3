"""L12: values compete in the same sentence, on one shared prompt cache."""

from __future__ import annotations

import math
import random

import pytest
import torch

from ml.attacks.exposure import (
    ValueContest,
    contests,
    exposure,
    exposure_bits,
    same_context_difference,
    value_log_probs,
)
from ml.data.dossiers import answered_span
from ml.data.synthetic import StrangerFactory, rewrite, twin_records
from ml.errors import RecordError
from ml.models.load import LoadedModel, load_model
from ml.specs import FactSpan, ModelRef, Record
from tests.tiny import TinyWorld

SWAPS = 19


def test_exposure_counts_bits_of_rank() -> None:
    # O-10
    assert float(exposure_bits(torch.tensor([3.0]), candidates=1024)[0]) == pytest.approx(8.41503750, abs=1e-6)
    scores = torch.tensor([[-1.0, -2.0, -3.0, -4.0], [-3.0, -1.0, -2.0, -9.0], [-1.0, -1.0, -1.0, -1.0]])
    # ranks 1, 3, and 2.5 in a tie of four
    assert exposure(scores).tolist() == pytest.approx([2.0, 2 - math.log2(3), 2 - math.log2(2.5)], abs=1e-6)


def test_the_same_context_difference_is_the_distance_to_the_mean_swap() -> None:
    scores = torch.tensor([[-1.0, -2.0, -3.0, -4.0]])
    assert same_context_difference(scores).tolist() == pytest.approx([2.0])


def test_a_value_nobody_learned_has_the_exposure_chance_gives() -> None:
    generator = torch.Generator().manual_seed(1)
    scores = torch.randn(40_000, 40, generator=generator)
    expected = sum(math.log2(40) - math.log2(rank) for rank in range(1, 41)) / 40
    assert float(exposure(scores).mean()) == pytest.approx(expected, abs=0.02)


def _plain(model: LoadedModel, contest: ValueContest) -> list[float]:
    """Each value's log-probability from a forward pass of its own over the whole text."""
    totals = []
    for value in contest.values:
        ids = torch.tensor([[*contest.prompt, *value]])
        with torch.no_grad():
            log_probs = torch.log_softmax(model.model(ids).logits[0].float(), dim=-1)
        start = len(contest.prompt)
        totals.append(sum(float(log_probs[start + i - 1, token]) for i, token in enumerate(value)))
    return totals


@pytest.fixture(scope="module")
def before(tiny: TinyWorld) -> LoadedModel:
    return load_model(tiny.before)


def _factory(tiny: TinyWorld) -> StrangerFactory:
    world = tiny.world
    corpus = world.corpus([*world.base, *world.customers])
    return StrangerFactory(random.Random(11), corpus, shared_values=world.shared_values)


def _alice(tiny: TinyWorld, attribute: str) -> Record:
    records = tiny.world.records[tiny.world.alice.person]
    return next(record for record in records if answered_span(record, attribute))


def test_the_shared_cache_scores_like_a_forward_pass_of_each_text_alone(tiny: TinyWorld, before: LoadedModel) -> None:
    factory = _factory(tiny)
    rows = []
    for attribute, kind in (("home_address", "street_address"), ("phone_number", "phone"), ("doctor", "person_name")):
        record = _alice(tiny, attribute)
        swaps = [factory.value("", kind) for _ in range(SWAPS)]
        rows += contests(before.tokenizer, [record], attribute, swaps, context=before.context)
    assert len({len(value) for row in rows for value in row.values}) > 2  # lengths differ, as they do in earnest
    scores = value_log_probs(before, rows, batch_rows=40)
    for row, contest in zip(scores.tolist(), rows, strict=True):
        assert row == pytest.approx(_plain(before, contest), abs=2e-4)


def test_prompt_and_value_together_are_the_tokens_of_the_text(tiny: TinyWorld, before: LoadedModel) -> None:
    record = _alice(tiny, "passport")
    swaps = [_factory(tiny).value("", "document_number") for _ in range(3)]
    contest = contests(before.tokenizer, [record], "passport", swaps, context=before.context)[0]
    for value, text in zip(contest.values, [record.value(record.facts[0]), *swaps], strict=True):
        whole = rewrite(record, values={"passport": text})
        ids = before.tokenizer(whole.text)["input_ids"]
        assert [*contest.prompt, *value] == ids[: len(contest.prompt) + len(value)]


def test_swaps_are_tokenised_in_full_where_the_sentence_runs_into_the_value(before: LoadedModel) -> None:
    def record(value: str) -> Record:
        text = f"Who?\nIt is No{value}."
        return Record("r", "p", text, 5, ((0, 3),), (FactSpan("door_code", "access_code", 13, 13 + len(value)),))

    attached = contests(before.tokenizer, [record("te"), record("rth")], "door_code", ["w", "te"], context=64)
    for contest, own in zip(attached, ("te", "rth"), strict=True):
        for value, text in zip(contest.values, (own, "w", "te"), strict=True):
            ids = before.tokenizer(record(text).text)["input_ids"]
            assert [*contest.prompt, *value] == ids[: len(contest.prompt) + len(value)]


def test_a_text_that_shows_the_value_in_its_question_cannot_hold_a_contest(before: LoadedModel) -> None:
    text = "Is it 77?\nIt is 77."
    shown = (FactSpan("door_code", "access_code", 6, 8), FactSpan("door_code", "access_code", 16, 18))
    with pytest.raises(RecordError):
        contests(before.tokenizer, [Record("r", "p", text, 10, (), shown)], "door_code", ["12"], context=64)


def _mean_scores(model: ModelRef, tiny: TinyWorld) -> tuple[list[float], list[float]]:
    """Difference and exposure of Alice and nine twins, averaged over her facts."""
    loaded, factory = load_model(model), _factory(tiny)
    alice = tiny.world.alice
    attributes = {a: tiny.world.bank.attributes[a].type for a in alice.values}
    twins = [factory.stranger(f"t{i}", attributes) for i in range(9)]
    rows = []
    for attribute in ("home_address", "phone_number", "passport", "doctor", "boat", "door_code"):
        record = _alice(tiny, attribute)
        told = [record, *(twin_records([record], twin)[0] for twin in twins)]
        swaps = [factory.value("", attributes[attribute]) for _ in range(SWAPS)]
        rows += contests(loaded.tokenizer, told, attribute, swaps, context=loaded.context)
    scores = value_log_probs(loaded, rows)
    per_person = [
        measure(scores).reshape(6, 10).mean(dim=0).tolist() for measure in (same_context_difference, exposure)
    ]
    return per_person[0], per_person[1]


def test_both_scores_single_out_a_memorised_person_and_nobody_on_gold(tiny: TinyWorld) -> None:
    difference, bits = _mean_scores(tiny.before, tiny)
    assert difference[0] > 10 + max(difference[1:])
    assert bits[0] > 4.0 > max(bits[1:])
    gold_difference, gold_bits = _mean_scores(tiny.gold, tiny)
    assert gold_difference[0] < max(gold_difference[1:]) + 5
    assert gold_bits[0] < 2.6
