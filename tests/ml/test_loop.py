"""The training loop: learning rate, clipping, checkpoints, and a resumed run that equals an uninterrupted one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from ml.checkpoints import Checkpoint, read_checkpoint, write_checkpoint
from ml.data.batches import EpochBatches
from ml.errors import CheckpointError, EmptySetError, NonFiniteError, RunStoppedError, SpecError
from ml.loop import Backward, LoopSettings, train, use_threads
from ml.specs import Progress

SETTINGS = LoopSettings(steps=12, learning_rate=0.1, warmup_steps=3, checkpoint_every=4, report_every=3, check_every=2)


class Wobbling(nn.Module):
    """Two weights and dropout, so that a run depends on the random state too."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([3.0, -2.0]))
        self.frozen = nn.Parameter(torch.tensor([1.0]), requires_grad=False)

    def loss(self, step: int) -> Tensor:
        target = torch.full((2,), float(step % 3))
        return (nn.functional.dropout(self.weight, 0.3) - target).square().mean()


def steps_of(model: Wobbling, seen: list[int] | None = None) -> Callable[[int, Backward], Mapping[str, Tensor]]:
    def step(number: int, backward: Backward) -> Mapping[str, Tensor]:
        if seen is not None:
            seen.append(number)
        loss = model.loss(number)
        backward(loss)
        return {"loss": loss.detach()}

    return step


def trained(model: Wobbling, path: Path | None = None, stop_at: int | None = None) -> Wobbling:
    torch.manual_seed(5)
    calls = iter(range(100))
    train(
        model,
        steps_of(model),
        SETTINGS,
        phase="test",
        config_sha256="c" * 64,
        checkpoint_path=path,
        should_stop=lambda: stop_at is not None and next(calls) == stop_at,
    )
    return model


@pytest.mark.parametrize("stop_at", [1, 4, 7, 11])
def test_a_stopped_and_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path: Path, stop_at: int) -> None:
    whole = trained(Wobbling())
    with pytest.raises(RunStoppedError, match="run it again"):
        trained(Wobbling(), tmp_path / "c.safetensors", stop_at)
    resumed = trained(Wobbling(), tmp_path / "c.safetensors")
    assert torch.equal(whole.weight, resumed.weight)


@pytest.mark.parametrize("stop_at", [1, 4, 7])
def test_a_resumed_run_takes_up_what_its_steps_carry_over(tmp_path: Path, stop_at: int) -> None:
    def run(stop_at: int | None, path: Path | None) -> tuple[Wobbling, float]:
        model, price = Wobbling(), torch.tensor(1.0, dtype=torch.float64)
        calls = iter(range(100))

        def step(number: int, backward: Backward) -> Mapping[str, Tensor]:
            loss = model.loss(number)
            backward(float(price) * loss)
            price.add_(float(loss.detach()))
            return {}

        torch.manual_seed(5)
        train(
            model,
            step,
            replace(SETTINGS, clip_norm=1e6),
            phase="test",
            checkpoint_path=path,
            should_stop=lambda: stop_at is not None and next(calls) == stop_at,
            state={"price": price},
        )
        return model, float(price)

    whole, price = run(None, None)
    with pytest.raises(RunStoppedError):
        run(stop_at, tmp_path / "c.safetensors")
    resumed, resumed_price = run(None, tmp_path / "c.safetensors")
    assert resumed_price == price
    assert torch.equal(whole.weight, resumed.weight)


def test_a_killed_run_goes_on_from_its_last_checkpoint(tmp_path: Path) -> None:
    model, seen = Wobbling(), []

    def dies(number: int, backward: Backward) -> Mapping[str, Tensor]:
        if number == 6:
            raise KeyboardInterrupt
        return steps_of(model, seen)(number, backward)

    torch.manual_seed(5)
    path = tmp_path / "c.safetensors"
    with pytest.raises(KeyboardInterrupt):
        train(model, dies, SETTINGS, phase="test", config_sha256="c" * 64, checkpoint_path=path)
    again, later = Wobbling(), []
    result = train(again, steps_of(again, later), SETTINGS, phase="test", config_sha256="c" * 64, checkpoint_path=path)
    assert (seen, later) == ([0, 1, 2, 3, 4, 5], list(range(4, 12)))
    assert result.resumed_from_step == 4
    assert torch.equal(again.weight, trained(Wobbling()).weight)


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    first = trained(Wobbling(), tmp_path / "c.safetensors")
    model, seen = Wobbling(), []
    train(
        model,
        steps_of(model, seen),
        SETTINGS,
        phase="test",
        config_sha256="c" * 64,
        checkpoint_path=tmp_path / "c.safetensors",
    )
    assert seen == []
    assert torch.equal(model.weight, first.weight)


def test_a_checkpoint_of_another_configuration_is_refused(tmp_path: Path) -> None:
    trained(Wobbling(), tmp_path / "c.safetensors")
    model = Wobbling()
    with pytest.raises(CheckpointError, match="another configuration"):
        train(
            model,
            steps_of(model),
            SETTINGS,
            phase="test",
            config_sha256="d" * 64,
            checkpoint_path=tmp_path / "c.safetensors",
        )


def test_a_torn_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    trained(Wobbling(), path)
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_checkpoint(path, config_sha256="c" * 64)


def test_a_checkpoint_holds_tensors_and_json_alone(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    trained(Wobbling(), path)
    with safe_open(path, framework="pt") as stored:
        names = set(stored.keys())
        header = stored.metadata()
    assert {"weight.weight", "random.cpu", "optimiser.0.exp_avg", "optimiser.0.exp_avg_sq", "optimiser.0.step"} == names
    assert header["step"] == "12"


def test_a_reader_never_sees_half_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c.safetensors"
    write_checkpoint(path, Checkpoint(1, "c" * 64, {"weight.a": torch.zeros(2)}, {}))

    def crash(self: Path, target: Path) -> Path:
        raise OSError("the machine went away before the rename")

    monkeypatch.setattr(Path, "replace", crash)
    with pytest.raises(OSError, match="went away"):
        write_checkpoint(path, Checkpoint(2, "c" * 64, {"weight.a": torch.ones(2)}, {}))
    assert read_checkpoint(path, config_sha256="c" * 64).step == 1


def test_training_stops_early_once_the_target_is_met(tmp_path: Path) -> None:
    model = Wobbling()
    path = tmp_path / "c.safetensors"

    def run(seen: list[int]) -> object:
        return train(
            model,
            steps_of(model, seen),
            SETTINGS,
            phase="test",
            config_sha256="c" * 64,
            checkpoint_path=path,
            is_met=lambda: bool(model.weight[0] < 2.6),
        )

    seen: list[int] = []
    result = run(seen)
    assert result.stopped_early
    assert result.steps == len(seen) < 12
    assert result.steps % SETTINGS.check_every == 0
    again: list[int] = []
    assert run(again).stopped_early
    assert again == []


def test_progress_counts_steps_and_carries_the_losses() -> None:
    reports: list[Progress] = []
    model = Wobbling()
    train(model, steps_of(model), SETTINGS, phase="unlearning", on_progress=reports.append)
    assert [(r.phase, r.done, r.total) for r in reports] == [("unlearning", n, 12) for n in (3, 6, 9, 12)]
    assert all(math.isfinite(r.numbers["loss"]) and r.numbers["gradient_norm"] >= 0 for r in reports)


def test_a_gradient_that_is_no_number_stops_the_run_before_the_weights_change() -> None:
    model = Wobbling()
    before = model.weight.detach().clone()

    def explode(number: int, backward: Backward) -> Mapping[str, Tensor]:
        backward(model.weight.sum() * math.inf)
        return {}

    with pytest.raises(NonFiniteError, match="step 0"):
        train(model, explode, SETTINGS, phase="test")
    assert torch.equal(model.weight, before)


def test_gradients_are_clipped() -> None:
    model = Wobbling()
    norms: list[float] = []

    def steep(number: int, backward: Backward) -> Mapping[str, Tensor]:
        backward(model.weight.sum() * 1e6)
        return {}

    settings = LoopSettings(steps=1, learning_rate=1e-9, clip_norm=0.5)
    train(model, steep, settings, phase="test", on_progress=lambda p: norms.append(p.numbers["gradient_norm"]))
    assert norms == [pytest.approx(1e6 * math.sqrt(2), rel=1e-4)]
    assert float(model.weight.grad.norm()) == pytest.approx(0.5, rel=1e-4)


def test_frozen_weights_stay() -> None:
    assert float(trained(Wobbling()).frozen) == 1.0


def test_a_model_without_trainable_weights_is_refused() -> None:
    model = Wobbling().requires_grad_(False)
    with pytest.raises(EmptySetError, match="attach an adapter"):
        train(model, steps_of(model), SETTINGS, phase="test")


def test_training_without_steps_or_rate_is_refused() -> None:
    for settings in (LoopSettings(steps=0, learning_rate=0.1), LoopSettings(steps=3, learning_rate=0.0)):
        model = Wobbling()
        with pytest.raises(SpecError, match="at least one step"):
            train(model, steps_of(model), settings, phase="test")


def test_the_learning_rate_warms_up_linearly_and_falls_to_its_final_share() -> None:
    settings = LoopSettings(steps=103, learning_rate=1.0, warmup_steps=3, final_factor=0.1)
    assert [settings.learning_rate_at(s) for s in range(3)] == pytest.approx([1 / 3, 2 / 3, 1.0])
    # half way down the cosine: 0.1 + 0.9 / 2
    assert settings.learning_rate_at(53) == pytest.approx(0.55)
    assert settings.learning_rate_at(103) == pytest.approx(0.1)


def test_every_row_comes_once_per_epoch_whatever_the_batch_size() -> None:
    for rows in (1, 4, 7, 50):
        batches = EpochBatches([5, 3, 9, 3, 1, 2, 8, 8, 4, 6, 7], rows=rows, seed=3)
        for epoch in range(3):
            drawn = [i for b in range(batches.per_epoch) for i in batches.at(epoch * batches.per_epoch + b)]
            assert sorted(drawn) == list(range(11))


def test_a_batch_is_a_function_of_seed_and_step_alone() -> None:
    lengths = list(range(1, 40))
    forwards = EpochBatches(lengths, rows=6, seed=1)
    backwards = EpochBatches(lengths, rows=6, seed=1)
    order = [forwards.at(step) for step in range(20)]
    assert [backwards.at(step) for step in reversed(range(20))] == order[::-1]
    assert order != [EpochBatches(lengths, rows=6, seed=2).at(step) for step in range(20)]


def test_batches_of_nothing_are_refused() -> None:
    with pytest.raises(EmptySetError):
        EpochBatches([], rows=2, seed=0)


def test_processes_share_the_threads_that_one_would_take_unless_told_otherwise() -> None:
    before = torch.get_num_threads()
    try:
        for given, processes, wanted in ((0, 1, 8), (0, 2, 4), (0, 16, 1), (3, 2, 3)):
            torch.set_num_threads(8)
            use_threads(given, processes=processes)
            assert torch.get_num_threads() == wanted
    finally:
        torch.set_num_threads(before)
