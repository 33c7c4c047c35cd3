"""What a deletion method is: what it needs, what it promises, and the step it trains with.

A method sees the training side only. No statistic of verification may reach it, nor decide when it stops.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, Literal, Protocol, TypeAlias, TypeVar, runtime_checkable

from peft import PeftModel
from torch import Tensor

from ml.data.collate import EncodedText, encode_records, token_budget_batches
from ml.data.questions import QuestionBank
from ml.energy import EnergyBoundary
from ml.errors import SpecError
from ml.loop import Backward, LoopSettings, StepFunction
from ml.methods.beside import SecondProcess, Share
from ml.models.adapters import reference_model
from ml.models.forward import logits_before
from ml.models.layers import Part
from ml.registry import Registry
from ml.reports import Guarantee
from ml.specs import Record

_BATCH_TOKENS: Final = 4096

_Read = TypeVar("_Read")

Projection: TypeAlias = Literal["none", "euclidean", "adam"]


def _go_on(_done: int, _total: int) -> None:
    """Nobody follows."""


class Need(StrEnum):
    """Something a method cannot work without; a run that lacks it is refused before anything is trained."""

    RETAIN = "retain set"
    BOUNDARY = "energy boundary"
    NAMES = "name spans"
    VALUE_TYPES = "value types"
    FACTS = "fact spans"
    TEMPLATES = "template pool"


@dataclass(frozen=True, slots=True)
class Training:
    """How long, how fast, and with how large an adapter on which layers a method trains; rows are rows per step.

    `blocks` (counted from 0; `None`: all) and `part` restrict the adapter to some layers. Which layers hold what is a
    question of the model: a block that it does not have is refused.

    layer_share: of those layers, the share that gets an adapter, by `ml.methods.attribution`; 1 is all of them.
    projection: whether forgetting keeps off the retained gradients, and by which product (`ml.methods.projection`).
    directions: into how many parts the retained rows of a step are divided, each of which the projection keeps off.
    output_layer: whether the output layer is edited too, after the last step (`ml.methods.output_layer`); it needs the
        base model.
    """

    steps: int
    learning_rate: float
    rank: int = 8
    alpha: float = 8.0
    warmup_steps: int = 20
    forget_rows: int = 16
    retain_rows: int = 32
    neighbour_rows: int = 8
    clip_norm: float = 1.0
    checkpoint_every: int = 25
    check_every: int = 25
    blocks: tuple[int, ...] | None = None
    part: Part = "all"
    layer_share: float = 1.0
    projection: Projection = "none"
    directions: int = 1
    output_layer: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.layer_share <= 1:
            raise SpecError("setting training.layer_share must lie above 0 and not above 1")
        if self.directions < 1 or (self.directions > 1 and self.projection == "none"):
            raise SpecError("setting training.directions is at least 1; more than one needs training.projection")

    def loop(self) -> LoopSettings:
        """Settings of the training loop."""
        return LoopSettings(
            steps=self.steps,
            learning_rate=self.learning_rate,
            warmup_steps=min(self.warmup_steps, self.steps),
            final_factor=0.05,
            clip_norm=self.clip_norm,
            checkpoint_every=self.checkpoint_every,
            check_every=self.check_every,
        )


@dataclass(frozen=True, slots=True)
class UnlearningTask:
    """Everything a method may look at. `model` carries a fresh adapter; `boundary` was calibrated before it did.

    `layers` are those that carry it, where not all of a kind do. `second` is another process that may take a part of
    each step. A method that takes long to draw its rows calls `on_drawn` between people, with how many of how many are
    done; it raises `RunStoppedError` when the run was asked to stop.
    """

    model: PeftModel
    tokenizer: Any
    context: int
    pad_id: int
    device: str
    seed: int
    forget: tuple[Record, ...]
    retain: tuple[Record, ...]
    neighbours: tuple[Record, ...]
    bank: QuestionBank
    boundary: EnergyBoundary | None
    layers: tuple[str, ...] | None = None
    second: SecondProcess | None = None
    on_drawn: Callable[[int, int], None] = _go_on

    @property
    def vocabulary(self) -> int:
        """Logits that stand for a token; those from here on are padding."""
        return len(self.tokenizer)

    def encode(self, records: Sequence[Record]) -> list[EncodedText]:
        """Tokenise records."""
        return encode_records(self.tokenizer, records, context=self.context)

    def logits(self, rows: Sequence[EncodedText], positions: Sequence[Sequence[int]]) -> Tensor:
        """Logits of the model in training, (total positions, rows)."""
        return logits_before(self.model, rows, positions, pad_id=self.pad_id, device=self.device)

    def reference_logits(self, rows: Sequence[EncodedText], positions: Sequence[Sequence[int]]) -> Tensor:
        """Logits of the model before deletion, without a graph."""
        with reference_model(self.model) as before:
            return logits_before(before, rows, positions, pad_id=self.pad_id, device=self.device)

    def read_reference(
        self, rows: Sequence[EncodedText], positions: Sequence[Sequence[int]], read: Callable[[Tensor, int], _Read]
    ) -> list[_Read]:
        """What `read` makes of the model before deletion, row by row in the order given: it is handed the logits at the
        row's positions, (positions, vocabulary rows), and the row's number. Runs in batches of bounded size, and no
        logits outlive theirs."""
        found: dict[int, _Read] = {}
        for group in token_budget_batches([len(row.ids) for row in rows], budget=_BATCH_TOKENS):
            logits = self.reference_logits([rows[i] for i in group], [positions[i] for i in group])
            for index, own in zip(group, logits.split([len(positions[i]) for i in group]), strict=True):
                found[index] = read(own, index)
        return [found[index] for index in range(len(rows))]


@dataclass(frozen=True, slots=True)
class Plan:
    """What a method wants trained: `step` is `None` when it changes nothing.

    `texts` are all texts that training may draw (they must never serve as probes); `is_met` looks at training-side
    numbers only; `state` is what steps carry over and change in place, for checkpoints to keep. `edit` changes weights
    once, after the last step.
    """

    step: StepFunction | None
    loop: LoopSettings | None
    texts: tuple[str, ...] = ()
    is_met: Callable[[], bool] | None = None
    notes: tuple[str, ...] = field(default=())
    state: Mapping[str, Tensor] = field(default_factory=dict)
    edit: Callable[[], None] | None = None


class Method(Protocol):
    """A deletion method: `settings` is a frozen dataclass with a field `training`; `guarantee` is for certificates."""

    version: str
    guarantee: Guarantee
    needs: frozenset[Need]
    settings: type[Any]

    def plan(self, task: UnlearningTask, settings: Any) -> Plan:
        """Prepare the training of `task.model`; raises a typed error when something it needs is missing."""
        ...


@runtime_checkable
class SharesSteps(Protocol):
    """A method of whose steps a second process can take a part."""

    def kept_share(self, task: UnlearningTask, settings: Any) -> Share:
        """The part of a step that another process may compute, given the weights."""
        ...


@runtime_checkable
class TellsApart(Protocol):
    """A `Backward` that treats the gradient of what forgets differently from all others, and would have what retains in
    `directions` parts."""

    directions: int

    def __call__(self, loss: Tensor) -> None:
        """Add the gradient of a loss that retains."""
        ...

    def forget(self, loss: Tensor) -> None:
        """Add the gradient of a loss that forgets."""
        ...


def back_propagate(backward: Backward, *, forget: Tensor, retain: Sequence[Tensor] = ()) -> None:
    """Add the gradients of a step's losses, weighed already, in one pass unless `backward` tells them apart.

    Args:
        retain: the retained loss, or the parts of which it is the sum.
    """
    if isinstance(backward, TellsApart):
        backward.forget(forget)
        for part in retain:
            backward(part)
        return
    backward(sum(retain, start=forget))


def refuse_unless_above_zero(**settings: float) -> None:
    """Refuse settings of a method that a formula divides by or that decide its direction.

    Raises:
        SpecError: the message names the first one that is not above 0.
    """
    for name, value in settings.items():
        if value <= 0:
            raise SpecError(f"setting {name} must be above 0")


def refuse_below_zero(**settings: float) -> None:
    """Refuse weights whose sign would turn a loss around.

    Raises:
        SpecError: the message names the first one that is below 0.
    """
    for name, value in settings.items():
        if value < 0:
            raise SpecError(f"setting {name} must not be below 0")


METHODS: Registry[type[Method]] = Registry("deletion method")


def answer_positions(row: EncodedText) -> range:
    """Token positions of a row's answer, end of sequence included."""
    return range(row.first_label, len(row.ids))


def watched(**losses: Tensor) -> Mapping[str, Tensor]:
    """Detach losses so that they may be reported."""
    return {name: loss.detach() for name, loss in losses.items()}
