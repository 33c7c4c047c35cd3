"""The log: reference values of certificate transparency, every proof of small trees, and every tampered one refused."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from deletion_service.certificates.canonical import DocumentFormError
from deletion_service.certificates.merkle import (
    Checkpoint,
    LogProof,
    LogProofError,
    certificate_leaf,
    check_consistency,
    check_inclusion,
    consistency_proof,
    inclusion_proof,
    leaf_hash,
    open_checkpoint,
    open_note,
    prove_certificate,
    root_from_inclusion,
    root_hash,
    sign_checkpoint,
    sign_note,
)
from deletion_service.certificates.signing import Ed25519Signer
from deletion_service.errors import DomainError
from ml.digests import canonical_json
from tests.certificates import forge

# The eight leaves of google/certificate-transparency, merkletree tests, and what its C++ tree computes for them.
CT_LEAVES = [
    leaf_hash(bytes.fromhex(text))
    for text in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
CT_ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
A = "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7"
B = "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e"
C = "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4"
D = "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b"
E = "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0"
F = "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a"
CT_INCLUSION = {
    (0, 1): [],
    (0, 8): [A, B, C],
    (5, 8): [D, E, CT_ROOTS[3]],
    (2, 3): [CT_ROOTS[1]],
    (1, 5): [CT_ROOTS[0], B, D],
}
CT_CONSISTENCY = {(1, 1): [], (1, 8): [A, B, C], (6, 8): [F, E, CT_ROOTS[3]], (2, 5): [B, D]}

LEAVES = [leaf_hash(b"%d" % number) for number in range(70)]
ROOTS = [root_hash(LEAVES[:size]) for size in range(len(LEAVES) + 1)]


def test_roots_are_those_of_the_reference_implementation() -> None:
    assert [root_hash(CT_LEAVES[:size]).hex() for size in range(1, 9)] == CT_ROOTS


def test_the_root_of_no_leaves_is_the_hash_of_nothing() -> None:
    assert root_hash([]) == hashlib.sha256(b"").digest()


@pytest.mark.parametrize(("place", "proof"), CT_INCLUSION.items())
def test_inclusion_proofs_are_those_of_the_reference_implementation(place: tuple[int, int], proof: list[str]) -> None:
    index, size = place

    assert [node.hex() for node in inclusion_proof(CT_LEAVES[:size], index=index)] == proof


@pytest.mark.parametrize(("sizes", "proof"), CT_CONSISTENCY.items())
def test_consistency_proofs_are_those_of_the_reference_implementation(sizes: tuple[int, int], proof: list[str]) -> None:
    old, new = sizes

    assert [node.hex() for node in consistency_proof(CT_LEAVES[:new], old_size=old)] == proof


@pytest.mark.parametrize("size", [*range(1, 71)])
def test_every_leaf_of_every_small_tree_is_proved(size: int) -> None:
    for index in range(size):
        proof = inclusion_proof(LEAVES[:size], index=index)
        assert root_from_inclusion(LEAVES[index], index=index, size=size, proof=proof) == ROOTS[size]


@pytest.mark.parametrize("new", [*range(1, 71)])
def test_every_prefix_of_every_small_tree_is_proved(new: int) -> None:
    for old in range(1, new + 1):
        proof = consistency_proof(LEAVES[:new], old_size=old)
        check_consistency(old_size=old, old_root=ROOTS[old], new_size=new, new_root=ROOTS[new], proof=proof)


def leads_to(leaf: bytes, index: int, size: int, proof: list[bytes], root: bytes) -> bool:
    try:
        return root_from_inclusion(leaf, index=index, size=size, proof=proof) == root
    except LogProofError:
        return False


@given(st.integers(1, 70).flatmap(lambda size: st.tuples(st.just(size), st.integers(0, size - 1))), st.data())
@settings(max_examples=200)
def test_no_tampered_inclusion_proof_leads_to_the_root(place: tuple[int, int], data: st.DataObject) -> None:
    size, index = place
    proof = inclusion_proof(LEAVES[:size], index=index)
    assert leads_to(LEAVES[index], index, size, proof, ROOTS[size])

    other = data.draw(st.integers(0, 69).filter(lambda number: number != index))
    assert not leads_to(LEAVES[other], index, size, proof, ROOTS[size])
    assert not leads_to(LEAVES[index], other, size, proof, ROOTS[size])
    assert not leads_to(LEAVES[index], index, size, [*proof, LEAVES[0]], ROOTS[size])
    for position in range(len(proof)):
        bit = data.draw(st.integers(0, 255))
        flipped = (int.from_bytes(proof[position], "big") ^ 1 << bit).to_bytes(32, "big")
        assert not leads_to(
            LEAVES[index], index, size, [*proof[:position], flipped, *proof[position + 1 :]], ROOTS[size]
        )
        assert not leads_to(LEAVES[index], index, size, proof[:position] + proof[position + 1 :], ROOTS[size])


def consistent(old: int, old_root: bytes, new: int, new_root: bytes, proof: list[bytes]) -> bool:
    try:
        check_consistency(old_size=old, old_root=old_root, new_size=new, new_root=new_root, proof=proof)
    except LogProofError:
        return False
    return True


@given(st.integers(2, 70).flatmap(lambda new: st.tuples(st.integers(1, new - 1), st.just(new))), st.data())
@settings(max_examples=200)
def test_no_tampered_consistency_proof_holds(sizes: tuple[int, int], data: st.DataObject) -> None:
    old, new = sizes
    proof = consistency_proof(LEAVES[:new], old_size=old)
    assert consistent(old, ROOTS[old], new, ROOTS[new], proof)

    bit = data.draw(st.integers(0, 255))
    position = data.draw(st.integers(0, len(proof) - 1))
    flipped = (int.from_bytes(proof[position], "big") ^ 1 << bit).to_bytes(32, "big")
    assert not consistent(old, ROOTS[old], new, ROOTS[new], [*proof[:position], flipped, *proof[position + 1 :]])
    assert not consistent(old, ROOTS[old], new, ROOTS[new], proof[:-1])
    assert not consistent(old, ROOTS[old], new, ROOTS[new], [*proof, LEAVES[0]])
    assert not consistent(old, ROOTS[new], new, ROOTS[new], proof)
    assert not consistent(old, ROOTS[old], new, ROOTS[old], proof)


def test_a_log_that_rewrote_an_entry_cannot_prove_itself_consistent() -> None:
    rewritten = [LEAVES[0], leaf_hash(b"another"), *LEAVES[2:9]]

    proof = consistency_proof(rewritten, old_size=5)

    assert not consistent(5, ROOTS[5], 9, root_hash(rewritten), proof)


def test_two_trees_of_one_size_need_one_root_and_no_proof() -> None:
    assert consistent(5, ROOTS[5], 5, ROOTS[5], [])
    assert not consistent(5, ROOTS[5], 5, ROOTS[6], [])
    assert not consistent(5, ROOTS[5], 5, ROOTS[5], [LEAVES[0]])


@pytest.mark.parametrize("sizes", [(0, 5), (6, 5), (-1, 5)])
def test_sizes_that_no_log_has_are_refused(sizes: tuple[int, int]) -> None:
    old, new = sizes
    with pytest.raises(LogProofError):
        check_consistency(old_size=old, old_root=ROOTS[1], new_size=new, new_root=ROOTS[5], proof=[])
    with pytest.raises(LogProofError):
        consistency_proof(LEAVES[:5], old_size=old)


@pytest.mark.parametrize("index", [-1, 5, 6])
def test_a_leaf_outside_the_tree_is_refused(index: int) -> None:
    with pytest.raises(LogProofError):
        inclusion_proof(LEAVES[:5], index=index)
    with pytest.raises(LogProofError):
        root_from_inclusion(LEAVES[0], index=index, size=5, proof=[])


def test_a_leaf_cannot_pass_for_an_inner_node() -> None:
    """RFC 6962 separates the two by their first byte; without it the pair of two leaves would be a leaf."""
    pair = LEAVES[0] + LEAVES[1]

    assert leaf_hash(pair) != root_hash(LEAVES[:2])


# --- signed notes and checkpoints ---------------------------------------------------------------------------------

# The example of golang.org/x/mod/sumdb/note.
GO_TEXT = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
GO_SEED = base64.b64decode("AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz")[1:]
GO_PUBLIC_KEY = base64.b64decode("ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW")[1:]
GO_SIGNATURE = "x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM="
GO_NOTE = f"{GO_TEXT}\n\u2014 PeterNeumann {GO_SIGNATURE}\n"


def test_a_note_is_signed_and_opened_as_the_reference_implementation_does() -> None:
    signer = Ed25519Signer(Ed25519PrivateKey.from_private_bytes(GO_SEED))

    assert signer.public_key == GO_PUBLIC_KEY
    assert sign_note(GO_TEXT, name="PeterNeumann", signer=signer) == GO_NOTE
    assert open_note(GO_NOTE, name="PeterNeumann", public_keys=[GO_PUBLIC_KEY]) == GO_TEXT


CHECKPOINT = Checkpoint(forge.ORIGIN, 7, ROOTS[7])
NOTE = sign_checkpoint(CHECKPOINT, signer=forge.LOG)


def opened(note: str, *, origin: str = forge.ORIGIN) -> Checkpoint:
    return open_checkpoint(note, origin=origin, public_keys=[forge.LOG.public_key])


def test_a_checkpoint_comes_back() -> None:
    assert opened(NOTE) == CHECKPOINT
    assert NOTE.splitlines()[:3] == [forge.ORIGIN, "7", base64.b64encode(ROOTS[7]).decode()]


def test_a_checkpoint_of_another_log_or_by_another_key_is_refused() -> None:
    with pytest.raises(LogProofError):
        opened(NOTE, origin="log.mallory.example")
    with pytest.raises(LogProofError, match="not signed"):
        opened(sign_checkpoint(CHECKPOINT, signer=forge.MALLORY))


@pytest.mark.parametrize(
    "note",
    [
        pytest.param("", id="nothing"),
        pytest.param(NOTE.replace("\n7\n", "\n8\n"), id="another size"),
        pytest.param(NOTE.replace("\u2014", "-"), id="a hyphen for the dash"),
        pytest.param(NOTE.rstrip("\n"), id="no last newline"),
        pytest.param(NOTE + "\n", id="one newline more"),
        pytest.param(NOTE.replace("\n", "\r\n"), id="other line ends"),
        pytest.param(NOTE + NOTE.splitlines()[-1] + "\n", id="the signature twice"),
        pytest.param(NOTE.replace("\n\n", "\n \n"), id="no blank line"),
    ],
)
def test_another_layout_of_a_checkpoint_is_refused(note: str) -> None:
    with pytest.raises(DomainError):
        opened(note)


@pytest.mark.parametrize(
    "text",
    [
        f"{forge.ORIGIN}\n07\n{base64.b64encode(ROOTS[7]).decode()}\n",
        f"{forge.ORIGIN}\n7 \n{base64.b64encode(ROOTS[7]).decode()}\n",
        f"{forge.ORIGIN}\n-7\n{base64.b64encode(ROOTS[7]).decode()}\n",
        f"{forge.ORIGIN}\n\u0667\n{base64.b64encode(ROOTS[7]).decode()}\n",
        f"{forge.ORIGIN}\n7\n{base64.b64encode(ROOTS[7][:31]).decode()}\n",
        f"{forge.ORIGIN}\n7\n{ROOTS[7].hex()}\n",
        f"{forge.ORIGIN}\n7\n{base64.b64encode(ROOTS[7]).decode()}\nextension\n",
        f"{forge.ORIGIN}\n7\n",
        f"another\n7\n{base64.b64encode(ROOTS[7]).decode()}\n",
    ],
)
def test_a_note_that_the_log_did_sign_but_is_no_checkpoint_is_refused(text: str) -> None:
    with pytest.raises(DomainError):
        opened(sign_note(text, name=forge.ORIGIN, signer=forge.LOG))


@pytest.mark.parametrize("origin", ["", "two words", "a+b", "new\nline", "\u00e9"])
def test_an_origin_that_would_break_the_note_is_refused(origin: str) -> None:
    with pytest.raises(LogProofError):
        Checkpoint(origin, 1, ROOTS[1])


# --- proof document -----------------------------------------------------------------------------------------------

ENVELOPES = [b"envelope %d" % number for number in range(7)]
ENTRIES = [certificate_leaf(envelope) for envelope in ENVELOPES]
PROOF = prove_certificate(
    ENTRIES, index=3, checkpoint=sign_checkpoint(Checkpoint(forge.ORIGIN, 7, root_hash(ENTRIES)), signer=forge.LOG)
)


def test_a_leaf_is_the_digest_of_the_envelopes_digest() -> None:
    inner = hashlib.sha256(b"envelope 0").digest()

    assert certificate_leaf(b"envelope 0") == hashlib.sha256(b"\x00" + inner).digest()


def test_a_proof_document_comes_back_and_proves_its_certificate_alone() -> None:
    proof = LogProof.from_bytes(PROOF.to_bytes())
    checkpoint = opened(proof.checkpoint)

    check_inclusion(ENVELOPES[3], proof=proof, checkpoint=checkpoint)
    for index in (0, 1, 2, 4, 5, 6):
        with pytest.raises(LogProofError):
            check_inclusion(ENVELOPES[index], proof=proof, checkpoint=checkpoint)


def test_the_proof_document_has_the_published_members() -> None:
    assert set(PROOF.to_document()) == {"schema_version", "leafIndex", "treeSize", "hashes", "checkpoint"}


@pytest.mark.parametrize(
    "changes",
    [
        {"leafIndex": "3"},
        {"leafIndex": True},
        {"treeSize": None},
        {"hashes": "x"},
        {"hashes": [1]},
        {"checkpoint": None},
        {"schema_version": 2},
        {"extra": 1},
    ],
)
def test_a_malformed_proof_document_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(DocumentFormError):
        LogProof.from_bytes(canonical_json({**PROOF.to_document(), **changes}))


@pytest.mark.parametrize("member", ["schema_version", "leafIndex", "treeSize", "hashes", "checkpoint"])
def test_a_proof_document_without_one_of_its_members_is_refused(member: str) -> None:
    document = PROOF.to_document()
    del document[member]

    with pytest.raises(DocumentFormError):
        LogProof.from_bytes(canonical_json(document))


@pytest.mark.parametrize("hashes", [["QQ=="], ["!"], ["QR=="]])
def test_hashes_that_are_no_hashes_are_refused(hashes: list[str]) -> None:
    proof = LogProof.from_bytes(canonical_json({**PROOF.to_document(), "hashes": hashes}))

    with pytest.raises(DomainError):
        proof.path()


def test_a_proof_for_a_tree_of_another_size_than_its_checkpoint_is_refused() -> None:
    proof = LogProof.from_bytes(canonical_json({**PROOF.to_document(), "treeSize": 8}))

    with pytest.raises(LogProofError, match="different trees"):
        check_inclusion(ENVELOPES[3], proof=proof, checkpoint=opened(proof.checkpoint))


def test_a_proof_document_laid_out_by_hand_is_refused() -> None:
    with pytest.raises(DocumentFormError, match="canonical"):
        LogProof.from_bytes(json.dumps(PROOF.to_document(), indent=1).encode())
