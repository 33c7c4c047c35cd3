"""One earlier deletion on a later version: its person against twins drawn one after the other (section 12).

A person's familiarity is the largest of all attacks' scores, each measured in standard deviations of a few twins that
serve for nothing else. So it is the same function of everybody who is counted, whatever number of twins that takes,
and the sequential p-value is exact. All twins of one series are asked in the same words and against the same swaps.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Final, TypeAlias

from ml.cohorts import FIRST_TWINS, Draws, swept_rules
from ml.data.questions import QuestionBank
from ml.digests import sha256_hex
from ml.errors import MlError
from ml.rank_tests import TOLERANCE, residual_p, standard_deviation, two_sided_min_p
from ml.reports import ValidityCheck
from ml.specs import (
    FamilyRule,
    FileRef,
    LedgerEntry,
    ProgressCallback,
    Record,
    RecordedScores,
    StopCheck,
    SweepSpec,
    VerificationSpec,
)
from ml.sweep_reports import Confirmation
from ml.verification.bench import Bench, Models
from ml.verification.checks import determinism_check
from ml.verification.families import reads_base
from ml.verification.parts import Failure
from ml.verification.plan import SweepSeeds, make_sweep_plan
from ml.verification.scores import attack_part, item_scores, person_scores

SCALE_TWINS: Final = 10
MOST_AT_ONCE: Final = 240
# An attack that gives the scale's twins all the same score must not outshout the others by rounding alone.
_SMALLEST_SPREAD: Final = 1e-2

Channel: TypeAlias = tuple[str, str]
"""An attack and the artefact, or the role, that it read."""
Scores: TypeAlias = Mapping[Channel, Sequence[float]]
"""By channel, one score per person, the subject first; larger is more familiar."""


class UntestedError(Exception):
    """An entry could not be tested; `reason` is a code or the type of an exception, never its message."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Stage:
    """What all entries of one sweep share."""

    spec: SweepSpec
    retain: tuple[Record, ...]
    bank: QuestionBank
    models: Models
    on_progress: ProgressCallback
    should_stop: StopCheck

    @property
    def rules(self) -> tuple[FamilyRule, ...]:
        """The families of the policy that a sweep asks about."""
        return swept_rules(self.spec.policy)

    @property
    def primaries(self) -> list[tuple[FamilyRule, str, str]]:
        """Every family, primary attack and artefact that carries a bound."""
        return [
            (rule, a, artefact) for rule in self.rules for a, artefact in product(rule.primary, self.spec.artefacts)
        ]


@dataclass(frozen=True, slots=True)
class Placebo:
    """Where the subject stands on the base model: joint two-sided p, and a place in (0, 1), uniform for a stranger."""

    p: float
    place: float


class Series:
    """One person and twins, asked in one wording; `purpose` sets a second series of a person apart from the first."""

    def __init__(self, stage: Stage, entry: LedgerEntry, records: Sequence[Record], purpose: str) -> None:
        if entry.probes is None:
            raise UntestedError("coverage")
        self.stage, self.records, self._probes = stage, records, entry.probes
        self.recorded = entry.before
        self._seed = f"{stage.spec.seed}:{entry.id}:{purpose}"
        self.items = self.collisions = 0
        self.cpu_seconds: dict[str, float] = {}
        self.first: Scores = {}
        self.placebo: Placebo | None = None
        self._scale: Mapping[Channel, tuple[float, float]] = {}

    def compare(self, limit: int, *, at_first: int = FIRST_TWINS) -> Draws:
        """Compare the subject with twins until the sequential rule ends, or `limit` twins were drawn.

        Raises:
            UntestedError: a measurement crashed, or too few facts are left.
            RunStoppedError: the run was asked to stop.
        """
        draws = Draws()
        for block, numbers in enumerate(_blocks(limit, at_first)):
            if block > 0 and not draws.needs_more(limit):
                break
            scores = self._measured(block, numbers)
            known = 1
            if block == 0:
                self.first, known = scores, 1 + SCALE_TWINS
                self._scale = {channel: _scale(row[1:known]) for channel, row in scores.items()}
            total = self._familiarity(scores)
            draws = draws.after(score >= total[0] for score in total[known:])
        return draws

    def determinism(self) -> ValidityCheck:
        """The same text must get the same score alone and in a batch."""
        return determinism_check(self._bench(0, next(_blocks(FIRST_TWINS, FIRST_TWINS))))

    def record(self) -> dict[str, RecordedScores]:
        """What every primary sees of the person and the first twins, for later sweeps to compare with."""
        self.compare(FIRST_TWINS)
        rows = {attack: self.first[attack, "merged"] for _, attack, _ in self.stage.primaries}
        return {attack: RecordedScores(row[0], tuple(row[1:])) for attack, row in rows.items()}

    def residual_bounded(self, alpha: float) -> bool | None:
        """Whether every primary bounds what remains of this person alone; `None` without earlier scores."""
        asked = [attack for _, attack, _ in self.stage.primaries]
        if not asked or not set(asked) <= set(self.recorded):
            return None
        paired = [(rule.rho, *self.paired(attack, artefact)) for rule, attack, artefact in self.stage.primaries]
        return all(residual_p(before, after, rho) <= alpha + TOLERANCE for rho, before, after in paired)

    def paired(self, attack: str, artefact: str) -> tuple[list[float], list[float]]:
        """Scores recorded at the deletion and scores now, of the subject and equally many twins."""
        earlier: RecordedScores = self.recorded[attack]
        now = self.first[attack, artefact]
        before = [earlier.subject, *earlier.twins]
        count = min(len(before), len(now))
        return before[:count], list(now[:count])

    # --- measuring ---

    def _bench(self, block: int, numbers: range) -> Bench:
        spec = self.stage.spec
        seeds = SweepSeeds(wording=self._seed, twins=f"{self._seed}:{block}")
        try:
            plan = make_sweep_plan(
                self.records, self.stage.retain, self.stage.bank, seeds, numbers=numbers, swaps=spec.policy.swaps
            )
        except MlError as exc:
            raise UntestedError(exc.code) from exc
        if len(plan.facts) < spec.policy.minimum_facts:
            raise UntestedError("insufficient_facts")
        self.items = len(plan.facts)
        self.collisions += plan.collisions
        return Bench(
            _as_verification(spec, self._probes, seeds),
            plan,
            on_progress=self.stage.on_progress,
            should_stop=self.stage.should_stop,
            models=self.stage.models,
        )

    def _measured(self, block: int, numbers: range) -> Scores:
        """Scores of all attacks on all artefacts; with the first block also where the subject stands on the base."""
        bench = self._bench(block, numbers)
        attacks = dict.fromkeys(a for rule in self.stage.rules for a in (*rule.primary, *rule.detection))
        channels = list(product(attacks, self.stage.spec.artefacts))
        scores = {channel: _person_scores(bench, *channel) for channel in channels}
        if block == 0:
            self.placebo = self._stand_on_base(bench)
        for part, seconds in bench.cpu_seconds.items():
            self.cpu_seconds[part] = self.cpu_seconds.get(part, 0.0) + seconds
        return scores

    def _stand_on_base(self, bench: Bench) -> Placebo:
        asked = dict.fromkeys(attack for _, attack, _ in self.stage.primaries if reads_base(attack))
        if not asked:
            raise UntestedError("coverage")  # no attack carries a bound, so none says where controls stand
        rows = [_person_scores(bench, attack, "base") for attack in asked]
        above = sum(score > rows[0][0] for score in rows[0][1:])
        equal = sum(score == rows[0][0] for score in rows[0])
        rng = random.Random(f"{self._seed}:place")  # noqa: S311 - ties must be reproducible from the seed
        return Placebo(two_sided_min_p(rows), (above + equal * rng.random()) / len(rows[0]))

    def _familiarity(self, scores: Scores) -> list[float]:
        """One number per person: the largest score over channels, in standard deviations of the scale's twins."""
        rows = []
        for channel, row in scores.items():
            centre, spread = self._scale[channel]
            rows.append([(score - centre) / spread for score in row])
        return [max(column) for column in zip(*rows, strict=True)]


def confirm(series: Series, limit: int) -> Confirmation:
    """Test a flagged entry again; `series` must be in fresh words.

    At least as many twins as the gate asks for: fewer could not show controls that do not fit.
    """
    policy = series.stage.spec.policy
    twins = max(limit, *(rule.twins for rule in series.stage.rules))
    draws = series.compare(twins, at_first=min(twins, MOST_AT_ONCE))
    if series.placebo is None:
        raise UntestedError("controls_not_exchangeable")
    return Confirmation(draws, series.placebo.p, series.residual_bounded(policy.alpha))


def _blocks(limit: int, at_first: int) -> Iterator[range]:
    """Numbers of the twins of each block: first those of the scale and `at_first`, then twice as many every time."""
    start, size, last = 1, SCALE_TWINS + at_first, SCALE_TWINS + max(limit, at_first)
    while start <= last:
        stop = min(start + size, last + 1)
        yield range(start, stop)
        start, size = stop, min(2 * size, MOST_AT_ONCE)


def _scale(scores: Sequence[float]) -> tuple[float, float]:
    return sum(scores) / len(scores), max(standard_deviation(scores), _SMALLEST_SPREAD)


def _person_scores(bench: Bench, attack: str, role: str) -> list[float]:
    """One plain mean per person: standardising over the persons at hand would differ from block to block."""
    part = attack_part(bench, attack, role)
    if isinstance(part, Failure):
        raise UntestedError(part.reason)
    try:
        scores = person_scores(item_scores(bench, attack, part))
    except Exception as exc:  # noqa: BLE001 - the boundary between attacks: the type is reported as the reason
        raise UntestedError(type(exc).__name__) from exc
    if not all(map(math.isfinite, scores)):
        raise UntestedError("NonFiniteError")
    return scores


def _as_verification(spec: SweepSpec, probes: FileRef, seeds: SweepSeeds) -> VerificationSpec:
    """The measurements of one block in the terms of a verification; nothing is asked of a model before deletion."""
    number = int(sha256_hex(f"{seeds.wording}|{seeds.twins}".encode())[:12], 16)
    return VerificationSpec(
        run_id=spec.run_id,
        attempt=1,
        policy=replace(spec.policy, families=swept_rules(spec.policy)),
        candidate=spec.candidate,
        before=spec.base,
        base=spec.base,
        forget=probes,
        retain=spec.retain,
        neighbours=None,
        question_bank=spec.question_bank,
        seed=number,
        seed_commitment_sha256=spec.seed_commitment_sha256,
        parts_dir=spec.parts_dir,
        device=spec.device,
        dtype=spec.dtype,
    )
