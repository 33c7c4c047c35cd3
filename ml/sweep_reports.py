"""What a sweep measured: the frozen document that crosses from `ml` back into the service. Standard library only.

A sweep tests every earlier deletion again on a later version (verification section 12). Entries carry the opaque id
of a request, never anything about a person; what could not be tested stands there with its reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from ml.cohort_reports import CohortBound
from ml.cohorts import Draws, SlopeAlarm, SpikeInCertificate
from ml.documents import Stored, read_version
from ml.reports import ValidityCheck

SCHEMA_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class Confirmation:
    """A flagged entry's second test, with words and twins drawn afresh.

    `p_placebo` is two-sided, on the base model. `residual_bounded` says whether every primary bounds what remains;
    `None` where no scores from the deletion are on record.
    """

    draws: Draws
    p_placebo: float
    residual_bounded: bool | None


@dataclass(frozen=True, slots=True)
class SweepEntry:
    """One earlier deletion tested again.

    `kind` says what stood for the person; `expired` is a vault past its date, which was not opened. `draws` compares
    the person with twins on all attacks jointly. `residual_ratios` holds rho-hat by primary attack, the highest over
    artefacts, where scores from the deletion are on record. `untested` carries a `reason` and no numbers.
    """

    id: str
    kind: Literal["spike_in", "vault", "expired"]
    deletions_so_far: int
    status: Literal["measured", "untested"]
    reason: str | None = None
    items: int = 0
    draws: Draws | None = None
    flagged: bool = False
    residual_ratios: Mapping[str, float] = field(default_factory=dict)
    confirmation: Confirmation | None = None


@dataclass(frozen=True, slots=True)
class SweepReport(Stored):
    """Every earlier deletion on one later version; `ml.sweep_decision.judge_sweep` turns it into a verdict.

    `q` is the level of the flags (Benjamini-Hochberg over all entries of the ledger), already this version's share of
    a claim over `window` versions. `models` holds the manifest digests of candidate and base.
    """

    run_id: str
    as_of: str
    policy_sha256: str
    ledger_sha256: str
    models: Mapping[str, str]
    artefacts: tuple[str, ...]
    q: float
    window: int
    entries: tuple[SweepEntry, ...]
    cohort: tuple[CohortBound, ...]
    spike_ins: SpikeInCertificate | None
    slope: SlopeAlarm | None
    validity: tuple[ValidityCheck, ...]
    seeds: Mapping[str, str]
    environment: Mapping[str, str]
    cpu_seconds: Mapping[str, float]
    notes: tuple[str, ...] = ()
    schema_version: int = SCHEMA_VERSION

    @classmethod
    def from_document(cls, document: object) -> SweepReport:
        """Read a report document; raises `SpecError` naming the field that does not fit."""
        return read_version(cls, document, where="sweep report", version=SCHEMA_VERSION)
