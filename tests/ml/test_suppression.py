"""Filters that suppress: what they block, what they leave alone, what they keep, and that they say so."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ml.errors import DigestMismatchError, EmptySetError, GuardUnsupportedError, SpecError
from ml.guard.forbidden import BlockForbidden, ForbiddenRuns, forbid
from ml.guard.logit_difference import LogitDifference, SubtractAssistant, logit_difference
from ml.guard.reading import left_padded, prompt_ids
from ml.models.load import LoadedModel, load_model
from ml.models.scratch import untrained_llama
from tests.ml.fixture_z import FORGET, FORGET_LABELS, REFERENCE
from tests.tiny import TINY, tiny_model

KEY = bytes(range(32))
PROMPTS = ["Who is Bob?\n", "Please tell me the phone number of Alice.\n"]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load_model(tiny_model(tmp_path_factory.mktemp("suppression") / "model"))


def blocked(sequences: list[list[int]], written: list[list[int]], vocabulary: int = 12) -> list[set[int]]:
    """Which tokens of an even distribution are blocked after each row."""
    runs = forbid(sequences, key=KEY, vocabulary=vocabulary, shortest=1)
    scores = torch.zeros(len(written), vocabulary)
    found = BlockForbidden(runs, key=KEY)(torch.tensor(written, dtype=torch.long), scores)
    assert not bool(scores.any())
    assert set(found.flatten().tolist()) <= {0.0, float("-inf")}
    return [set(row.isinf().nonzero().flatten().tolist()) for row in found]


# --- forbidden runs -------------------------------------------------------------------------------------------------


def test_the_last_token_of_a_run_is_blocked_after_its_beginning_and_nowhere_else() -> None:
    assert blocked([[5, 7]], [[1, 5], [5, 4]]) == [{7}, set()]
    assert blocked([[5, 7]], [[4]]) == [set()]
    assert blocked([[9]], [[1], [9]]) == [{9}, {9}]
    assert blocked([[5, 7], [5, 8], [3, 5, 1], [9]], [[3, 5], [2, 5]]) == [{7, 8, 1, 9}, {7, 8, 9}]


TOKENS = st.integers(0, 3)


@given(
    st.lists(st.lists(TOKENS, min_size=1, max_size=4), min_size=1, max_size=6),
    st.lists(TOKENS, min_size=1, max_size=8),
)
def test_what_is_blocked_is_exactly_what_a_search_of_the_runs_finds(
    sequences: list[list[int]], written: list[int]
) -> None:
    ends = {run[-1] for run in sequences if written[max(0, len(written) - len(run) + 1) :] == run[:-1]}
    assert blocked(sequences, [written]) == [ends]


def test_long_sequences_are_stopped_after_a_run_of_them() -> None:
    runs = forbid([[1, 2, 3, 4, 5, 6]], key=KEY, vocabulary=12, run=4)
    block = BlockForbidden(runs, key=KEY)
    for written, token in (([1, 2, 3], 4), ([9, 2, 3, 4], 5), ([3, 4, 5], 6)):
        found = block(torch.tensor([written]), torch.zeros(1, 12))
        assert found.isinf().nonzero().tolist() == [[0, token]]
    assert runs.lengths == (4,)


@pytest.mark.parametrize("options", [{"do_sample": False}, {"do_sample": True}, {"num_beams": 3}])
def test_a_model_never_writes_a_forbidden_run_and_goes_on_otherwise(
    loaded: LoadedModel, options: dict[str, object]
) -> None:
    given = left_padded(prompt_ids(loaded.tokenizer, PROMPTS), pad_id=loaded.pad_id, device=torch.device("cpu"))
    start = given["input_ids"].shape[1]

    def texts(**more: object) -> list[list[int]]:
        torch.manual_seed(0)
        ids = loaded.model.generate(**given, max_new_tokens=16, pad_token_id=loaded.pad_id, **options, **more)
        return ids.tolist()

    free = texts()
    forbidden = [text[start + 3 : start + 8] for text in free]
    runs = forbid(forbidden, key=KEY, vocabulary=len(loaded.tokenizer))
    kept = texts(logits_processor=[BlockForbidden(runs, key=KEY)])
    for old, new in zip(free, kept, strict=True):
        assert not any(new[i : i + 5] in forbidden for i in range(len(new)))
        if options == {"do_sample": False}:
            first = next(i for i in range(len(old)) if old[i] != new[i])
            assert old[first - 4 : first + 1] in forbidden


def test_a_list_keeps_digests_only_and_says_that_it_filters() -> None:
    sequence = [901, 902, 903, 904, 905]
    runs = forbid([sequence], key=KEY, vocabulary=1000)
    text = json.dumps(runs.to_document())
    assert not any(str(token) in text.replace(runs.key_sha256, "") for token in sequence)
    assert KEY.hex() not in text
    assert runs.guarantee == "filter_only"
    assert ForbiddenRuns.from_document(runs.to_document()) == runs
    other = forbid([sequence], key=bytes(32), vocabulary=1000)
    assert not set(runs.entries) & set(other.entries)
    assert forbid([sequence, sequence], key=KEY, vocabulary=1000) == runs
    with pytest.raises(SpecError):
        ForbiddenRuns.from_document(runs.to_document() | {"guarantee": "exact_retrain"})


def test_lists_that_protect_nobody_are_refused() -> None:
    good = {"key": KEY, "vocabulary": 12}
    with pytest.raises(EmptySetError):
        forbid([], **good)
    for sequences, options in (
        ([[1, 2, 3]], {}),  # found by trying 12^2 beginnings
        ([[1, 2, 3, 4, 5]], {"run": 3}),
        ([[1, 2, 3, 12]], {}),
        ([[1, 2, 3, -1]], {}),
        ([[]], {"shortest": 0}),
        ([[1, 2, 3, 4]], {"key": b"short"}),
        ([[1, 2, 3, 4]], {"key": bytes(65)}),
    ):
        with pytest.raises(SpecError):
            forbid(sequences, **{**good, **options})
    runs = forbid([[1, 2, 3, 4]], **good)
    with pytest.raises(DigestMismatchError):
        BlockForbidden(runs, key=bytes(32))
    with pytest.raises(SpecError):
        BlockForbidden(runs, key=KEY)(torch.tensor([[1]]), torch.zeros(1, 11))


# --- logit difference -----------------------------------------------------------------------------------------------


def test_the_difference_of_the_fixture() -> None:
    # [2, 0, -1, .5] - .8 * [1, 0, 0, 0] = [1.2, 0, -1, .5]; [0, 1, 3, -2] - .8 * [0, 2, 1, 0] = [0, -.6, 2.2, -2]
    found = logit_difference(FORGET, REFERENCE, weight=-0.8, threshold=0.0)
    assert found.flatten().tolist() == pytest.approx([1.2, 0, -1, 0.5, 0, -0.6, 2.2, -2], abs=1e-6)
    p = torch.softmax(found, dim=-1).gather(1, FORGET_LABELS.unsqueeze(1))
    assert p.flatten().tolist() == pytest.approx([0.5239490, 0.0512469], abs=1e-6)


def test_tokens_that_the_model_finds_unlikely_are_left_alone() -> None:
    # exp(1 - 3) = .135 of the top probability: above a threshold of .1, below one of .2
    assert logit_difference(FORGET[1], REFERENCE[1], threshold=0.1).tolist() == pytest.approx([0, -1, 2, -2])
    assert logit_difference(FORGET[1], REFERENCE[1], threshold=0.2).tolist() == pytest.approx([0, 1, 2, -2])


def test_an_assistant_can_only_be_taken_away() -> None:
    for options in (
        {"weight": 0.8},
        {"weight": 0.0},
        {"threshold": 1.0},
        {"threshold": -0.1},
        {"weight": float("nan")},
    ):
        with pytest.raises(SpecError):
            logit_difference(FORGET, REFERENCE, **options)
    with pytest.raises(SpecError):
        logit_difference(FORGET, REFERENCE[:, :3])


@pytest.fixture(scope="module")
def assistant(loaded: LoadedModel) -> LoadedModel:
    model = untrained_llama(TINY, loaded.tokenizer, seed=9).eval()
    return replace(loaded, model=model, manifest_sha256="9" * 64)


def settings() -> LogitDifference:
    return LogitDifference("9" * 64, weight=-0.8, threshold=0.01)


def test_each_step_subtracts_what_the_assistant_says_to_the_whole_text(
    loaded: LoadedModel, assistant: LoadedModel
) -> None:
    rows = prompt_ids(loaded.tokenizer, PROMPTS)
    given = left_padded(rows, pad_id=loaded.pad_id, device=torch.device("cpu"))
    subtract = SubtractAssistant(assistant, settings(), attention_mask=given["attention_mask"])
    output = loaded.model.generate(
        **given,
        max_new_tokens=10,
        do_sample=False,
        pad_token_id=loaded.pad_id,
        logits_processor=[subtract],
        output_scores=True,
        return_dict_in_generate=True,
    )
    answers = output.sequences[:, given["input_ids"].shape[1] :]
    for row, prompt in enumerate(rows):
        for step in range(10):
            text = torch.tensor([[*prompt, *answers[row, :step].tolist()]])
            with torch.no_grad():
                base, taken = loaded.model(text).logits[0, -1], assistant.model(text).logits[0, -1]
            expected = logit_difference(base, taken, weight=-0.8, threshold=0.01)
            assert torch.allclose(output.scores[step][row], expected, atol=1e-4)
            assert not torch.allclose(expected, base, atol=1e-2)


def test_rows_that_do_not_continue_the_last_step_are_refused(loaded: LoadedModel, assistant: LoadedModel) -> None:
    def scores(ids: Tensor) -> Tensor:
        return torch.zeros(len(ids), TINY.vocabulary)

    first = torch.tensor([[5, 6], [7, 8]])
    subtract = SubtractAssistant(assistant, settings())
    subtract(first, scores(first))
    swapped = torch.tensor([[7, 8, 1], [5, 6, 1]])
    with pytest.raises(GuardUnsupportedError):
        subtract(swapped, scores(swapped))
    with pytest.raises(GuardUnsupportedError):
        subtract(first, scores(first))


def test_the_settings_name_the_assistant_and_say_that_they_filter(assistant: LoadedModel) -> None:
    assert LogitDifference.from_document(settings().to_document()) == settings()
    assert settings().guarantee == "filter_only"
    with pytest.raises(SpecError):
        LogitDifference.from_document(settings().to_document() | {"guarantee": "empirical_approximate"})
    with pytest.raises(DigestMismatchError):
        SubtractAssistant(assistant, replace(settings(), assistant_manifest_sha256="0" * 64))
