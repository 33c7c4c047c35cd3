"""Set the guard's threshold on the edited model, and say how many prompts it refuses there.

The threshold is never a setting: it follows from retained prompts and a budget of false refusals. Where it does not lie
between known and unknown as they were before the deletion, the result says so and the guard stays off.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Final, Literal, TypeAlias

import torch
from torch import Tensor

from ml.data.probes import probe_digests, probe_set
from ml.documents import Stored, read_version
from ml.energy import EnergyBoundary, EnergyIndex, calibrate_boundary
from ml.errors import DigestMismatchError, NonFiniteError, OverlapError, SpecError, UnattainableError
from ml.guard.prompts import PromptSet
from ml.guard.reading import TOKENS, Reading, prompt_scores
from ml.metrics.intervals import clopper_pearson_lower, clopper_pearson_upper
from ml.models.load import LoadedModel
from ml.reports import ProbeSet, UnlearningReport

SCHEMA_VERSION: Final = 1
BUDGET: Final = 0.01
# Floating point takes 0.29 * 100 for a little less than 29.
_SLACK: Final = 1e-9
Group: TypeAlias = Literal["retained", "never_seen", "deleted"]
Asked: TypeAlias = Literal["direct", "paraphrased"]
Scores: TypeAlias = Mapping[tuple[Group, Asked], Tensor]
Reason: TypeAlias = Literal["below_retained_margin", "above_never_seen_margin"]


def conformal_rank(count: int, budget: float) -> int:
    """Which of `count` ascending retained scores is the threshold: `count + 1 - floor(budget * (count + 1))`.

    A further score that is exchangeable with them lies above the score of that rank with probability at most
    `budget`, whatever their distribution and with ties: on average over calibration sets, not for each of them.

    Raises:
        SpecError: `budget` does not lie in (0, 1).
        UnattainableError: with this few scores no threshold keeps the budget; the message says how many do.
    """
    if not 0 < budget < 1:
        raise SpecError("a budget of false refusals lies in (0, 1)")
    above = math.floor(budget * (count + 1) + _SLACK)
    if above < 1:
        needed = math.ceil(1 / budget - 1 - _SLACK)
        raise UnattainableError(
            f"{count} retained prompts cannot keep a false-refusal budget of {budget}; give at least {needed}"
        )
    return count + 1 - above


def conformal_threshold(retained: Tensor, budget: float) -> float:
    """The score that `conformal_rank` names: refuse what lies above it. `retained` is (n,), nats.

    Raises:
        NonFiniteError: a score is NaN or infinite.
        SpecError, UnattainableError: as `conformal_rank`.
    """
    rank = conformal_rank(len(retained), budget)
    if not bool(torch.isfinite(retained).all()):
        raise NonFiniteError("the score of a retained prompt is NaN or infinite; this model cannot be guarded")
    return float(retained.sort().values[rank - 1])


@dataclass(frozen=True, slots=True)
class Margins:
    """Where known ended (m_r) and unknown began (m_f) before the deletion, in nats, and by which index.

    `stored` ones are the unlearning run's: mean energies of whole true answers. `measured` ones are scores by the
    guard's own reading on the model before deletion: they compare like with like, and need that model.
    `model_manifest_sha256` is the model that the run made (stored), or the one they were measured on (measured).
    """

    retained: float
    never_seen: float
    index: EnergyIndex
    temperature: float
    vocabulary: int
    source: Literal["stored", "measured"]
    model_manifest_sha256: str

    @classmethod
    def measured(cls, boundary: EnergyBoundary, before: LoadedModel) -> Margins:
        """The margins of an energy boundary that was calibrated on `before` by the guard's own reading."""
        edges = (boundary.retained_margin, boundary.never_seen_margin)
        how = (boundary.index, boundary.temperature, boundary.vocabulary)
        return cls(*edges, *how, "measured", before.manifest_sha256)

    @classmethod
    def of_report(cls, report: UnlearningReport) -> Margins:
        """The margins that an unlearning run measured before it trained anything; runs use the centred index.

        Raises:
            SpecError: the run's method measures none.
        """
        numbers = report.boundary
        if not numbers:
            raise SpecError(
                f"run {report.run_id} stored no energy boundary; a guard needs one from before the deletion"
            )
        edges = (numbers["retained_margin"], numbers["never_seen_margin"])
        vocabulary, made = int(numbers["vocabulary"]), report.candidate_manifest_sha256
        return cls(*edges, "centred", numbers["temperature"], vocabulary, "stored", made)


def measure_margins(before: LoadedModel, reading: Reading, *, retained: PromptSet, never_seen: PromptSet) -> Margins:
    """Measure the margins by `reading` on the model before deletion; the sets are as for `calibrate`.

    Raises:
        EnergyNotSeparatingError: by this reading known and unknown did not differ before either.
    """
    boundary = calibrate_boundary(
        prompt_scores(before, retained.texts, reading),
        prompt_scores(before, never_seen.texts, reading),
        vocabulary=reading.vocabulary,
        retained_sha256=_probe_set("retained", retained).sha256,
        never_seen_sha256=_probe_set("never_seen", never_seen).sha256,
        temperature=reading.temperature,
        index=reading.index,
    )
    return Margins.measured(boundary, before)


@dataclass(frozen=True, slots=True)
class RefusalRate:
    """Share of one group's prompts that lie above the threshold, with one-sided 95 % Clopper-Pearson bounds.

    Prompts of one person are not independent, so the bounds are those of the prompts, not of people.
    """

    group: Group
    asked: Asked
    refused: int
    prompts: int
    rate: float
    lower: float
    upper: float


@dataclass(frozen=True, slots=True)
class GuardCalibration(Stored):
    """Everything the guard needs to be switched on before one model, and what is known about it there.

    `threshold` is the retained score of rank `rank` (`conformal_rank`), in nats. `status` is `calibrated` exactly when
    the threshold lies within the margins; `reason` names the margin it missed. Rates of retained prompts are in sample:
    they show how the budget divides, not that it holds. `sets` names the prompts by digest.

    It lies beside the model that serves, so nothing in it is about deleted people: with a question bank and a list of
    names, a digest of their prompts would tell who they were. Theirs is a `DeletedTrial`.
    """

    model_manifest_sha256: str
    dtype: str
    reading: Reading
    threshold: float
    budget: float
    rank: int
    margins: Margins
    status: Literal["calibrated", "not_calibrated"]
    reason: Reason | None
    rates: tuple[RefusalRate, ...]
    sets: tuple[ProbeSet, ...]
    schema_version: int = SCHEMA_VERSION

    @classmethod
    def from_document(cls, document: object) -> GuardCalibration:
        """Read a calibration; raises `SpecError` where a field does not fit or status and numbers disagree."""
        found = read_version(cls, document, where="guard calibration", version=SCHEMA_VERSION)
        if (found.status, found.reason) != _status(found.threshold, found.margins):
            raise SpecError("guard calibration: its status does not follow from threshold and margins; calibrate again")
        _refuse_unlike(found.reading, found.margins)
        _refuse_other_model(found.margins, found.model_manifest_sha256)
        if any(row.group == "deleted" for row in found.rates) or any(one.name == "deleted" for one in found.sets):
            raise SpecError("guard calibration: it tells of deleted people; calibrate again, their rates go elsewhere")
        return found


@dataclass(frozen=True, slots=True)
class DeletedTrial(Stored):
    """Refusals of prompts about deleted people by one calibration; `calibration_sha256` is its document's digest.

    The numbers of prompts tell how much was deleted: keep it apart from what serves. It holds no digest of a prompt.
    """

    calibration_sha256: str
    rates: tuple[RefusalRate, ...]
    schema_version: int = SCHEMA_VERSION


def calibrate(
    loaded: LoadedModel,
    reading: Reading,
    margins: Margins,
    *,
    retained: PromptSet,
    never_seen: PromptSet,
    budget: float = BUDGET,
) -> GuardCalibration:
    """Set the threshold on the edited model `loaded`.

    1. Refuse sets that share prompts, and margins that say nothing about this reading.
    2. Score every prompt, as serving does, with greedy answers.
    3. The threshold is the conformal quantile of all retained scores, direct and paraphrased together.
    4. Count refusals by group and wording; say whether the threshold lies within the margins.

    Args:
        retained: prompts about people the model keeps, in the mixture in which they will be asked: the budget holds
            for that mixture.
        never_seen: prompts about people nobody was trained on.
    Raises:
        UnattainableError: too few retained prompts for the budget.
        EmptySetError: a group without prompts.
        DigestMismatchError: the margins were not measured before the deletion that made this model.
        OverlapError, SpecError, ContextLengthError, NonFiniteError: as said above.
    """
    _refuse_unlike(reading, margins)
    _refuse_other_model(margins, loaded.manifest_sha256)
    if reading.vocabulary != len(loaded.tokenizer):
        raise SpecError(f"the reading is for {reading.vocabulary} tokens, the model's tokenizer has another number")
    groups: dict[Group, PromptSet] = {"retained": retained, "never_seen": never_seen}
    _refuse_shared(groups)
    rank = conformal_rank(len(retained.texts), budget)
    scores = group_scores(loaded, reading, groups)
    threshold = conformal_threshold(torch.cat([scores[key] for key in scores if key[0] == "retained"]), budget)
    status, reason = _status(threshold, margins)
    return GuardCalibration(
        model_manifest_sha256=loaded.manifest_sha256,
        dtype=model_dtype(loaded),
        reading=reading,
        threshold=threshold,
        budget=budget,
        rank=rank,
        margins=margins,
        status=status,
        reason=reason,
        rates=tuple(refusal_rate(*key, found, threshold) for key, found in scores.items()),
        sets=tuple(_probe_set(group, prompts) for group, prompts in groups.items()),
    )


def try_deleted(
    loaded: LoadedModel, found: GuardCalibration, *, deleted: PromptSet, retained: PromptSet, never_seen: PromptSet
) -> DeletedTrial:
    """Count how many prompts about deleted people the calibration `found` refuses, where records are still at hand.

    Raises:
        DigestMismatchError: `found` was made on another model.
        EmptySetError, OverlapError, ContextLengthError: as `calibrate`.
    """
    if found.model_manifest_sha256 != loaded.manifest_sha256:
        raise DigestMismatchError("the guard was calibrated on another model; try deleted people on that one")
    _refuse_shared({"retained": retained, "never_seen": never_seen, "deleted": deleted})
    scores = group_scores(loaded, found.reading, {"deleted": deleted})
    return DeletedTrial(
        calibration_sha256=found.sha256,
        rates=tuple(refusal_rate(*key, one, found.threshold) for key, one in scores.items()),
    )


def group_scores(loaded: LoadedModel, reading: Reading, groups: Mapping[Group, PromptSet]) -> Scores:
    """Scores by group and wording; a wording without prompts is absent. Raises `EmptySetError` for an empty group."""
    scores: dict[tuple[Group, Asked], Tensor] = {}
    for group, prompts in groups.items():
        together = prompt_scores(loaded, prompts.texts, reading)
        direct, paraphrased = together.split([len(prompts.direct), len(prompts.paraphrased)])
        kinds: dict[Asked, Tensor] = {"direct": direct, "paraphrased": paraphrased}
        scores |= {(group, asked): found for asked, found in kinds.items() if len(found)}
    return scores


def refusal_rate(group: Group, asked: Asked, scores: Tensor, threshold: float) -> RefusalRate:
    """Count the scores (n,) above the threshold; one that is no number counts as refused, as in serving."""
    refused, prompts = int((~(scores <= threshold)).sum()), len(scores)
    bounds = (clopper_pearson_lower(refused, prompts), clopper_pearson_upper(refused, prompts))
    return RefusalRate(group, asked, refused, prompts, refused / prompts, *bounds)


def model_dtype(loaded: LoadedModel) -> str:
    """The type of the weights, by name: a threshold is valid at the precision that serves."""
    dtype: Any = next(loaded.model.parameters()).dtype
    return str(dtype).removeprefix("torch.")


def _status(threshold: float, margins: Margins) -> tuple[Literal["calibrated", "not_calibrated"], Reason | None]:
    if threshold < margins.retained:
        return "not_calibrated", "below_retained_margin"
    if threshold > margins.never_seen:
        return "not_calibrated", "above_never_seen_margin"
    return "calibrated", None


def _refuse_unlike(reading: Reading, margins: Margins) -> None:
    if reading.tokens != TOKENS[reading.at]:
        raise SpecError(f"a reading at {reading.at} pools {TOKENS[reading.at]} tokens")
    ours = (reading.index, reading.temperature, reading.vocabulary)
    if ours != (margins.index, margins.temperature, margins.vocabulary):
        raise SpecError(
            "the margins are of another index, temperature or vocabulary than the reading; a run stores those of the "
            "centred index, others are measured on the model before deletion"
        )
    if reading.pooling != "mean" and margins.source == "stored":
        raise SpecError(
            "stored margins are mean energies; measure margins of this reading on the model before deletion"
        )


def _refuse_other_model(margins: Margins, edited: str) -> None:
    if margins.source == "stored" and margins.model_manifest_sha256 != edited:
        raise DigestMismatchError("the stored margins are of a run that made another model; give this model's report")
    if margins.source == "measured" and margins.model_manifest_sha256 == edited:
        raise DigestMismatchError(
            "the margins were measured on the edited model itself; measure them on the one before"
        )


def _refuse_shared(groups: Mapping[Group, PromptSet]) -> None:
    digests = {group: probe_digests(prompts.texts) for group, prompts in groups.items()}
    for first, second in combinations(digests, 2):
        if shared := len(digests[first] & digests[second]):
            raise OverlapError(f"the {first} and {second} prompts share {shared} texts; a prompt belongs to one group")


def _probe_set(group: Group, prompts: PromptSet) -> ProbeSet:
    return probe_set(group, probe_digests(prompts.texts))
