"""What was shown of many deletions together: documents that cross from `ml`. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from ml.cohorts import CohortCertificate
from ml.documents import Stored, read_version

SCHEMA_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class CohortBound:
    """The residual bound of one primary attack on the average of several persons."""

    family: str
    attack: str
    artefact: str
    certificate: CohortCertificate


@dataclass(frozen=True, slots=True)
class MissingBound:
    """A primary attack whose bound could not be computed, and why."""

    family: str
    attack: str
    artefact: str
    reason: str


@dataclass(frozen=True, slots=True)
class CohortReport(Stored):
    """Several subjects of one twin pool on average, each also tested alone (verification section 9.6).

    The twins of the pool are dealt out to the subjects, so that an average over subjects is compared with averages over
    as many twins. `doubts` names the checks of validity and integrity that do not hold for somebody, and
    "member_failed" where the verdict on somebody is a FAIL: on such controls, or with such a member, no average shows
    anything. It stands beside the subjects' own verdicts and replaces none of them.
    """

    run_ids: tuple[str, ...]
    twin_pool_sha256: str
    policy_sha256: str
    models: Mapping[str, str]
    bounds: tuple[CohortBound, ...]
    missing: tuple[MissingBound, ...]
    doubts: tuple[str, ...]
    schema_version: int = SCHEMA_VERSION

    @property
    def issued(self) -> bool:
        """True when every bound was computed and shown, nobody stands out alone and nothing is in doubt."""
        shown = bool(self.bounds) and all(bound.certificate.issued for bound in self.bounds)
        return shown and not self.missing and not self.doubts

    @classmethod
    def from_document(cls, document: object) -> CohortReport:
        """Read a report document; raises `SpecError` naming the field that does not fit."""
        return read_version(cls, document, where="cohort report", version=SCHEMA_VERSION)
