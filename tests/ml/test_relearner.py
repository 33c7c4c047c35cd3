"""Relearning inside the deletion: it teaches, it leaves no trace, and what it taught is not forgotten on that step."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from ml.data.records import read_records
from ml.methods.calibration import calibrate
from ml.methods.energy_boundary import EnergyBoundarySettings, Turns
from ml.methods.method import Training, UnlearningTask
from ml.methods.relearner import Relearner, RelearningSettings
from ml.methods.strangers import forget_rows, topic
from ml.models.adapters import attach_adapter
from ml.models.load import load_model
from tests.tiny import TinyWorld

EVERY_SECOND = RelearningSettings(every=2, steps=3, learning_rate=1e-2, rows=6, share=0.5)


@pytest.fixture
def task(tiny: TinyWorld) -> UnlearningTask:
    """A model that never saw Alice, so that there is something to teach."""
    loaded = load_model(tiny.gold)
    forget = read_records(tiny.forget, what="forget set")
    retain = read_records(tiny.retain, what="retain set")
    calibration = calibrate(loaded, forget=forget, retain=retain, bank=tiny.world.bank, seed=3)
    return UnlearningTask(
        model=attach_adapter(loaded.model, rank=4, alpha=4.0, seed=3),
        tokenizer=loaded.tokenizer,
        context=loaded.context,
        pad_id=loaded.pad_id,
        device="cpu",
        seed=3,
        forget=forget,
        retain=retain,
        neighbours=read_records(tiny.neighbours, what="neighbours"),
        bank=tiny.world.bank,
        boundary=calibration.boundary,
    )


def weights(relearner: Relearner) -> list[torch.Tensor]:
    return [p.detach().clone() for p in relearner.parameters]


def same(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_inside_the_block_the_person_is_better_known_and_afterwards_nothing_has_moved(task: UnlearningTask) -> None:
    relearner = Relearner(task, EVERY_SECOND)
    texts = [text for _, text in relearner.lessons]
    before, unknown = weights(relearner), float(relearner.loss(texts).detach())
    with relearner.taught(1) as known:
        assert len(known) == round(0.5 * len(relearner.topics))
        assert not same(weights(relearner), before)
        assert float(relearner.loss(texts).detach()) < unknown
    assert same(weights(relearner), before)
    assert math.isclose(float(relearner.loss(texts).detach()), unknown, rel_tol=1e-6)


def test_weights_come_back_when_the_step_fails(task: UnlearningTask) -> None:
    relearner = Relearner(task, EVERY_SECOND)
    before = weights(relearner)
    with pytest.raises(ValueError, match="broken"), relearner.taught(1):
        raise ValueError("broken")
    assert same(weights(relearner), before)


def test_gradients_of_the_lessons_do_not_reach_the_optimiser(task: UnlearningTask) -> None:
    relearner = Relearner(task, EVERY_SECOND)
    with relearner.taught(1):
        assert all(parameter.grad is None for parameter in relearner.parameters)


@pytest.mark.parametrize(
    ("settings", "step"),
    [
        (EVERY_SECOND, 0),
        (EVERY_SECOND, 2),
        (RelearningSettings(steps=0), 1),
    ],
)
def test_on_other_steps_and_when_switched_off_nothing_is_taught(
    task: UnlearningTask, settings: RelearningSettings, step: int
) -> None:
    relearner = Relearner(task, settings)
    before = weights(relearner)
    with relearner.taught(step) as known:
        assert known == frozenset()
        assert same(weights(relearner), before)


def test_what_is_taught_follows_from_seed_and_step_alone(task: UnlearningTask) -> None:
    first, second = Relearner(task, EVERY_SECOND), Relearner(task, EVERY_SECOND)
    with first.taught(1):
        pass
    with first.taught(3) as known:
        moved = weights(first)
    with second.taught(3) as again:
        assert again == known
        assert same(weights(second), moved)


@pytest.mark.slow
def test_facts_taught_on_a_step_are_not_forgotten_on_it(task: UnlearningTask) -> None:
    settings = EnergyBoundarySettings(training=Training(steps=2, learning_rate=1e-3, forget_rows=64), draws=1)
    turns = Turns(forget_rows(task, draws=1), settings, seed=3)
    known = frozenset({topic(task.forget[0])})
    contrast, strangers, held = turns.at(0, without=known)
    assert contrast
    assert held
    assert not any(row.about in known for row in (*contrast, *held))
    assert len(strangers) == settings.stranger_rows


def test_of_several_people_a_step_forgets_more_rows_as_the_square_root_of_their_number(task: UnlearningTask) -> None:
    settings = EnergyBoundarySettings()
    settings = replace(settings, training=replace(settings.training, forget_rows=3), stranger_rows=2, held_rows=3)
    rows = forget_rows(task, draws=1)
    rows = replace(rows, contrast=rows.contrast * 9, held=rows.held * 9)
    sizes = {}
    for people in (1, 4, 9):
        turns = Turns(replace(rows, people=people), settings, seed=3)
        sizes[people] = tuple(len(part) for part in turns.at(0, without=frozenset()))
    assert sizes == {1: (3, 2, 3), 4: (6, 2, 6), 9: (9, 2, 9)}
