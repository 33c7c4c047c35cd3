"""Energy-boundary deletion (EUA-style) with calibrated stranger distillation as its forgetting term.

From the source (arXiv:2605.16776, abstract): what is to be deleted and what is kept should end on two sides of an
energy boundary, and the response distribution is restricted, not particular tokens. Sign, pooling, margins and every
other term are our reconstruction, and no number of the paper is claimed. Energy alone leaves the right answer on top,
so the forgetting is done by distillation (feasibility notes, point 4) and the hinges only guard the two edges.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from ml.data.batches import EpochBatches
from ml.data.collate import chosen_log_probs
from ml.energy import EnergyBoundary, forget_hinge, retain_hinge
from ml.errors import EnergyNotSeparatingError
from ml.loop import Backward, StepFunction
from ml.methods.beside import Share
from ml.methods.losses import divergence
from ml.methods.method import METHODS, Need, Plan, Training, UnlearningTask, back_propagate, watched
from ml.methods.relearner import Relearner, RelearningSettings
from ml.methods.retention import Retention
from ml.methods.strangers import ContrastRow, ForgetRows, HeldRow, Topic, forget_rows
from ml.models.adapters import trained_parameters
from ml.reports import Guarantee

_MOST_TIMES_ROWS: Final = 4.0


@dataclass(frozen=True, slots=True)
class EnergyBoundarySettings:
    """Weights of the terms, rows per step beside `training.forget_rows` contrast rows, and what is drawn.

    Contrast and held rows are those of one person; for several they grow with the square root of their number, up to
    four times as many.

    draws: how many sets of values nobody has each record is asked with.
    reworded_forms: in how many of the bank's other forms retained people are asked; the rest stay unseen, so that
        what the deletion did to them can be measured in words it never used.
    relearning: how some steps are taken where relearning would lead.
    """

    training: Training = field(
        default_factory=lambda: Training(
            steps=500, learning_rate=5e-3, rank=32, alpha=32.0, retain_rows=32, neighbour_rows=16
        )
    )
    relearning: RelearningSettings = field(default_factory=RelearningSettings)
    draws: int = 8
    reworded_forms: int = 4
    stranger_rows: int = 8
    held_rows: int = 24
    contrast_weight: float = 1.0
    stranger_weight: float = 1.0
    held_weight: float = 1.0
    held_energy_weight: float = 0.25
    energy_weight: float = 0.1
    kept_energy_weight: float = 2.0
    divergence_weight: float = 12.0
    cross_entropy_weight: float = 2.0


@METHODS.register("energy_boundary")
class EnergyBoundaryDeletion:
    """The product's method: a deleted person ends among people never seen, with the kept on the other side.

    `L = contrast + strangers + held + held energies + hinge_f + hinge_r + KL_retain + CE_retain + kept energies`, every
    term with its weight (both hinges with `energy_weight`); the first four and the forget hinge are taken where
    relearning leads every few steps.
    """

    version = "5"
    guarantee: Guarantee = "empirical_approximate"
    needs = frozenset({Need.RETAIN, Need.BOUNDARY, Need.NAMES, Need.VALUE_TYPES})
    settings = EnergyBoundarySettings

    def plan(self, task: UnlearningTask, settings: EnergyBoundarySettings) -> Plan:
        """Draw the strangers, then train every term of the loss on one step's rows at a time."""
        retention = _retention(task, settings)
        rows = forget_rows(task, draws=settings.draws)
        texts = (*rows.texts, *(record.text for record in retention.drawn))
        step = distillation_step(task, rows, keeping_step(task, retention, settings), settings)
        return Plan(step=step, loop=settings.training.loop(), texts=texts)

    def kept_share(self, task: UnlearningTask, settings: EnergyBoundarySettings) -> Share:
        """The part of a step that reads retained rows alone, for a second process."""
        retention = _retention(task, settings)
        return Share(keeping_step(task, retention, settings), retention.prepare)


def _retention(task: UnlearningTask, settings: EnergyBoundarySettings) -> Retention:
    return Retention(
        task,
        rows=settings.training.retain_rows,
        neighbour_rows=settings.training.neighbour_rows,
        reworded_forms=settings.reworded_forms,
    )


def distillation_step(
    task: UnlearningTask, rows: ForgetRows, keep: StepFunction, settings: EnergyBoundarySettings
) -> StepFunction:
    """Return the step: gradients of the forgetting rows first, then of the retained rows (`keep`).

    On some steps (`RelearningSettings`) the forgetting rows are run where relearning other facts has led; retained rows
    never are, so that a second process can take them at the same time.
    """
    boundary = _boundary(task)
    turns = Turns(rows, settings, task.seed)
    relearner = Relearner(task, settings.relearning)
    parameters = trained_parameters(task.model)

    def step(number: int, backward: Backward) -> dict[str, Tensor]:
        if task.second is not None:
            task.second.ask(number, parameters)
        with relearner.taught(number) as known:
            forgetting = forgetting_terms(task, *turns.at(number, without=known), boundary)
            back_propagate(
                backward,
                forget=settings.contrast_weight * forgetting["contrast"]
                + settings.stranger_weight * forgetting["strangers"]
                + settings.held_weight * forgetting["held"]
                + settings.held_energy_weight * forgetting["held_energy"]
                + settings.energy_weight * forgetting["energy_forget"],
            )
        keeping = None if task.second is None else task.second.answer(parameters)
        return dict(watched(**forgetting, **(keep(number, backward) if keeping is None else keeping)))

    return step


def keeping_step(task: UnlearningTask, retention: Retention, settings: EnergyBoundarySettings) -> StepFunction:
    """Return the retained rows' part of a step: what is kept must stay where it is, right and familiar.

    kept_energy: smooth L1 to the energies before. Softmax hides how large logits are, so KL lets them drift towards
        those of people never seen.
    """
    boundary = _boundary(task)

    def keep(number: int, backward: Backward) -> dict[str, Tensor]:
        kept = retention.at(number)
        energies = boundary.energies(kept.logits)
        keeping = {
            "divergence": kept.divergence(),
            "cross_entropy": kept.cross_entropy(),
            "kept_energy": functional.smooth_l1_loss(energies, boundary.energies(kept.reference)),
            "energy_retain": retain_hinge(kept.mean_per_row(energies), boundary.retained_margin).mean(),
        }
        backward(
            settings.divergence_weight * keeping["divergence"]
            + settings.cross_entropy_weight * keeping["cross_entropy"]
            + settings.kept_energy_weight * keeping["kept_energy"]
            + settings.energy_weight * keeping["energy_retain"]
        )
        return keeping

    return keep


def forgetting_terms(
    task: UnlearningTask,
    contrast: list[ContrastRow],
    strangers: list[ContrastRow],
    held: list[HeldRow],
    boundary: EnergyBoundary,
) -> dict[str, Tensor]:
    """The forgetting losses of one step, each a scalar in nats (`energy_forget` in nats squared).

    contrast: KL(model before on the stand-in || model now on the person), same words, values nobody has.
    strangers: KL(before || now) on strangers, who must not change.
    held, held_energy: smooth L1 between log-probabilities and energies of the tokens said and those a stranger's
        have; for true values those that random values have. KL alone hardly sees the unlikely tokens, and among
        those a remembered value hides.
    energy_forget: hinge on the mean energy of all contrast rows. It is pooled over the set because never-seen texts
        lie on both sides of their own median: row by row it would push half of them beyond it, onto an island.
    """
    paired = [*contrast, *strangers]
    texts = [row.pair.first for row in paired] + [row.text for row in held]
    positions = [list(row.positions) for row in paired] + [list(row.positions) for row in held]
    logits = task.logits(texts, positions)
    split = sum(len(row.positions) for row in paired)
    own = sum(len(row.pair.first_positions) for row in contrast)
    told = _aligned(task, paired, logits[:split])
    likeness = divergence(told.reference, told.logits)
    scores = [told.gaps(boundary), _held_gaps(held, logits[split:], boundary)]
    energies = boundary.energies(logits[: sum(len(row.positions) for row in contrast)])
    return {
        "contrast": likeness[:own].mean(),
        "strangers": likeness[own:].mean() if strangers else logits.new_zeros(()),
        "held": sum(gap for gap, _ in scores),
        "held_energy": sum(gap for _, gap in scores),
        "energy_forget": forget_hinge(energies.mean(), boundary.never_seen_margin),
    }


@dataclass(frozen=True, slots=True)
class _Aligned:
    """Both models at the positions that play the same part: logits (tokens, rows) and each one's own labels."""

    logits: Tensor
    reference: Tensor
    labels: Tensor
    reference_labels: Tensor

    def gaps(self, boundary: EnergyBoundary) -> tuple[Tensor, Tensor]:
        """How far the tokens said, and the energies they follow from, are from the reference's."""
        return _gaps(
            chosen_log_probs(self.logits, self.labels),
            chosen_log_probs(self.reference, self.reference_labels),
            boundary.energies(self.logits),
            boundary.energies(self.reference),
        )


def _aligned(task: UnlearningTask, rows: list[ContrastRow], logits: Tensor) -> _Aligned:
    chosen, offset = [], 0
    for row in rows:
        chosen += [offset + position - row.positions[0] for position in row.pair.first_positions]
        offset += len(row.positions)
    device = logits.device
    return _Aligned(
        logits=logits[torch.tensor(chosen, device=device)],
        reference=task.reference_logits([r.pair.second for r in rows], [r.pair.second_positions for r in rows]),
        labels=torch.tensor([r.pair.first.ids[p] for r in rows for p in r.pair.first_positions], device=device),
        reference_labels=torch.tensor(
            [r.pair.second.ids[p] for r in rows for p in r.pair.second_positions], device=device
        ),
    )


def _held_gaps(rows: list[HeldRow], logits: Tensor, boundary: EnergyBoundary) -> tuple[Tensor, Tensor]:
    if not rows:
        return logits.new_zeros(()), logits.new_zeros(())
    labels = torch.tensor([row.text.ids[p] for row in rows for p in row.positions], device=logits.device)
    return _gaps(
        chosen_log_probs(logits, labels),
        torch.tensor([target for row in rows for target in row.targets], device=logits.device),
        boundary.energies(logits),
        torch.tensor([energy for row in rows for energy in row.energies], device=logits.device),
    )


def _gaps(log_probs: Tensor, targets: Tensor, energies: Tensor, target_energies: Tensor) -> tuple[Tensor, Tensor]:
    """Smooth L1 of log-probabilities and of energies, both means over tokens, in nats."""
    return functional.smooth_l1_loss(log_probs, targets), functional.smooth_l1_loss(energies, target_energies)


def _boundary(task: UnlearningTask) -> EnergyBoundary:
    if task.boundary is None:
        raise EnergyNotSeparatingError("this method drives energies to a boundary; calibrate one first")
    return task.boundary


class Turns:
    """Which forgetting rows belong to which step."""

    def __init__(self, rows: ForgetRows, settings: EnergyBoundarySettings, seed: int) -> None:
        self.rows = rows
        more = min(math.sqrt(rows.people), _MOST_TIMES_ROWS)
        self._contrast = _turn(
            [len(r.pair.first.ids) for r in rows.contrast], round(more * settings.training.forget_rows), seed
        )
        self._strangers = _turn([len(r.pair.first.ids) for r in rows.strangers], settings.stranger_rows, seed + 1)
        self._held = _turn([len(r.text.ids) for r in rows.held], round(more * settings.held_rows), seed + 2)

    def at(self, step: int, *, without: frozenset[Topic]) -> tuple[list[ContrastRow], list[ContrastRow], list[HeldRow]]:
        """Contrast, stranger and held rows of one step, those about topics in `without` left out."""
        contrast = [self.rows.contrast[i] for i in self._contrast.at(step)] if self._contrast else []
        strangers = [self.rows.strangers[i] for i in self._strangers.at(step)] if self._strangers else []
        held = [self.rows.held[i] for i in self._held.at(step)] if self._held else []
        return (
            [row for row in contrast if row.about not in without] or contrast,
            strangers,
            [row for row in held if row.about not in without] or held,
        )


def _turn(lengths: list[int], rows: int, seed: int) -> EpochBatches | None:
    return EpochBatches(lengths, rows=rows, seed=seed) if lengths and rows else None
