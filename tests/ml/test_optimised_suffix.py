"""G14: a searched suffix only ever helps, everybody is searched alike, and the budget is the budget."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ml.attacks.exposure import ValueContest, value_log_probs
from ml.attacks.optimised_suffix import SuffixTask, best_suffix_log_probs
from ml.errors import ContextLengthError, SpecError
from ml.models.load import LoadedModel, load_model
from tests.tiny import tiny_model

TOKENS = tuple(range(3, 300))


@pytest.fixture(name="model", scope="module")
def _model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load_model(tiny_model(Path(tmp_path_factory.mktemp("tiny")) / "model", seed=6))


def _tasks(count: int = 4) -> list[SuffixTask]:
    generator = torch.Generator().manual_seed(2)

    def ids(size: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, 300, (size,), generator=generator).tolist())

    return [SuffixTask(ids(5 + i), ids(2), ids(3), i % 2) for i in range(count)]


def _best(
    model: LoadedModel, tasks: list[SuffixTask], *, steps: int = 12, length: int = 3, seed: int = 1
) -> torch.Tensor:
    return best_suffix_log_probs(model, tasks, length=length, steps=steps, tokens=TOKENS, seed=seed)


def test_more_steps_never_reach_less_and_some_reach_more(model: LoadedModel) -> None:
    few, many = _best(model, _tasks(), steps=2), _best(model, _tasks(), steps=40)
    assert bool((many >= few).all())
    assert bool((many > few).any())


def test_what_is_reported_is_what_some_suffix_really_reaches(model: LoadedModel) -> None:
    """With one step over two tokens every suffix that can be tried is known."""
    (task,) = _tasks(1)
    reached = float(best_suffix_log_probs(model, [task], length=1, steps=30, tokens=(7, 11), seed=3)[0])
    rows = [ValueContest((*task.question, token, *task.opening), (task.value,)) for token in (7, 11)]
    assert reached == pytest.approx(float(value_log_probs(model, rows).max()), abs=1e-5)


def test_who_else_is_searched_changes_nobodys_score(model: LoadedModel) -> None:
    tasks = _tasks()
    together = _best(model, tasks)
    assert _best(model, tasks[2:3]).tolist() == pytest.approx(together[2:3].tolist(), abs=1e-4)


def test_two_persons_with_the_same_fact_and_text_get_the_same_score(model: LoadedModel) -> None:
    """The start and the proposals belong to the fact, not to the person: otherwise luck would tell people apart."""
    first = _tasks(1)[0]
    scores = _best(model, [first, replace(first)])
    assert float(scores[0]) == float(scores[1])


def test_the_seed_decides(model: LoadedModel) -> None:
    assert torch.equal(_best(model, _tasks()), _best(model, _tasks()))
    assert not torch.equal(_best(model, _tasks()), _best(model, _tasks(), seed=2))


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"steps": 501}, {"length": 0}])
def test_a_budget_out_of_range_is_refused(model: LoadedModel, wrong: dict[str, int]) -> None:
    with pytest.raises(SpecError):
        _best(model, _tasks(), **wrong)


def test_a_suffix_that_does_not_fit_is_refused(model: LoadedModel) -> None:
    with pytest.raises(ContextLengthError):
        _best(model, _tasks(), length=model.context)
