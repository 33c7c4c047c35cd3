"""Probe, steering, soft prompt, benign tuning and version difference (W2, W5, W6, T2, G15), each by its arithmetic."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from ml.attacks.benign_tuning import tuned_log_probs
from ml.attacks.checkpoint_difference import amplified
from ml.attacks.exposure import ValueContest, exposure, value_log_probs
from ml.attacks.linear_probe import SeenContests, fit_probe, see_contests
from ml.attacks.relearning import relearn
from ml.attacks.soft_prompt import SoftPromptBudget, prompted_scores, soft_prompts
from ml.attacks.steering import mean_state, shaken, steered
from ml.attacks.value_states import mean_value_states
from ml.data.collate import EncodedText
from ml.errors import ContextLengthError, EmptySetError, NonFiniteError, SpecError
from ml.models.layers import blocks
from ml.models.load import LoadedModel, load_model
from ml.specs import RelearningBudget
from tests.tiny import tiny_model

SHORT = SoftPromptBudget(vectors=3, steps=12, texts_per_step=2)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load_model(tiny_model(Path(tmp_path_factory.mktemp("tiny")) / "model", seed=6))


def _contests(count: int, *, values: int = 4) -> list[ValueContest]:
    """Random sentences of several lengths; values of one to three tokens."""
    generator = torch.Generator().manual_seed(3)

    def ids(size: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, 300, (size,), generator=generator).tolist())

    return [ValueContest(ids(4 + i % 3), tuple(ids(1 + (i + j) % 3) for j in range(values))) for i in range(count)]


def _texts(persons: int, count: int = 4) -> list[list[EncodedText]]:
    rows = [
        EncodedText(
            (*c.prompt, *c.values[0], 0), len(c.prompt) - 1, ((len(c.prompt), len(c.prompt) + len(c.values[0])),)
        )
        for c in _contests(persons * count)
    ]
    return [rows[p * count : (p + 1) * count] for p in range(persons)]


# --- W2 -----------------------------------------------------------------------------------------------------------


def _planted(contests: int, *, informed: bool, seed: int, truth: Tensor) -> SeenContests:
    """States of two layers; the second holds, in a basis of its own, the features of the true value, or of none."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(contests, 10, 6, generator=generator)
    held = values[:, 0] if informed else torch.randn(contests, 6, generator=generator)
    noise = torch.randn(2, contests, 12, generator=generator)
    states = torch.stack([noise[0], held @ truth + 0.3 * noise[1]])
    return SeenContests(states, torch.arange(contests * 10).reshape(contests, 10), values.flatten(0, 1))


def test_a_probe_finds_the_layer_and_ranks_open_values_of_people_it_never_saw() -> None:
    truth = torch.randn(6, 12, generator=torch.Generator().manual_seed(9))
    lessons = _planted(400, informed=True, seed=1, truth=truth)
    probe = fit_probe(lessons, [f"p{i % 20}" for i in range(400)], seed=4)
    assert probe.layer == 1
    # ten candidates: log2(10) = 3.32 bits at best, 1.16 on average by chance
    assert float(exposure(probe.scores(_planted(200, informed=True, seed=2, truth=truth))).mean()) > 2.9
    chance = exposure(probe.scores(_planted(200, informed=False, seed=3, truth=truth))).mean()
    assert float(chance) == pytest.approx(1.16, abs=0.25)


def test_the_same_seed_gives_the_same_probe_and_too_few_people_none() -> None:
    lessons = _planted(60, informed=True, seed=1, truth=torch.eye(6, 12))
    people = [f"p{i % 6}" for i in range(60)]
    first, second = (fit_probe(lessons, people, seed=4) for _ in range(2))
    assert torch.equal(first.weights, second.weights)
    with pytest.raises(EmptySetError):
        fit_probe(lessons, ["a", "b", "c"] * 20, seed=4)


def test_a_probe_reads_the_state_before_the_value_and_the_values_input_vectors(model: LoadedModel) -> None:
    contests = _contests(5)
    seen = see_contests(model, contests, budget=20)
    table = model.model.get_input_embeddings().weight.detach()
    size = table.square().mean().sqrt()
    for i, contest in enumerate(contests):
        hidden = model.model(torch.tensor([contest.prompt]), output_hidden_states=True).hidden_states
        assert torch.allclose(seen.states[0, i], hidden[1][0, -1], atol=1e-4)
        for j, value in enumerate(contest.values):
            expected = torch.cat([table[value[0]], table[list(value)].mean(dim=0)]) / size
            assert torch.allclose(seen.features[seen.values[i, j]], expected, atol=1e-5)


# --- W5 -----------------------------------------------------------------------------------------------------------


def _plain(model: LoadedModel, contest: ValueContest) -> list[float]:
    """Each value's log-probability from a forward pass of its own over the whole text."""
    totals = []
    for value in contest.values:
        with torch.no_grad():
            logits = model.model(torch.tensor([[*contest.prompt, *value]])).logits[0].float()
        rows = torch.log_softmax(logits, dim=-1)[len(contest.prompt) - 1 : -1]
        totals.append(float(rows.gather(-1, torch.tensor(value).unsqueeze(-1)).sum()))
    return totals


def test_pushed_states_score_through_the_cache_as_in_a_forward_pass_of_each_text(model: LoadedModel) -> None:
    contests = _contests(6)
    quiet = value_log_probs(model, contests)
    push = torch.randn(model.model.config.hidden_size, generator=torch.Generator().manual_seed(1))
    for pushed in (steered(model, 0, push), shaken(model, 0, seed=8, scale=0.5)):
        with pushed:
            scores = value_log_probs(model, contests, batch_rows=8)
            expected = [_plain(model, contest) for contest in contests]
        assert (scores - quiet).abs().max() > 1e-2
        assert torch.allclose(scores, torch.tensor(expected), atol=2e-4)
    assert torch.equal(value_log_probs(model, contests), quiet)


def test_noise_is_decided_by_its_seed_whoever_shares_the_batch(model: LoadedModel) -> None:
    contests = _contests(6)

    def scores(seed: int, rows: list[ValueContest]) -> Tensor:
        with shaken(model, 1, seed=seed, scale=0.5):
            return value_log_probs(model, rows)

    torch.manual_seed(1)
    first = scores(3, contests)
    torch.manual_seed(2)
    assert torch.allclose(scores(3, contests[2:4]), first[2:4], atol=1e-5)
    assert not torch.allclose(scores(4, contests), first, atol=1e-3)


def test_a_hook_is_gone_after_the_scores_failed(model: LoadedModel) -> None:
    contests, hooks = _contests(2), [len(block._forward_hooks) for block in blocks(model.model)]
    quiet = value_log_probs(model, contests)
    push = torch.full((model.model.config.hidden_size,), torch.nan)
    with pytest.raises(NonFiniteError), steered(model, 0, push):
        value_log_probs(model, contests)
    assert torch.equal(value_log_probs(model, contests), quiet)
    assert [len(block._forward_hooks) for block in blocks(model.model)] == hooks


def test_the_direction_is_a_difference_of_means_over_texts(model: LoadedModel) -> None:
    texts = _texts(1, count=3)[0]
    states = mean_value_states(model, texts, budget=1)
    assert torch.allclose(mean_state(model, texts, 1), states[1].mean(dim=0), atol=1e-5)


# --- W6 -----------------------------------------------------------------------------------------------------------


def test_soft_prompts_trained_together_are_those_each_person_would_get_alone(model: LoadedModel) -> None:
    texts = _texts(3)
    together = soft_prompts(model, texts, SHORT, seed=2)
    alone = soft_prompts(model, texts[1:2], SHORT, seed=2)
    assert torch.allclose(together[1], alone[0], atol=2e-4)
    assert not torch.allclose(together[1], together[0], atol=1e-2)
    scores = prompted_scores(model, together, texts, budget=40)
    assert torch.allclose(scores[1], prompted_scores(model, alone, texts[1:2])[0], atol=1e-3)


def test_the_score_is_the_mean_log_probability_of_the_value_behind_the_vectors(model: LoadedModel) -> None:
    text = _texts(1)[0][0]
    prompts = soft_prompts(model, [[text]], SHORT, seed=5)
    embedded = model.model.get_input_embeddings()(torch.tensor([text.ids]))
    with torch.no_grad():
        logits = model.model(inputs_embeds=torch.cat([prompts, embedded], dim=1)).logits[0, SHORT.vectors :]
    start, end = text.values[0]
    rows = torch.log_softmax(logits.float(), dim=-1)[start - 1 : end - 1]
    expected = rows.gather(-1, torch.tensor(text.ids[start:end]).unsqueeze(-1)).mean()
    assert float(prompted_scores(model, prompts, [[text]])[0, 0]) == pytest.approx(float(expected), abs=1e-4)


def test_a_soft_prompt_leaves_the_model_alone_and_keeps_to_its_budget(model: LoadedModel) -> None:
    weights = {name: p.detach().clone() for name, p in model.model.named_parameters()}
    steps: list[tuple[int, int]] = []
    soft_prompts(model, _texts(1), SHORT, seed=1, after_step=lambda done, total: steps.append((done, total)))
    assert steps == [(i + 1, 12) for i in range(12)]
    assert all(torch.equal(p, weights[name]) for name, p in model.model.named_parameters())
    assert all(p.grad is None and p.requires_grad for p in model.model.parameters())
    with pytest.raises(SpecError):
        soft_prompts(model, _texts(1), SoftPromptBudget(vectors=11), seed=1)
    with pytest.raises(ContextLengthError):
        soft_prompts(model, [[EncodedText((5,) * 94, 90, ((91, 92),))]], SHORT, seed=1)
    with pytest.raises(NonFiniteError):
        soft_prompts(model, _texts(1), SoftPromptBudget(3, 9, 2, float("inf")), seed=1)


# --- T2, G15 ------------------------------------------------------------------------------------------------------


def test_benign_tuning_is_one_adapter_for_everybody(model: LoadedModel) -> None:
    budget = RelearningBudget(share=0.5, epochs=2, learning_rate=3e-3, rank=4)
    contests, lessons = _contests(6), _texts(1)[0]
    tuned = tuned_log_probs(model, lessons, contests, budget, seed=3, batch_rows=8)
    adapter = relearn(model, [lessons], budget, seed=3)
    with adapter.attached():
        adapter.belong_to(torch.zeros(1, dtype=torch.long))
        expected = [_plain(model, contest) for contest in contests]
    assert torch.allclose(tuned, torch.tensor(expected), atol=2e-4)
    assert (tuned - value_log_probs(model, contests)).abs().max() > 1e-2


def test_the_difference_of_two_versions_is_amplified_value_by_value() -> None:
    before, after = torch.tensor([[-1.0, -6.0]]), torch.tensor([[-5.0, -4.0]])
    assert torch.equal(amplified(before, after, 0.0), after)
    assert torch.equal(amplified(before, after, 1.0), before)
    # -5 + 4 * 4 and -4 - 4 * 2
    assert amplified(before, after, 4.0).tolist() == [[11.0, -12.0]]
    with pytest.raises(SpecError):
        amplified(before, after[:, :1], 1.0)
