"""The append-only log of certificates: an RFC 6962 tree, its proofs, and signed checkpoints.

Must never hold anything but digests: what is in the tree can never be taken out. Hashes and proofs follow RFC 6962
section 2.1 and RFC 9162 section 2.1.3 and 2.1.4; checkpoints are C2SP signed notes (c2sp.org/tlog-checkpoint).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from deletion_service.certificates.canonical import (
    DocumentFormError,
    base64_bytes,
    base64_text,
    camel_document,
    read_camel,
    read_canonical,
)
from deletion_service.certificates.signing import Signer, signature_holds
from deletion_service.errors import DomainError
from ml.digests import canonical_json

HASH_BYTES: Final = 32
LARGEST_PROOF: Final = 1 << 16
_LARGEST_TREE: Final = 2**53 - 1
_ED25519_NOTE: Final = b"\x01"
_NOTE_KEY_HASH_BYTES: Final = 4
_ORIGIN: Final = re.compile(r"[!-*,-~]{1,255}")  # printable ASCII without space and plus, which end a key name


class LogProofError(DomainError):
    """A proof or checkpoint of the log is malformed or does not hold; ask the log for a fresh one."""

    code = "log_proof_invalid"


# --- tree ---------------------------------------------------------------------------------------------------------


def leaf_hash(data: bytes) -> bytes:
    """Return the hash of one leaf: SHA-256(0x00 || data)."""
    return hashlib.sha256(b"\x00" + data).digest()


def certificate_leaf(envelope: bytes) -> bytes:
    """Return the leaf of a certificate: only the digest of its envelope enters the tree."""
    return leaf_hash(hashlib.sha256(envelope).digest())


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return the hash of an inner node: SHA-256(0x01 || left || right)."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def root_hash(leaves: Sequence[bytes]) -> bytes:
    """Return the root over leaf hashes in log order; of no leaves, the SHA-256 of nothing."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return leaves[0]
    split = _split(len(leaves))
    return node_hash(root_hash(leaves[:split]), root_hash(leaves[split:]))


def inclusion_proof(leaves: Sequence[bytes], *, index: int) -> list[bytes]:
    """Return the sibling hashes that lead from leaf `index` to the root, lowest first."""
    if not 0 <= index < len(leaves):
        raise LogProofError("there is no leaf with this index")
    if len(leaves) == 1:
        return []
    split = _split(len(leaves))
    if index < split:
        return [*inclusion_proof(leaves[:split], index=index), root_hash(leaves[split:])]
    return [*inclusion_proof(leaves[split:], index=index - split), root_hash(leaves[:split])]


def root_from_inclusion(leaf: bytes, *, index: int, size: int, proof: Sequence[bytes]) -> bytes:
    """Return the root that `proof` leads to from `leaf`; the leaf is in the tree if that is the tree's root.

    Raises:
        LogProofError: the proof is too long or too short for this index and size.
    """
    if not 0 <= index < size <= _LARGEST_TREE:
        raise LogProofError("the leaf's index does not lie in the tree")
    place, last, running = index, size - 1, leaf
    for sibling in proof:
        if last == 0:
            raise LogProofError("the inclusion proof is too long")
        if place % 2 or place == last:
            running = node_hash(sibling, running)
            while place % 2 == 0 and place:
                place, last = place >> 1, last >> 1
        else:
            running = node_hash(running, sibling)
        place, last = place >> 1, last >> 1
    if last:
        raise LogProofError("the inclusion proof is too short")
    return running


def consistency_proof(leaves: Sequence[bytes], *, old_size: int) -> list[bytes]:
    """Return the hashes showing that the tree of the first `old_size` leaves is a prefix of this one."""
    if not 1 <= old_size <= len(leaves):
        raise LogProofError("the older tree has at least one leaf and at most those of the newer one")
    return _subproof(leaves, old_size, whole=True)


def _subproof(leaves: Sequence[bytes], old_size: int, *, whole: bool) -> list[bytes]:
    """RFC 6962 2.1.2: `whole` says that the old tree's root is known to whoever verifies."""
    if old_size == len(leaves):
        return [] if whole else [root_hash(leaves)]
    split = _split(len(leaves))
    if old_size <= split:
        return [*_subproof(leaves[:split], old_size, whole=whole), root_hash(leaves[split:])]
    return [*_subproof(leaves[split:], old_size - split, whole=False), root_hash(leaves[:split])]


def check_consistency(
    *, old_size: int, old_root: bytes, new_size: int, new_root: bytes, proof: Sequence[bytes]
) -> None:
    """Raise `LogProofError` unless `proof` shows that the newer tree begins with the older one (RFC 9162 2.1.4.2)."""
    if not 1 <= old_size <= new_size <= _LARGEST_TREE:
        raise LogProofError("the older tree has at least one leaf and at most those of the newer one")
    if old_size == new_size:
        if proof or old_root != new_root:
            raise LogProofError("two trees of one size have different roots, or a proof is given where none is needed")
        return
    if _roots_from_consistency(old_size, old_root, new_size, proof) != (old_root, new_root):
        raise LogProofError("the consistency proof does not lead to both roots")


def _roots_from_consistency(
    old_size: int, old_root: bytes, new_size: int, proof: Sequence[bytes]
) -> tuple[bytes, bytes]:
    place, last = old_size - 1, new_size - 1
    while place % 2:
        place, last = place >> 1, last >> 1
    path = list(proof) if place else [old_root, *proof]  # a complete old tree is its own first node
    if not path:
        raise LogProofError("the consistency proof is too short")
    old = new = path[0]
    for sibling in path[1:]:
        if last == 0:
            raise LogProofError("the consistency proof is too long")
        if place % 2 or place == last:
            old, new = node_hash(sibling, old), node_hash(sibling, new)
            while place % 2 == 0 and place:
                place, last = place >> 1, last >> 1
        else:
            new = node_hash(new, sibling)
        place, last = place >> 1, last >> 1
    if last:
        raise LogProofError("the consistency proof is too short")
    return old, new


def _split(size: int) -> int:
    """Return the largest power of two smaller than `size`."""
    return 1 << (size - 1).bit_length() - 1


# --- checkpoint ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The state of a log: its origin line, how many leaves, their root."""

    origin: str
    size: int
    root: bytes

    def __post_init__(self) -> None:
        if not _ORIGIN.fullmatch(self.origin):
            raise LogProofError("a log's origin is printable ASCII without spaces or plus signs")
        if not 0 <= self.size <= _LARGEST_TREE or len(self.root) != HASH_BYTES:
            raise LogProofError("a checkpoint has a size and a root of 32 bytes")

    def note_text(self) -> str:
        """Return the three lines that a log signs."""
        return f"{self.origin}\n{self.size}\n{base64_text(self.root)}\n"


def sign_checkpoint(checkpoint: Checkpoint, *, signer: Signer) -> str:
    """Return the checkpoint as a signed note; the log's key carries the name of its origin."""
    return sign_note(checkpoint.note_text(), name=checkpoint.origin, signer=signer)


def open_checkpoint(note: str, *, origin: str, public_keys: Iterable[bytes]) -> Checkpoint:
    """Read a signed checkpoint of the log called `origin`.

    Raises:
        LogProofError: another log's, another layout, extension lines, or not signed by one of `public_keys`.
    """
    lines = open_note(note, name=origin, public_keys=public_keys).split("\n")
    if len(lines) != 4 or lines[0] != origin:
        raise LogProofError("the checkpoint is of another log, or has lines this program does not know")
    size = int(lines[1]) if re.fullmatch(r"0|[1-9][0-9]{0,15}", lines[1]) else -1
    return Checkpoint(origin, size, base64_bytes(lines[2], what="the checkpoint's root"))


def sign_note(text: str, *, name: str, signer: Signer) -> str:
    """Sign a text as a C2SP note under a key name; the text ends in a newline."""
    signature = _note_key_hash(name, signer.public_key) + signer.sign(text.encode("utf-8"))
    return f"{text}\n\u2014 {name} {base64_text(signature)}\n"


def open_note(note: str, *, name: str, public_keys: Iterable[bytes]) -> str:
    """Return the text of a note with exactly one signature, made under `name` by one of `public_keys`.

    Raises:
        LogProofError: the layout is another, or the signature does not hold.
    """
    text, separator, signed = note.rpartition("\n\n")
    line = re.fullmatch(r"\u2014 (\S+) (\S+)\n", signed)
    if not separator or line is None or line[1] != name:
        raise LogProofError("the note does not end in exactly one signature line of the name expected")
    text += "\n"
    blob = base64_bytes(line[2], what="the note's signature")
    key_hash, signature = blob[:_NOTE_KEY_HASH_BYTES], blob[_NOTE_KEY_HASH_BYTES:]
    for public_key in public_keys:
        if _note_key_hash(name, public_key) == key_hash and signature_holds(
            signature, message=text.encode("utf-8"), public_key=public_key
        ):
            return text
    raise LogProofError("the note is not signed by a key that may sign it")


def _note_key_hash(name: str, public_key: bytes) -> bytes:
    return hashlib.sha256(name.encode("utf-8") + b"\n" + _ED25519_NOTE + public_key).digest()[:_NOTE_KEY_HASH_BYTES]


# --- proof document -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LogProof:
    """What travels beside a certificate: where it stands in the log, the way to the root, the signed checkpoint.

    `hashes` are base64, lowest sibling first.
    """

    leaf_index: int
    tree_size: int
    hashes: tuple[str, ...]
    checkpoint: str
    schema_version: int = 1

    def path(self) -> list[bytes]:
        """Return the sibling hashes as bytes."""
        path = [base64_bytes(text, what="a hash of the log proof") for text in self.hashes]
        if any(len(node) != HASH_BYTES for node in path):
            raise LogProofError("a hash of the log proof is not 32 bytes long")
        return path

    def to_document(self) -> dict[str, Any]:
        """Return the proof as plain JSON."""
        return camel_document(self)

    def to_bytes(self) -> bytes:
        """Return the canonical JSON of the proof."""
        return canonical_json(self.to_document())

    @classmethod
    def from_bytes(cls, data: bytes) -> LogProof:
        """Read a proof; raises `DocumentFormError` unless it is spelled exactly as `to_bytes` spells it."""
        document = read_canonical(data, what="the log proof", largest=LARGEST_PROOF)
        proof = read_camel(cls, document, where="log proof")
        if proof.schema_version != 1 or proof.to_document() != document:
            raise DocumentFormError("the log proof leaves members out or is of an unknown version")
        return proof


def prove_certificate(leaves: Sequence[bytes], *, index: int, checkpoint: str) -> LogProof:
    """Return the proof document of leaf `index` in the tree of `leaves`, under a checkpoint of that tree."""
    path = inclusion_proof(leaves, index=index)
    return LogProof(index, len(leaves), tuple(base64_text(node) for node in path), checkpoint)


def check_inclusion(envelope: bytes, *, proof: LogProof, checkpoint: Checkpoint) -> None:
    """Raise `LogProofError` unless the certificate stands in the tree that the checkpoint describes."""
    if proof.tree_size != checkpoint.size:
        raise LogProofError("the log proof and its checkpoint are of different trees")
    root = root_from_inclusion(
        certificate_leaf(envelope), index=proof.leaf_index, size=proof.tree_size, proof=proof.path()
    )
    if root != checkpoint.root:
        raise LogProofError("the certificate is not the entry that the log proof leads to")
