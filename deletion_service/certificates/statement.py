"""The attestation a certificate signs: in-toto Statement v1 with a model-erasure predicate (compliance 12.2).

Must never know Django, a database or the network, and never let a statement contradict itself: what `build_statement`
writes and what `read_statement` accepts are the same set of documents.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from deletion_service.certificates.canonical import (
    camel_document,
    read_camel,
    time_from_text,
)
from deletion_service.certificates.evaluation import Evaluation
from deletion_service.certificates.facts import ErasureFacts, Retirement, VerdictText, manifest_from_rows
from deletion_service.certificates.forms import check_forms
from deletion_service.certificates.published import published_schema, schema_fault
from deletion_service.certificates.wording import WITHOUT_SUSTAINABILITY, Words, residual_bounds, words_of
from deletion_service.errors import DomainError
from ml.digests import ModelManifest, canonical_json
from ml.errors import SpecError

STATEMENT_TYPE: Final = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE: Final = "https://lethe.example/attestation/model-erasure/v1"
_APPROVALS: Final = 2
_SCHEMA: Final = "model-erasure-v1"
# Why a sweep was not run that had nobody to test.
NO_EARLIER_DELETIONS: Final = "no_earlier_deletions"


class StatementError(DomainError):
    """A statement is malformed, contradicts itself or claims more than its facts carry."""

    code = "statement_invalid"


@dataclass(frozen=True, slots=True)
class Statement:
    """A statement as read back; `manifest` lists the new model's files and yields its two digests."""

    words: Words
    facts: ErasureFacts
    manifest: ModelManifest


def build_statement(facts: ErasureFacts) -> dict[str, Any]:
    """Put facts into a statement; title, claim and limitations follow from them.

    Raises:
        StatementError: the facts contradict themselves, or do not carry the verdict they name.
        DocumentFormError: a field does not have its form; the message names it.
    """
    check_forms(facts, where="facts")
    document = _assembled(facts, words_of(facts), _manifest(facts))
    faults = contradictions(read_statement(document))
    if faults:
        raise StatementError(f"the statement cannot be made: {'; '.join(faults)}")
    return document


def statement_bytes(document: Mapping[str, Any]) -> bytes:
    """Validate a statement against the published schema and return the canonical bytes to sign."""
    validate_statement(document)
    return canonical_json(document)


def read_statement(document: object) -> Statement:
    """Read a statement strictly, without the schema: every member known, present and of its form.

    Raises:
        StatementError: not a model-erasure statement, members left out, or digests that are not those of its files.
        DocumentFormError: a member is unknown, missing or malformed; the message names it.
    """
    subject, predicate = _outer_members(document)
    words = read_camel(Words, {key: predicate.pop(key, None) for key in _WORDS}, where="predicate")
    predicate.pop("manifestSha256", None)
    facts = read_camel(ErasureFacts, {**predicate, "modelName": subject.get("name")}, where="predicate")
    check_forms(words, where="predicate")
    check_forms(facts, where="predicate")
    manifest = _manifest(facts)
    # Writing it again is the strictest reader: nothing may be left out, and both digests must be those of the files.
    if _assembled(facts, words, manifest) != document:
        raise StatementError("the statement leaves members out, or its digests are not those of the files it lists")
    return Statement(words, facts, manifest)


def validate_statement(document: Mapping[str, Any]) -> None:
    """Check a statement against the published JSON Schema (draft 2020-12).

    Raises:
        StatementError: the message names the member and the rule, never the content.
    """
    if fault := schema_fault(document, _SCHEMA):
        raise StatementError(f"statement {fault}")


def statement_schema() -> dict[str, Any]:
    """Return the published JSON Schema of the statement."""
    return published_schema(_SCHEMA)


_WORDS: Final = ("title", "claim", "limitations", "wordingVersion")


def _manifest(facts: ErasureFacts) -> ModelManifest:
    if not facts.manifest:
        raise StatementError("the statement lists no model file")
    try:
        return manifest_from_rows(facts.manifest)
    except SpecError as exc:
        raise StatementError(str(exc)) from None


def _assembled(facts: ErasureFacts, words: Words, manifest: ModelManifest) -> dict[str, Any]:
    predicate = camel_document(facts)
    if words.wording_version in WITHOUT_SUSTAINABILITY:
        predicate.pop("sustainability")
    subject = {"name": predicate.pop("modelName"), "digest": {"sha256": manifest.root_sha256}}
    return {
        "_type": STATEMENT_TYPE,
        "subject": [subject],
        "predicateType": PREDICATE_TYPE,
        "predicate": {**camel_document(words), "manifestSha256": manifest.manifest_sha256, **predicate},
    }


def _outer_members(document: object) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split a statement into its one subject and its predicate."""
    if not isinstance(document, Mapping) or document.get("_type") != STATEMENT_TYPE:
        raise StatementError("this is not an in-toto statement of version 1")
    if document.get("predicateType") != PREDICATE_TYPE:
        raise StatementError("this is not a model-erasure statement of a version this program knows")
    subjects, predicate = document.get("subject"), document.get("predicate")
    if not isinstance(subjects, list) or len(subjects) != 1 or not isinstance(subjects[0], Mapping):
        raise StatementError("the statement needs exactly one subject, the new model")
    if not isinstance(predicate, Mapping):
        raise StatementError("the statement has no predicate")
    return dict(subjects[0]), dict(predicate)


# --- consistency --------------------------------------------------------------------------------------------------


def contradictions(statement: Statement) -> tuple[str, ...]:
    """List what in a statement does not fit together; empty when everything does.

    A PASS needs every gate passed, each superseded model gone or under dated retention, every training source
    cleaned, and the request's payload destroyed.
    """
    facts = statement.facts
    found = [*_of_verdict(facts), *_of_retention(facts), *_of_times(facts)]
    if statement.words.wording_version not in WITHOUT_SUSTAINABILITY:
        found += _of_sustainability(facts)
    if not facts.scope.layers:
        found.append("no layer is in scope")
    if facts.verdict == "PASS":
        found += [*_of_pass(facts), *_of_retirement(facts), *_of_sources(facts)]
    return tuple(found)


def verdict_of_gates(evaluation: Evaluation) -> VerdictText:
    """Return the verdict that gates and findings carry: the worst of them, where an error proves nothing."""
    results = {row.result for row in evaluation.gates} | {row.result for row in evaluation.unmet}
    if results & {"ERROR"}:
        return "INCONCLUSIVE"
    if results & {"FAIL"}:
        return "FAIL"
    return "INCONCLUSIVE" if results & {"INCONCLUSIVE"} else "PASS"


def _of_verdict(facts: ErasureFacts) -> Iterator[str]:
    carried = verdict_of_gates(facts.evaluation)
    if facts.verdict != carried:
        yield f"the gates and findings carry {carried}, not {facts.verdict}"
    if facts.verdict != "PASS" and not facts.evaluation.unmet:
        yield f"{facts.verdict} needs at least one finding that says why"


def _of_pass(facts: ErasureFacts) -> Iterator[str]:
    if facts.method.guarantee in ("filter_only", "unchanged"):
        yield "weights that were left as they were cannot PASS"
    if not residual_bounds(facts.evaluation):
        yield "PASS needs at least one attack with a bound on the remaining influence"
    if not facts.evaluation.artifact_loaded_by_digest:
        yield "the model that was evaluated is not the model named"
    if facts.disposal is None or "A" not in facts.disposal.classes:
        yield "PASS needs the destruction of the request's payload (class A)"
    if len(facts.approvals) < _APPROVALS:
        yield "PASS needs two approvals, that of the start and that of the evidence"


def _of_sustainability(facts: ErasureFacts) -> Iterator[str]:
    shown = facts.sustainability
    if shown is None:
        yield "nothing is said about earlier deletions"
        return
    earlier, not_tested = int(shown.earlier), int(shown.not_tested)
    tested = earlier - not_tested
    most, least = int(shown.by_spike_in) + int(shown.by_vault), max(int(shown.by_spike_in), int(shown.by_vault))
    if not least <= tested <= most:
        yield "the earlier deletions that were tested and those that were not do not add up"
    was_run = shown.result != "NOT_RUN"
    if was_run != (shown.sweep_digest is not None) or was_run == (shown.reason is not None):
        yield "a sweep that was run has a digest, one that was not has a reason"
    if (shown.reason == NO_EARLIER_DELETIONS) != (earlier == 0):
        yield "the reason why no earlier deletion was tested does not fit their number"
    if shown.result == "PASS" and not_tested:
        yield "an earlier deletion that was not tested is no pass"
    if facts.verdict == "PASS" and (shown.result == "FAIL" or (not was_run and earlier > 0)):
        yield "PASS needs every earlier deletion looked for, and none found to be back"


def _of_retirement(facts: ErasureFacts) -> Iterator[str]:
    if facts.model_before.digest not in [row.digest for row in facts.retirement]:
        yield "the model before has no retirement result"
    for row in facts.retirement:
        if row.probe != "gone" and not _is_dated_retention(row, issued_on=facts.issued_at[:10]):
            yield f"the older model {row.digest.sha256[:12]} is neither gone nor under dated retention"


def _is_dated_retention(row: Retirement, *, issued_on: str) -> bool:
    return row.action != "deleted" and row.until is not None and row.until >= issued_on


def _of_sources(facts: ErasureFacts) -> Iterator[str]:
    if not facts.sources:
        yield "PASS needs the result of at least one training source"
    for number, row in enumerate(facts.sources, start=1):
        if row.action == "kept" or row.probe != "gone":
            yield f"training source {number} was not shown to be free of the person's records"


def _of_retention(facts: ErasureFacts) -> Iterator[str]:
    due = {row.due for row in facts.pending if row.what == "dispose_retained_weights"}
    for row in facts.retirement:
        if row.until is not None and row.until not in due:
            yield f"the end of the retention of {row.digest.sha256[:12]} is not listed as pending"


def _of_times(facts: ErasureFacts) -> Iterator[str]:
    probes: list[tuple[str, str | None]] = [(row.probe, row.probed_at) for row in facts.retirement]
    probes += [(row.probe, row.probed_at) for row in facts.sources]
    if any(probe != "unknown" and probed_at is None for probe, probed_at in probes):
        yield "a probe has a result but no time"
    happened = [at for _, at in probes if at is not None] + [row.at for row in facts.approvals]
    happened += [facts.disposal.at] if facts.disposal else []
    if any(time_from_text(at) > time_from_text(facts.issued_at) for at in happened):
        yield "it reports something that happened after it was issued"
