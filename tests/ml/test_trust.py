"""Demotion by code: what was not shown to tell who was learned carries no PASS, and a family left bare never passes."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from deletion_service.certificates.evidence_document import evidence_bytes, read_evidence
from ml import trust
from ml.attacks import ATTACKS
from ml.decision import Result, judge
from ml.errors import SpecError
from ml.policies import load_policy, read_policy, written_policy
from ml.reports import GuardResult
from ml.specs import VerdictPolicy
from ml.trust import (
    FEWEST_PAIRS,
    LOWEST_FAITHFULNESS,
    AttackTrust,
    KindVerdicts,
    MetaEvaluation,
    demote,
    last_results,
)
from tests.ml.passing import POLICY, passing_report

GOOD = AttackTrust("same_context_difference", FEWEST_PAIRS, FEWEST_PAIRS, 24, 0.99, 0.97)
KINDS = (KindVerdicts("nothing done", 1, {"FAIL": 1}, {"FAIL": 1}, ("residual in F1",), {"mean_loss": 12.5}),)


def _results(**lower: float | None) -> MetaEvaluation:
    """Every attack is trusted but those given, which have this lower bound."""
    rows = tuple(
        replace(GOOD, attack=attack, lower=lower.get(attack, 0.97), reason=None if attack not in lower else "shown")
        for attack in ATTACKS
    )
    return MetaEvaluation({"models": "24"}, rows, KINDS, {"torch": "2"}, 60.0)


def test_a_policy_whose_primaries_are_all_trusted_stays_as_it_is() -> None:
    policy = load_policy("reference-2")
    found = demote(policy, _results())
    assert found.policy is policy
    assert (found.demoted, found.uncovered) == ({}, ())


def test_a_primary_below_the_bound_only_looks_for_leaks_wherever_it_stood() -> None:
    policy = load_policy("reference-2")
    found = demote(policy, _results(exposure=LOWEST_FAITHFULNESS - 1e-9))
    families = {rule.id: rule for rule in found.policy.families}
    assert found.demoted == {"F2": ("exposure",), "F5": ("exposure",)}
    assert found.uncovered == ("F2",)
    assert (families["F2"].primary, families["F2"].detection) == ((), ("exposure",))
    assert families["F5"].primary == ("same_context_difference", "extraction_strength")
    assert families["F1"] == policy.families[0]
    assert demote(policy, _results(exposure=LOWEST_FAITHFULNESS)).demoted == {}


def test_every_attack_of_a_family_still_has_to_be_measured_after_demotion() -> None:
    policy = load_policy("reference-2")
    found = demote(policy, _results(exposure=0.5, hit_rate=0.7, relearned_difference=0.1))
    for before, after in zip(policy.families, found.policy.families, strict=True):
        assert {*before.primary, *before.detection} == {*after.primary, *after.detection}
        assert replace(after, primary=before.primary, detection=before.detection) == before


def test_a_demoted_policy_is_another_policy_and_says_so_on_the_certificate() -> None:
    policy = load_policy("reference-2")
    changed = demote(policy, _results(exposure=0.5)).policy
    assert changed.sha256 != policy.sha256
    assert changed.name.startswith("reference-2-demoted-")
    assert "exposure" in changed.not_tested[0]
    assert VerdictPolicy.from_document(changed.to_document()) == changed


@pytest.mark.parametrize(
    "weak",
    [
        replace(GOOD, lower=None, faithfulness=None, reason="NonFiniteError"),
        replace(GOOD, learned=FEWEST_PAIRS - 1),
        replace(GOOD, not_learned=FEWEST_PAIRS - 1),
        replace(GOOD, lower=float("nan")),
        None,
    ],
    ids=["not measured", "too few learned", "too few not learned", "not a number", "not named"],
)
def test_what_was_not_shown_is_not_trusted(weak: AttackTrust | None) -> None:
    others = tuple(row for row in _results().attacks if row.attack != GOOD.attack)
    results = replace(_results(), attacks=others if weak is None else (*others, weak))
    assert demote(load_policy("reference-2"), results).uncovered == ("F1",)


def test_a_family_without_a_primary_never_passes() -> None:
    found = demote(POLICY, _results(same_context_difference=0.5))
    assert found.uncovered == ("F1",)
    report = passing_report(found.policy)
    verdict = judge(report, found.policy)
    assert verdict.result is Result.INCONCLUSIVE
    assert [(f.code, f.gate) for f in verdict.findings] == [("coverage", "F1")]
    gates = {gate.gate: gate.result for gate in verdict.gates}
    assert (gates["F1"], gates["F4"]) == (Result.INCONCLUSIVE, Result.PASS)


def test_a_family_without_a_primary_still_reports_a_crash_of_what_only_detects() -> None:
    found = demote(POLICY, _results(same_context_difference=0.5))
    report = passing_report(found.policy)
    broken = replace(report, attacks=(replace(report.attacks[0], status="error", reason="X"), *report.attacks[1:]))
    assert {f.result for f in judge(broken, found.policy).findings} == {Result.ERROR, Result.INCONCLUSIVE}


def test_no_evidence_turns_a_bare_family_into_a_pass() -> None:
    bare = replace(POLICY, families=(replace(POLICY.families[0], primary=(), guards=()), POLICY.families[1]))
    empty = replace(POLICY, families=(replace(POLICY.families[0], primary=(), detection=(), guards=()),))
    for policy in (bare, empty):
        report = passing_report(policy)
        assert judge(report, policy).result is Result.INCONCLUSIVE
        shown = replace(report, guards=(*report.guards, GuardResult("F1", "pooled_auc", 0.5)))
        assert judge(shown, policy).result is Result.INCONCLUSIVE


def test_a_policy_with_every_primary_demoted_passes_nothing() -> None:
    nobody = replace(_results(), attacks=())
    found = demote(load_policy("reference-2"), nobody)
    assert found.uncovered == tuple(rule.id for rule in found.policy.families)
    verdict = judge(passing_report(found.policy), found.policy)
    assert verdict.result is Result.INCONCLUSIVE
    assert {gate.result for gate in verdict.gates if gate.kind == "family"} == {Result.INCONCLUSIVE}


def test_a_family_needs_some_attack_and_names_none_twice() -> None:
    rule = POLICY.families[0]
    none = replace(POLICY, families=(replace(rule, primary=(), detection=()),))
    twice = replace(POLICY, families=(replace(rule, detection=(*rule.detection, *rule.primary)),))
    for policy, words in ((none, "twins, an attack and an artefact"), (twice, "twice")):
        with pytest.raises(SpecError, match=words):
            VerdictPolicy.from_document(policy.to_document())


def test_the_results_survive_storage_and_refuse_an_attack_that_stands_twice() -> None:
    results = _results(exposure=None)
    stored = json.loads(json.dumps(results.to_document()))
    assert MetaEvaluation.from_document(stored) == results
    doubled = replace(results, attacks=(*results.attacks, GOOD))
    with pytest.raises(SpecError, match="twice"):
        MetaEvaluation.from_document(doubled.to_document())
    with pytest.raises(SpecError, match="schema_version"):
        MetaEvaluation.from_document({**stored, "schema_version": 2})


def test_reading_the_results_needs_the_standard_library_alone() -> None:
    code = "import sys, ml.trust; print({'torch', 'numpy', 'scipy'} & set(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603
    assert ran.stdout.strip() == "set()"


# --- what comes with the product ----------------------------------------------------------------------------------


@pytest.fixture
def distrusted(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the last full run had shown that exposure tells nothing."""
    monkeypatch.setattr(trust, "last_results", lambda: _results(exposure=0.5))


def test_a_policy_for_releases_is_read_as_the_results_leave_it(distrusted: None, tmp_path: Path) -> None:
    written, read = written_policy("reference-2"), load_policy("reference-2")
    assert read == demote(written, _results(exposure=0.5)).policy
    assert read.name.startswith("reference-2-demoted-")
    assert load_policy(read.name) == read
    with pytest.raises(SpecError, match="other results"):
        load_policy("reference-2-demoted-00000000")
    assert load_policy("unit-1") == written_policy("unit-1")
    own = tmp_path / "own.json"
    own.write_text(json.dumps(replace(written, name="own").to_document()))
    assert read_policy(own).name.startswith("own-demoted-")
    # Other results leave another policy, under another name.
    more = demote(written, _results(exposure=0.5, hit_rate=0.5)).policy
    assert more.name != read.name
    assert demote(read, _results(exposure=0.5)).policy is read


def test_what_a_demoted_policy_judges_can_be_sealed_and_is_inconclusive(distrusted: None) -> None:
    policy = replace(demote(POLICY, _results(same_context_difference=0.5)).policy, purpose="release")
    report = passing_report(policy)
    sealed = read_evidence(evidence_bytes(target="tgt_1", policy=policy, report=report, unlearning=None))
    assert sealed.policy == policy
    assert any(not rule.primary for rule in policy.families)
    assert sealed.judged_again().result is Result.INCONCLUSIVE


def test_a_name_that_no_demotion_gave_is_refused() -> None:
    for name in ("unit-1-demoted-12345678", "nobody-demoted-12345678"):
        with pytest.raises(SpecError):
            load_policy(name)


def test_the_last_full_run_is_large_enough_and_trusts_what_the_policies_rest_on() -> None:
    results = last_results()
    assert {row.attack for row in results.attacks} == set(ATTACKS)
    assert min(row.learned for row in results.attacks) >= FEWEST_PAIRS
    assert min(row.not_learned for row in results.attacks) >= FEWEST_PAIRS
    assert min(row.models for row in results.attacks) >= FEWEST_PAIRS
    assert load_policy("reference-2") == written_policy("reference-2")


def test_no_pretender_of_the_last_full_run_passed() -> None:
    kinds = {row.kind: row for row in last_results().kinds}
    assert len(kinds) >= 12
    may = {kind for kind in kinds if kind.startswith(("never learned", "deleted by"))}
    assert {kind for kind, row in kinds.items() if row.results.get("PASS")} <= may
    assert sum(kinds["nothing done"].results.values()) == kinds["nothing done"].results["FAIL"] > 0
