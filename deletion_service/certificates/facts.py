"""What a statement is built from: frozen facts, standard library only.

Must never hold a person's name: people appear as roles, key ids and commitments. Every field's form is part of its
type (`forms`), so that building and reading enforce the same rules.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from deletion_service.certificates.evaluation import DigestSet, Evaluation
from deletion_service.certificates.forms import (
    AuditKit,
    Bucket,
    Code,
    Day,
    FilePath,
    Identifier,
    PrefixedSha256,
    Sentence,
    Sha256,
    Time,
    WholeNumber,
)
from ml.digests import ModelManifest
from ml.reports import Guarantee

VerdictText: TypeAlias = Literal["PASS", "FAIL", "INCONCLUSIVE"]


@dataclass(frozen=True, slots=True)
class RequestFacts:
    """Whose demand this answers, without saying whose: `subject_commitment` opens only with the person's nonce."""

    id: Identifier
    regime: Code
    received_on: Day
    subject_commitment: PrefixedSha256
    upstream_id: Identifier | None


@dataclass(frozen=True, slots=True)
class FileRow:
    """One file of the new model's directory; the size is in bytes."""

    path: FilePath
    size: WholeNumber
    sha256: Sha256


@dataclass(frozen=True, slots=True)
class NamedDigest:
    """A data set by name and digest."""

    name: Sentence
    digest: DigestSet


@dataclass(frozen=True, slots=True)
class ModelBefore:
    """The model that knew the person: `digest` is its manifest root, `manifest_sha256` covers file names too."""

    name: Sentence
    digest: DigestSet
    manifest_sha256: Sha256


@dataclass(frozen=True, slots=True)
class MethodFacts:
    """How the candidate was made, and what that kind of method can promise; no digests where no run finished."""

    name: Code
    version: Identifier
    guarantee: Guarantee
    code_digest: PrefixedSha256 | None
    config_digest: PrefixedSha256 | None
    image_digest: PrefixedSha256 | None
    seeds: tuple[WholeNumber, ...]


@dataclass(frozen=True, slots=True)
class Descendant:
    """A model derived from the old one, and what was decided about it."""

    digest: DigestSet
    decision: Literal["unlearned", "retired", "waived"]
    ref: Identifier | None


@dataclass(frozen=True, slots=True)
class Scope:
    """What was to be forgotten: layers touched, how many records (a bucket), data sets and derived models."""

    layers: tuple[Literal["training", "finetuning", "weights", "outputs", "prompts"], ...]
    record_count: Bucket
    datasets: tuple[NamedDigest, ...]
    descendants: tuple[Descendant, ...]


@dataclass(frozen=True, slots=True)
class Retirement:
    """What became of one superseded model: `until` is the last day it is kept, `probe` what reading it back gave."""

    digest: DigestSet
    action: Literal["deleted", "retained", "restricted"]
    until: Day | None
    probe: Literal["gone", "still_readable", "unknown"]
    probed_at: Time | None


@dataclass(frozen=True, slots=True)
class SourceResult:
    """What became of the person's records in one training source, so that nothing learns them again."""

    name: Sentence
    action: Literal["deleted", "tombstoned", "kept"]
    probe: Literal["gone", "still_present", "unknown"]
    probed_at: Time | None


@dataclass(frozen=True, slots=True)
class Recipients:
    """How many holders of the old model were told, answered, or need not be told."""

    notified: WholeNumber
    acknowledged: WholeNumber
    waived: WholeNumber


@dataclass(frozen=True, slots=True)
class Disposal:
    """Which classes of the request's own data were destroyed, how and when (compliance 6.1 and 6.2)."""

    method: Code
    classes: tuple[Literal["A", "B", "C", "F"], ...]
    at: Time
    audit_kit: AuditKit


@dataclass(frozen=True, slots=True)
class Approval:
    """One approval by role; a person's name never stands in a statement."""

    role: Code
    at: Time


@dataclass(frozen=True, slots=True)
class Pending:
    """Something still due when the statement was signed, and the last day for it."""

    what: Literal["dispose_contact_data", "dispose_retained_weights", "notify_recipients", "recheck"]
    due: Day


@dataclass(frozen=True, slots=True)
class Validity:
    """Until when the statement should be relied on, and what ends it sooner."""

    recheck_by: Day
    invalidated_if: tuple[Sentence, ...]


@dataclass(frozen=True, slots=True)
class LaterTests:
    """How later versions will be tested for this deletion: by a synthetic person who was deleted along, and by the
    person's own sealed probes until a day."""

    spike_in: bool
    vault_until: Day | None


@dataclass(frozen=True, slots=True)
class Sustainability:
    """What was shown about earlier deletions on this version, and what stands for this one later (verification 12).

    `earlier` deletions of the same model were on record; of these so many were tested again by a synthetic person or
    by sealed probes, or by both, and so many could not be. `sweep_digest` names the sealed report; there is none where
    nothing was run, for the `reason` given.
    """

    result: Literal["PASS", "FAIL", "INCONCLUSIVE", "NOT_RUN"]
    reason: Code | None
    earlier: WholeNumber
    by_spike_in: WholeNumber
    by_vault: WholeNumber
    not_tested: WholeNumber
    sweep_digest: DigestSet | None
    later: LaterTests


@dataclass(frozen=True, slots=True)
class ErasureFacts:
    """Everything a statement says, before it is put into words.

    `manifest` lists every file of the new model (`manifest_rows`); `verification_seed_commitment` was fixed before
    training ended, and its origin tells a seed drawn for this run from one the operator set; `key_custody` says what
    keeps the issuer's and the approver's key apart; `disposal` is `None` while the request's data are still needed
    for another attempt; `recipients` is `None` where nobody keeps a list of them; `supersedes` names an earlier
    certificate. Statements in wording 1 say nothing of `sustainability`.
    """

    certificate_id: Identifier
    issued_at: Time
    verdict: VerdictText
    capacity: Literal["controller", "processor"]
    request: RequestFacts
    target_id: Identifier
    attempt: WholeNumber
    model_name: Sentence
    manifest: tuple[FileRow, ...]
    model_before: ModelBefore
    method: MethodFacts
    scope: Scope
    evaluation: Evaluation
    verification_seed_commitment: PrefixedSha256
    verification_seed_origin: Literal["drawn", "fixed"]
    retirement: tuple[Retirement, ...]
    sources: tuple[SourceResult, ...]
    recipients: Recipients | None
    disposal: Disposal | None
    approvals: tuple[Approval, ...]
    pending: tuple[Pending, ...]
    key_custody: Literal["one_host", "separate_hosts", "separate_hardware"]
    validity: Validity
    supersedes: Identifier | None
    sustainability: Sustainability | None = None


def manifest_rows(manifest: ModelManifest) -> tuple[FileRow, ...]:
    """Return a model manifest as the rows of a statement."""
    return tuple(FileRow(entry.path, str(entry.size), entry.sha256) for entry in manifest.entries)


def manifest_from_rows(rows: tuple[FileRow, ...]) -> ModelManifest:
    """Return the model manifest that the rows of a statement list.

    Raises:
        SpecError: the paths are not sorted, or one stands twice.
    """
    return ModelManifest.from_document({"path": row.path, "size": row.size, "sha256": row.sha256} for row in rows)
