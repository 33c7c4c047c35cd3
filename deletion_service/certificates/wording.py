"""The words of a statement, derived from its facts: title, claim and limitations. Standard library only.

Must never promise more than the numbers: a PASS states the bound that was shown, anything else says plainly that
erasure was not shown. No sentence says "deleted" of a model's knowledge.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from deletion_service.certificates.evaluation import DECLINED, Evaluation, GateRow, Unmet
from deletion_service.certificates.facts import ErasureFacts, Retirement, SourceResult, VerdictText
from deletion_service.certificates.forms import Sentence, WholeNumber
from deletion_service.errors import DomainError
from ml.reports import Guarantee

# The wording that new statements use. A changed sentence needs a new version; statements in older ones must still
# verify, so the functions of a version that was released stay as they are.
WORDING_VERSION: Final = "2"
# The first wording knew nothing of earlier deletions, and its statements have no member about them.
WITHOUT_SUSTAINABILITY: Final = ("1",)
CERTIFICATE_TITLE: Final = "Erasure certificate"
ATTEMPT_TITLE: Final = "Erasure attempt report"
_MOST_REASONS: Final = 12
# The attack families of the verification specification, section 9.5, in words a reader knows.
_FAMILIES: Final[Mapping[str, str]] = {
    "F1": "membership",
    "F2": "association",
    "F3": "extraction",
    "F4": "generation",
    "F5": "compressed copies",
    "F6": "relearning",
    "F7": "indirect questioning",
    "F8": "optimised attacks",
}

_GUARANTEES: Final[Mapping[Guarantee, str]] = {
    "exact_retrain": "The model was trained again without the records in scope; nothing is said about models derived "
    "from the old one beyond those listed.",
    "exact_sharded": "Only the shards that held the records in scope, and those trained on top of them, were trained "
    "again without the records; what the model knew before the shards, and choices made from the whole data, such as "
    "the tokenizer or settings, were kept.",
    "certified_approximate": "The weights were changed by approximate unlearning, not by training again; its "
    "mathematical guarantee holds only under the assumptions of the method.",
    "empirical_approximate": "The weights were changed by approximate unlearning, not by training again without the "
    "data; there is no mathematical guarantee, only the measurements listed.",
    "unchanged": "The weights were not changed: no unlearning was done, or none was finished.",
    "filter_only": "The weights were not changed: an output filter hides the data, and anyone who holds the weights "
    "can still read them.",
}
_CUSTODY: Final[Mapping[str, str]] = {
    "one_host": "One host can hold both signing keys, so two signatures do not prove that two machines agreed.",
    "separate_hosts": "The two signing keys are kept on separate hosts of one operator, who controls both.",
    "separate_hardware": "The two signing keys are kept in separate hardware of one operator, who controls both.",
}
_DECLINED_CLAIM: Final = (
    "No erasure is claimed: every gate passed, but the release was declined, so the model that was evaluated was not "
    "put into use; nothing is claimed about the one that is."
)
_RESURFACED_CLAIM: Final = (
    "No erasure is claimed: every gate passed, but the version that was evaluated brings an earlier deletion back, so "
    "it was not put into use; nothing is claimed about the one that is."
)
_FIXED_SEED: Final = (
    "The operator set the seed of the verification before the run instead of drawing it, so the questions and the "
    "control people could be foreseen while the model was changed."
)
_ALWAYS: Final = (
    "The statistics bound what the attacks listed could recover; another attack may recover more.",
    "The bounds hold for the person's facts taken together, not for each single fact.",
    "Values that other people share, such as an employer or a city, cannot be attributed to one person and were not "
    "tested as that person's.",
    "Times are claimed by the issuer; no independent time stamp proves them.",
    "Copies of the old weights, of outputs or of training texts outside the registries and sources listed are not "
    "covered.",
    "The operator ran the measurements; the signatures prove who states them, not that they are true.",
)


class UnknownWordingError(DomainError):
    """A statement uses a wording that this program does not know; check it with a newer version."""

    code = "wording_unknown"


@dataclass(frozen=True, slots=True)
class Words:
    """The members of a predicate that put its facts into words, by a version of the wording."""

    title: Sentence
    claim: Sentence
    limitations: tuple[Sentence, ...]
    wording_version: WholeNumber


def words_of(facts: ErasureFacts, *, version: str = WORDING_VERSION) -> Words:
    """Return the only words that a statement of these facts may carry.

    Raises:
        UnknownWordingError: the version is none that this program knows.
    """
    if version not in _WORDINGS:
        raise UnknownWordingError(f"wording version {version} is unknown here; check with a newer version of lethe")
    return _WORDINGS[version](facts)


def title_of(verdict: VerdictText) -> str:
    """Only a PASS is called a certificate."""
    return CERTIFICATE_TITLE if verdict == "PASS" else ATTEMPT_TITLE


def claim_of(facts: ErasureFacts) -> str:
    """Return the one sentence that states the bound shown, or what was not shown."""
    if facts.verdict == "PASS":
        return _bound_shown(facts.evaluation)
    if is_declined(facts.evaluation):
        return _DECLINED_CLAIM
    established = (
        "at least one test established a leak, over-forgetting or a loss of utility"
        if facts.verdict == "FAIL"
        else "neither a sufficient bound nor a leak could be established"
    )
    reasons = _reasons(facts.evaluation.unmet)
    return f"Erasure was not shown: {established}; not met: {reasons}; no bound on the remaining influence is claimed."


def limitations_of(facts: ErasureFacts) -> tuple[str, ...]:
    """Return what the statement does not cover, in plain sentences; never empty."""
    return (
        _GUARANTEES[facts.method.guarantee],
        *_ALWAYS,
        _CUSTODY[facts.key_custody],
        *([_FIXED_SEED] if facts.verification_seed_origin == "fixed" else []),
        *_of_evaluation(facts.evaluation),
        *(_of_kept_weights(row) for row in facts.retirement if row.probe != "gone"),
        *(_of_source(row) for row in facts.sources if row.probe != "gone"),
        *_of_missing_results(facts),
    )


_WORDINGS: Final[Mapping[str, Callable[[ErasureFacts], Words]]] = {
    "1": lambda facts: Words(title_of(facts.verdict), claim_of(facts), limitations_of(facts), "1"),
    "2": lambda facts: Words(
        title_of(facts.verdict),
        _RESURFACED_CLAIM if _is_resurfaced(facts) else claim_of(facts),
        (*limitations_of(facts), *_of_earlier_deletions(facts), *_of_later_versions(facts)),
        "2",
    ),
}


def _is_resurfaced(facts: ErasureFacts) -> bool:
    shown = facts.sustainability
    return is_declined(facts.evaluation) and shown is not None and shown.result == "FAIL"


def is_declined(evaluation: Evaluation) -> bool:
    """Whether the findings say that a PASS was not released."""
    return any(row.code == DECLINED for row in evaluation.unmet)


# --- claim --------------------------------------------------------------------------------------------------------


def residual_bounds(evaluation: Evaluation) -> Mapping[str, Sequence[str]]:
    """Group the gates by the largest residual share their attack rows accept, as decimal text."""
    groups: dict[str, list[str]] = {}
    for row in evaluation.gates:
        upper = _accepted(row)[1]
        if upper is not None and row.gate not in groups.setdefault(upper, []):
            groups[upper].append(row.gate)
    return groups


def _bound_shown(evaluation: Evaluation) -> str:
    bounds = residual_bounds(evaluation)
    shares = "; ".join(
        f"at most {_percent(share)} of the measurable influence remains under the attacks listed for "
        f"{', '.join(map(_family, bounds[share]))}"
        for share in sorted(bounds, key=Decimal)
    )
    over = [Decimal(lower) for row in evaluation.gates if (lower := _accepted(row)[0]) is not None]
    island = f"; over-forgetting is bounded at {_percent(str(-min(over)))} of that influence" if over else ""
    return f"At {_percent(evaluation.confidence)} confidence {shares}{island}."


def _accepted(row: GateRow) -> tuple[str | None, str | None]:
    if row.measure != "residual_share" or row.interval is None:
        return None, None
    return row.interval


def _family(gate: str) -> str:
    return f"{_FAMILIES[gate]} ({gate})" if gate in _FAMILIES else gate


def _percent(share: str) -> str:
    text = f"{Decimal(share) * 100:f}"
    return f"{text.rstrip('0').rstrip('.') if '.' in text else text} %"


def _reasons(unmet: Sequence[Unmet]) -> str:
    named = list(dict.fromkeys(f"{_family(row.gate)} {row.code}" for row in unmet))
    more = f" and {len(named) - _MOST_REASONS} more" if len(named) > _MOST_REASONS else ""
    return ", ".join(named[:_MOST_REASONS]) + more


# --- limitations --------------------------------------------------------------------------------------------------


def _of_evaluation(evaluation: Evaluation) -> Iterator[str]:
    if evaluation.policy.purpose == "test":
        yield "The verdict policy was made for tests; this document has no evidential value."
    if evaluation.not_tested:
        yield f"Not everything was tested: what was left out is listed under notTested ({len(evaluation.not_tested)})."
    if "detectable" in evaluation.flags:
        yield "At least one attack still tells the person from people the model never saw."
    if "below_twins" in evaluation.flags:
        yield "On at least one attack the person looks less familiar than people the model never saw."


def _of_kept_weights(row: Retirement) -> str:
    name = f"The older model {row.digest.sha256[:12]}"
    if row.until is not None:
        return f"{name} is kept until {row.until}; until then the person's data can still be read from it."
    return f"{name} was not shown to be gone ({row.probe}); the person's data can still be read from every copy of it."


def _of_source(row: SourceResult) -> str:
    return (
        f"The training source {row.name} was not shown to be free of the person's records ({row.action}, {row.probe}); "
        "a model trained from it may learn them again."
    )


def _of_missing_results(facts: ErasureFacts) -> Iterator[str]:
    if not facts.retirement:
        yield "No older model was retired; the person's data can still be read from each of them."
    if not facts.sources:
        yield "No training source was cleaned; a model trained from them may learn the person's records again."
    if facts.recipients is None:
        yield "Recipients of the model or its outputs were not recorded, so none were told."
    if facts.disposal is None:
        yield "The request's own data were not yet destroyed when this was signed."


# --- earlier deletions (wording 2) --------------------------------------------------------------------------------


def _of_earlier_deletions(facts: ErasureFacts) -> Iterator[str]:
    shown = facts.sustainability
    if shown is None:
        return
    if shown.earlier == "0":
        yield "No earlier deletion of this model was on record, so none was tested again on this version."
        return
    if shown.result == "NOT_RUN":
        yield f"None of the {_deletions(shown.earlier)} of this model was tested again on this version."
        return
    yield (
        f"Of {_deletions(shown.earlier)} of this model, {shown.by_spike_in} were tested again on this version by "
        f"synthetic people deleted along with the persons, {shown.by_vault} by the persons' own sealed probes; a "
        "synthetic person who stays gone speaks for a person only as far as the two are alike."
    )
    if shown.not_tested != "0":
        yield (
            f"{shown.not_tested} of {_deletions(shown.earlier)} could not be tested again on this version; nothing is "
            "said about them."
        )
    if shown.result == "INCONCLUSIVE":
        yield "Testing earlier deletions again was inconclusive: none was found to be back, and no bound was shown."


def _of_later_versions(facts: ErasureFacts) -> Iterator[str]:
    shown = facts.sustainability
    if shown is None or facts.verdict != "PASS":
        return
    if shown.later.spike_in:
        yield (
            "Later versions are tested for this deletion by a synthetic person who was deleted along with the person, "
            "whose own records are gone."
        )
    if shown.later.vault_until is not None:
        yield (
            f"Until {shown.later.vault_until} the person's own records are kept sealed, as probes of later versions; "
            "then their key is destroyed."
        )
    if not shown.later.spike_in:
        until = f" after {shown.later.vault_until}" if shown.later.vault_until else ""
        yield f"Nothing stands for this deletion{until}: later versions cannot be tested for it."


def _deletions(count: str) -> str:
    return f"{count} earlier deletion" if count == "1" else f"{count} earlier deletions"
