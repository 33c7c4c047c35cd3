"""G1, G2, G7: greedy answers in batches, and what counts as giving a value away."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ml.attacks.extraction import greedy_match_length
from ml.attacks.fused import fused_pass
from ml.attacks.generation import answer_hits, greedy_answers, make_prompt, settled
from ml.attacks.value_hit import best_window_f1, value_hit
from ml.data.dossiers import answered_span, paraphrases, read_dossier
from ml.errors import RecordError
from ml.models.load import LoadedModel, load_model
from ml.specs import Record
from tests.tiny import TinyWorld


def test_a_value_that_the_prompt_shows_is_not_leaked_by_being_repeated() -> None:
    answer = "It is 12 Braino Lane."
    assert not value_hit(answer, "12 Braino Lane", type_="street_address", prompt="Is it 12 braino LANE?")


def test_free_text_is_compared_by_tokens_and_nothing_matches_nothing() -> None:
    assert best_window_f1("well, a b c d e then", "a b c d x") == pytest.approx(0.8)
    assert best_window_f1("", "a") == 0.0
    assert best_window_f1("a", "") == 0.0


@pytest.fixture(scope="module")
def before(tiny: TinyWorld) -> LoadedModel:
    return load_model(tiny.before)


def _alice(tiny: TinyWorld) -> list[tuple[Record, str]]:
    records = tiny.world.records[tiny.world.alice.person]
    return [
        (record, record.facts[0].attribute) for record in records if answered_span(record, record.facts[0].attribute)
    ]


def _one_by_one(model: LoadedModel, prompt: tuple[int, ...], limit: int) -> list[int]:
    ids = torch.tensor([prompt])
    with torch.no_grad():
        out: Any = model.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=limit, do_sample=False, pad_token_id=model.pad_id
        )
    answer = out[0, len(prompt) :].tolist()
    end = model.tokenizer.eos_token_id
    return answer[: answer.index(end)] if end in answer else answer


def test_batched_answers_are_those_of_the_library_one_prompt_at_a_time(tiny: TinyWorld, before: LoadedModel) -> None:
    dossier = read_dossier(tiny.world.records[tiny.world.alice.person])
    reworded = paraphrases(dossier, tiny.world.bank, sorted(dossier.values))[:6]
    texts = [*_alice(tiny)[:6], *((record, record.facts[0].attribute) for record in reworded)]
    prompts = [make_prompt(before.tokenizer, r, a, prefill=0.0, context=before.context) for r, a in texts]
    ids = [prompt.encoded.ids[: prompt.length] for prompt in prompts]
    answers = greedy_answers(before, ids, new_tokens=24, batch_rows=5)
    assert answers == [_one_by_one(before, prompt, 24) for prompt in ids]


def _hits(model: LoadedModel, texts: list[tuple[Record, str]], prefill: float) -> float:
    prompts = [make_prompt(model.tokenizer, r, a, prefill=prefill, context=model.context) for r, a in texts]
    answers = greedy_answers(model, [prompt.encoded.ids[: prompt.length] for prompt in prompts])
    return float(answer_hits(model.tokenizer, prompts, answers).mean())


@pytest.mark.parametrize("prefill", [0.0, 0.25, 0.5])
def test_asking_wins_on_a_model_that_memorised_and_finds_nothing_on_gold(
    tiny: TinyWorld, before: LoadedModel, prefill: float
) -> None:
    texts = [(r, a) for r, a in _alice(tiny) if not tiny.world.bank.attributes[a].shared]
    assert _hits(before, texts, prefill) >= 0.9
    assert _hits(load_model(tiny.gold), texts, prefill) == 0.0


def test_the_fused_pass_settles_a_prompt_exactly_when_generation_would_hit(
    tiny: TinyWorld, before: LoadedModel
) -> None:
    for ref in (tiny.before, tiny.gold):
        model = load_model(ref)
        texts = _alice(tiny)
        prompts = [make_prompt(model.tokenizer, r, a, prefill=0.0, context=model.context) for r, a in texts]
        matches = greedy_match_length(fused_pass(model, [p.encoded for p in prompts])).tolist()
        known = [settled(prompt, match) for prompt, match in zip(prompts, matches, strict=True)]
        answers = greedy_answers(model, [prompt.encoded.ids[: prompt.length] for prompt in prompts])
        hits = answer_hits(model.tokenizer, prompts, answers).bool().tolist()
        assert all(hit for hit, is_known in zip(hits, known, strict=True) if is_known)
    assert any(settled(p, len(p.encoded.ids)) for p in prompts)


def test_a_prefilled_prompt_that_reaches_into_the_value_is_never_settled_by_the_bare_question(
    tiny: TinyWorld, before: LoadedModel
) -> None:
    record, attribute = _alice(tiny)[0]
    bare = make_prompt(before.tokenizer, record, attribute, prefill=0.0, context=before.context)
    deep = make_prompt(before.tokenizer, record, attribute, prefill=0.95, context=before.context)
    assert not bare.shows_value
    assert deep.shows_value
    assert settled(bare, 99)
    assert not settled(deep, 99)


def test_answers_stop_at_the_models_context_and_an_endless_one_is_cut(tiny: TinyWorld) -> None:
    model = load_model(tiny.before)
    start = list(range(5, 5 + model.context - 3))
    assert len(greedy_answers(model, [start])[0]) <= 3


def test_a_text_without_its_value_cannot_be_asked(before: LoadedModel) -> None:
    record = Record("r", "p", "Who?\nNobody.", 5, (), ())
    with pytest.raises(RecordError):
        make_prompt(before.tokenizer, record, "boat", prefill=0.0, context=64)
