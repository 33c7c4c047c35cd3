"""Mallory tries: every way we could think of to make something verify that should not."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deletion_service.certificates.canonical import base64_bytes, base64_text
from deletion_service.certificates.envelope import Envelope, Signature, read_envelope
from deletion_service.certificates.evidence_document import evidence_bytes
from deletion_service.certificates.signing import Ed25519Signer, IssuerDocument, IssuerDocumentError
from deletion_service.certificates.statement import read_statement
from deletion_service.certificates.verify import CHECKS, VerificationResult, verify_certificate
from deletion_service.certificates.wording import words_of
from ml.digests import canonical_json, sha256_hex
from ml.reports import UnlearningReport
from tests.certificates import forge


@pytest.fixture(scope="module")
def alice(tmp_path_factory: pytest.TempPathFactory) -> forge.CertificateSet:
    return forge.certificate_set(tmp_path_factory.mktemp("alice"))


@pytest.fixture(scope="module")
def bob(tmp_path_factory: pytest.TempPathFactory) -> forge.CertificateSet:
    """Another valid certificate of the same issuer, for another person, model and target."""
    files = {**forge.MODEL_FILES, "config.json": b'{"model_type":"mistral"}'}
    return forge.certificate_set(
        tmp_path_factory.mktemp("bob"), files=files, certificate_id="crt_01jbob", target_id="tgt_01jbob"
    )


@pytest.fixture(scope="module")
def attempt(tmp_path_factory: pytest.TempPathFactory) -> forge.CertificateSet:
    """An honest attempt report with verdict FAIL."""
    return forge.certificate_set(tmp_path_factory.mktemp("attempt"), leaking=True)


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> forge.CertificateSet:
    """The shortest certificate, for altering it at every byte."""
    files = {"model.safetensors": b"\x08\x00\x00\x00\x00\x00\x00\x00{}      "}
    return forge.certificate_set(tmp_path_factory.mktemp("short"), judged_by=forge.small_policy(), files=files)


def failed_checks(result: VerificationResult) -> list[str]:
    return [check.name for check in result.failed]


# --- swaps and replays --------------------------------------------------------------------------------------------


def test_evidence_of_another_certificate_is_noticed(alice: forge.CertificateSet, bob: forge.CertificateSet) -> None:
    assert failed_checks(verify_certificate(alice.certificate, **alice.inputs(evidence=bob.evidence))) == [
        "evidence_digest"
    ]


def test_the_model_of_another_certificate_is_noticed(alice: forge.CertificateSet, bob: forge.CertificateSet) -> None:
    assert failed_checks(verify_certificate(alice.certificate, **alice.inputs(model_dir=bob.model_dir))) == [
        "model_files"
    ]


def test_the_log_proof_of_another_certificate_is_noticed(
    alice: forge.CertificateSet, bob: forge.CertificateSet
) -> None:
    assert failed_checks(verify_certificate(alice.certificate, **alice.inputs(log_proof=bob.log_proof))) == [
        "log_inclusion"
    ]


def test_an_old_envelope_with_the_proof_of_its_successor_is_noticed(
    alice: forge.CertificateSet, bob: forge.CertificateSet
) -> None:
    fresh = forge.log_proof([b"older", bob.certificate, b"newer"], index=1)

    assert failed_checks(verify_certificate(alice.certificate, **alice.inputs(log_proof=fresh))) == ["log_inclusion"]
    assert verify_certificate(bob.certificate, **bob.inputs(log_proof=fresh)).ok


def test_the_signatures_of_one_certificate_do_not_fit_another(
    alice: forge.CertificateSet, bob: forge.CertificateSet
) -> None:
    envelope = replace(read_envelope(alice.certificate), signatures=read_envelope(bob.certificate).signatures)

    assert failed_checks(verify_certificate(envelope.to_bytes(), **alice.inputs())) == ["signatures"]


def test_a_log_of_mallorys_own_is_noticed(alice: forge.CertificateSet) -> None:
    own_key = forge.log_proof([alice.certificate], index=0, log=forge.MALLORY)
    own_name = forge.log_proof([alice.certificate], index=0, origin="log.mallory.example")

    for proof in (own_key, own_name):
        result = verify_certificate(alice.certificate, **alice.inputs(log_proof=proof))
        assert failed_checks(result) == ["log_checkpoint"]


def test_the_issuers_own_key_signs_no_checkpoint(alice: forge.CertificateSet) -> None:
    proof = forge.log_proof([alice.certificate], index=0, log=forge.ISSUER)

    assert failed_checks(verify_certificate(alice.certificate, **alice.inputs(log_proof=proof))) == ["log_checkpoint"]


# --- keys ---------------------------------------------------------------------------------------------------------


def payload_of(made: forge.CertificateSet) -> bytes:
    return read_envelope(made.certificate).payload


@pytest.mark.parametrize(
    "signers",
    [
        pytest.param([forge.ISSUER], id="the issuer alone"),
        pytest.param([forge.APPROVER], id="the approver alone"),
        pytest.param([forge.ISSUER, forge.LOG], id="the log for the approver"),
        pytest.param([forge.APPROVER, forge.LOG], id="the log for the issuer"),
        pytest.param([forge.ISSUER, forge.MALLORY], id="Mallory for the approver"),
        pytest.param([forge.ISSUER, forge.APPROVER, forge.MALLORY], id="Mallory as a third"),
        pytest.param([forge.ISSUER, forge.APPROVER, forge.LOG], id="the log as a third"),
    ],
)
def test_only_one_issuer_key_and_one_approver_key_make_a_certificate(
    alice: forge.CertificateSet, signers: list[Ed25519Signer]
) -> None:
    signed = forge.signed_raw(payload_of(alice), signers=signers)

    assert failed_checks(verify_certificate(signed, **alice.inputs())) == ["signatures"]


def test_a_second_issuer_key_adds_nothing_to_a_certificate(alice: forge.CertificateSet) -> None:
    """During a rotation two issuer keys are listed; a third signature would still be a second spelling."""
    second = replace(forge.issuer_document().keys[0], **key_fields(forge.signer("the next issuer key")))
    rotating = replace(alice.issuer, keys=(*alice.issuer.keys, second))
    signers = [forge.ISSUER, forge.APPROVER, forge.signer("the next issuer key")]

    result = verify_certificate(forge.signed_raw(payload_of(alice), signers=signers), **alice.inputs(issuer=rotating))

    assert failed_checks(result) == ["signatures"]


def key_fields(signer: Ed25519Signer) -> dict[str, Any]:
    return {"keyid": signer.keyid, "public_key": base64_text(signer.public_key)}


def test_two_issuer_keys_do_not_make_a_certificate(alice: forge.CertificateSet) -> None:
    both_issuers = tuple(replace(key, role="issuer") for key in alice.issuer.keys)

    result = verify_certificate(alice.certificate, **alice.inputs(issuer=replace(alice.issuer, keys=both_issuers)))

    assert "signatures" in failed_checks(result)


def hand_made(payload: bytes, *rows: tuple[str, bytes]) -> bytes:
    """An envelope that no constructor of ours would make, in canonical form."""
    signatures = [{"keyid": keyid, "sig": base64_text(value)} for keyid, value in sorted(rows)]
    return canonical_json(
        {"payload": base64_text(payload), "payloadType": "application/vnd.in-toto+json", "signatures": signatures}
    )


def test_one_key_that_signs_twice_never_counts_as_two(alice: forge.CertificateSet) -> None:
    payload = payload_of(alice)
    covered = Envelope(payload, "application/vnd.in-toto+json", (Signature("x", b""),)).signed_bytes
    own = forge.ISSUER.sign(covered)
    tries = [
        hand_made(payload, (forge.ISSUER.keyid, own), (forge.ISSUER.keyid, own)),
        hand_made(payload, (forge.ISSUER.keyid, own), (forge.APPROVER.keyid, own)),
        hand_made(payload, (forge.ISSUER.keyid, own), (forge.APPROVER.keyid, own + b"\x00")),
        hand_made(payload, (forge.ISSUER.keyid, own), (forge.ISSUER.keyid.upper(), own)),
        hand_made(payload, (forge.ISSUER.keyid, own), (forge.ISSUER.keyid + " ", own)),
    ]

    for tried in tries:
        result = verify_certificate(tried, **alice.inputs())
        assert failed_checks(result) in (["envelope"], ["signatures"])


def test_a_key_listed_twice_under_two_ids_is_no_issuer_document(alice: forge.CertificateSet) -> None:
    document = alice.issuer.to_document()
    document["keys"][1]["publicKey"] = document["keys"][0]["publicKey"]

    with pytest.raises(IssuerDocumentError, match="digest of its public key"):
        IssuerDocument.from_bytes(json.dumps(document).encode())


def test_exchanged_key_ids_are_noticed(alice: forge.CertificateSet) -> None:
    first, second = read_envelope(alice.certificate).signatures
    swapped = hand_made(payload_of(alice), (first.keyid, second.value), (second.keyid, first.value))

    assert failed_checks(verify_certificate(swapped, **alice.inputs())) == ["signatures"]


ORDER = 2**252 + 27742317777372353535851937790883648493


def test_a_signature_made_longer_by_the_order_of_the_curve_does_not_hold(alice: forge.CertificateSet) -> None:
    """Ed25519 is malleable where S is not reduced; a second valid spelling would be a second log entry."""
    first, second = read_envelope(alice.certificate).signatures
    scalar = int.from_bytes(first.value[32:], "little") + ORDER
    stretched = first.value[:32] + scalar.to_bytes(32, "little")

    tried = hand_made(payload_of(alice), (first.keyid, stretched), (second.keyid, second.value))

    assert failed_checks(verify_certificate(tried, **alice.inputs())) == ["signatures"]


def test_a_statement_under_another_payload_type_is_not_accepted(alice: forge.CertificateSet) -> None:
    for kind in ("application/json", "application/vnd.in-toto+json ", "Application/vnd.in-toto+json", ""):
        result = verify_certificate(forge.signed_raw(payload_of(alice), kind=kind), **alice.inputs())
        assert failed_checks(result) == ["payload_type"]


# --- both signers deceived: signed statements that contradict themselves or the evidence --------------------------


def resigned(made: forge.CertificateSet, change: Callable[[dict[str, Any]], Any]) -> bytes:
    """What two signers would sign whose own checks are switched off."""
    document = copy.deepcopy(made.statement)
    change(document)
    return forge.signed_raw(canonical_json(document))


def without_log(made: forge.CertificateSet, **changes: Any) -> dict[str, Any]:
    return made.inputs(log_proof=None, **changes)


@pytest.mark.parametrize(
    ("change", "check"),
    [
        (lambda d: d["predicate"].update(title="Erasure certificate "), "statement"),
        (lambda d: d["predicate"].update(title="erasure certificate"), "title"),
        (lambda d: d["predicate"].update(title="Erasure attempt report"), "title"),
        (lambda d: d["predicate"].update(title="Erasure certific\u0430te"), "title"),
        (lambda d: d["predicate"].update(verdict="pass"), "statement"),
        (lambda d: d["predicate"].update(verdict="PASS "), "statement"),
        (lambda d: d["predicate"].update(limitations=[]), "limitations"),
        (lambda d: d["predicate"].update(limitations=["None."]), "limitations"),
        (lambda d: d["predicate"]["limitations"].pop(0), "limitations"),
        (lambda d: d["predicate"]["limitations"].append("It is all gone."), "limitations"),
        (lambda d: d["predicate"].update(claim="All data of the person were fully deleted."), "claim"),
        (lambda d: d["predicate"].update(wordingVersion="3"), "claim"),
        (lambda d: d["predicate"].update(wordingVersion="1"), "statement"),
        (lambda d: d["predicate"].pop("sustainability"), "statement"),
        (lambda d: d["predicate"].update(sustainability=None), "consistency"),
        (lambda d: d["predicate"]["sustainability"].update(earlier="1"), "limitations"),
        (lambda d: d["predicate"]["sustainability"]["later"].update(spikeIn=False), "limitations"),
        (lambda d: d["predicate"].update(wordingVersion="one"), "statement"),
        (lambda d: d["predicate"]["approvals"].pop(), "consistency"),
        (lambda d: d["predicate"].update(limitations=[""]), "statement"),
        (lambda d: d["predicate"].update(limitations=["\u202eneht llew"]), "statement"),
        (lambda d: d["predicate"].pop("limitations"), "statement"),
        (lambda d: d["predicate"].update(note="all is well"), "statement"),
        (lambda d: d["predicate"].pop("sources"), "statement"),
        (lambda d: d["predicate"].update(sources=[]), "consistency"),
        (lambda d: d["predicate"].update(retirement=[]), "consistency"),
        (lambda d: d["predicate"]["retirement"][0].update(probe="still_readable"), "consistency"),
        (lambda d: d["predicate"]["retirement"][0].update(probe="Gone"), "statement"),
        (lambda d: d["predicate"]["evaluation"]["gates"][0].update(result="FAIL"), "consistency"),
        (lambda d: d["predicate"]["evaluation"]["gates"].clear(), "consistency"),
        (lambda d: d["predicate"]["evaluation"]["policy"]["digest"].update(sha256="0" * 64), "policy"),
        (lambda d: d["predicate"]["evaluation"]["policy"].update(version="2"), "policy"),
        (lambda d: d["predicate"].update(issuedAt="2030-01-01T00:00:00Z"), "key_validity"),
        (lambda d: d["predicate"].update(issuedAt="2027-03-05T12:00:00+00:00"), "statement"),
        (lambda d: d["predicate"].update(manifestSha256="0" * 64), "statement"),
        (lambda d: d["subject"][0]["digest"].update(sha256="0" * 64), "statement"),
        (lambda d: d["predicate"]["manifest"][0].update(path="x.json"), "statement"),
        (lambda d: d.update(predicateType="https://lethe.example/attestation/model-erasure/v1/"), "statement"),
        (lambda d: d["predicate"].update(targetId="tgt_01jbob"), "evidence_origin"),
        (lambda d: d["predicate"].update(attempt="2"), "evidence_origin"),
        (lambda d: d["predicate"]["modelBefore"].update(manifestSha256="0" * 64), "evidence_origin"),
        (lambda d: d["predicate"].update(verificationSeedCommitment="sha256:" + "0" * 64), "evidence_origin"),
        (lambda d: d["predicate"]["method"].update(name="retrain"), "evidence_origin"),
        (lambda d: d["predicate"]["method"].update(guarantee="exact_retrain"), "evidence_origin"),
        (lambda d: d["predicate"]["method"].update(seeds=["8"]), "evidence_origin"),
        (lambda d: d["predicate"]["method"].update(codeDigest="sha256:" + "0" * 64), "evidence_origin"),
        (lambda d: d["predicate"]["method"].update(configDigest="sha256:" + "0" * 64), "evidence_origin"),
        (lambda d: d["predicate"]["evaluation"].update(confidence="0.99"), "evidence_numbers"),
        (lambda d: d["predicate"]["evaluation"].update(notTested=[]), "evidence_numbers"),
        (lambda d: d["predicate"]["evaluation"].update(flags=["detectable"]), "evidence_numbers"),
        (lambda d: d["predicate"]["evaluation"]["gates"].pop(), "evidence_numbers"),
        (lambda d: gate(d, "F1.same_context_difference.merged").update(value="0"), "evidence_numbers"),
        (
            lambda d: gate(d, "F1.same_context_difference.merged").update(interval=["-0.3", "0.1"]),
            "evidence_numbers",
        ),
    ],
)
def test_a_signed_statement_that_says_more_than_it_may_fails_the_check_named(
    alice: forge.CertificateSet, change: Any, check: str
) -> None:
    result = verify_certificate(resigned(alice, change), **without_log(alice))

    assert check in failed_checks(result)


def gate(document: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(row for row in document["predicate"]["evaluation"]["gates"] if row["id"] == name)
    return found


def test_a_failed_attempt_dressed_as_a_certificate_is_judged_again(attempt: forge.CertificateSet) -> None:
    """Both signers lie consistently: every gate painted PASS. Only the evidence can tell, and it does."""

    def dress(document: dict[str, Any]) -> None:
        said = document["predicate"]
        said.update(verdict="PASS", title="Erasure certificate")
        said["evaluation"].update(unmet=[], flags=[])
        for row in said["evaluation"]["gates"]:
            row["result"] = "PASS"
        words = words_of(read_statement(document).facts)
        said.update(claim=words.claim, limitations=list(words.limitations))

    certificate = resigned(attempt, dress)

    assert failed_checks(verify_certificate(certificate, **without_log(attempt))) == [
        "evidence_verdict",
        "evidence_numbers",
    ]
    assert "no evidence was given" in " ".join(verify_certificate(certificate, issuer=attempt.issuer).not_shown)


def test_a_failed_attempt_dressed_as_a_declined_pass_is_judged_again(attempt: forge.CertificateSet) -> None:
    def dress(document: dict[str, Any]) -> None:
        said = document["predicate"]
        said.update(verdict="INCONCLUSIVE")
        finding = {"code": "declined", "gate": "release", "attack": None, "artefact": None, "result": "INCONCLUSIVE"}
        said["evaluation"].update(unmet=[finding], flags=[])
        for row in said["evaluation"]["gates"]:
            row["result"] = "PASS"
        words = words_of(read_statement(document).facts)
        said.update(claim=words.claim, limitations=list(words.limitations))

    certificate = resigned(attempt, dress)

    assert failed_checks(verify_certificate(certificate, **without_log(attempt))) == [
        "evidence_verdict",
        "evidence_numbers",
    ]


def test_evidence_with_a_verdict_of_its_own_is_judged_again(attempt: forge.CertificateSet) -> None:
    document = json.loads(attempt.evidence)
    document["verdict"]["result"] = "INCONCLUSIVE"

    assert failed_checks(pointing_to(canonical_json(document), attempt)) == ["evidence_verdict"]


def pointing_to(evidence: bytes, made: forge.CertificateSet) -> VerificationResult:
    """Check a certificate that two deceived signers re-signed to name other evidence."""
    certificate = resigned(
        made, lambda d: d["predicate"]["evaluation"].update(evidenceDigest={"sha256": sha256_hex(evidence)})
    )
    return verify_certificate(certificate, **without_log(made, evidence=evidence))


def made_by(made: forge.CertificateSet) -> UnlearningReport:
    return forge.unlearning_report(made.manifest)


def test_a_pass_whose_evidence_names_no_unlearning_run_is_refused(alice: forge.CertificateSet) -> None:
    shown = forge.report(alice.policy, candidate=alice.manifest.manifest_sha256)

    result = pointing_to(
        evidence_bytes(target="tgt_01jalice", policy=alice.policy, report=shown, unlearning=None), alice
    )

    assert failed_checks(result) == ["evidence_origin"]
    assert "no unlearning run" in result.failed[0].sentence


def test_a_seed_of_thousands_of_digits_is_another_seed_and_no_crash(alice: forge.CertificateSet) -> None:
    shown = forge.report(alice.policy, candidate=alice.manifest.manifest_sha256)
    shown = replace(shown, seeds={**shown.seeds, "verification": "7" * 5000})

    result = pointing_to(
        evidence_bytes(target="tgt_01jalice", policy=alice.policy, report=shown, unlearning=made_by(alice)), alice
    )

    assert failed_checks(result) == ["evidence_origin"]
    assert result.failed[0].sentence == "the evidence is about another verification seed"


def test_a_test_policy_that_calls_itself_one_for_release_is_noticed_without_evidence(tmp_path: Path) -> None:
    made = forge.certificate_set(tmp_path, judged_by=forge.policy(purpose="test"))

    def dress(document: dict[str, Any]) -> None:
        document["predicate"]["evaluation"]["policy"].update(purpose="release")
        document["predicate"].update(limitations=list(words_of(read_statement(document).facts).limitations))

    assert failed_checks(verify_certificate(resigned(made, dress), issuer=made.issuer)) == ["policy"]


def test_evidence_judged_by_a_laxer_policy_than_the_one_named_is_noticed(alice: forge.CertificateSet) -> None:
    lax = replace(alice.policy, families=tuple(replace(rule, rho=0.9) for rule in alice.policy.families))
    shown = forge.report(lax, candidate=alice.manifest.manifest_sha256)

    result = pointing_to(
        evidence_bytes(target="tgt_01jalice", policy=lax, report=shown, unlearning=made_by(alice)), alice
    )

    assert failed_checks(result) == ["evidence_verdict", "evidence_numbers"]


def test_evidence_about_another_model_is_noticed(alice: forge.CertificateSet, bob: forge.CertificateSet) -> None:
    shown = forge.report(alice.policy, candidate=bob.manifest.manifest_sha256)

    result = pointing_to(
        evidence_bytes(target="tgt_01jalice", policy=alice.policy, report=shown, unlearning=made_by(alice)), alice
    )

    assert failed_checks(result) == ["evidence_numbers", "evidence_origin"]
    assert result.failed[1].sentence == "the evidence is about another new model"


def test_evidence_of_a_run_that_made_another_model_is_noticed(
    alice: forge.CertificateSet, bob: forge.CertificateSet
) -> None:
    shown = forge.report(alice.policy, candidate=alice.manifest.manifest_sha256)
    run = forge.unlearning_report(bob.manifest)

    result = pointing_to(
        evidence_bytes(target="tgt_01jalice", policy=alice.policy, report=shown, unlearning=run), alice
    )

    assert failed_checks(result) == ["evidence_origin"]
    assert result.failed[0].sentence == "the evidence is about another model the run made"


def test_a_policy_the_issuer_never_published_is_noticed(alice: forge.CertificateSet) -> None:
    unknown = replace(alice.issuer, policies=())

    assert failed_checks(verify_certificate(alice.certificate, **alice.inputs(issuer=unknown))) == ["policy"]


# --- hostile documents --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(b"[" * 100_000, id="deep arrays"),
        pytest.param(b'{"a":' * 50_000 + b"1" + b"}" * 50_000, id="deep objects"),
        pytest.param(b'{"a":NaN}', id="NaN"),
        pytest.param(b'{"a":1e999}', id="infinity"),
        pytest.param(b'{"_type":"a","_type":"b"}', id="the same key twice"),
        pytest.param(b'{"a":' + b"9" * 10_000 + b"}", id="a very long number"),
        pytest.param(b"\xff\xfe{\x00}\x00", id="another encoding"),
        pytest.param(b"", id="nothing"),
        pytest.param(b"null", id="null"),
    ],
)
def test_a_hostile_payload_that_is_properly_signed_is_refused_calmly(
    alice: forge.CertificateSet, payload: bytes
) -> None:
    result = verify_certificate(forge.signed_raw(payload), **alice.inputs())

    assert failed_checks(result) in (["payload"], ["statement"])


def test_the_same_documents_as_envelope_evidence_and_proof_are_refused_calmly(alice: forge.CertificateSet) -> None:
    for hostile in (b"[" * 100_000, b'{"a":NaN}', b'{"a":1,"a":1}', b"", b"null", b"\xff", b"9" * 10_000, b'"\\ud800"'):
        assert failed_checks(verify_certificate(hostile, **alice.inputs())) == ["envelope"]
        assert failed_checks(verify_certificate(alice.certificate, **alice.inputs(evidence=hostile))) == [
            "evidence_digest"
        ]
        assert failed_checks(verify_certificate(alice.certificate, **alice.inputs(log_proof=hostile))) == [
            "log_checkpoint"
        ]
        assert failed_checks(verify_certificate(alice.certificate, **alice.inputs(revocations=hostile))) == [
            "revocation"
        ]


def test_a_huge_envelope_is_refused_before_it_is_parsed(alice: forge.CertificateSet) -> None:
    huge = b'{"payload":"' + b"A" * (9 << 20) + b'"}'

    result = verify_certificate(huge, **alice.inputs())

    assert failed_checks(result) == ["envelope"]
    assert "larger" in result.failed[0].sentence


@pytest.mark.parametrize(
    "spelling",
    [
        lambda data: data + b"\n",
        lambda data: b" " + data,
        lambda data: data.replace(b'"signatures":', b'"signatures": '),
        lambda data: data.replace(b'"payloadType"', b'"payloadtype"'),
        lambda data: data.replace(b"sha256:", b"SHA256:"),
        lambda data: data.replace(b'"keyid"', b'"\\u006beyid"'),
        lambda data: data.replace(b'{"payload"', b'{"extra":0,"payload"'),
        lambda data: json.dumps(json.loads(data), indent=1).encode(),
        lambda data: data.replace(b"=", b"", 1),
    ],
)
def test_no_other_spelling_of_a_valid_envelope_verifies(alice: forge.CertificateSet, spelling: Any) -> None:
    other = spelling(alice.certificate)

    assert other != alice.certificate
    assert not verify_certificate(other, **alice.inputs()).ok


def test_unsigned_words_around_the_payload_are_not_possible(alice: forge.CertificateSet) -> None:
    document = json.loads(alice.certificate)
    payload = base64_bytes(document["payload"], what="the payload")
    document["payload"] = base64_text(payload + b" ")

    assert failed_checks(verify_certificate(canonical_json(document), **alice.inputs())) == ["signatures"]


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_whatever_two_deceived_signers_sign_the_check_ends_calmly(
    data: st.DataObject, alice: forge.CertificateSet
) -> None:
    """No signed statement or evidence, however odd, ends in anything but a list of checks."""
    odd = st.sampled_from(
        [None, True, 0, -1, 2**53 - 1, "", "0", "-1", "1e400", "NaN", "9" * 400, [], {}, "\x00", "x" * 5000]
    )
    evidence = json.loads(alice.evidence)
    path = data.draw(st.sampled_from(list(places(evidence))[1:]))
    parent: Any = evidence
    for key in path[:-1]:
        parent = parent[key]
    parent[path[-1]] = data.draw(odd)
    altered = canonical_json(evidence)

    def point_there(document: dict[str, Any]) -> None:
        document["predicate"]["evaluation"]["evidenceDigest"] = {"sha256": sha256_hex(altered)}

    result = verify_certificate(resigned(alice, point_there), **without_log(alice, evidence=altered, model_dir=None))

    assert [check.name for check in result.checks] == list(CHECKS)
    assert not {check.name for check in result.failed} - {name for name in CHECKS if name.startswith("evidence")}


def places(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, child in children:
        yield from places(child, (*path, key))


# --- one flipped bit ----------------------------------------------------------------------------------------------


def flipped(data: bytes, *, step: int = 1) -> Iterator[bytes]:
    """`data` with one bit changed, at every `step`-th position; the bit varies with the position."""
    for position in range(0, len(data), step):
        altered = bytearray(data)
        altered[position] ^= 1 << position % 8
        yield bytes(altered)


def test_one_flipped_bit_anywhere_in_the_envelope_is_noticed(short: forge.CertificateSet) -> None:
    for altered in flipped(short.certificate):
        result = verify_certificate(altered, issuer=short.issuer)
        assert failed_checks(result) in (["envelope"], ["payload_type"], ["signatures"])


def test_a_letter_in_another_case_in_the_envelope_is_noticed(short: forge.CertificateSet) -> None:
    letters = [position for position, byte in enumerate(short.certificate) if chr(byte).isalpha()]
    for position in letters[::7]:
        altered = bytearray(short.certificate)
        altered[position] ^= 0x20
        assert not verify_certificate(bytes(altered), issuer=short.issuer).ok


def test_one_flipped_bit_anywhere_in_the_log_proof_is_noticed(short: forge.CertificateSet) -> None:
    for altered in flipped(short.log_proof):
        result = verify_certificate(short.certificate, issuer=short.issuer, log_proof=altered)
        assert failed_checks(result) in (["log_checkpoint"], ["log_inclusion"])


def test_one_flipped_bit_in_the_evidence_is_noticed(short: forge.CertificateSet) -> None:
    for altered in flipped(short.evidence, step=23):
        result = verify_certificate(short.certificate, issuer=short.issuer, evidence=altered)
        assert failed_checks(result) == ["evidence_digest"]


@pytest.mark.slow
def test_one_flipped_bit_anywhere_in_the_evidence_is_noticed(short: forge.CertificateSet) -> None:
    for altered in flipped(short.evidence):
        result = verify_certificate(short.certificate, issuer=short.issuer, evidence=altered)
        assert failed_checks(result) == ["evidence_digest"]


def test_one_byte_cut_off_or_added_is_noticed(short: forge.CertificateSet, tmp_path: Path) -> None:
    inputs = short.inputs()
    for name in ("evidence", "log_proof"):
        for altered in (inputs[name][:-1], inputs[name][1:], inputs[name] + b"\n", inputs[name] + b"\x00"):
            assert not verify_certificate(short.certificate, **{**inputs, name: altered}).ok
    for altered in (short.certificate[:-1], short.certificate[1:], short.certificate + b"\n"):
        assert not verify_certificate(altered, **inputs).ok
