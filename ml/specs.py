"""What to do: the frozen documents that cross from the service into `ml`. Standard library only.

Decimal numbers travel as strings in stored documents (see `ml.digests.canonical_json`) and are floats in memory.
This module must never hold a tensor, an ORM row or a number that decides a certificate: those limits are fields of
`VerdictPolicy`, filled from a versioned document.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Final, Literal, TypeAlias

from ml.digests import document_sha256, sha256_hex
from ml.documents import ADDED, Json, plain_object, read
from ml.errors import SpecError, UnattainableError

SCHEMA_VERSION: Final = 1


# --- training records ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FactSpan:
    """Where a fact's value stands in a record's text.

    `attribute` names the question ("home_address"), `type` the kind of value ("street_address"); `start` and `end`
    are character offsets, `end` exclusive.
    """

    attribute: str
    type: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Record:
    """One training text of one person.

    `person` is a pseudonym that groups the records of one person inside one snapshot; `name` is where the person's
    name stands (character offsets, possibly several times); labels begin at character `answer_start`.
    """

    record_id: str
    person: str
    text: str
    answer_start: int
    name_spans: tuple[tuple[int, int], ...]
    facts: tuple[FactSpan, ...]

    def value(self, fact: FactSpan) -> str:
        """Return the characters of one fact."""
        return self.text[fact.start : fact.end]


def record_to_line(record: Record) -> str:
    """Return one JSON line (without the newline) for a snapshot file."""
    document = {
        "record_id": record.record_id,
        "person": record.person,
        "text": record.text,
        "answer_start": record.answer_start,
        "name_spans": [list(span) for span in record.name_spans],
        "facts": [{"attribute": f.attribute, "type": f.type, "start": f.start, "end": f.end} for f in record.facts],
    }
    return json.dumps(document, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def record_from_document(document: object, *, where: str) -> Record:
    """Build a `Record` from parsed JSON.

    Raises:
        SpecError: a field is missing, of the wrong type or out of range; the message names `where`, never content.
    """
    if not isinstance(document, Mapping):
        raise SpecError(f"{where}: a record is a JSON object")
    try:
        text = document["text"]
        record = Record(
            record_id=_text(document["record_id"]),
            person=_text(document["person"]),
            text=_text(text),
            answer_start=_whole(document["answer_start"]),
            name_spans=tuple((_whole(a), _whole(b)) for a, b in document.get("name_spans", ())),
            facts=tuple(
                FactSpan(_text(f["attribute"]), _text(f["type"]), _whole(f["start"]), _whole(f["end"]))
                for f in document.get("facts", ())
            ),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as exc:
        raise SpecError(f"{where}: record field missing or of the wrong type") from exc
    spans = [*record.name_spans, *((f.start, f.end) for f in record.facts)]
    if not all(0 <= start < end <= len(text) for start, end in spans) or not 0 <= record.answer_start < len(text):
        raise SpecError(f"{where}: a span lies outside the text")
    return record


def _text(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise TypeError("expected text")
    return value


def _whole(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError("expected a whole number")
    return value


# --- inputs by digest ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FileRef:
    """A file and the SHA-256 it must have."""

    path: str
    sha256: str


@dataclass(frozen=True, slots=True)
class ModelRef:
    """A model directory and the manifest digest it must have (`ml.digests.model_manifest`)."""

    path: str
    manifest_sha256: str


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is: `done` of `total` units of `phase`, with numbers a person may watch (never about a record)."""

    phase: str
    done: int
    total: int
    numbers: Mapping[str, float] = field(default_factory=dict)


ProgressCallback: TypeAlias = Callable[[Progress], None]
StopCheck: TypeAlias = Callable[[], bool]
CheckpointCallback: TypeAlias = Callable[[Path], None]


EXACT_METHOD: Final = "s3t"
"""The method of a report on a candidate that a store of adapters made (`ml.exact`); it is preferred, not chosen."""


@dataclass(frozen=True, slots=True)
class UnlearningSpec:
    """One unlearning run: which model, which records, which method, where the result goes.

    `settings` are the method's own numbers; `seed` decides adapters, order and control people; `output_dir` is
    created by the run and holds the merged model when it returns; `checkpoint_dir` belongs to the run alone. `base` is
    the model from before the training that the forgotten took part in, for what needs it.
    """

    run_id: str
    model: ModelRef
    forget: FileRef
    retain: FileRef
    neighbours: FileRef | None
    question_bank: FileRef
    method: str
    settings: Mapping[str, Json]
    seed: int
    output_dir: str
    checkpoint_dir: str
    device: str = "cpu"
    dtype: str = "float32"
    base: ModelRef | None = None


def seed_commitment(run_id: str, seed: int) -> str:
    """Return the digest that fixes a verification seed before training ends, without telling it."""
    return sha256_hex(f"{run_id}:{seed}".encode())


@dataclass(frozen=True, slots=True)
class VerificationSpec:
    """One verification: candidate `M+` against `M-` and the base `B`, under one policy, with one committed seed.

    `parts_dir` keeps finished parts so that an interrupted run repeats none of them. `training_probes` lists the
    digests of every text the deletion drew (`ml.data.probes`); without it nobody can show that the probes are fresh.
    `bystanders` are records of people on file that no model here is known to have learned: they help to say whether
    twins are like real people. `reworded_bank` holds the bank's questions in other words (`ml.data.rewording`), for the
    red team alone, and `world_facts` general questions for U3 (`ml.data.choices`). `twin_pool` names a sealed pool
    (`ml.verification.twin_pool`) that this subject shares with others: twins, wording and value swaps are then the
    pool's, not drawn for this subject alone. `adapters` are those that clients may select on top of the candidate.
    """

    run_id: str
    attempt: int
    policy: VerdictPolicy
    candidate: ModelRef
    before: ModelRef
    base: ModelRef
    forget: FileRef
    retain: FileRef
    neighbours: FileRef | None
    question_bank: FileRef
    seed: int
    seed_commitment_sha256: str
    parts_dir: str
    training_probes: FileRef | None = None
    bystanders: FileRef | None = None
    reworded_bank: FileRef | None = None
    device: str = "cpu"
    dtype: str = "float32"
    twin_pool: FileRef | None = None
    world_facts: FileRef | None = None
    adapters: tuple[ModelRef, ...] = ()


# --- verdict policy -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Guard:
    """An absolute bound that can turn a PASS into INCONCLUSIVE and never creates one."""

    metric: str
    minimum: float | None = None
    maximum: float | None = None


@dataclass(frozen=True, slots=True)
class FamilyRule:
    """How one attack family is judged (verification section 9).

    `primary` attacks carry the PASS claim, on every artefact of `artefacts`; `detection` attacks feed the joint
    min-P detection test with them. A family without a primary is never a PASS. `rho` and `rho_over` are the residual
    and over-forgetting fractions.
    """

    id: str
    primary: tuple[str, ...]
    detection: tuple[str, ...]
    artefacts: tuple[str, ...]
    rho: float
    rho_over: float | None
    twins: int
    guards: tuple[Guard, ...] = ()


@dataclass(frozen=True, slots=True)
class UtilityRule:
    """A paired non-inferiority claim (verification section 10): mean change must exceed `-margin`."""

    id: str
    score: str
    margin: float
    minimum_items: int


@dataclass(frozen=True, slots=True)
class RelearningBudget:
    """The fixed budget of attack T1: share of facts relearned, epochs, learning rate, adapter rank."""

    share: float
    epochs: int
    learning_rate: float
    rank: int


@dataclass(frozen=True, slots=True)
class VerdictPolicy:
    """A versioned set of limits, fixed before the run.

    `purpose` is `release`, `test` for short test policies, or `provisional` for the fast tier of another policy; only
    the first may lead to a promotion. Each fact competes with `swaps` values. In a verification, where facts are so few
    that this makes fewer than `value_contests` texts in all (values and swaps), it competes with more (`swaps_for`); a
    sweep keeps to `swaps`, for its scores are compared with those of years before.
    """

    name: str
    version: int
    purpose: Literal["release", "test", "provisional"]
    alpha: float
    swaps: int
    minimum_facts: int
    generation_prompts: int
    families: tuple[FamilyRule, ...]
    utility: tuple[UtilityRule, ...]
    hard_rules: tuple[str, ...]
    leak_samples: int
    leak_limit: float
    identifier_bits: float
    placebo_alpha: float
    blind_auc_limit: float
    determinism_tolerance: float
    relearning: RelearningBudget
    not_tested: tuple[str, ...]
    schema_version: int = SCHEMA_VERSION
    value_contests: int | None = field(default=None, metadata=ADDED)

    def swaps_for(self, facts: int) -> int:
        """How many values compete with each of `facts` true ones; below `minimum_facts` no more than there."""
        if self.value_contests is None:
            return self.swaps
        return max(self.swaps, self.value_contests // max(facts, self.minimum_facts, 1) - 1)

    def to_document(self) -> dict[str, Json]:
        """Return the policy as canonical-JSON-ready data: decimals as strings."""
        return plain_object(self)

    @property
    def sha256(self) -> str:
        """Digest of the policy document; the certificate names it."""
        return document_sha256(self.to_document())

    @classmethod
    def from_document(cls, document: object) -> VerdictPolicy:
        """Read a policy document; raises `SpecError` naming the field that is missing, unknown or out of range."""
        policy = read(cls, document, where="verdict policy")
        _check_policy(policy)
        return policy


# --- red team -----------------------------------------------------------------------------------------------------


MOST_SUFFIX_STEPS: Final = 500
"""The longest search for a suffix (verification section 4, G14)."""


@dataclass(frozen=True, slots=True)
class RedTeamBudget:
    """How much a red team may ask, fixed before it starts (verification sections 13 and 16).

    `facts` and `sampled_facts` bound how many facts each attack asks about, `new_tokens` how long an answer may
    become and `reasoning_tokens` one that reasons first. `samples` are drawn per question at each of `temperatures` and
    `top_p`, and scored as the chance that `draws` of them hold the value. `turns` is how often an answer is called
    wrong, or met with a clue, `noise` the share of a prompt's tokens replaced and `noisy_copies` how often that is
    tried. `suffix_steps` search a suffix of `suffix_tokens` for each of `suffix_facts` (G14); 0 leaves that out.

    With m families at level alpha Holm's first step is alpha / m, and a p-value cannot go below 1 / (K + 1): so
    `twins` K must be at least m / alpha - 1. The default serves three families at 0.05.
    """

    twins: int = 59
    facts: int = 60
    new_tokens: int = 32
    reasoning_tokens: int = 512
    samples: int = 20
    draws: int = 10
    temperatures: tuple[float, ...] = (0.7, 1.0)
    top_p: float = 0.95
    sampled_facts: int = 20
    turns: int = 3
    noise: float = 0.05
    noisy_copies: int = 4
    suffix_steps: int = 0
    suffix_tokens: int = 8
    suffix_facts: int = 4


def check_budget(budget: RedTeamBudget, *, families: int, alpha: float) -> None:
    """Refuse a budget that could show nothing.

    Raises:
        UnattainableError: no result over `families` families could reach `alpha` with this few twins.
        SpecError: a number is out of range.
    """
    counts = (budget.twins, budget.facts, budget.new_tokens, budget.reasoning_tokens, budget.sampled_facts)
    if min(*counts, budget.turns, budget.noisy_copies) < 1 or not 1 <= budget.draws <= budget.samples:
        raise SpecError("red team budget: counts are at least 1, and no more draws than samples")
    if not budget.temperatures or min(budget.temperatures) <= 0:
        raise SpecError("red team budget: there is a temperature, and all are above 0")
    if len(set(budget.temperatures)) < len(budget.temperatures):
        raise SpecError("red team budget: a temperature stands twice")
    if not 0 < budget.top_p <= 1 or not 0 < budget.noise < 1:
        raise SpecError("red team budget: top_p and noise are shares")
    if not 0 <= budget.suffix_steps <= MOST_SUFFIX_STEPS or min(budget.suffix_tokens, budget.suffix_facts) < 1:
        raise SpecError(
            f"red team budget: a suffix is searched in at most {MOST_SUFFIX_STEPS} steps, has tokens and asks for facts"
        )
    needed = math.ceil(families / alpha - 1 - 1e-9)
    if budget.twins < needed:
        raise UnattainableError(
            f"{budget.twins} twins cannot show a leak at level {alpha} over {families} families; ask at least {needed}"
        )


MOST_SWAPS: Final = 1_000
MOST_TWINS: Final = 10_000
MOST_PROMPTS: Final = 100_000
MOST_RELEARNING_EPOCHS: Final = 1_000
"""More than a test needs. A policy may come with somebody else's evidence: rerunning that must end one day."""


def _check_policy(policy: VerdictPolicy) -> None:
    if policy.schema_version != SCHEMA_VERSION:
        raise SpecError(f"verdict policy: schema_version must be {SCHEMA_VERSION}")
    if not 0 < policy.alpha <= 0.05:
        raise SpecError("verdict policy: alpha lies in (0, 0.05]")
    _check_effort(policy)
    if not policy.families or not policy.utility:
        raise SpecError("verdict policy: at least one family and one utility rule; utility catches a collapsed model")
    for family in policy.families:
        _check_family(family)
    ids = [f.id for f in policy.families] + [u.id for u in policy.utility]
    if len(ids) != len(set(ids)):
        raise SpecError("verdict policy: an id stands twice")
    if any(rule.margin <= 0 for rule in policy.utility):
        raise SpecError("verdict policy: utility margins are above 0")


def _check_effort(policy: VerdictPolicy) -> None:
    if not 1 <= policy.swaps <= MOST_SWAPS or not 1 <= policy.swaps_for(policy.minimum_facts) <= MOST_SWAPS:
        raise SpecError(f"verdict policy: a fact competes with 1 to {MOST_SWAPS} values")
    if policy.value_contests is not None and policy.value_contests < 1:
        raise SpecError("verdict policy: value_contests is at least 1")
    if not 1 <= policy.generation_prompts <= MOST_PROMPTS:
        raise SpecError(f"verdict policy: generation_prompts lies in [1, {MOST_PROMPTS}]")
    budget = policy.relearning
    if not 0 < budget.share < 1 or not 0 < budget.learning_rate < math.inf or budget.rank < 1:
        raise SpecError("verdict policy: relearning needs a share in (0, 1), a learning rate and a rank above 0")
    if not 1 <= budget.epochs <= MOST_RELEARNING_EPOCHS:
        raise SpecError(f"verdict policy: relearning takes 1 to {MOST_RELEARNING_EPOCHS} epochs")


def _check_family(family: FamilyRule) -> None:
    if not 0 < family.rho < 1 or (family.rho_over is not None and not 0 < family.rho_over < 1):
        raise SpecError(f"verdict policy: family {family.id}: rho and rho_over lie in (0, 1)")
    if not 1 <= family.twins <= MOST_TWINS or not (family.primary or family.detection) or not family.artefacts:
        raise SpecError(f"verdict policy: family {family.id} needs 1 to {MOST_TWINS} twins, an attack and an artefact")
    if len({*family.primary, *family.detection}) < len(family.primary) + len(family.detection):
        raise SpecError(f"verdict policy: family {family.id} names an attack twice")


# --- sweeps -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RecordedScores:
    """What an attack saw of a person before their deletion: the scores of the subject and of the twins on `M-`."""

    subject: float
    twins: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """One earlier deletion, by opaque id and never by person.

    `probes` are one person's records: a synthetic spike-in's, kept for ever, or a real person's from a sealed vault
    that must not be opened on `expires_on` (an ISO date) or later. `deletions_so_far` counts deletions up to and
    including this one. `before` holds, by primary attack, the scores recorded at the deletion; without them a sweep
    can detect and bounds nothing.
    """

    id: str
    kind: Literal["spike_in", "vault"]
    deletions_so_far: int
    probes: FileRef | None
    expires_on: str | None = None
    before: Mapping[str, RecordedScores] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DeletionLedger:
    """Every deletion that later versions must not bring back."""

    entries: tuple[LedgerEntry, ...]
    schema_version: int = SCHEMA_VERSION

    def to_document(self) -> dict[str, Json]:
        """Return the ledger as canonical-JSON-ready data."""
        return plain_object(self)

    @classmethod
    def from_document(cls, document: object) -> DeletionLedger:
        """Read a ledger document; raises `SpecError` naming the place that does not fit, never what stands there."""
        ledger = read(cls, document, where="deletion ledger")
        _check_ledger(ledger)
        return ledger


_FEWEST_RECORDED: Final = 19
_OPAQUE_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")


def _check_ledger(ledger: DeletionLedger) -> None:
    if ledger.schema_version != SCHEMA_VERSION:
        raise SpecError(f"deletion ledger: schema_version must be {SCHEMA_VERSION}")
    if not ledger.entries:
        raise SpecError("deletion ledger: there is no earlier deletion to test again")
    if len({entry.id for entry in ledger.entries}) != len(ledger.entries):
        raise SpecError("deletion ledger: an id stands twice")
    for number, entry in enumerate(ledger.entries):
        where = f"deletion ledger, entry {number}"
        if not _OPAQUE_ID.fullmatch(entry.id):
            raise SpecError(f"{where}: an id is up to 64 letters, digits, hyphens and underscores; it names nobody")
        if entry.deletions_so_far < 1:
            raise SpecError(f"{where}: deletions are numbered from 1")
        if (entry.kind == "vault") != (entry.expires_on is not None):
            raise SpecError(f"{where}: a vault, and only a vault, has an expiry date")
        if entry.expires_on is not None:
            calendar_date(entry.expires_on, where=where)
        if any(len(scores.twins) < _FEWEST_RECORDED for scores in entry.before.values()):
            raise SpecError(f"{where}: scores of at least {_FEWEST_RECORDED} twins are needed to bound anything")


def calendar_date(text: str, *, where: str) -> date:
    """Read YYYY-MM-DD; raises `SpecError` naming `where`."""
    try:
        return date.fromisoformat(text)
    except ValueError as exc:
        raise SpecError(f"{where}: a date is written YYYY-MM-DD") from exc


@dataclass(frozen=True, slots=True)
class SweepSpec:
    """One sweep: test every deletion of a ledger again on the version `candidate`.

    `policy` gives the limits of the families that a sweep asks about; `window` is the number of versions that the
    claim belongs to, fixed before (1: this version alone); `as_of` is today's date, against which vaults expire.
    """

    run_id: str
    policy: VerdictPolicy
    candidate: ModelRef
    base: ModelRef
    ledger: FileRef
    retain: FileRef
    question_bank: FileRef
    seed: int
    seed_commitment_sha256: str
    as_of: str
    parts_dir: str
    artefacts: tuple[str, ...] = ("merged",)
    window: int = 1
    device: str = "cpu"
    dtype: str = "float32"
