"""Digests of files, documents and model directories. Standard library only; never loads a weight.

A model directory is named by two digests (compliance section 12.2):

* the *root*, the OpenSSF model-signing value: SHA-256 over the raw SHA-256 of every file, in sorted path order;
* the *manifest* digest: SHA-256 over the canonical JSON of `[{path, size, sha256}]`. The root does not cover file
  names, so whoever checks one checks both.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ml.errors import DigestMismatchError, ModelDirectoryError, SpecError
from ml.plugins import plugin_sources

_CHUNK = 1 << 20
_LARGEST_INTEGER = 2**53 - 1
# Formats that execute code when they are loaded, or that hide it; weights travel as safetensors only.
UNSAFE_SUFFIXES = frozenset(
    {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".dill", ".npy", ".npz", ".h5", ".py", ".pyc", ".so"}
)


def canonical_json(document: object) -> bytes:
    """Return the RFC 8785 bytes of a document made of objects, arrays, strings, booleans, null and integers.

    Fractions travel as decimal strings, so floats are refused rather than formatted: two JSON libraries agree on
    everything this function accepts. Keys must be ASCII, where code-point order equals RFC 8785's UTF-16 order.

    Raises:
        SpecError: a float, an integer beyond 2^53-1, a non-ASCII or non-string key, a lone surrogate, another type.
    """
    _refuse_ambiguous(document, "$")
    text = json.dumps(document, ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False)
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as exc:
        raise SpecError("document holds a lone surrogate; repair the string before it is signed") from exc


def _refuse_ambiguous(node: object, where: str) -> None:
    if node is None or isinstance(node, bool | str):
        return
    if isinstance(node, int):
        if abs(node) > _LARGEST_INTEGER:
            raise SpecError(f"{where}: integer beyond 2^53-1; write it as a decimal string")
        return
    if isinstance(node, list | tuple):
        for index, child in enumerate(node):
            _refuse_ambiguous(child, f"{where}[{index}]")
        return
    if isinstance(node, Mapping):
        for key, child in node.items():
            if not isinstance(key, str) or not key.isascii():
                raise SpecError(f"{where}: object keys must be ASCII strings")
            _refuse_ambiguous(child, f"{where}.{key}")
        return
    raise SpecError(f"{where}: {type(node).__name__} has no canonical JSON form; write numbers as decimal strings")


def sha256_hex(data: bytes) -> str:
    """Return the SHA-256 of `data` as 64 lower-case hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def is_sha256(text: str) -> bool:
    """True for 64 lower-case hexadecimal digits."""
    return len(text) == 64 and set(text) <= set("0123456789abcdef")


def document_sha256(document: object) -> str:
    """Return the SHA-256 of the canonical JSON of `document`."""
    return sha256_hex(canonical_json(document))


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, read in chunks."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _offsets(tensor: object) -> tuple[int, int]:
    """Where a tensor's bytes lie; raises `ValueError` for an entry that describes none."""
    if not isinstance(tensor, dict) or not {"dtype", "shape", "data_offsets"} <= tensor.keys():
        raise ValueError("an entry of the header is no tensor")
    first, last = tensor["data_offsets"]
    if not (isinstance(first, int) and isinstance(last, int) and 0 <= first <= last):
        raise ValueError("a tensor lies nowhere")
    return first, last


def tensor_sha256s(path: Path) -> dict[str, str]:
    """Digest of each tensor of a safetensors file, by name: of its kind, its shape and its bytes, read in chunks.

    Raises:
        ValueError: the file is no safetensors file.
    """
    digests = {}
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > path.stat().st_size:
            raise ValueError("the header is longer than the file")
        header = json.loads(stream.read(length))
        if not isinstance(header, dict):
            raise ValueError("the header is no object")
        start = stream.tell()
        for name, tensor in header.items():
            if name == "__metadata__":
                continue
            first, last = _offsets(tensor)
            digest = hashlib.sha256(f"{tensor['dtype']} {tensor['shape']} ".encode())
            stream.seek(start + first)
            while last > first and (chunk := stream.read(min(_CHUNK, last - first))):
                digest.update(chunk)
                first += len(chunk)
            digests[name] = digest.hexdigest()
    return digests


def code_sha256() -> str:
    """Digest of this library's source files, by relative path, and of a deployer's own kinds of values."""
    return _sources_sha256(leave_out=())


def computing_code_sha256() -> str:
    """As `code_sha256`, without what only draws: what decides whether a finished computation is still the same."""
    return _sources_sha256(leave_out=("pictures",))


def _sources_sha256(*, leave_out: tuple[str, ...]) -> str:
    root = Path(__file__).parent
    names = {path.relative_to(root).as_posix(): path for path in sorted(root.rglob("*.py"))}
    read = {name: path for name, path in names.items() if name.split("/")[0] not in leave_out}
    read |= {f"{name} (kinds of values)": path for name, path in plugin_sources().items()}
    return document_sha256({name: file_sha256(path) for name, path in read.items()})


def verify_file(path: Path, sha256: str) -> None:
    """Raise `DigestMismatchError` unless the file at `path` has digest `sha256`."""
    if not path.is_file():
        raise DigestMismatchError(f"file {path.name} is missing; restore it or make the snapshot again")
    if file_sha256(path) != sha256:
        raise DigestMismatchError(f"file {path.name} does not match its recorded sha256; do not use it")


@dataclass(frozen=True, slots=True)
class ManifestEntry:
    """One file of a model directory: POSIX path relative to it, size in bytes, SHA-256."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class ModelManifest:
    """Every file of a model directory, sorted by path."""

    entries: tuple[ManifestEntry, ...]

    @property
    def root_sha256(self) -> str:
        """The OpenSSF manifest root: SHA-256 over the raw file digests in path order."""
        digest = hashlib.sha256()
        for entry in self.entries:
            digest.update(bytes.fromhex(entry.sha256))
        return digest.hexdigest()

    @property
    def manifest_sha256(self) -> str:
        """SHA-256 over the canonical JSON of `[{path, size, sha256}]`: covers names and sizes too."""
        return document_sha256(self.to_document())

    def to_document(self) -> list[dict[str, Any]]:
        """Return the manifest as plain JSON."""
        return [{"path": e.path, "size": e.size, "sha256": e.sha256} for e in self.entries]

    @classmethod
    def from_document(cls, document: Iterable[Mapping[str, Any]]) -> ModelManifest:
        """Read a manifest back; raises `SpecError` on a malformed row, duplicate or unsorted path."""
        try:
            entries = tuple(ManifestEntry(str(r["path"]), int(r["size"]), str(r["sha256"])) for r in document)
        except (KeyError, TypeError, ValueError) as exc:
            raise SpecError("model manifest rows need path, size and sha256") from exc
        paths = [e.path for e in entries]
        if paths != sorted(set(paths)):
            raise SpecError("model manifest paths must be sorted and unique")
        return cls(entries)


def model_manifest(directory: Path) -> ModelManifest:
    """Digest every file of a model directory.

    Raises:
        ModelDirectoryError: not a directory, empty, or holding a symlink, a special file, a hidden file, or a file
            of a format that can execute code.
    """
    if directory.is_symlink() or not directory.is_dir():
        raise ModelDirectoryError(f"{directory.name} is not a model directory; name a directory with safetensors")
    entries = [
        ManifestEntry(path.relative_to(directory).as_posix(), path.stat().st_size, file_sha256(path))
        for path in sorted(_regular_files(directory), key=lambda p: p.relative_to(directory).as_posix())
    ]
    if not entries:
        raise ModelDirectoryError(f"model directory {directory.name} is empty")
    return ModelManifest(tuple(entries))


def _regular_files(directory: Path) -> Iterable[Path]:
    for folder, folder_names, file_names in os.walk(directory):
        for name in [*folder_names, *file_names]:
            path = Path(folder) / name
            _refuse_unsafe(path, path.relative_to(directory).as_posix())
        yield from (Path(folder) / name for name in file_names)


def _refuse_unsafe(path: Path, name: str) -> None:
    mode = path.lstat().st_mode
    if stat.S_ISLNK(mode):
        raise ModelDirectoryError(f"model file {name} is a symbolic link; copy the file itself into the directory")
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise ModelDirectoryError(f"model file {name} is not a regular file")
    if path.name.startswith("."):
        raise ModelDirectoryError(f"model file {name} is hidden; a released directory lists every file openly")
    if stat.S_ISREG(mode) and path.suffix.lower() in UNSAFE_SUFFIXES:
        raise ModelDirectoryError(f"model file {name} is of a format that can run code; convert it to safetensors")
