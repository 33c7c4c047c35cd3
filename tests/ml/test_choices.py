"""Choices by likelihood: options in every place (G6), and general questions from a file (U3)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ml.attacks.exposure import value_log_probs
from ml.attacks.multiple_choice import LETTERS, choice_contests, choice_scores, choice_texts
from ml.data.choices import read_choices
from ml.digests import file_sha256
from ml.errors import ContextLengthError, DigestMismatchError, EmptySetError, SpecError
from ml.models.load import LoadedModel, load_model
from ml.specs import FileRef
from tests.tiny import tiny_model


@pytest.fixture(name="model", scope="module")
def _model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load_model(tiny_model(Path(tmp_path_factory.mktemp("tiny")) / "model", seed=6))


# --- multiple choice ----------------------------------------------------------------------------------------------


def test_the_true_value_takes_every_place_once() -> None:
    texts = choice_texts("Which boat has Alice?", "Seagull", ["Heron", "Gannet", "Tern"])
    assert texts[0] == "Which boat has Alice?\n(A) Seagull (B) Heron (C) Gannet (D) Tern\nAnswer: ("
    assert texts[3] == "Which boat has Alice?\n(A) Heron (B) Gannet (C) Tern (D) Seagull\nAnswer: ("
    for place, text in enumerate(texts):
        assert f"({LETTERS[place]}) Seagull" in text


def test_a_choice_needs_three_other_values() -> None:
    with pytest.raises(SpecError, match="among 4 values"):
        choice_texts("Which boat has Alice?", "Seagull", ["Heron"])


def test_the_letters_compete_that_of_the_true_value_first(model: LoadedModel) -> None:
    texts = choice_texts("Which boat has Alice?", "Seagull", ["Heron", "Gannet", "Tern"])
    rows = choice_contests(model.tokenizer, texts, context=model.context)
    for place, (text, row) in enumerate(zip(texts, rows, strict=True)):
        assert len(row.values) == len(LETTERS)
        said = [model.tokenizer.decode([*row.prompt, *value]) for value in row.values]
        expected = [LETTERS[place], *(letter for letter in LETTERS if letter != LETTERS[place])]
        assert said == [text + letter for letter in expected]
    log_probs = value_log_probs(model, rows)
    own = log_probs[:, 0] - log_probs[:, 1:].mean(dim=1)
    assert choice_scores(log_probs).tolist() == pytest.approx([float(own.mean())], abs=1e-6)


def test_a_model_that_always_says_the_same_letter_gains_nothing() -> None:
    """Its letter is right once in four places; the differences cancel."""
    liked = torch.full((4, 4), -5.0)
    for place in range(4):
        letters = [place, *(other for other in range(4) if other != place)]
        liked[place, letters.index(2)] = -0.1
    assert float(choice_scores(liked)[0]) == pytest.approx(0.0, abs=1e-6)


def test_a_choice_that_does_not_fit_is_refused(model: LoadedModel) -> None:
    texts = choice_texts("Why? " * model.context, "a", ["b", "c", "d"])
    with pytest.raises(ContextLengthError):
        choice_contests(model.tokenizer, texts, context=model.context)


# --- general questions --------------------------------------------------------------------------------------------


def _file(path: Path, *rows: Any) -> FileRef:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return FileRef(str(path), file_sha256(path))


GOOD = {"question": "Which is the largest river?", "right": "Amazon", "wrong": ["Rhine", "Spree"]}


def test_general_questions_are_read_in_order(tmp_path: Path) -> None:
    (first, second) = read_choices(_file(tmp_path / "facts.jsonl", GOOD, "", {**GOOD, "wrong": ["Main"]}))
    assert (first.question, first.right, first.wrong) == (GOOD["question"], "Amazon", ("Rhine", "Spree"))
    assert second.wrong == ("Main",)


@pytest.mark.parametrize(
    "row",
    [
        "{",
        [],
        {"question": "Why?"},
        {**GOOD, "more": 1},
        {**GOOD, "wrong": []},
        {**GOOD, "wrong": "Rhine"},
        {**GOOD, "right": " "},
        {**GOOD, "right": 3},
        {**GOOD, "wrong": ["Amazon"]},
    ],
)
def test_a_line_that_is_no_question_is_named_by_its_number_and_not_shown(tmp_path: Path, row: Any) -> None:
    with pytest.raises(SpecError, match="line 2") as refused:
        read_choices(_file(tmp_path / "facts.jsonl", GOOD, row))
    assert "Amazon" not in str(refused.value)


def test_another_file_or_an_empty_one_is_refused(tmp_path: Path) -> None:
    ref = _file(tmp_path / "facts.jsonl", GOOD)
    with pytest.raises(DigestMismatchError):
        read_choices(FileRef(ref.path, "0" * 64))
    with pytest.raises(EmptySetError):
        read_choices(_file(tmp_path / "none.jsonl", "", " "))
