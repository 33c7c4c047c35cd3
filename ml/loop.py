"""The one training loop: fine-tuning, unlearning and relearning all run here.

The loop owns optimiser, learning rate, clipping, checkpoints and stopping. What a step does is a function of the step
number (`StepFunction`) and of the few numbers a method hands over as `state`, so the data cursor is the step, and a run
that was killed continues bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from ml.checkpoints import Checkpoint, optimiser_tensors, read_checkpoint, restore_optimiser, write_checkpoint
from ml.errors import EmptySetError, NonFiniteError, RunStoppedError, SpecError
from ml.specs import CheckpointCallback, Progress, ProgressCallback, StopCheck

Backward: TypeAlias = Callable[[Tensor], None]
StepFunction: TypeAlias = Callable[[int, Backward], Mapping[str, Tensor]]
"""Called with the step number and `backward`; adds gradients of the step's losses and returns numbers to watch."""


def ignore_progress(progress: Progress) -> None:
    """Discard a progress report."""


def never_stop() -> bool:
    """Let the run go on."""
    return False


def use_threads(threads: int, *, processes: int) -> None:
    """Give torch `threads`, or, where that is 0, a share of what it would take for each of `processes`: more threads
    than cores wait for each other, and made two processes several times slower than one."""
    torch.set_num_threads(threads or max(1, torch.get_num_threads() // processes))


def leave_checkpoint(path: Path) -> None:
    """Leave a checkpoint where it was written."""


@dataclass(frozen=True, slots=True)
class LoopSettings:
    """How long and how fast: linear warm-up over `warmup_steps`, then cosine decay to `final_factor` of the peak.

    `checkpoint_every`, `report_every` and `check_every` count steps; 0 checkpoints only when the run is stopped.
    """

    steps: int
    learning_rate: float
    warmup_steps: int = 0
    final_factor: float = 0.1
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.99)
    clip_norm: float = 1.0
    checkpoint_every: int = 0
    report_every: int = 10
    check_every: int = 20

    def learning_rate_at(self, step: int) -> float:
        """Learning rate of `step` (from 0): a pure function, so a resumed run needs no scheduler state."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        span = max(1, self.steps - self.warmup_steps)
        falling = 0.5 * (1 + math.cos(math.pi * (step - self.warmup_steps) / span))
        return self.learning_rate * (self.final_factor + (1 - self.final_factor) * falling)


@dataclass(frozen=True, slots=True)
class LoopResult:
    """Steps done, whether the target was met before the last one, where the run was taken up, and last numbers."""

    steps: int
    stopped_early: bool
    resumed_from_step: int
    numbers: Mapping[str, float] = field(default_factory=dict)


def train(
    model: nn.Module,
    step_function: StepFunction,
    settings: LoopSettings,
    *,
    phase: str,
    config_sha256: str = "",
    checkpoint_path: Path | None = None,
    on_progress: ProgressCallback = ignore_progress,
    should_stop: StopCheck = never_stop,
    on_checkpoint: CheckpointCallback = leave_checkpoint,
    is_met: Callable[[], bool] | None = None,
    state: Mapping[str, Tensor] | None = None,
) -> LoopResult:
    """Train the parameters of `model` that require gradients, in place.

    1. Take up the checkpoint at `checkpoint_path`, if there is one.
    2. Each step: learning rate, gradients from `step_function`, clipping, update.
    3. Report, checkpoint, and stop early once `is_met()` (asked every `check_every` steps) is true.

    Args:
        config_sha256: digest of everything that decides the run; a checkpoint of another digest is refused.
        on_checkpoint: called with the path of each checkpoint when it is on disk; it may move the file elsewhere.
        is_met: a function of the weights alone, so that a resumed run stops at the same step.
        state: what the step function carries from step to step and changes in place; checkpoints keep it.
    Raises:
        CheckpointError: the checkpoint is unreadable or another run's.
        NonFiniteError: a gradient is NaN or infinite; the weights are those before that step.
        RunStoppedError: `should_stop` said so; a checkpoint was written if `checkpoint_path` is given.
    """
    run = _Run(model, settings, checkpoint_path, config_sha256, state or {}, on_checkpoint)
    start = run.resume()
    step, stopped_early, numbers = start, run.stopped_early, dict(run.numbers)
    while step < settings.steps and not stopped_early:
        if should_stop():
            run.save(step, stopped_early=False, numbers=numbers)
            raise RunStoppedError(f"{phase} was stopped after step {step} of {settings.steps}; run it again to resume")
        watched = run.step(step, step_function)
        step += 1
        if step % settings.report_every == 0 or step == settings.steps:
            numbers = {name: float(value) for name, value in watched.items()}
            on_progress(Progress(phase, step, settings.steps, numbers))
        stopped_early = is_met is not None and step % settings.check_every == 0 and is_met()
        if stopped_early or _due(step, settings):
            run.save(step, stopped_early=stopped_early, numbers=numbers)
    return LoopResult(step, stopped_early, start, numbers)


def _back_propagate(loss: Tensor) -> None:
    loss.backward()


def _due(step: int, settings: LoopSettings) -> bool:
    if not settings.checkpoint_every:
        return False
    return step % settings.checkpoint_every == 0 or step == settings.steps


class _Run:
    """Optimiser and checkpoint of one call of `train`."""

    def __init__(
        self,
        model: nn.Module,
        settings: LoopSettings,
        path: Path | None,
        config_sha256: str,
        state: Mapping[str, Tensor],
        on_checkpoint: CheckpointCallback,
    ) -> None:
        self.settings, self.path, self.config_sha256, self.state = settings, path, config_sha256, state
        self.on_checkpoint = on_checkpoint
        self.named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        if not self.named:
            raise EmptySetError("no parameter of the model requires a gradient; attach an adapter first")
        self.parameters = [parameter for _, parameter in self.named]
        self.device = self.parameters[0].device
        self.optimiser = adamw(self.parameters, settings)
        self.stopped_early, self.numbers = False, {}

    def step(self, step: int, step_function: StepFunction) -> dict[str, Tensor]:
        rate = self.settings.learning_rate_at(step)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.zero_grad()
        watched = dict(step_function(step, _back_propagate))
        norm = nn.utils.clip_grad_norm_(self.parameters, self.settings.clip_norm)
        if not bool(torch.isfinite(norm)):
            raise NonFiniteError(f"the gradient of step {step} is not finite; lower the learning rate")
        self.optimiser.step()
        return {**watched, "gradient_norm": norm}

    def save(self, step: int, *, stopped_early: bool, numbers: Mapping[str, float]) -> None:
        if self.path is None:
            return
        tensors = {f"weight.{name}": parameter for name, parameter in self.named}
        tensors |= {f"state.{name}": tensor for name, tensor in self.state.items()}
        tensors |= optimiser_tensors(self.optimiser) | random_state(self.device)
        scalars: dict[str, Any] = {"stopped_early": stopped_early, "numbers": dict(numbers)}
        write_checkpoint(self.path, Checkpoint(step, self.config_sha256, tensors, scalars))
        self.on_checkpoint(self.path)

    def resume(self) -> int:
        found = None if self.path is None else read_checkpoint(self.path, config_sha256=self.config_sha256)
        if found is None:
            return 0
        with torch.no_grad():
            for name, parameter in self.named:
                parameter.copy_(found.tensors[f"weight.{name}"])
            for name, tensor in self.state.items():
                tensor.copy_(found.tensors[f"state.{name}"])
        restore_optimiser(self.optimiser, found.tensors)
        restore_random_state(found.tensors, self.device)
        self.stopped_early, self.numbers = bool(found.scalars["stopped_early"]), dict(found.scalars["numbers"])
        return found.step


def adamw(parameters: Sequence[nn.Parameter], settings: LoopSettings) -> torch.optim.AdamW:
    """AdamW over `parameters` in one fused update.

    Raises:
        SpecError: no steps or no learning rate to train with.
    """
    if settings.steps < 1 or settings.learning_rate <= 0:
        raise SpecError("training needs at least one step and a learning rate above 0")
    return torch.optim.AdamW(
        parameters,
        lr=settings.learning_rate,
        betas=settings.betas,
        weight_decay=settings.weight_decay,
        fused=True,
    )


def random_state(device: torch.device) -> dict[str, Tensor]:
    """Torch's random state on the CPU and on `device`."""
    state = {"random.cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["random.device"] = torch.cuda.get_rng_state(device)
    return state


def restore_random_state(tensors: Mapping[str, Tensor], device: torch.device) -> None:
    """Put back what `random_state` returned."""
    torch.set_rng_state(tensors["random.cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(tensors["random.device"], device)
