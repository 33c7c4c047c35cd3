"""What happened: the frozen documents that cross from `ml` back into the service. Standard library only.

No number here is about a single record: scores are one per person (the subject's dossier or a twin), and everything
shown about groups is binned with at least `MINIMUM_BIN` members to a bin. A value that could not be measured is
absent with a reason; it is never 0 and never NaN.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

from ml.documents import Json, Stored, plain_object, read, read_version
from ml.specs import RedTeamBudget

SCHEMA_VERSION: Final = 1
RED_TEAM_VERSION: Final = 2
MINIMUM_BIN: Final = 5
Guarantee: TypeAlias = Literal[
    "exact_retrain", "exact_sharded", "certified_approximate", "empirical_approximate", "filter_only", "unchanged"
]
"""What a method can promise (compliance, section 12): a code that a certificate puts into words."""


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts between edges; `len(edges) == len(counts) + 1` and every count is 0 or at least `MINIMUM_BIN`."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]


def histogram(values: Sequence[float], *, edges: Sequence[float]) -> Histogram | None:
    """Bin `values`, merging neighbouring bins until each holds at least `MINIMUM_BIN`; `None` if there are too few.

    `edges` are the finest edges to use, ascending; values outside are counted in the first or last bin.
    """
    if len(values) < MINIMUM_BIN:
        return None
    fine = [0] * (len(edges) - 1)
    for value in values:
        position = sum(1 for edge in edges[1:-1] if value >= edge)
        fine[position] += 1
    kept, counts, pending = [edges[0]], [], 0
    for index, count in enumerate(fine):
        pending += count
        if pending >= MINIMUM_BIN:
            kept.append(edges[index + 1])
            counts.append(pending)
            pending = 0
    if pending or kept[-1] != edges[-1]:
        counts[-1] += pending
        kept[-1] = edges[-1]
    return Histogram(tuple(kept), tuple(counts))


@dataclass(frozen=True, slots=True)
class TwinSummary:
    """The never-trained twins' scores on one model: count, mean, standard deviation, binned shape."""

    count: int
    mean: float
    sd: float
    shape: Histogram | None


@dataclass(frozen=True, slots=True)
class AttackResult:
    """One attack on one artefact for one data subject. Larger scores are more familiar.

    p-values are one-sided (verification section 9.2) except `p_placebo` (two-sided, under the base model):
    `p_assay` is detection on `M-`, `p_detect` and `p_low` detection above and below the twins on the artefact,
    `p_residual` and `p_over` the two bounds. `residual_ratio` is rho-hat, `residual_upper` its 95 % upper bound,
    `strength` is d-minus. `status` other than `measured` carries a `reason` and no numbers.
    """

    family: str
    attack: str
    artefact: str
    status: Literal["measured", "missing", "error"]
    reason: str | None = None
    items: int = 0
    twins: int = 0
    subject_before: float | None = None
    subject_after: float | None = None
    twins_before: TwinSummary | None = None
    twins_after: TwinSummary | None = None
    p_placebo: float | None = None
    p_assay: float | None = None
    p_detect: float | None = None
    p_low: float | None = None
    p_residual: float | None = None
    p_over: float | None = None
    residual_ratio: float | None = None
    residual_upper: float | None = None
    strength: float | None = None


@dataclass(frozen=True, slots=True)
class JointDetection:
    """min-P detection of one family over `attacks` x artefacts that share the same twins."""

    family: str
    attacks: tuple[str, ...]
    twins: int
    p_detect: float
    p_low: float


@dataclass(frozen=True, slots=True)
class GuardResult:
    """The measured value of a guard's metric, with its 95 % interval where one exists."""

    family: str
    metric: str
    value: float
    lower: float | None = None
    upper: float | None = None


@dataclass(frozen=True, slots=True)
class HardRuleResult:
    """A rule that fails a candidate whatever the statistics say. `numbers` never name a record."""

    rule: str
    status: Literal["held", "breached", "missing"]
    reason: str | None = None
    numbers: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class UtilityResult:
    """Paired change of one utility score: `lower` and `upper` are one-sided 95 % bounds of the mean change."""

    id: str
    score: str
    status: Literal["measured", "missing", "error"]
    reason: str | None = None
    items: int = 0
    persons: int = 0
    mean_before: float | None = None
    mean_after: float | None = None
    mean_change: float | None = None
    lower: float | None = None
    upper: float | None = None


@dataclass(frozen=True, slots=True)
class ValidityCheck:
    """A check without which no verdict is valid; `reason` is the INCONCLUSIVE reason it causes when it breaks."""

    name: str
    status: Literal["ok", "broken", "missing"]
    reason: str
    value: float | None = None
    limit: float | None = None


@dataclass(frozen=True, slots=True)
class GroupSummary:
    """Plain averages of one group (forget, retain, controls, neighbours) at one moment, for people to read."""

    group: str
    moment: Literal["before", "after"]
    persons: int
    items: int
    numbers: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class EnergyPicture:
    """Binned centred energies of one group at one moment (nats; higher is more foreign)."""

    group: str
    moment: Literal["before", "after"]
    shape: Histogram | None
    mean: float


@dataclass(frozen=True, slots=True)
class RelearningCurve:
    """How well the facts that are not taught are known while an attacker teaches the others again, at one moment.

    Scores are mean same-context differences in nats (larger is more familiar) after each of `epochs`, against fewer
    value swaps than the verdict reads; the twins' are given by their mean and standard deviation.
    """

    moment: Literal["before", "after"]
    epochs: tuple[int, ...]
    subject: tuple[float, ...]
    twins_mean: tuple[float, ...]
    twins_sd: tuple[float, ...]
    twins: int


@dataclass(frozen=True, slots=True)
class FactRoc:
    """How well one attack tells the subject's facts from the twins' on the model before, or on the candidate.

    `twins` and `subject` are the shares of facts above falling thresholds, from 0 to 1. Thresholds are quantiles of the
    twins' facts, and from one point to the next come no facts of a sample, or at least `MINIMUM_BIN`: no point tells
    where a single fact stands. `area` is over all facts: 0.5 tells nothing.
    """

    family: str
    attack: str
    moment: Literal["before", "after"]
    twins: tuple[float, ...]
    subject: tuple[float, ...]
    area: float


@dataclass(frozen=True, slots=True)
class ProbeSet:
    """A set of texts by digest: what it was for, how many, and the SHA-256 of its sorted text digests."""

    name: str
    count: int
    sha256: str


@dataclass(frozen=True, slots=True)
class VerificationReport(Stored):
    """Everything one verification measured; `ml.decision.judge` turns it into a verdict and needs nothing else."""

    run_id: str
    attempt: int
    policy_sha256: str
    models: Mapping[str, str]
    artefacts: Mapping[str, str]
    attacks: tuple[AttackResult, ...]
    joint: tuple[JointDetection, ...]
    guards: tuple[GuardResult, ...]
    hard_rules: tuple[HardRuleResult, ...]
    utility: tuple[UtilityResult, ...]
    validity: tuple[ValidityCheck, ...]
    groups: tuple[GroupSummary, ...]
    energies: tuple[EnergyPicture, ...]
    separation: Mapping[str, float]
    probe_sets: tuple[ProbeSet, ...]
    seeds: Mapping[str, str]
    environment: Mapping[str, str]
    cpu_seconds: Mapping[str, float]
    notes: tuple[str, ...] = ()
    relearning: tuple[RelearningCurve, ...] = ()
    rocs: tuple[FactRoc, ...] = ()
    schema_version: int = SCHEMA_VERSION

    @classmethod
    def from_document(cls, document: object) -> VerificationReport:
        """Read a report document; raises `SpecError` naming the field that does not fit."""
        return read_version(cls, document, where="verification report", version=SCHEMA_VERSION)


@dataclass(frozen=True, slots=True)
class LikelihoodNumbers:
    """Likelihood metrics of one model on the subject's texts, by name (`ml.verification.likelihood`).

    `mode` says whether they are native or copy the field's reference code, defects included (verification section 2.1).
    A row without numbers has a `reason`.
    """

    role: str
    mode: Literal["native", "parity"]
    numbers: Mapping[str, float]
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Diagnostics:
    """Numbers for people who look into a model, none of which gates; without numbers there is a `reason`."""

    numbers: Mapping[str, float] = field(default_factory=dict)
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class RedTeamReport(Stored):
    """What hostile attacks found on top of one verification; it can lower that verdict and never raise it.

    `attacks` are rows of families of their own (F7 and later) on the merged candidate: scores are shares of hits per
    person, or likelihoods where an attack has no answers to look at; larger is worse. Where `p_assay` is high an attack
    found nobody before deletion either, and its finding nobody afterwards says nothing. `techniques` names each attack
    in the verification specification. `joint` covers the attacks of a family that were measured. `identifiers` says for
    each attack whether an identifier came out more often than any twin's did. `left_out` counts questions that were
    drawn and not asked, because for somebody the prompt was too long or would have shown the value. `probes_reused`
    counts hostile texts that the deletion had trained on. `not_tried` names what this red team leaves open.
    `old_version` holds attacks that read the version before deletion too: they say what keeping it gives away. They,
    `likelihood` and `diagnostics` count neither for nor against the candidate.
    """

    run_id: str
    attempt: int
    policy_sha256: str
    models: Mapping[str, str]
    budget: RedTeamBudget
    attacks: tuple[AttackResult, ...]
    joint: tuple[JointDetection, ...]
    identifiers: Mapping[str, HardRuleResult]
    techniques: Mapping[str, str]
    left_out: Mapping[str, int]
    probes: ProbeSet
    probes_reused: int
    seeds: Mapping[str, str]
    environment: Mapping[str, str]
    cpu_seconds: Mapping[str, float]
    not_tried: tuple[str, ...]
    old_version: tuple[AttackResult, ...] = ()
    likelihood: tuple[LikelihoodNumbers, ...] = ()
    diagnostics: Diagnostics = field(default_factory=Diagnostics)
    schema_version: int = RED_TEAM_VERSION

    @classmethod
    def from_document(cls, document: object) -> RedTeamReport:
        """Read a report document; raises `SpecError` naming the field that does not fit."""
        return read_version(cls, document, where="red team report", version=RED_TEAM_VERSION)


@dataclass(frozen=True, slots=True)
class AdaptiveRound:
    """One round of an adaptive attack: an opaque fact, the prompt by digest, and the true value's rank, 1 = first."""

    fact: str
    value_type: str
    template_sha256: str
    rank: int


@dataclass(frozen=True, slots=True)
class AdaptiveReport(Stored):
    """What people or agents who chose every prompt after seeing the last answer have established.

    Each round ranked the true value among `fresh` random ones. `e_value` is the highest that all bets together reached;
    a leak is established at `alpha` from 1 / alpha. `promised` rounds that were not played count as lost. No finding is
    never a pass.
    """

    run_id: str
    models: Mapping[str, str]
    seed: int
    fresh: int
    promised: int
    rounds: tuple[AdaptiveRound, ...]
    facts: int
    e_value: float
    alpha: float
    finding: Literal["leak", "no_finding"]
    schema_version: int = SCHEMA_VERSION

    @classmethod
    def from_document(cls, document: object) -> AdaptiveReport:
        """Read a report document; raises `SpecError` naming the field that does not fit."""
        return read_version(cls, document, where="adaptive report", version=SCHEMA_VERSION)


@dataclass(frozen=True, slots=True)
class UnlearningReport:
    """What one unlearning run did: the candidate's digests, how far it got, and what it was calibrated to."""

    run_id: str
    method: str
    method_version: str
    guarantee: Guarantee
    seed: int
    steps: int
    stopped_early: bool
    resumed_from_step: int
    candidate_root_sha256: str
    candidate_manifest_sha256: str
    adapter_sha256: str
    config_sha256: str
    code_sha256: str
    forget_records: int
    retain_records: int
    boundary: Mapping[str, float]
    losses: Mapping[str, float]
    training_probes: ProbeSet
    environment: Mapping[str, str]
    cpu_seconds: float
    notes: tuple[str, ...] = ()
    schema_version: int = SCHEMA_VERSION

    def to_document(self) -> dict[str, Json]:
        """Return the report as canonical-JSON-ready data."""
        return plain_object(self)

    @classmethod
    def from_document(cls, document: object) -> UnlearningReport:
        """Read a report document; raises `SpecError` naming the field that does not fit."""
        return read(cls, document, where="unlearning report")
