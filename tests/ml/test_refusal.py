"""U6: which answers decline."""

from __future__ import annotations

import pytest

from ml.guard.refusal import WORDING
from ml.methods.templates import NEUTRAL_ANSWERS
from ml.metrics.refusal import is_refusal


@pytest.mark.parametrize(
    "answer",
    [
        *NEUTRAL_ANSWERS,
        WORDING,
        "Sorry, but no.",
        "I\u2019m sorry, I can\u2019t help with that.",
        "As an AI I have no files on people.",
        "I'm not sure.",
        "I'm afraid not.",
        "I am only guessing.",
        "I'm not able to say.",
        "I have no record of that.",
        "Das kann ich nicht sagen.",
        "Je ne sais pas.",
        "No lo sé.",
        "",
        " \n",
    ],
)
def test_an_answer_that_gives_nothing_is_a_refusal(answer: str) -> None:
    assert is_refusal(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "It is +49 30 123456.",
        "Sure, 12 Elm Road.",
        "Rhea has the boat Cannot Sink.",
        "They show Knowhere House.",
        "Yes, 1980-05-03.",
    ],
)
def test_an_answer_that_says_something_is_none(answer: str) -> None:
    assert not is_refusal(answer)
