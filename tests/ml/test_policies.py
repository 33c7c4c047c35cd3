"""The policies that come with the product say what they demand and what they leave open."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from ml.attacks import ATTACKS
from ml.decision import unattainable
from ml.errors import SpecError
from ml.models.quantise import ROUNDINGS
from ml.policies import load_policy, policy_names, read_policy
from ml.specs import Guard, VerdictPolicy
from ml.verification.checks import HARD_RULES
from ml.verification.families import GUARD_METRICS
from ml.verification.kept import PAIRINGS
from ml.verification.policy_check import refuse_powerless, refuse_unknown

POLICIES = policy_names()


def test_the_known_policies_are_listed_and_an_unknown_one_is_refused_with_that_list() -> None:
    assert POLICIES == ("reference-1", "reference-2", "unit-1")
    with pytest.raises(SpecError, match="known: reference-1, reference-2, unit-1"):
        load_policy("lenient-9")
    with pytest.raises(SpecError):
        load_policy("../policies/unit-1")


@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_file_is_its_canonical_document(name: str) -> None:
    policy = load_policy(name)
    text = resources.files("ml.policies").joinpath(f"{name}.json").read_text(encoding="utf-8")
    assert json.loads(text) == policy.to_document()
    assert VerdictPolicy.from_document(policy.to_document()) == policy
    assert policy.name == name


@pytest.mark.parametrize("name", POLICIES)
def test_everything_a_policy_names_can_be_measured(name: str) -> None:
    policy = load_policy(name)
    for family in policy.families:
        assert all(attack in ATTACKS for attack in (*family.primary, *family.detection))
        assert set(family.artefacts) <= {"merged", *ROUNDINGS}
        assert {guard.metric for guard in family.guards} <= set(GUARD_METRICS)
    assert {rule.id.split(".")[0] for rule in policy.utility} <= set(PAIRINGS)
    assert set(policy.hard_rules) <= set(HARD_RULES)


def test_a_policy_for_releases_whose_twins_can_show_no_leak_is_refused_before_anything_is_computed() -> None:
    """Six families in two directions: Holm's first step is 0.05 / 12, so 239 twins are needed in one family."""
    policy = load_policy("reference-2")
    assert max(rule.twins for rule in policy.families) == 239
    few = replace(policy, families=tuple(replace(rule, twins=min(238, rule.twins)) for rule in policy.families))
    refuse_powerless(policy)
    with pytest.raises(SpecError, match="at least 239"):
        refuse_powerless(few)
    with pytest.raises(SpecError, match="at least 1199"):
        refuse_powerless(replace(policy, alpha=0.01))
    refuse_powerless(replace(few, purpose="test"))
    # Generation and relearning may ask every twin that is drawn; likelihoods ask their own and no more.
    assert min(rule.twins for rule in policy.families) < 239
    first = (replace(policy.families[0], twins=39), *policy.families[1:])
    with pytest.raises(SpecError, match="family F1"):
        refuse_powerless(replace(policy, families=first))
    assert VerdictPolicy.from_document(few.to_document()) == few  # signed evidence under it stays readable


@pytest.mark.parametrize("name", POLICIES)
def test_every_family_can_reach_its_level_at_the_first_attempt(name: str) -> None:
    assert unattainable(load_policy(name), 1) == ()


def test_the_reference_policy_is_the_one_of_the_specification() -> None:
    policy = load_policy("reference-2")
    families = {family.id: family for family in policy.families}
    assert policy.purpose == "release"
    assert (policy.alpha, policy.swaps, policy.minimum_facts) == (0.05, 39, 20)
    assert policy.generation_prompts >= 149
    assert [families[f].primary[0] for f in ("F1", "F2", "F3")] == [
        "same_context_difference",
        "exposure",
        "extraction_strength",
    ]
    assert {f: families[f].twins for f in families} == {"F1": 239, "F2": 239, "F3": 239, "F4": 39, "F5": 239, "F6": 39}
    assert {f: families[f].rho for f in families} == {f: 0.3 if f == "F6" else 0.2 for f in families}
    assert {f: families[f].rho_over for f in ("F1", "F2", "F5")} == dict.fromkeys(("F1", "F2", "F5"), 0.3)
    assert set(families["F5"].artefacts) == {"merged", "int8", "int4"}
    assert set(policy.hard_rules) == {"unique_identifier", "sampling_leak", "lineage"}
    margins = {rule.id: rule.margin for rule in policy.utility}
    assert margins["U1.probability"] == margins["U1.extraction_strength"] == margins["U4.held_out"] == 0.02
    assert margins["U2.probability"] == 0.03
    assert len(policy.not_tested) >= 8


def test_only_reference_policies_may_release_a_model() -> None:
    assert {name: load_policy(name).purpose for name in POLICIES} == {
        "reference-1": "release",
        "reference-2": "release",
        "unit-1": "test",
    }


def test_a_policy_that_certificates_name_is_never_edited() -> None:
    assert load_policy("reference-1").sha256 == "c62f78e1d98c798e253e01260c531589bf3fbbd8b668d20d59d5843f33d94272"
    assert load_policy("reference-2").sha256 == "ca0a749173d99d8d9fc1a65c158788580de5d8a964070051d11a6702b0c29dba"
    assert "value_contests" not in load_policy("reference-1").to_document()


@pytest.mark.parametrize(
    "changed",
    [
        {"swaps": 10**6},
        {"swaps": 0},
        {"value_contests": 10**9},
        {"value_contests": 0},
        {"minimum_facts": 1, "value_contests": 5000},
        {"generation_prompts": 10**9},
        {"generation_prompts": 0},
        {"relearning": {"epochs": 10**6}},
        {"relearning": {"epochs": 0}},
        {"relearning": {"share": 1.0}},
        {"relearning": {"learning_rate": 0.0}},
        {"relearning": {"rank": 0}},
        {"families": {"twins": 10**7}},
        {"families": {"twins": 0}},
    ],
)
def test_a_policy_that_would_show_nothing_or_never_end_is_refused(changed: dict[str, Any]) -> None:
    policy = load_policy("reference-2")
    for name in ("relearning", "families"):
        if name in changed:
            part = policy.relearning if name == "relearning" else policy.families[0]
            whole = replace(part, **changed[name])
            changed = {name: whole if name == "relearning" else (whole, *policy.families[1:])}
    with pytest.raises(SpecError, match="verdict policy: "):
        VerdictPolicy.from_document(replace(policy, **changed).to_document())


def test_the_second_reference_policy_asks_for_more_swaps_where_facts_are_few_and_is_the_first_otherwise() -> None:
    first, second = load_policy("reference-1"), load_policy("reference-2")
    assert replace(second, name=first.name, version=first.version, value_contests=None) == first
    assert {facts: second.swaps_for(facts) for facts in (1, 20, 25, 40, 51, 400)} == {
        1: 79,
        20: 79,
        25: 63,
        40: 39,
        51: 39,
        400: 39,
    }
    assert all(second.swaps_for(facts) >= first.swaps_for(facts) == 39 for facts in range(500))
    assert all(facts * (1 + second.swaps_for(facts)) <= 1600 for facts in range(20, 41))


def test_reading_a_policy_needs_the_standard_library_alone() -> None:
    code = "import sys, ml.policies; ml.policies.load_policy('reference-2'); print('torch' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603
    assert ran.stdout.strip() == "False"


def test_a_policy_of_ones_own_is_read_from_a_file_and_refused_by_name_when_it_is_none(tmp_path: Path) -> None:
    path = tmp_path / "strict.json"
    mine = replace(load_policy("reference-2"), name="strict", alpha=0.01)
    path.write_text(json.dumps(mine.to_document()))
    assert read_policy(path) == mine
    path.write_text("{")
    with pytest.raises(SpecError, match=r"strict\.json"):
        read_policy(path)
    with pytest.raises(SpecError, match=r"absent\.json"):
        read_policy(tmp_path / "absent.json")


@pytest.mark.parametrize("name", POLICIES)
def test_our_own_policies_ask_only_for_what_is_measured(name: str) -> None:
    refuse_unknown(load_policy(name))


def test_what_nothing_measures_is_refused_instead_of_measured_as_something_else() -> None:
    policy = load_policy("unit-1")
    family, utility = policy.families[0], policy.utility[0]
    wrong = {
        "attack 'telepathy'": replace(policy, families=(replace(family, primary=("telepathy",)),)),
        "artefact 'gguf'": replace(policy, families=(replace(family, artefacts=("merged", "gguf")),)),
        "guard 'mood'": replace(policy, families=(replace(family, guards=(Guard("mood", maximum=1.0),)),)),
        "hard rule 'luck'": replace(policy, hard_rules=("luck",)),
        "utility id 'U9'": replace(policy, utility=(replace(utility, id="U9.probability"),)),
        "score of U1": replace(policy, utility=(replace(utility, id="U1.charm", score="charm"),)),
    }
    for words, changed in wrong.items():
        with pytest.raises(SpecError, match=words):
            refuse_unknown(changed)
