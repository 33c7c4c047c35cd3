"""The statement: what it says, what it may not say, and that reader, writer and schema agree."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict, ParseDict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from in_toto_attestation.v1 import statement_pb2
from in_toto_attestation.v1.statement import Statement as OtherStatement
from jsonschema import Draft202012Validator

from deletion_service.certificates.canonical import DocumentFormError
from deletion_service.certificates.evaluation import DigestSet
from deletion_service.certificates.facts import (
    ErasureFacts,
    Pending,
    Retirement,
    SourceResult,
)
from deletion_service.certificates.statement import (
    StatementError,
    build_statement,
    contradictions,
    read_statement,
    statement_bytes,
    statement_schema,
    validate_statement,
)
from deletion_service.certificates.wording import ATTEMPT_TITLE, CERTIFICATE_TITLE, title_of
from deletion_service.errors import DomainError
from ml.digests import canonical_json
from tests.certificates import forge


@pytest.fixture(scope="module")
def passed(tmp_path_factory: pytest.TempPathFactory) -> forge.CertificateSet:
    return forge.certificate_set(tmp_path_factory.mktemp("passed"))


@pytest.fixture(scope="module")
def failed(tmp_path_factory: pytest.TempPathFactory) -> forge.CertificateSet:
    return forge.certificate_set(tmp_path_factory.mktemp("failed"), leaking=True)


def predicate(facts: ErasureFacts) -> dict[str, Any]:
    built: dict[str, Any] = build_statement(facts)["predicate"]
    return built


# --- what it says -------------------------------------------------------------------------------------------------


def test_the_subject_is_the_new_model_by_both_digests(passed: forge.CertificateSet) -> None:
    subject = passed.statement["subject"]

    assert subject == [{"name": "support-assistant", "digest": {"sha256": passed.manifest.root_sha256}}]
    assert passed.statement["predicate"]["manifestSha256"] == passed.manifest.manifest_sha256
    assert [row["path"] for row in passed.statement["predicate"]["manifest"]] == sorted(forge.MODEL_FILES)


def test_a_pass_is_a_certificate_and_states_the_bound_that_was_shown(passed: forge.CertificateSet) -> None:
    said = passed.statement["predicate"]

    assert said["title"] == CERTIFICATE_TITLE == "Erasure certificate"
    assert said["claim"] == (
        "At 95 % confidence at most 20 % of the measurable influence remains under the attacks listed for membership "
        "(F1); at most 30 % of the measurable influence remains under the attacks listed for generation (F4); "
        "over-forgetting is bounded at 30 % of that influence."
    )


def test_anything_else_is_an_attempt_report_and_says_plainly_what_was_not_shown(failed: forge.CertificateSet) -> None:
    said = failed.statement["predicate"]

    assert said["verdict"] == "FAIL"
    assert said["title"] == ATTEMPT_TITLE == "Erasure attempt report"
    assert said["claim"] == (
        "Erasure was not shown: at least one test established a leak, over-forgetting or a loss of utility; not met: "
        "membership (F1) residual; no bound on the remaining influence is claimed."
    )
    assert title_of("INCONCLUSIVE") == ATTEMPT_TITLE


def leaves(node: object) -> Iterator[object]:
    if isinstance(node, dict):
        for child in node.values():
            yield from leaves(child)
    elif isinstance(node, list):
        for child in node:
            yield from leaves(child)
    else:
        yield node


def test_every_number_is_text_so_that_no_reader_rounds_it(passed: forge.CertificateSet) -> None:
    assert {type(leaf) for leaf in leaves(passed.statement)} == {str, bool, type(None)}


def test_counts_about_the_person_are_buckets_and_approvals_are_roles(passed: forge.CertificateSet) -> None:
    said = passed.statement["predicate"]

    assert said["scope"]["recordCount"] == "11-100"
    assert [set(approval) for approval in said["approvals"]] == [{"role", "at"}, {"role", "at"}]


@pytest.mark.parametrize(
    ("guarantee", "sentence"),
    [
        ("exact_retrain", "trained again without the records"),
        ("exact_sharded", "shards"),
        ("certified_approximate", "assumptions"),
        ("empirical_approximate", "no mathematical guarantee"),
    ],
)
def test_the_first_limitation_says_what_kind_of_method_it_was(
    passed: forge.CertificateSet, guarantee: Any, sentence: str
) -> None:
    facts = replace(passed.facts, method=replace(passed.facts.method, guarantee=guarantee))

    assert sentence in predicate(facts)["limitations"][0]


@pytest.mark.parametrize(
    "said",
    [
        "another attack may recover more",
        "other people share",
        "no independent time stamp",
        "One host can hold both signing keys",
        "outside the registries and sources",
        "not for each single fact",
        "listed under notTested",
    ],
)
def test_what_is_always_left_open_is_always_said(passed: forge.CertificateSet, said: str) -> None:
    assert any(said in sentence for sentence in passed.statement["predicate"]["limitations"])


def test_old_weights_under_dated_retention_are_named_as_readable_until_then(passed: forge.CertificateSet) -> None:
    kept = Retirement(passed.facts.model_before.digest, "retained", "2027-06-01", "still_readable", forge.ISSUED_AT)
    facts = replace(passed.facts, retirement=(kept,), pending=(Pending("dispose_retained_weights", "2027-06-01"),))

    assert any("is kept until 2027-06-01" in sentence for sentence in predicate(facts)["limitations"])


def test_an_attempt_says_that_weights_sources_and_payload_are_still_there(failed: forge.CertificateSet) -> None:
    facts = replace(failed.facts, retirement=(), sources=(), disposal=None)

    said = " ".join(predicate(facts)["limitations"])
    assert "No older model was retired" in said
    assert "No training source was cleaned" in said
    assert "not yet destroyed" in said


def test_a_verdict_by_a_test_policy_is_said_to_have_no_value(tmp_path: Path) -> None:
    made = forge.certificate_set(tmp_path, judged_by=forge.policy(purpose="test"))

    assert any("no evidential value" in sentence for sentence in made.statement["predicate"]["limitations"])


# --- what it may not say ------------------------------------------------------------------------------------------


def test_a_seed_that_the_operator_set_is_stated_as_a_limitation(passed: forge.CertificateSet) -> None:
    drawn = predicate(passed.facts)["limitations"]
    fixed = predicate(replace(passed.facts, verification_seed_origin="fixed"))["limitations"]
    added = [text for text in fixed if text not in drawn]
    assert len(added) == 1
    assert added[0].startswith("The operator set the seed of the verification")


def with_gate(facts: ErasureFacts, result: Any) -> ErasureFacts:
    gates = (replace(facts.evaluation.gates[0], result=result), *facts.evaluation.gates[1:])
    return replace(facts, evaluation=replace(facts.evaluation, gates=gates))


def without_bounds(facts: ErasureFacts) -> ErasureFacts:
    gates = tuple(row for row in facts.evaluation.gates if row.kind != "attack")
    return replace(facts, evaluation=replace(facts.evaluation, gates=gates))


KEPT = Retirement(DigestSet("0" * 64), "retained", None, "still_readable", forge.ISSUED_AT)
LATER = "2027-03-05T12:00:01Z"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: with_gate(f, "FAIL"), "carry FAIL, not PASS"),
        (lambda f: with_gate(f, "INCONCLUSIVE"), "carry INCONCLUSIVE, not PASS"),
        (lambda f: with_gate(f, "ERROR"), "carry INCONCLUSIVE, not PASS"),
        (lambda f: replace(f, verdict="FAIL"), "carry PASS, not FAIL"),
        (without_bounds, "at least one attack"),
        (lambda f: replace(f, method=replace(f.method, guarantee="filter_only")), "left as they were"),
        (lambda f: replace(f, method=replace(f.method, guarantee="unchanged")), "left as they were"),
        (
            lambda f: replace(f, evaluation=replace(f.evaluation, artifact_loaded_by_digest=False)),
            "not the model named",
        ),
        (lambda f: replace(f, retirement=()), "no retirement result"),
        (lambda f: replace(f, retirement=(*f.retirement, KEPT)), "neither gone nor under dated retention"),
        (lambda f: replace(f, retirement=(*f.retirement, replace(KEPT, until="2027-03-04"))), "neither gone"),
        (lambda f: replace(f, retirement=(*f.retirement, replace(KEPT, until="2027-06-01"))), "listed as pending"),
        (
            lambda f: replace(f, retirement=(*f.retirement, replace(KEPT, action="deleted", until="2027-06-01"))),
            "neither gone nor under dated retention",
        ),
        (
            lambda f: replace(f, retirement=(replace(f.retirement[0], probe="unknown"),)),
            "neither gone nor under dated retention",
        ),
        (lambda f: replace(f, sources=()), "training source"),
        (
            lambda f: replace(f, sources=(SourceResult("letters", "deleted", "still_present", forge.ISSUED_AT),)),
            "source 1",
        ),
        (lambda f: replace(f, sources=(SourceResult("letters", "deleted", "unknown", None),)), "source 1"),
        (lambda f: replace(f, sources=(SourceResult("letters", "kept", "gone", forge.ISSUED_AT),)), "source 1"),
        (lambda f: replace(f, sources=(replace(f.sources[0], probed_at=None),)), "no time"),
        (lambda f: replace(f, sources=(replace(f.sources[0], probed_at=LATER),)), "after it was issued"),
        (lambda f: replace(f, approvals=(replace(f.approvals[0], at=LATER),)), "after it was issued"),
        (lambda f: replace(f, disposal=replace(f.disposal, at=LATER)), "after it was issued"),
        (lambda f: replace(f, disposal=None), "class A"),
        (lambda f: replace(f, disposal=replace(f.disposal, classes=("B",))), "class A"),
        (lambda f: replace(f, approvals=()), "approval"),
        (lambda f: replace(f, scope=replace(f.scope, layers=())), "no layer"),
        (lambda f: replace(f, manifest=()), "no model file"),
        (lambda f: replace(f, manifest=f.manifest[::-1]), "sorted"),
    ],
)
def test_a_certificate_whose_facts_do_not_carry_it_cannot_be_made(
    passed: forge.CertificateSet, change: Any, message: str
) -> None:
    with pytest.raises(StatementError, match=message):
        build_statement(change(passed.facts))


def test_an_attempt_without_a_reason_cannot_be_made(failed: forge.CertificateSet) -> None:
    with pytest.raises(StatementError, match="says why"):
        build_statement(replace(failed.facts, evaluation=replace(failed.facts.evaluation, unmet=())))


@pytest.mark.parametrize(
    "change",
    [
        lambda f: replace(f, certificate_id="Alice Example"),
        lambda f: replace(f, request=replace(f.request, upstream_id="alice@example.org")),
        lambda f: replace(f, request=replace(f.request, subject_commitment="0" * 64)),
        lambda f: replace(f, issued_at="2027-03-05"),
        lambda f: replace(f, attempt="1.0"),
        lambda f: replace(f, scope=replace(f.scope, record_count="84")),
        lambda f: replace(f, capacity="both"),
        lambda f: replace(f, model_name="two\nlines"),
        lambda f: replace(f, manifest=(replace(f.manifest[0], path="../config.json"),)),
    ],
)
def test_a_field_out_of_form_is_refused(passed: forge.CertificateSet, change: Any) -> None:
    with pytest.raises(DocumentFormError):
        build_statement(change(passed.facts))


# --- reader, writer and schema ------------------------------------------------------------------------------------


def test_a_statement_comes_back_as_the_facts_it_was_made_from(
    passed: forge.CertificateSet, failed: forge.CertificateSet
) -> None:
    for made in (passed, failed):
        read = read_statement(json.loads(statement_bytes(made.statement)))
        assert read.facts == made.facts
        assert read.manifest == made.manifest


def test_the_published_schema_is_valid_closed_everywhere_and_accepts_its_own_example() -> None:
    schema = statement_schema()
    Draft202012Validator.check_schema(schema)
    (example,) = schema["examples"]

    validate_statement(example)
    assert contradictions(read_statement(example)) == ()
    assert list(open_objects(schema)) == []


def open_objects(node: Any, path: str = "$") -> Iterator[str]:
    """Objects of the schema that would let an unknown member through; conditions only narrow, so they may."""
    if isinstance(node, dict):
        if "properties" in node and node.get("additionalProperties") is not False and "/allOf" not in path:
            yield path
        for key, child in node.items():
            if key != "examples":
                yield from open_objects(child, f"{path}/{key}")
    elif isinstance(node, list):
        for index, child in enumerate(node):
            yield from open_objects(child, f"{path}/{index}")


def places(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, child in children:
        yield from places(child, (*path, key))


JUNK = st.sampled_from(
    [
        None,
        True,
        False,
        0,
        1,
        "",
        "PASS",
        "FAIL",
        "gone",
        "0",
        "1-10",
        "2027-03-05",
        "\x1b[0m",
        "x" * 3000,
        [],
        {},
        [None],
    ]
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_what_the_reader_accepts_the_schema_accepts(
    data: st.DataObject, passed: forge.CertificateSet, failed: forge.CertificateSet
) -> None:
    document = copy.deepcopy(data.draw(st.sampled_from([passed, failed])).statement)
    target = data.draw(st.sampled_from(list(places(document))[1:]))
    parent: Any = document
    for key in target[:-1]:
        parent = parent[key]
    action = data.draw(st.sampled_from(["delete", "replace", "add"]))
    if action == "delete":
        del parent[target[-1]]
    elif action == "replace" or not isinstance(parent, dict):
        parent[target[-1]] = data.draw(JUNK)
    else:
        parent["extra"] = data.draw(JUNK)

    if accepted(document):
        validate_statement(document)


def accepted(document: dict[str, Any]) -> bool:
    """Whether the strict reader finds nothing wrong; whatever it refuses, it refuses with a typed error."""
    try:
        read = read_statement(document)
    except DomainError:
        return False
    titled = read.words.title == title_of(read.facts.verdict)
    return titled and bool(read.words.limitations) and not contradictions(read)


def test_neither_schema_nor_code_lets_a_statement_without_limitations_through(passed: forge.CertificateSet) -> None:
    document = copy.deepcopy(passed.statement)
    document["predicate"]["limitations"] = []

    with pytest.raises(StatementError, match="limitations"):
        statement_bytes(document)
    assert not accepted(document)


def test_neither_schema_nor_code_calls_an_attempt_a_certificate(failed: forge.CertificateSet) -> None:
    document = copy.deepcopy(failed.statement)
    document["predicate"]["title"] = CERTIFICATE_TITLE

    with pytest.raises(StatementError, match="title"):
        statement_bytes(document)
    assert not accepted(document)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d["subject"][0]["digest"].update(sha256="0" * 64),
        lambda d: d["predicate"].update(manifestSha256="0" * 64),
        lambda d: d["predicate"]["manifest"][0].update(path="renamed.json"),
        lambda d: d["predicate"]["manifest"][0].update(size="23"),
        lambda d: d["predicate"]["manifest"].pop(),
        lambda d: d["predicate"].update(modelName="another"),
        lambda d: d["subject"].append(d["subject"][0]),
        lambda d: d.update(_type="https://in-toto.io/Statement/v0.1"),
        lambda d: d.update(predicateType="https://lethe.example/attestation/model-erasure/v2"),
    ],
)
def test_a_statement_whose_digests_are_not_those_of_its_files_is_refused(
    passed: forge.CertificateSet, change: Any
) -> None:
    document = copy.deepcopy(passed.statement)
    change(document)

    with pytest.raises(DomainError):
        read_statement(document)


def test_no_schema_error_repeats_the_content(passed: forge.CertificateSet) -> None:
    document = copy.deepcopy(passed.statement)
    document["predicate"]["request"]["upstreamId"] = "alice@example.org"

    with pytest.raises(StatementError) as refused:
        validate_statement(document)
    assert "alice" not in str(refused.value)


def test_the_bytes_to_sign_are_canonical(passed: forge.CertificateSet) -> None:
    assert statement_bytes(passed.statement) == canonical_json(passed.statement)


def test_the_in_toto_library_reads_the_statement_and_loses_nothing(passed: forge.CertificateSet) -> None:
    theirs = OtherStatement.copy_from_pb(ParseDict(passed.statement, statement_pb2.Statement()))

    theirs.validate()
    assert MessageToDict(theirs.pb) == passed.statement
