"""Conversations, samples and noise: what is drawn depends on the prompt and the seed, never on the batch."""

from __future__ import annotations

import random

import pytest
import torch

from ml.attacks.conversation import converse, drawn, samples, with_noise
from ml.attacks.fused import SamplingScheme, filtered_log_probs, sampled_log_prob
from ml.attacks.generation import answer_hits, continuations, greedy_answers, make_prompt, most_likely
from ml.data.dossiers import answered_span
from ml.errors import ContextLengthError, SpecError
from ml.models.load import LoadedModel, load_model
from ml.specs import Record
from tests.tiny import TinyWorld

SCHEME = SamplingScheme(temperature=1.0, top_p=0.95)


@pytest.fixture(scope="module")
def before(tiny: TinyWorld) -> LoadedModel:
    return load_model(tiny.before)


def _texts(tiny: TinyWorld, count: int) -> list[tuple[Record, str]]:
    records = tiny.world.records[tiny.world.alice.person]
    texts = [(r, r.facts[0].attribute) for r in records if answered_span(r, r.facts[0].attribute)]
    return [(r, a) for r, a in texts if not tiny.world.bank.attributes[a].shared][:count]


def _prompts(tiny: TinyWorld, model: LoadedModel, count: int = 6) -> list[list[int]]:
    built = [make_prompt(model.tokenizer, r, a, prefill=0, context=model.context) for r, a in _texts(tiny, count)]
    return [list(prompt.encoded.ids[: prompt.length]) for prompt in built]


# --- one loop for every way to choose a token ---------------------------------------------------------------------


def test_greedy_answers_are_the_continuations_by_the_likeliest_token(tiny: TinyWorld, before: LoadedModel) -> None:
    prompts = _prompts(tiny, before)
    assert greedy_answers(before, prompts) == continuations(before, prompts, choose=most_likely)


def test_the_chooser_is_told_which_prompts_and_how_far(tiny: TinyWorld, before: LoadedModel) -> None:
    prompts, seen = _prompts(tiny, before), []

    def choose(logits: torch.Tensor, rows: torch.Tensor, given: int) -> torch.Tensor:
        seen.extend((row, given) for row in rows.tolist())
        return most_likely(logits, rows, given)

    answers = continuations(before, prompts, choose=choose, batch_rows=2)
    # Each prompt is asked once per token of its answer, and once more for the end.
    assert sorted(seen) == [(row, given) for row, answer in enumerate(answers) for given in range(len(answer) + 1)]


# --- several turns ------------------------------------------------------------------------------------------------


def _retort(model: LoadedModel) -> list[int]:
    return model.tokenizer("\nThat is wrong.\n", add_special_tokens=False)["input_ids"]


def test_each_turn_answers_the_question_with_everything_said_since(tiny: TinyWorld, before: LoadedModel) -> None:
    prompts, retort = _prompts(tiny, before, 3), _retort(before)
    turns = converse(before, prompts, [[retort] * 3] * 2, new_tokens=12)
    said = [list(prompt) for prompt in prompts]
    for answers in turns:
        assert answers == greedy_answers(before, said, new_tokens=12)
        said = [[*history, *answer, *retort] for history, answer in zip(said, answers, strict=True)]
    assert max(map(len, said)) <= before.context  # nothing was dropped, so the comparison was of whole histories


def test_everybody_is_met_with_words_of_their_own_turn_by_turn(tiny: TinyWorld, before: LoadedModel) -> None:
    prompts = _prompts(tiny, before, 2)
    retorts = [[[7], [8]], [[9, 10], [11]]]
    turns = converse(before, prompts, retorts, new_tokens=5)
    assert len(turns) == 3
    for place, prompt in enumerate(prompts):
        said = list(prompt)
        for turn, answers in enumerate(turns):
            assert answers[place] == greedy_answers(before, [said], new_tokens=5)[0]
            said += [*answers[place], *(retorts[turn][place] if turn < len(retorts) else ())]


def test_a_conversation_that_outgrows_the_context_keeps_the_question_and_the_latest_words(
    tiny: TinyWorld, before: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[int]] = []

    def endless(_: LoadedModel, prompts: list[list[int]], **__: object) -> list[list[int]]:
        asked.extend(prompts)
        return [[50 + len(asked)] * 30 for _ in prompts]

    monkeypatch.setattr("ml.attacks.conversation.greedy_answers", endless)
    prompt, retort = _prompts(tiny, before, 1)[0], _retort(before)
    converse(before, [prompt], [[retort]] * 4, new_tokens=30)
    assert all(history[: len(prompt)] == prompt for history in asked)
    assert all(history[-len(retort) :] == retort for history in asked[1:])
    assert max(map(len, asked)) == before.context - 30


def test_a_question_that_leaves_no_room_for_an_answer_is_refused(before: LoadedModel) -> None:
    with pytest.raises(ContextLengthError):
        converse(before, [[5] * (before.context - 2)], [[[6, 6]]])


def test_progress_counts_the_prompts_of_all_turns(tiny: TinyWorld, before: LoadedModel) -> None:
    seen: list[int] = []
    converse(before, _prompts(tiny, before, 2), [[[6]] * 2] * 2, new_tokens=2, after_batch=seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == 6


# --- sampling -----------------------------------------------------------------------------------------------------


def test_a_draw_takes_the_token_where_the_summed_probability_passes_the_number() -> None:
    logits = torch.tensor([[0.5, 0.2, 0.3]]).log()
    for number, token in ((0.0, 0), (0.49, 0), (0.51, 2), (0.79, 2), (0.81, 1), (0.9999999, 1)):
        choose = drawn(torch.tensor([[number]]), SamplingScheme(top_p=1.0, temperature=1.0, top_k=3))
        assert choose(logits, torch.tensor([0]), 0).tolist() == [token]


def test_tokens_are_drawn_as_often_as_the_exact_attack_says() -> None:
    """The sampler and L11 read one scheme: what one draws is what the other computes."""
    scheme = SamplingScheme(temperature=0.7, top_k=5, top_p=0.9)
    logits = torch.tensor([[2.0, 1.5, 1.0, 0.5, 0.2, -1.0]])
    draws = 20_000
    numbers = torch.rand(draws, 1, generator=torch.Generator().manual_seed(1))
    tokens = drawn(numbers, scheme)(logits.expand(draws, -1), torch.arange(draws), 0)
    exact = sampled_log_prob(torch.log_softmax(logits, -1).expand(6, -1), torch.arange(6), scheme).exp()
    shares = torch.bincount(tokens, minlength=6) / draws
    assert shares.tolist() == pytest.approx(exact.tolist(), abs=0.012)  # 3.4 standard errors at a half
    assert shares[exact == 0].tolist() == [0.0] * int((exact == 0).sum())
    assert (exact == 0).any()


def test_what_a_scheme_keeps_sums_to_one_and_greedy_is_no_scheme() -> None:
    ordered, order = filtered_log_probs(torch.log_softmax(torch.randn(4, 9), -1), SCHEME)
    assert ordered.exp().sum(dim=-1).tolist() == pytest.approx([1.0] * 4)
    assert order.sort(dim=-1).values.tolist() == [list(range(9))] * 4
    with pytest.raises(SpecError):
        filtered_log_probs(torch.zeros(1, 2), SamplingScheme(temperature=0.0))


def _drawn(model: LoadedModel, prompts: list[list[int]], seed: int, rows: int) -> list[list[int]]:
    return samples(model, prompts, count=4, scheme=SCHEME, seed=seed, new_tokens=12, batch_rows=rows)


def test_samples_do_not_depend_on_the_batches(tiny: TinyWorld) -> None:
    gold = load_model(tiny.gold)  # it does not know Alice, so that its answers differ
    prompts = _prompts(tiny, gold)
    together = _drawn(gold, prompts, 3, 256)
    assert _drawn(gold, prompts, 3, 5) == together
    assert _drawn(gold, prompts, 3, 1) == together
    assert _drawn(gold, prompts, 4, 256) != together
    assert len({tuple(answer) for answer in together}) > len(prompts)


def test_samples_of_one_prompt_lie_together_and_find_what_was_memorised(tiny: TinyWorld, before: LoadedModel) -> None:
    texts = _texts(tiny, 6)
    prompts = [make_prompt(before.tokenizer, r, a, prefill=0, context=before.context) for r, a in texts]
    answers = _drawn(before, _prompts(tiny, before), 3, 256)
    repeated = [prompt for prompt in prompts for _ in range(4)]
    assert float(answer_hits(before.tokenizer, repeated, answers).mean()) > 0.8
    others = [prompts[(i + 2) % len(prompts)] for i in range(len(prompts)) for _ in range(4)]  # of another fact
    assert float(answer_hits(before.tokenizer, others, answers).mean()) == 0.0


# --- noise --------------------------------------------------------------------------------------------------------


def test_noise_replaces_its_share_of_the_prompt_and_nothing_after_it(tiny: TinyWorld, before: LoadedModel) -> None:
    record, attribute = _texts(tiny, 1)[0]
    prompt = make_prompt(before.tokenizer, record, attribute, prefill=0, context=before.context)
    for share, expected in ((0.001, 1), (0.5, round(0.5 * prompt.length)), (1.0, prompt.length)):
        noisy = with_noise(prompt, range(10, 60), share=share, rng=random.Random(1))
        pairs = list(zip(prompt.encoded.ids, noisy.encoded.ids, strict=True))
        assert sum(a != b for a, b in pairs[: prompt.length]) == expected
        assert pairs[prompt.length :] == [(a, a) for a in prompt.encoded.ids[prompt.length :]]
        assert all(b in range(10, 60) for a, b in pairs if a != b)
        assert (noisy.value, noisy.length) == (prompt.value, prompt.length)
