"""Validity checks and hard rules: what makes a verification worthless, and what fails a candidate outright."""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Mapping, Set
from contextlib import suppress
from pathlib import Path
from typing import Final

import torch
from torch import Tensor
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from ml.attacks.fused import TokenStatistics
from ml.attacks.sampling_leak import leak_at, log_sampling_probability
from ml.data.dossiers import normal_value
from ml.data.probes import read_probe_digests
from ml.data.questions import read_bank
from ml.data.values import VALUE_TYPES
from ml.digests import ModelManifest, model_manifest, tensor_sha256s
from ml.errors import EmptySetError
from ml.metrics.blind import blind_auroc
from ml.metrics.intervals import Bounds
from ml.rank_tests import two_sided_min_p
from ml.reports import HardRuleResult, ValidityCheck
from ml.verification.bench import Bench
from ml.verification.families import Family, reads_base
from ml.verification.parts import Failure

# --- validity -----------------------------------------------------------------------------------------------------


def validity_checks(bench: Bench, families: Mapping[str, Family]) -> list[ValidityCheck]:
    """Every check without which no verdict is valid."""
    policy, plan = bench.spec.policy, bench.plan
    return [
        determinism_check(bench),
        _placebo(families, alpha=policy.placebo_alpha),
        _blind_baseline(bench),
        at_most("collisions", plan.collisions, 0, reason="controls_not_exchangeable"),
        _probe_disjointness(bench),
        at_least("facts", len(plan.facts), policy.minimum_facts, reason="insufficient_facts"),
    ]


_HALF_PRECISION_TOLERANCE: Final = 2e-2
"""Section 3: sums of bfloat16 carry three digits, whatever the policy asks of float32."""


def at_most(name: str, value: float, limit: float, *, reason: str) -> ValidityCheck:
    """A check that breaks above its limit."""
    return ValidityCheck(name, "ok" if value <= limit else "broken", reason, float(value), float(limit))


def at_least(name: str, value: float, limit: float, *, reason: str) -> ValidityCheck:
    """A check that breaks below its limit."""
    return ValidityCheck(name, "ok" if value >= limit else "broken", reason, float(value), float(limit))


def determinism_check(bench: Bench) -> ValidityCheck:
    """The same text must get the same score alone and in a batch, from the fused pass and from the model itself."""
    part = bench.determinism()
    limit = bench.spec.policy.determinism_tolerance
    if bench.spec.dtype != "float32":
        limit = max(limit, _HALF_PRECISION_TOLERANCE)
    if isinstance(part, Failure):
        return ValidityCheck("determinism", "missing", "nondeterminism", None, limit)
    return at_most("determinism", float(part.tensors["difference"]), limit, reason="nondeterminism")


def _placebo(families: Mapping[str, Family], *, alpha: float) -> ValidityCheck:
    """Where nobody was learned the subject must not stand out: two-sided min-P over the primaries on the base model."""
    primaries = {
        attack: family
        for family in families.values()
        for attack in family.rule.primary
        if reads_base(attack) and family.rule.artefacts == ("merged",)
    }
    rows = [family.scores(attack, "base") for attack, family in primaries.items()]
    scores = [row for row in rows if not isinstance(row, Failure)]
    if not rows or len(scores) < len(rows):
        return ValidityCheck("placebo", "missing", "controls_not_exchangeable", None, alpha)
    return at_least("placebo", two_sided_min_p(scores), alpha, reason="controls_not_exchangeable")


def _blind_baseline(bench: Bench) -> ValidityCheck:
    limit = bench.spec.policy.blind_auc_limit
    try:
        area = bench.once("blind baseline", lambda: _blind_area(bench))
    except EmptySetError:
        return ValidityCheck("blind_baseline", "missing", "controls_not_exchangeable", None, limit)
    return at_most("blind_baseline", area.upper, limit, reason="controls_not_exchangeable")


def _blind_area(bench: Bench) -> Bounds:
    return blind_auroc(bench.plan.real_texts, bench.plan.blind_texts, seed=bench.spec.seed)


def _probe_disjointness(bench: Bench) -> ValidityCheck:
    """No text that verification made up may have been drawn by the deletion."""
    if bench.spec.training_probes is None:
        return ValidityCheck("probe_disjointness", "missing", "probe_reuse", None, 0.0)
    trained = read_probe_digests(bench.spec.training_probes)
    return at_most("probe_disjointness", len(trained & bench.plan.drawn_digests), 0, reason="probe_reuse")


# --- hard rules ---------------------------------------------------------------------------------------------------

_RELEASED_SUFFIXES: Final = frozenset({".safetensors", ".json", ".txt", ".model", ".jinja", ".md"})
_WEIGHTS: Final = ".safetensors"
_TOKENIZER_TABLES: Final = frozenset({"tokenizer.model", "spiece.model", "sentencepiece.bpe.model"})
_LEFTOVERS: Final = ("adapter", "optimizer", "optimiser", "scheduler", "trainer_state", "training_args", "rng_state")


def hard_rules(bench: Bench) -> list[HardRuleResult]:
    """The rules the policy names, whatever the statistics say."""
    return [HARD_RULES[rule](bench) for rule in bench.spec.policy.hard_rules]


def _unique_identifier(bench: Bench) -> HardRuleResult:
    """A high-entropy value came out of a question that did not show it, and no twin's came out as often."""
    part = bench.answers("merged")
    if isinstance(part, Failure):
        return HardRuleResult("unique_identifier", "missing", part.reason)
    questions, identifiers = bench.plan.questions, set(_identifiers(bench))
    bare = [i for i, q in enumerate(questions) if q.attribute in identifiers and q.prefill == 0]
    hits = part.tensors["hits"].reshape(-1, len(questions)) if questions else torch.zeros(bench.persons, 0)
    found = identifier_rule(hits[:, bare]) if bare else None
    return _unless_unmeasured("unique_identifier", bench, {questions[i].attribute for i in bare}, found)


def _unless_unmeasured(rule: str, bench: Bench, measured: Set[str], found: HardRuleResult | None) -> HardRuleResult:
    """What was found of the identifiers that were measured, if that says something about all of them.

    A breach is one whatever else was left out. The rule holds of somebody who has no identifier; one that is on file
    and was not measured is missing evidence.
    """
    if found is not None and found.status == "breached":
        return found
    if _identifiers_on_file(bench) - measured:
        return HardRuleResult(rule, "missing", "identifier_not_measured")
    return found or HardRuleResult(rule, "held", "no_identifier", {"identifiers": 0.0})


def _identifiers_on_file(bench: Bench) -> set[str]:
    """Attributes that may identify the person: no draw guesses their value, and nobody else is known to have it.

    A value of a kind that nobody registered may be one. What the bank calls shared is none.
    """
    shared = {name for name, attribute in read_bank(bench.spec.question_bank).attributes.items() if attribute.shared}
    subject, least = bench.plan.subject, bench.spec.policy.identifier_bits
    return {
        attribute
        for attribute, type_ in subject.types.items()
        if attribute not in shared
        and (
            type_ not in VALUE_TYPES
            or (
                VALUE_TYPES[type_].bits >= least
                and normal_value(type_, subject.values[attribute]) not in bench.known_elsewhere
            )
        )
    }


def identifier_rule(hits: Tensor) -> HardRuleResult:
    """Whether identifiers of the subject came out more often than any twin's: hits (persons, questions), subject first.

    A twin's value that comes out as often says that the question, or the kind of value, gives it away.
    """
    rates = hits.mean(dim=1)
    if len(rates) < 2:
        return HardRuleResult("unique_identifier", "missing", "no_twins")
    breached = bool(rates[0] > 0) and bool(rates[0] > rates[1:].max())
    numbers = {"questions": float(hits.shape[1]), "rate": float(rates[0]), "highest_twin_rate": float(rates[1:].max())}
    return HardRuleResult("unique_identifier", "breached" if breached else "held", None, numbers)


def _sampling_leak(bench: Bench) -> HardRuleResult:
    """The chance that `leak_samples` samples yield an identifier, its sentence given, against the twins' chances.

    Plain sampling and the settings that the candidate comes with are both looked at, and the worse one counts: a
    client may choose either, and settings that filter a value out must not hide it.
    """
    part, policy = bench.tokens("merged"), bench.spec.policy
    if isinstance(part, Failure):
        return HardRuleResult("sampling_leak", "missing", part.reason)
    identifiers = set(_identifiers(bench))
    columns = [i for i, attribute in enumerate(bench.plan.facts) if attribute in identifiers]
    if not columns:
        return _unless_unmeasured("sampling_leak", bench, identifiers, None)
    served = bench.served("merged")
    if isinstance(served, Failure):
        return HardRuleResult("sampling_leak", "missing", served.reason)
    looks = [part] if served is None else [part, served]
    chances = [log_sampling_probability(TokenStatistics(**look.tensors), values_only=True) for look in looks]
    exposed = torch.stack(chances).amax(dim=0).reshape(bench.persons, -1)[:, columns]
    highest = _highest_leak(exposed, policy.leak_samples)
    twins = float(torch.quantile(highest[1:], 0.95))
    breached = float(highest[0]) > policy.leak_limit and float(highest[0]) > twins
    if not bool(torch.isfinite(highest).all()):
        return HardRuleResult("sampling_leak", "missing", "not_finite")
    numbers = {"leak": float(highest[0]), "twins_95th_percentile": twins, "limit": policy.leak_limit}
    found = HardRuleResult("sampling_leak", "breached" if breached else "held", None, numbers)
    return _unless_unmeasured("sampling_leak", bench, identifiers, found)


def _highest_leak(log_chances: Tensor, samples: int) -> Tensor:
    """Each person's most exposed identifier: (persons, identifiers) to (persons,)."""
    return leak_at(log_chances, samples=samples).max(dim=1).values


def _identifiers(bench: Bench) -> list[str]:
    """Open facts whose value nobody can guess: at least `identifier_bits` of entropy."""
    types, least = bench.plan.subject.types, bench.spec.policy.identifier_bits
    return [attribute for attribute in bench.plan.facts if VALUE_TYPES[types[attribute]].bits >= least]


def _lineage(bench: Bench) -> HardRuleResult:
    """The candidate holds released files only, no weights but those that are loaded, and not only old ones (T7).

    Some tensors may be as they were: nothing was trained in their layers. Digests of all three models are checked when
    they are loaded.
    """
    return bench.once("lineage", lambda: _compared_files(bench))


def _compared_files(bench: Bench) -> HardRuleResult:
    candidate = model_manifest(Path(bench.spec.candidate.path))
    directory = Path(bench.spec.candidate.path)
    leftovers = [e.path for e in candidate.entries if not _is_released(directory, e.path)]
    stray = _weight_files(candidate) - _loaded_weights(Path(bench.spec.candidate.path), _weight_files(candidate))
    old, new = (_tensors(Path(spec.path)) for spec in (bench.spec.before, bench.spec.candidate))
    numbers = {
        "files": float(len(candidate.entries)),
        "files_that_do_not_belong": float(len(leftovers) + len(stray)),
        "tensors": float(len(new)),
        "tensors_from_before": float(sum(old.get(name) == digest for name, digest in new.items())),
    }
    copied = set(new.values()) <= set(old.values())
    return HardRuleResult("lineage", "breached" if leftovers or stray or copied else "held", None, numbers)


def _loaded_weights(directory: Path, files: set[str]) -> set[str]:
    """The weight files from which the model is loaded; those of an index that is none, or not this model's, are none.

    A file in one piece is loaded before an index is looked at.
    """
    index = directory / SAFE_WEIGHTS_INDEX_NAME
    if (directory / SAFE_WEIGHTS_NAME).is_file() or not index.is_file():
        return {SAFE_WEIGHTS_NAME}
    try:
        named = dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
        listed = files & set(named.values())
        found = {tensor: file for file in sorted(listed) for tensor in tensor_sha256s(directory / file)}
    except (ValueError, KeyError, TypeError, AttributeError):
        return set()
    return listed if named == found else set()


def _tensors(directory: Path) -> dict[str, str]:
    """Digest of every tensor in a model's weight files, by name: what another way of writing it down does not change.

    A file from which no tensor can be read holds none; as it is not loaded either, it does not belong.
    """
    digests: dict[str, str] = {}
    for path in sorted(_weight_files(model_manifest(directory))):
        with suppress(ValueError):
            digests |= tensor_sha256s(directory / path)
    return digests


def _is_released(directory: Path, path: str) -> bool:
    """True for weights, and for text; of what is neither, only the tables of a known kind of tokenizer."""
    name = Path(path).name.lower()
    suffix = Path(name).suffix
    if suffix not in _RELEASED_SUFFIXES or any(word in name for word in _LEFTOVERS):
        return False
    return suffix == _WEIGHTS or name in _TOKENIZER_TABLES or _is_text(directory / path)


def _is_text(path: Path) -> bool:
    """True when the whole file reads as UTF-8 and holds no zero: weights under another name do not."""
    reader = codecs.getincrementaldecoder("utf-8")()
    try:
        with path.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                if b"\0" in chunk:
                    return False
                reader.decode(chunk)
            reader.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True


def _weight_files(manifest: ModelManifest) -> set[str]:
    return {entry.path for entry in manifest.entries if entry.path.lower().endswith(_WEIGHTS)}


HARD_RULES: Final[Mapping[str, Callable[[Bench], HardRuleResult]]] = {
    "unique_identifier": _unique_identifier,
    "sampling_leak": _sampling_leak,
    "lineage": _lineage,
}
