"""The evidence document: one shape, read strictly, judged again by whoever holds it, and published as a schema."""

from __future__ import annotations

import copy
import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from deletion_service.certificates.canonical import DocumentFormError
from deletion_service.certificates.evidence_document import (
    evidence_bytes,
    evidence_schema,
    read_evidence,
    validate_evidence,
)
from ml import decision, reports, specs
from ml.decision import judge
from ml.digests import canonical_json
from ml.policies import load_policy, policy_names
from ml.reports import EnergyPicture, Histogram, TwinSummary, VerificationReport
from tests.certificates import forge
from tests.certificates.test_statement import open_objects, places
from tests.ml.passing import POLICY, edited, passing_report


@pytest.fixture(scope="module")
def alice(tmp_path_factory: pytest.TempPathFactory) -> forge.CertificateSet:
    return forge.certificate_set(tmp_path_factory.mktemp("alice"))


def test_evidence_comes_back_and_carries_the_verdict_it_states(alice: forge.CertificateSet) -> None:
    document = read_evidence(alice.evidence)

    assert document.target == "tgt_01jalice"
    assert document.attempt == document.report.attempt == 1
    assert document.policy == alice.policy
    assert document.policy_sha256 == alice.policy.sha256
    assert document.unlearning == forge.unlearning_report(alice.manifest)
    assert document.judged_again() == judge(document.report, alice.policy)
    assert document.judged_again().to_document() == document.stated_verdict


def test_evidence_without_a_run_says_so(tmp_path: Path) -> None:
    assert read_evidence(forge.certificate_set(tmp_path, run=False).evidence).unlearning is None


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update(extra=1),
        lambda d: d.pop("unlearning"),
        lambda d: d.pop("verdict"),
        lambda d: d.update(schema_version=2),
        lambda d: d.update(target=None),
        lambda d: d.update(attempt="1"),
        lambda d: d.update(attempt=True),
        lambda d: d.update(verdict="PASS"),
        lambda d: d.update(unlearning={}),
        lambda d: d["policy"].update(alpha="0.5"),
        lambda d: d["policy"].pop("families"),
        lambda d: d["report"].update(attacks=None),
        lambda d: d["report"]["attacks"][0].update(p_residual="NaN"),
        lambda d: d["report"]["attacks"][0].update(score_of_record_7="0.1"),
    ],
)
def test_evidence_with_a_member_unknown_missing_or_malformed_is_refused(
    alice: forge.CertificateSet, change: Any
) -> None:
    document = json.loads(alice.evidence)
    change(document)

    with pytest.raises(DocumentFormError):
        read_evidence(canonical_json(document))


def test_evidence_laid_out_by_hand_is_refused(alice: forge.CertificateSet) -> None:
    with pytest.raises(DocumentFormError, match="canonical"):
        read_evidence(json.dumps(json.loads(alice.evidence), indent=1).encode())


# --- the published schema -----------------------------------------------------------------------------------------

CLASSES = {
    "histogram": reports.Histogram,
    "twinSummary": reports.TwinSummary,
    "attackResult": reports.AttackResult,
    "jointDetection": reports.JointDetection,
    "guardResult": reports.GuardResult,
    "hardRuleResult": reports.HardRuleResult,
    "utilityResult": reports.UtilityResult,
    "validityCheck": reports.ValidityCheck,
    "groupSummary": reports.GroupSummary,
    "energyPicture": reports.EnergyPicture,
    "probeSet": reports.ProbeSet,
    "relearningCurve": reports.RelearningCurve,
    "factRoc": reports.FactRoc,
    "report": reports.VerificationReport,
    "unlearning": reports.UnlearningReport,
    "guard": specs.Guard,
    "familyRule": specs.FamilyRule,
    "utilityRule": specs.UtilityRule,
    "relearningBudget": specs.RelearningBudget,
    "policy": specs.VerdictPolicy,
    "finding": decision.Finding,
    "gate": decision.GateVerdict,
    "verdict": decision.Verdict,
}
# Members that evidence has which was sealed since they were measured; what was sealed before stays readable.
LATER = {"report": {"relearning", "rocs"}, "policy": {"value_contests"}}
# Objects whose members are names that a policy or a library chose.
MAPS = {"artefacts", "separation", "numbers", "seeds", "environment", "cpu_seconds", "boundary", "losses"}


def test_the_schema_is_valid_closed_everywhere_and_accepts_its_own_example() -> None:
    schema = evidence_schema()
    Draft202012Validator.check_schema(schema)
    (example,) = schema["examples"]

    validate_evidence(example)
    document = read_evidence(canonical_json(example))
    assert document.judged_again().to_document() == document.stated_verdict
    assert list(open_objects(schema)) == []


@pytest.mark.parametrize("name", CLASSES)
def test_the_schema_knows_every_member_that_is_written_and_no_other(name: str) -> None:
    described = evidence_schema()["$defs"][name]
    assert sorted(described["properties"]) == sorted(f.name for f in fields(CLASSES[name]))
    assert set(described["properties"]) - set(described["required"]) == LATER.get(name, set())


def test_no_object_of_the_schema_goes_without_a_class() -> None:
    schema = evidence_schema()
    objects = {name for name, described in schema["$defs"].items() if "properties" in described}
    assert objects == set(CLASSES)


def pictured() -> VerificationReport:
    """A passing report with bars in it."""
    summary = TwinSummary(239, 0.0, 2.0, Histogram((-6.5, 0.0, 5.25), (118, 121)))
    report = edited(passing_report(), "attacks", 0, twins_before=summary, twins_after=summary)
    return replace(report, energies=(EnergyPicture("deleted", "after", Histogram((-6.0, -5.0, -4.0), (0, 28)), -4.9),))


def written(report: VerificationReport) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(
        evidence_bytes(target="tgt_01", policy=POLICY, report=report, unlearning=None)
    )
    return document


def test_what_is_sealed_follows_the_schema_passed_or_failed_with_or_without_a_run(tmp_path: Path) -> None:
    for name, options in {"passed": {}, "failed": {"leaking": True}, "no-run": {"run": False}}.items():
        validate_evidence(json.loads(forge.certificate_set(tmp_path / name, **options).evidence))  # type: ignore[arg-type]
    validate_evidence(written(pictured()))


@pytest.mark.parametrize("name", policy_names())
def test_evidence_under_every_policy_that_comes_with_the_product_follows_the_schema(name: str) -> None:
    policy = load_policy(name)
    content = evidence_bytes(target="tgt_01", policy=policy, report=passing_report(policy), unlearning=None)
    validate_evidence(json.loads(content))
    assert read_evidence(content).policy == policy


def test_an_attempt_that_measured_nothing_can_be_sealed() -> None:
    nothing = VerificationReport(
        "run_01", 1, POLICY.sha256, {"before": "a" * 64, "base": "", "candidate": "a" * 64}, {}, (), (), (), (), (), (),
        (), (), {}, (), {"commitment_sha256": "b" * 64}, {}, {}, ("the verify job failed: out_of_memory",),
    )  # fmt: skip
    assert written(nothing)["verdict"]["result"] == "INCONCLUSIVE"


def test_impossible_numbers_are_judged_not_refused() -> None:
    """Refusing to seal them would leave a request without any evidence; the decision rule calls them an error."""
    document = written(edited(passing_report(), "attacks", 0, p_detect=0.0))
    assert (document["verdict"]["result"], document["verdict"]["findings"][0]["result"]) == ("INCONCLUSIVE", "ERROR")


@pytest.mark.parametrize("few", [1, 2, 3, 4])
def test_a_bar_of_fewer_than_five_is_never_sealed(few: int) -> None:
    thin = Histogram((-6.5, 0.0, 5.25), (239 - few, few))
    exposed = edited(passing_report(), "attacks", 0, twins_after=TwinSummary(239, 0.0, 2.0, thin))

    with pytest.raises(DocumentFormError, match=r"twins_after.* breaks the schema rule"):
        written(exposed)
    energies = (EnergyPicture("deleted", "after", thin, -4.9),)
    with pytest.raises(DocumentFormError, match=r"energies.* breaks the schema rule"):
        written(replace(passing_report(), energies=energies))


def test_every_member_is_needed_and_none_may_be_added() -> None:
    one = {name: getattr(pictured(), name)[:1] for name in ("attacks", "joint", "guards", "utility", "validity")}
    whole, tried = written(replace(pictured(), **one)), 0  # type: ignore[arg-type]
    follows = Draft202012Validator(evidence_schema()).is_valid
    assert follows(whole)
    for place in [p for p in places(whole) if p and isinstance(p[-1], str) and not set(p[:-1]) & MAPS]:
        document, added = copy.deepcopy(whole), copy.deepcopy(whole)
        parent, other = document, added
        for key in place[:-1]:
            parent, other = parent[key], other[key]
        del parent[place[-1]]
        other["extra"] = 1
        assert follows(document) == (place in {(part, name) for part, names in LATER.items() for name in names})
        assert not follows(added)
        tried += 1
    assert tried > 150


FAILED = {"result": "FAIL", "code": "residual", "gate": "F1"}


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update(schema_version=2),
        lambda d: d.update(target="Alice Example"),
        lambda d: d.update(attempt=0),
        lambda d: d["verdict"].update(result="ERROR"),
        lambda d: d["verdict"].update(findings=[dict.fromkeys(("attack", "artefact"), "") | FAILED]),
        lambda d: d["verdict"].update(result="FAIL"),
        lambda d: d["report"]["attacks"][0].update(p_residual="NaN"),
        lambda d: d["report"]["attacks"][0].update(p_residual=0.5),
        lambda d: d["report"]["attacks"][0].update(p_residual="0,5"),
        lambda d: d["report"]["attacks"][0].update(status="skipped"),
        lambda d: d["report"]["attacks"][0].update(subject_after=["0.1", "0.2"]),
        lambda d: d["report"]["attacks"][0].update(score_of_record_7="0.1"),
        lambda d: d["report"]["models"].update(candidate="latest"),
        lambda d: d["report"]["seeds"].update(verification=5),
        lambda d: d["report"]["separation"].update({"Alice Example": "0.5"}),
        lambda d: d["report"]["cpu_seconds"].update(total="fast"),
        lambda d: d["report"]["energies"][0]["shape"].update(edges=["0.0"]),
        lambda d: d["policy"].update(families=[]),
        lambda d: d["policy"]["families"][0].update(primary=None),
        lambda d: d["policy"].update(purpose="lenient"),
        lambda d: d.update(unlearning={}),
    ],
)  # fmt: skip
def test_damaged_evidence_breaks_the_schema(change: Any) -> None:
    document = written(pictured())
    validate_evidence(document)
    change(document)

    with pytest.raises(DocumentFormError):
        validate_evidence(document)


def test_no_schema_error_repeats_the_content() -> None:
    document = written(pictured())
    document["target"] = "alice@example.org"

    with pytest.raises(DocumentFormError) as refused:
        validate_evidence(document)
    assert "alice" not in str(refused.value)
