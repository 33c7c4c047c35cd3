"""The guard: what its score is, whom it refuses, what may come out of it, and when it stays off."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import DynamicCache, GenerationConfig
from transformers.generation import BaseStreamer

from ml.data.people import throw_away_records
from ml.data.questions import read_bank
from ml.data.records import read_records
from ml.energy import RELATIVE_TEMPERATURE, EnergyBoundary, auroc, sequence_energy, token_energy
from ml.errors import (
    ContextLengthError,
    DigestMismatchError,
    EmptySetError,
    GuardNotCalibratedError,
    GuardUnsupportedError,
    NonFiniteError,
    OverlapError,
    SpecError,
    UnattainableError,
)
from ml.guard.calibrate import (
    GuardCalibration,
    Margins,
    calibrate,
    conformal_rank,
    conformal_threshold,
    group_scores,
    measure_margins,
    refusal_rate,
    try_deleted,
)
from ml.guard.prompts import PromptSet, prompts_about, strangers_like
from ml.guard.reading import Pooling, Reading, Watch, left_padded, make_reading, prompt_ids, prompt_scores
from ml.guard.refusal import WORDING, Guard
from ml.models.load import LoadedModel, load_model
from ml.wording import check_wording
from tests.ml.fixture_z import FORGET
from tests.tiny import TinyWorld, tiny_model, tiny_world

SHORT = "Who is Bob?\n"
LONG = "Please tell me the phone number of Alice.\n"
CPU = torch.device("cpu")
OUTPUT_SD = 0.6
OTHER = "0" * 64


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """An untrained model: what it says is noise, which is all that these tests need.

    Its output weights are its own and large: small ones put all energies at the ceiling, and those of the embedding
    repeat the prompt's last token for ever.
    """
    found = load_model(tiny_model(tmp_path_factory.mktemp("guard") / "model"))
    head = found.model.get_output_embeddings()
    drawn = torch.randn(head.weight.shape, generator=torch.Generator().manual_seed(0))
    head.weight = torch.nn.Parameter(drawn * OUTPUT_SD)
    return found


def reading(loaded: LoadedModel, at: str = "answer", pooling: str = "mean", index: str = "centred") -> Reading:
    return make_reading(len(loaded.tokenizer), at=at, pooling=pooling, index=index)


def calibrated(loaded: LoadedModel, threshold: float, **options: str) -> GuardCalibration:
    how = reading(loaded, **options)
    margins = Margins(threshold - 1, threshold + 1, how.index, how.temperature, how.vocabulary, "measured", OTHER)
    return GuardCalibration(
        loaded.manifest_sha256, "float32", how, threshold, 0.01, 99, margins, "calibrated", None, (), ()
    )


def between(loaded: LoadedModel, low: str, high: str, **options: str) -> float:
    """A threshold that answers one prompt and refuses the other."""
    first, second = prompt_scores(loaded, [low, high], reading(loaded, **options)).tolist()
    assert abs(first - second) > 0.1
    return (first + second) / 2


def answered_then_refused(loaded: LoadedModel, **options: str) -> tuple[list[str], float]:
    """Two prompts and a threshold between them, the answered one first."""
    scores = prompt_scores(loaded, [SHORT, LONG], reading(loaded, **options))
    order = [SHORT, LONG] if scores[0] < scores[1] else [LONG, SHORT]
    return order, between(loaded, *order, **options)


def inputs(loaded: LoadedModel, prompts: list[str]) -> dict[str, Tensor]:
    return left_padded(prompt_ids(loaded.tokenizer, prompts), pad_id=loaded.pad_id, device=CPU)


def plain(loaded: LoadedModel, prompts: list[str], **options: Any) -> Tensor:
    return loaded.model.generate(**inputs(loaded, prompts), pad_token_id=loaded.pad_id, **options)


def reply(loaded: LoadedModel) -> list[int]:
    return [*loaded.tokenizer(WORDING)["input_ids"], loaded.tokenizer.eos_token_id]


@contextmanager
def edited_logits(loaded: LoadedModel, edit: Any) -> Iterator[None]:
    """The model says `edit(logits, pass number)` instead of its logits."""
    passes = iter(range(10_000))

    def hook(module: Any, given: Any, output: Any) -> Any:
        output.logits = edit(output.logits, next(passes))
        return output

    handle = loaded.model.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


# --- the threshold --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "budget", "rank"),
    [
        (99, 0.01, 99),  # 100 * .01 = 1 may lie above: of 99 + 1 scores the highest
        (198, 0.01, 198),  # 1.99: still one
        (199, 0.01, 198),  # 2
        (99, 0.29, 71),  # 29, although 100 * .29 is 28.999... in floating point
        (9, 0.1, 9),
    ],
)
def test_the_threshold_is_the_score_of_the_conformal_rank(count: int, budget: float, rank: int) -> None:
    assert conformal_rank(count, budget) == rank
    shuffled = torch.randperm(count, generator=torch.Generator().manual_seed(0)).float()
    assert conformal_threshold(shuffled, budget) == rank - 1


def test_too_few_retained_prompts_are_refused_with_the_number_that_is_needed() -> None:
    with pytest.raises(UnattainableError, match="at least 99"):
        conformal_rank(98, 0.01)
    for budget in (0.0, 1.0, -0.1):
        with pytest.raises(SpecError):
            conformal_rank(1000, budget)
    with pytest.raises(NonFiniteError):
        conformal_threshold(torch.tensor([0.0, math.nan]), 0.5)


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.0]), min_size=3, max_size=60), st.sampled_from([0.34, 0.5, 0.9]))
def test_of_exchangeable_scores_no_more_than_the_budget_lie_above_the_others_threshold(
    scores: list[float], budget: float
) -> None:
    # Any of n + 1 exchangeable scores is the new one with equal chance: counting all of them is the expectation.
    values = torch.tensor(scores)
    above = sum(
        float(values[i]) > conformal_threshold(torch.cat([values[:i], values[i + 1 :]]), budget)
        for i in range(len(values))
    )
    assert above <= budget * len(values) + 1e-9


def test_the_budget_is_used_up_not_only_kept() -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(4000, 200, generator=generator)
    refused = [float(row[-1]) > conformal_threshold(row[:-1], 0.05) for row in drawn]
    assert sum(refused) / len(refused) == pytest.approx(0.05, abs=0.012)


def test_a_rate_counts_what_lies_above_the_threshold_and_what_is_no_number() -> None:
    found = refusal_rate("never_seen", "direct", torch.tensor([0.0, 1.0, 2.0, math.nan]), 1.0)
    assert (found.refused, found.prompts, found.rate) == (2, 4, 0.5)
    # Beta(.05; 2, 3) and Beta(.95; 3, 2)
    assert found.lower == pytest.approx(0.0976, abs=1e-4)
    assert found.upper == pytest.approx(0.9024, abs=1e-4)


# --- the score ------------------------------------------------------------------------------------------------------


def test_scores_of_the_fixture_are_the_mean_the_highest_or_the_sum_of_its_energies() -> None:
    steps = FORGET.unsqueeze(0)  # one row, two steps
    expected = {("raw", "mean"): -2.7589325, ("raw", "highest"): -2.3423496}
    expected |= {("centred", "mean"): -2.3214325, ("centred", "highest"): -1.9673496}
    expected |= {("relative", "mean"): 0.2589325, ("relative", "highest"): 0.3423496}
    expected |= {("centred", "sum"): -4.642865, ("relative", "sum"): 0.517865}
    for (index, pooling), score in expected.items():
        how = make_reading(4, index=index, pooling=pooling, temperature=1.0)
        assert float(how.pooled(steps)) == pytest.approx(score, abs=1e-6)
        moved = score - 5 if index == "raw" else score
        assert float(how.pooled(steps + 5)) == pytest.approx(moved, abs=1e-5)
    padded = torch.cat([steps, torch.full((1, 2, 3), 50.0)], dim=-1)  # rows of the model that stand for no token
    centred = make_reading(4, index="centred", pooling="mean")
    assert float(centred.pooled(padded)) == pytest.approx(-2.3214325, abs=1e-6)
    assert make_reading(4).temperature == RELATIVE_TEMPERATURE


@pytest.mark.parametrize("at", ["prefill", "answer"])
@pytest.mark.parametrize("pooling", get_args(Pooling))
def test_the_score_is_the_pooled_energy_of_the_raw_logits_before_each_answer_token(
    loaded: LoadedModel, at: str, pooling: str
) -> None:
    how = reading(loaded, at=at, pooling=pooling)
    scores = prompt_scores(loaded, [SHORT, LONG], how)
    for prompt, score in zip([SHORT, LONG], scores, strict=True):
        ids = plain(loaded, [prompt], max_new_tokens=how.tokens, do_sample=False)
        with torch.no_grad():
            logits = loaded.model(ids).logits[:, -how.tokens - 1 : -1]
        energies = token_energy(logits, vocabulary=how.vocabulary)
        expected = {"mean": energies.mean(), "highest": energies.max(), "sum": energies.sum()}[pooling]
        assert float(score) == pytest.approx(float(expected), abs=1e-4)
    mask = torch.ones(logits.shape[:2], dtype=torch.bool)
    if pooling == "mean":
        assert float(scores[1]) == pytest.approx(
            float(sequence_energy(logits, mask, vocabulary=how.vocabulary)), abs=1e-4
        )


@pytest.mark.parametrize("pooling", get_args(Pooling))
def test_a_constant_added_to_all_logits_changes_no_centred_score_and_every_raw_one(
    loaded: LoadedModel, pooling: str
) -> None:
    for index, moved in (("centred", 0.0), ("relative", 0.0), ("raw", -7.0)):
        how = reading(loaded, pooling=pooling, index=index)
        before = prompt_scores(loaded, [SHORT, LONG], how)
        with edited_logits(loaded, lambda logits, _: logits + 7.0):
            after = prompt_scores(loaded, [SHORT, LONG], how)
        steps = how.tokens if pooling == "sum" else 1
        assert (after - before).tolist() == pytest.approx([steps * moved] * 2, abs=1e-3 * steps)


def watched(loaded: LoadedModel, at: str, **options: Any) -> Watch:
    watch = Watch(reading(loaded, at=at))
    loaded.model.generate(
        **inputs(loaded, [SHORT, LONG]), custom_generate=watch, pad_token_id=loaded.pad_id, max_new_tokens=9, **options
    )
    return watch


@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": True, "temperature": 0.01},
        {"do_sample": True, "temperature": 50.0, "top_k": 3},
        {"do_sample": True, "top_p": 0.1},
        {"do_sample": False, "repetition_penalty": 3.0},
        {"do_sample": False, "no_repeat_ngram_size": 1},
        {"do_sample": False, "bad_words_ids": [[5], [6], [7]]},
        {"do_sample": False, "suppress_tokens": list(range(5, 300))},
        {"do_sample": False, "logits_processor": [lambda ids, scores: scores * 2]},
        {"do_sample": False, "logits_processor": [lambda ids, scores: scores.mul_(2)]},
    ],
)
def test_neither_temperature_nor_any_processor_enters_the_score(loaded: LoadedModel, options: dict[str, Any]) -> None:
    assert torch.equal(watched(loaded, "prefill", **options).scores, watched(loaded, "prefill", do_sample=False).scores)


def test_sampling_that_draws_the_same_tokens_has_the_same_score(loaded: LoadedModel) -> None:
    sampled = watched(loaded, "answer", do_sample=True, temperature=0.3, top_k=1)
    assert torch.equal(sampled.scores, watched(loaded, "answer", do_sample=False).scores)


def test_what_these_tests_ask_tells_prompts_and_steps_apart(loaded: LoadedModel) -> None:
    said = [plain(loaded, [prompt], max_new_tokens=8, do_sample=False)[0, -8:].tolist() for prompt in (SHORT, LONG)]
    assert said[0] != said[1]
    assert min(len(set(tokens)) for tokens in said) > 4
    for prompt in (SHORT, LONG):
        first, pooled = (prompt_scores(loaded, [prompt], reading(loaded, at=at)) for at in ("prefill", "answer"))
        assert abs(float(first - pooled)) > 0.1


def test_scores_do_not_depend_on_the_other_prompts_of_a_batch(loaded: LoadedModel) -> None:
    together = prompt_scores(loaded, [SHORT, LONG, SHORT], reading(loaded))
    alone = [float(prompt_scores(loaded, [prompt], reading(loaded))) for prompt in (SHORT, LONG, SHORT)]
    assert together.tolist() == pytest.approx(alone, abs=1e-4)


def test_prompts_that_cannot_be_scored_are_refused(loaded: LoadedModel) -> None:
    with pytest.raises(EmptySetError):
        prompt_scores(loaded, [], reading(loaded))
    with pytest.raises(SpecError):
        prompt_scores(loaded, [""], reading(loaded))
    with pytest.raises(ContextLengthError):
        prompt_scores(loaded, ["7 " * loaded.context], reading(loaded))


# --- refusing -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", ["prefill", "answer"])
@pytest.mark.parametrize("options", [{"do_sample": False}, {"do_sample": True, "temperature": 0.7}])
def test_a_refused_row_holds_the_wording_and_the_other_row_is_what_it_would_have_been(
    loaded: LoadedModel, at: str, options: dict[str, Any]
) -> None:
    prompts, _ = answered_then_refused(loaded, at=at)
    given = inputs(loaded, prompts)
    start = given["input_ids"].shape[1]
    torch.manual_seed(3)
    free = plain(loaded, prompts, max_new_tokens=40, **options)
    # A threshold between the scores of these very rows, which under sampling differ from the greedy ones.
    torch.manual_seed(3)
    watch = Watch(reading(loaded, at=at))
    loaded.model.generate(**given, custom_generate=watch, pad_token_id=loaded.pad_id, max_new_tokens=40, **options)
    torch.manual_seed(3)
    guard = Guard(loaded, calibrated(loaded, float(watch.scores.mean()), at=at))
    answers = guard.generate(**given, max_new_tokens=40, **options)
    refused = int(watch.scores.argmax())
    assert answers.refused == tuple(row == refused for row in range(2))
    assert torch.equal(answers.sequences[1 - refused], free[1 - refused])
    said = answers.sequences[refused, start:].tolist()
    assert said[: len(reply(loaded))] == reply(loaded)
    assert set(said[len(reply(loaded)) :]) <= {loaded.pad_id}
    assert torch.equal(answers.sequences[refused, :start], given["input_ids"][refused])


def test_a_guard_that_refuses_nobody_changes_nothing(loaded: LoadedModel) -> None:
    guard = Guard(loaded, calibrated(loaded, 0.0))
    answers = guard.generate(**inputs(loaded, [SHORT, LONG]), max_new_tokens=20, do_sample=False)
    assert answers.refused == (False, False)
    assert torch.equal(answers.sequences, plain(loaded, [SHORT, LONG], max_new_tokens=20, do_sample=False))


@pytest.mark.parametrize(("at", "new_tokens"), [("prefill", 1), ("prefill", 3), ("answer", 8), ("answer", 40)])
def test_refusals_are_byte_identical_whoever_is_asked_about_and_however_short_answers_may_be(
    loaded: LoadedModel, at: str, new_tokens: int
) -> None:
    guard = Guard(loaded, calibrated(loaded, -1000.0, at=at))
    texts = set()
    for prompt in (SHORT, LONG):
        given = inputs(loaded, [prompt])
        answers = guard.generate(**given, max_new_tokens=new_tokens, do_sample=False)
        assert answers.refused == (True,)
        said = answers.sequences[0, given["input_ids"].shape[1] :]
        assert said.tolist() == reply(loaded)
        texts.add(loaded.tokenizer.decode(said, skip_special_tokens=True).encode())
    assert texts == {WORDING.encode()}


def test_a_wording_shorter_than_what_was_said_leaves_nothing_of_it(loaded: LoadedModel) -> None:
    prompts, threshold = answered_then_refused(loaded)
    guard = Guard(loaded, calibrated(loaded, threshold), "No.")
    for asked in (prompts, prompts[1:]):
        given, recorder = inputs(loaded, asked), Recorder()
        answers = guard.generate(**given, max_new_tokens=20, do_sample=False, streamer=recorder)
        said = answers.sequences[-1, given["input_ids"].shape[1] :].tolist()
        short = [*loaded.tokenizer("No.")["input_ids"], loaded.tokenizer.eos_token_id]
        assert len(short) < 8
        assert said == short + [loaded.pad_id] * (len(said) - len(short))
        streamed = [int(value[-1]) for value in recorder.values[1:]]
        assert streamed[: len(said)] == said
        assert set(streamed[len(said) :]) <= {loaded.pad_id}


def test_an_answer_that_ends_before_the_reading_is_complete_is_decided_by_what_there_is(loaded: LoadedModel) -> None:
    end = loaded.tokenizer.eos_token_id

    def ends_third(logits: Tensor, number: int) -> Tensor:
        return logits.index_fill(-1, torch.tensor([end]), 30.0) if number == 2 else logits

    given = inputs(loaded, [SHORT])
    with edited_logits(loaded, ends_third):
        watch = Watch(reading(loaded))
        ids = loaded.model.generate(**given, custom_generate=watch, pad_token_id=loaded.pad_id, max_new_tokens=20)
    assert ids.shape[1] - given["input_ids"].shape[1] == 3
    score = float(watch.scores)
    with torch.no_grad():
        said = loaded.model(ids).logits[:, -4:-1].clone()
    said[:, 2, end] = 30.0
    assert score == pytest.approx(float(reading(loaded).pooled(said)), abs=1e-4)
    for threshold, refused in ((score + 0.01, False), (score - 0.01, True)):
        with edited_logits(loaded, ends_third):
            answers = Guard(loaded, calibrated(loaded, threshold)).generate(**given, max_new_tokens=20)
        assert answers.refused == (refused,)


def test_a_row_that_ends_early_leaves_the_scores_of_the_others_alone(loaded: LoadedModel) -> None:
    def first_row_ends(logits: Tensor, number: int) -> Tensor:
        if number == 2:
            logits[0, :, loaded.tokenizer.eos_token_id] = 30.0
        return logits

    free = watched(loaded, "answer", do_sample=False).scores
    with edited_logits(loaded, first_row_ends):
        found = watched(loaded, "answer", do_sample=False).scores
    with edited_logits(loaded, first_row_ends):
        alone = prompt_scores(loaded, [SHORT], reading(loaded))
    assert found[0] != free[0]
    assert float(found[0]) == pytest.approx(float(alone), abs=1e-4)
    assert float(found[1]) == pytest.approx(float(free[1]), abs=1e-5)


def test_a_watch_serves_one_call(loaded: LoadedModel) -> None:
    watch = watched(loaded, "answer", do_sample=False)
    with pytest.raises(GuardUnsupportedError):
        loaded.model.generate(**inputs(loaded, [SHORT]), custom_generate=watch, pad_token_id=loaded.pad_id)


def test_a_score_that_is_no_number_is_refused(loaded: LoadedModel) -> None:
    with edited_logits(loaded, lambda logits, _: logits * math.nan):
        answers = Guard(loaded, calibrated(loaded, 0.0)).generate(**inputs(loaded, [SHORT]), max_new_tokens=8)
    assert answers.refused == (True,)


@pytest.mark.parametrize("index", ["centred", "raw"])
@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("first", [0, 5])
@pytest.mark.parametrize("place", [slice(None), 3])
def test_a_row_of_no_numbers_is_refused_and_sampling_goes_on_for_the_others(
    loaded: LoadedModel, index: str, broken: float, first: int, place: slice | int
) -> None:
    def breaks(logits: Tensor, number: int) -> Tensor:
        if number >= first:
            logits[0, ..., place] = broken
        return logits

    options: dict[str, Any] = {"max_new_tokens": 20, "do_sample": True, "top_k": 1}
    free = plain(loaded, [SHORT, LONG], **options)
    with edited_logits(loaded, breaks):
        answers = Guard(loaded, calibrated(loaded, 1000.0, index=index)).generate(
            **inputs(loaded, [SHORT, LONG]), **options
        )
    assert answers.refused == (True, False)
    assert torch.equal(answers.sequences[1], free[1])


def test_numbers_whose_sum_is_too_large_to_be_one_are_numbers(loaded: LoadedModel) -> None:
    def masks(logits: Tensor, number: int) -> Tensor:
        logits[..., 3:5] = torch.finfo(torch.float32).min
        return logits

    with edited_logits(loaded, masks):
        answers = Guard(loaded, calibrated(loaded, 1000.0, index="relative")).generate(
            **inputs(loaded, [SHORT]), max_new_tokens=8, do_sample=False
        )
    assert answers.refused == (False,)


@pytest.mark.parametrize("at", ["prefill", "answer"])
def test_answers_cost_no_pass_and_refusals_fewer(loaded: LoadedModel, at: str) -> None:
    passes: list[int] = []

    def count(logits: Tensor, number: int) -> Tensor:
        passes.append(number)
        return logits

    given = inputs(loaded, [SHORT])
    counts = []
    for threshold in (None, 0.0, -1000.0):
        passes.clear()
        with edited_logits(loaded, count):
            if threshold is None:
                plain(loaded, [SHORT], max_new_tokens=20, min_new_tokens=20, do_sample=False)
            else:
                guard = Guard(loaded, calibrated(loaded, threshold, at=at))
                guard.generate(**given, max_new_tokens=20, min_new_tokens=20, do_sample=False)
        counts.append(len(passes))
    assert counts == [20, 20, reading(loaded, at=at).tokens]


# --- streaming ------------------------------------------------------------------------------------------------------


class Recorder(BaseStreamer):
    """Keeps what it is given, and how many passes the model had made by then."""

    def __init__(self) -> None:
        self.values: list[Tensor] = []
        self.passes_at: list[int] = []
        self.passes = 0
        self.ended = False

    def put(self, value: Tensor) -> None:
        self.values.append(value)
        self.passes_at.append(self.passes)

    def end(self) -> None:
        self.ended = True

    def counted(self, logits: Tensor, number: int) -> Tensor:
        self.passes = number + 1
        return logits


@pytest.mark.parametrize(("at", "new_tokens"), [("prefill", 3), ("prefill", 30), ("answer", 8), ("answer", 30)])
def test_no_token_leaves_before_the_decision_and_the_stream_is_the_answer(
    loaded: LoadedModel, at: str, new_tokens: int
) -> None:
    prompts, threshold = answered_then_refused(loaded, at=at)
    for asked in ([prompts[0]], [prompts[1]], prompts):
        recorder, given = Recorder(), inputs(loaded, asked)
        with edited_logits(loaded, recorder.counted):
            answers = Guard(loaded, calibrated(loaded, threshold, at=at)).generate(
                **given, streamer=recorder, max_new_tokens=new_tokens, do_sample=False
            )
        prompt, *tokens = recorder.values
        assert torch.equal(prompt, given["input_ids"])
        assert torch.equal(torch.stack(tokens, dim=1), answers.sequences[:, prompt.shape[1] :])
        assert min(recorder.passes_at[1:]) >= min(new_tokens, reading(loaded, at=at).tokens)
        assert recorder.ended


def test_a_failure_before_the_decision_lets_nothing_out(loaded: LoadedModel) -> None:
    recorder = Recorder()

    def fails(logits: Tensor, number: int) -> Tensor:
        if number == 5:
            raise MemoryError
        return logits

    with edited_logits(loaded, fails), pytest.raises(MemoryError):
        Guard(loaded, calibrated(loaded, 0.0)).generate(
            **inputs(loaded, [SHORT]), streamer=recorder, max_new_tokens=20, do_sample=False
        )
    assert len(recorder.values) == 1  # the prompt


# --- when it stays off ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 2},
        {"num_beams": 2, "do_sample": True},
        {"prompt_lookup_num_tokens": 3},
        {"return_dict_in_generate": True},
        {"assistant_model": object()},
        {"custom_generate": object()},
        {"synced_gpus": True},
        {"stopping_criteria": [lambda ids, scores: torch.zeros(len(ids), dtype=torch.bool)]},
        {"logits_processor": [lambda ids, scores: scores]},
        {"prefix_allowed_tokens_fn": lambda row, ids: [1]},
        {"past_key_values": DynamicCache()},
        {"generation_config": GenerationConfig()},
        {"output_scores": True},
        {"max_time": 60.0},
        {"stop_strings": ["."]},
        {"eos_token_id": 5},
        {"an_option_of_tomorrow": 1},
    ],
)
def test_ways_of_generating_that_cannot_be_watched_are_refused(loaded: LoadedModel, options: dict[str, Any]) -> None:
    guard = Guard(loaded, calibrated(loaded, 0.0))
    with edited_logits(loaded, lambda logits, _: pytest.fail("a pass was made")), pytest.raises(GuardUnsupportedError):
        guard.generate(**inputs(loaded, [SHORT]), max_new_tokens=8, **options)


@pytest.mark.parametrize(
    "settings",
    [
        {"max_new_tokens": 7},
        {"max_new_tokens": 20, "max_time": 0.1},
        {"max_length": 20},
    ],
)
def test_limits_that_may_end_the_reading_early_are_refused(loaded: LoadedModel, settings: dict[str, Any]) -> None:
    with pytest.raises(GuardUnsupportedError, match="read|answer"):
        plain(loaded, [LONG], custom_generate=Watch(reading(loaded)), **settings)


def test_options_that_go_round_the_guard_return_nothing(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(loaded.model), "generate", lambda self, ids, **options: ids)
    with pytest.raises(GuardUnsupportedError):
        Guard(loaded, calibrated(loaded, 0.0)).generate(**inputs(loaded, [SHORT]))


def test_a_guard_that_is_not_calibrated_cannot_be_switched_on(loaded: LoadedModel) -> None:
    off = replace(calibrated(loaded, 0.0), status="not_calibrated", reason="above_never_seen_margin")
    with pytest.raises(GuardNotCalibratedError, match="above_never_seen_margin"):
        Guard(loaded, off)


def test_a_calibration_of_another_model_or_precision_is_refused(loaded: LoadedModel) -> None:
    found = calibrated(loaded, 0.0)
    with pytest.raises(DigestMismatchError):
        Guard(loaded, replace(found, model_manifest_sha256="0" * 64))
    with pytest.raises(GuardNotCalibratedError, match="bfloat16"):
        Guard(loaded, replace(found, dtype="bfloat16"))


@pytest.mark.parametrize(
    "wording",
    [
        "This person was deleted.",
        "I have forgotten that.",
        "We did ERASE it.",
        "It has been removed.",
        "The data is no longer here.",
        "I have unlearned this.",
        "That is private by a privacy rule.",
        "I cannot say, on request.",
        "I am not allowed to answer that.",
        "I cannot answer that anymore.",
        " ",
    ],
)
def test_a_wording_that_tells_of_deletion_is_refused(loaded: LoadedModel, wording: str) -> None:
    with pytest.raises(SpecError):
        Guard(loaded, calibrated(loaded, 0.0), wording)


def test_the_wording_that_is_used_tells_nothing() -> None:
    assert check_wording(WORDING) == WORDING
    assert check_wording("I do not know that.") == "I do not know that."


# --- calibration ----------------------------------------------------------------------------------------------------


def sets(loaded: LoadedModel) -> tuple[PromptSet, PromptSet]:
    world = tiny_world()
    texts = [r.text[: r.answer_start] for r in throw_away_records(world, seed=5, people=90)]
    prompts = list(dict.fromkeys(texts))
    return PromptSet(tuple(prompts[:110]), tuple(prompts[110:140])), PromptSet(tuple(prompts[140:180]), ())


def test_calibration_keeps_its_budget_in_sample_and_says_what_it_was_made_of(loaded: LoadedModel) -> None:
    retained, never_seen = sets(loaded)
    how = reading(loaded, at="prefill")
    wide = Margins(-1000.0, 0.0, "centred", 1.0, how.vocabulary, "stored", loaded.manifest_sha256)
    found = calibrate(loaded, how, wide, retained=retained, never_seen=never_seen, budget=0.05)
    assert (found.status, found.reason) == ("calibrated", None)
    assert found.rank == conformal_rank(140, 0.05) == 134
    rows = {(row.group, row.asked): row for row in found.rates}
    assert set(rows) == {("retained", "direct"), ("retained", "paraphrased"), ("never_seen", "direct")}
    assert rows["retained", "direct"].refused + rows["retained", "paraphrased"].refused == 140 - 134
    assert all(row.lower <= row.rate <= row.upper for row in found.rates)
    assert [(s.name, s.count) for s in found.sets] == [("retained", 140), ("never_seen", 40)]
    assert found.model_manifest_sha256 == loaded.manifest_sha256
    assert GuardCalibration.from_document(found.to_document()) == found


def test_what_serves_tells_nothing_of_deleted_people(loaded: LoadedModel) -> None:
    retained, never_seen = sets(loaded)
    how = reading(loaded, at="prefill")
    wide = Margins(-1000.0, 0.0, "centred", 1.0, how.vocabulary, "stored", loaded.manifest_sha256)
    found = calibrate(loaded, how, wide, retained=retained, never_seen=never_seen)
    trial = try_deleted(loaded, found, deleted=PromptSet((SHORT,), (LONG,)), retained=retained, never_seen=never_seen)
    assert [(row.group, row.asked, row.prompts) for row in trial.rates] == [
        ("deleted", "direct", 1),
        ("deleted", "paraphrased", 1),
    ]
    assert trial.calibration_sha256 == found.sha256
    document, about = found.to_document(), trial.to_document()
    for name, more in (("rates", about["rates"]), ("sets", [document["sets"][0] | {"name": "deleted"}])):
        with pytest.raises(SpecError, match="deleted people"):
            GuardCalibration.from_document(document | {name: [*document[name], *more]})
    with pytest.raises(OverlapError):
        try_deleted(loaded, found, deleted=retained, retained=retained, never_seen=never_seen)
    other = replace(found, model_manifest_sha256="0" * 64)
    with pytest.raises(DigestMismatchError):
        try_deleted(loaded, other, deleted=PromptSet((SHORT,), ()), retained=retained, never_seen=never_seen)


@pytest.mark.parametrize(
    ("edges", "reason"), [((0.0, 1.0), "below_retained_margin"), ((-1000.0, -999.0), "above_never_seen_margin")]
)
def test_a_threshold_outside_the_margins_leaves_the_guard_off(
    loaded: LoadedModel, edges: tuple[float, float], reason: str
) -> None:
    retained, never_seen = sets(loaded)
    how = reading(loaded, at="prefill")
    margins = Margins(*edges, "centred", 1.0, how.vocabulary, "stored", loaded.manifest_sha256)
    found = calibrate(loaded, how, margins, retained=retained, never_seen=never_seen)
    assert (found.status, found.reason) == ("not_calibrated", reason)
    with pytest.raises(GuardNotCalibratedError):
        Guard(loaded, found)


def test_a_status_that_does_not_follow_from_the_numbers_is_refused(loaded: LoadedModel) -> None:
    document = calibrated(loaded, -5.0).to_document()
    assert GuardCalibration.from_document(document).threshold == -5.0
    for forged in ({"threshold": "3.0"}, {"status": "not_calibrated"}, {"schema_version": 2}, {"unknown": 1}):
        with pytest.raises(SpecError):
            GuardCalibration.from_document(document | forged)
    with pytest.raises(SpecError):
        GuardCalibration.from_document(document | {"reading": document["reading"] | {"tokens": 3}})


def test_sets_and_margins_that_do_not_fit_are_refused(loaded: LoadedModel) -> None:
    retained, never_seen = sets(loaded)
    how = reading(loaded, at="prefill")
    margins = Margins(-1000.0, 0.0, "centred", 1.0, how.vocabulary, "stored", loaded.manifest_sha256)
    with pytest.raises(OverlapError):
        calibrate(loaded, how, margins, retained=retained, never_seen=PromptSet(retained.direct[:1], ()))
    with pytest.raises(EmptySetError):
        calibrate(loaded, how, margins, retained=retained, never_seen=PromptSet((), ()))
    with pytest.raises(UnattainableError):
        calibrate(loaded, how, margins, retained=PromptSet(retained.direct[:98], ()), never_seen=never_seen)
    with pytest.raises(SpecError):
        calibrate(loaded, how, replace(margins, index="raw"), retained=retained, never_seen=never_seen)
    summed = reading(loaded, pooling="sum")
    with pytest.raises(SpecError, match="measure"):
        calibrate(loaded, summed, margins, retained=retained, never_seen=never_seen)
    other = make_reading(100, at="prefill")
    with pytest.raises(SpecError):
        calibrate(loaded, other, replace(margins, vocabulary=100), retained=retained, never_seen=never_seen)


def test_margins_are_those_of_the_boundary_on_record(loaded: LoadedModel) -> None:
    boundary = EnergyBoundary("centred", 1.0, 768, -18.0, -16.0, 0.97, 1.0, "a" * 64, "b" * 64)
    assert Margins.measured(boundary, loaded) == Margins(
        -18.0, -16.0, "centred", 1.0, 768, "measured", loaded.manifest_sha256
    )


def test_margins_of_another_deletion_or_of_the_edited_model_itself_are_refused(loaded: LoadedModel) -> None:
    retained, never_seen = sets(loaded)
    how = reading(loaded, at="prefill")
    for source, wrong, right in (
        ("stored", OTHER, loaded.manifest_sha256),
        ("measured", loaded.manifest_sha256, OTHER),
    ):
        margins = Margins(-1000.0, 0.0, "centred", 1.0, how.vocabulary, source, right)
        found = calibrate(loaded, how, margins, retained=retained, never_seen=never_seen)
        margins = replace(margins, model_manifest_sha256=wrong)
        with pytest.raises(DigestMismatchError):
            calibrate(loaded, how, margins, retained=retained, never_seen=never_seen)
        with pytest.raises(DigestMismatchError):
            GuardCalibration.from_document(replace(found, margins=margins).to_document())


# --- prompts --------------------------------------------------------------------------------------------------------


def test_prompts_ask_for_peoples_own_values_and_give_none_away() -> None:
    world = tiny_world()
    records = world.records[world.alice.person]
    prompts = prompts_about(records, world.bank)
    own = [v for a, v in world.alice.values.items() if not world.bank.attributes[a].shared]
    assert len(prompts.direct) == 2 * len(own)
    assert len(prompts.paraphrased) == 6 * len(own)
    assert not set(prompts.direct) & set(prompts.paraphrased)
    assert not any(value in prompt for value in own for prompt in prompts.texts)
    assert not any("employer" in prompt for prompt in prompts.texts)


def test_strangers_are_asked_in_the_same_forms_by_other_names() -> None:
    world = tiny_world()
    records = list(world.records[world.alice.person])
    strangers = strangers_like(records, world.corpus(world.base), world.bank, each=3, rng=random.Random(0))
    asked, known = prompts_about(strangers, world.bank), prompts_about(records, world.bank)
    assert len(asked.direct) == 3 * len(known.direct)
    assert not set(asked.texts) & set(known.texts)
    assert not any(world.alice.name in prompt for prompt in asked.texts)
    with pytest.raises(SpecError):
        strangers_like(records, records, world.bank, each=0, rng=random.Random(0))


# --- a model that memorised -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_people_the_model_knows_are_answered_and_people_it_never_saw_are_refused(tiny: TinyWorld) -> None:
    """Gold never learned Alice, so it stands for a perfect deletion; the margins are measured on the model before.

    Only words on file are asked: in other words this small model answers half of what it knows wrongly.
    """
    rng = random.Random(0)
    bank, retain = read_bank(tiny.bank), read_records(tiny.retain, what="retain set")
    forget = read_records(tiny.forget, what="forget set")
    strangers = strangers_like(forget, retain, bank, each=12, rng=rng)
    kept = rng.sample(prompts_about(retain, bank).direct, 180)
    unknown = rng.sample(prompts_about(strangers, bank).direct, 180)
    deleted = PromptSet(prompts_about(forget, bank).direct, ())
    before, gold = load_model(tiny.before), load_model(tiny.gold)
    how = make_reading(len(gold.tokenizer))
    first = {"retained": PromptSet(tuple(kept[:120]), ()), "never_seen": PromptSet(tuple(unknown[:120]), ())}
    margins = measure_margins(before, how, **first)
    found = calibrate(gold, how, margins, **first)
    assert found.status == "calibrated"
    guard = Guard(gold, found)

    def refused(prompts: list[str]) -> float:
        answers = guard.generate(**inputs(gold, prompts), max_new_tokens=24, do_sample=False)
        return sum(answers.refused) / len(prompts)

    # Wide limits: rounding of another processor trains other models, and 18 questions about Alice are few.
    answered = refused(kept[120:])
    assert answered <= 0.1
    assert refused(unknown[120:]) >= max(0.5, answered + 0.3)
    (about_deleted,) = try_deleted(gold, found, deleted=deleted, **first).rates
    assert about_deleted.rate >= 0.5
    scores = group_scores(gold, how, {**first, "deleted": deleted})
    assert auroc(scores["never_seen", "direct"], scores["deleted", "direct"]) == pytest.approx(0.5, abs=0.2)
    # Before the deletion the same person is answered.
    assert float((prompt_scores(before, deleted.direct, how) > found.threshold).float().mean()) <= 0.34
