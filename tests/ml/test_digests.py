"""Digests: canonical JSON as RFC 8785 has it, and model directories that hide nothing."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from ml.digests import (
    UNSAFE_SUFFIXES,
    ModelManifest,
    canonical_json,
    document_sha256,
    file_sha256,
    model_manifest,
    sha256_hex,
    verify_file,
)
from ml.errors import DigestMismatchError, ModelDirectoryError, SpecError

_KEYS = st.text(st.characters(max_codepoint=127), max_size=8)
_TEXT = st.text(st.characters(blacklist_categories=("Cs",)), max_size=12)
_SCALARS = st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | _TEXT
_DOCUMENTS = st.recursive(
    _SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_KEYS, inner, max_size=4), max_leaves=20
)


@given(_DOCUMENTS)
def test_canonical_json_is_what_an_independent_rfc_8785_library_writes(document: Any) -> None:
    assert canonical_json(document) == rfc8785.dumps(document)


@pytest.mark.parametrize(
    "document",
    [1.5, {"a": 0.1}, [float("nan")], 2**53, -(2**53), {"é": 1}, {1: "a"}, b"raw", {"a": {1, 2}}, "\ud800"],
)
def test_what_two_libraries_could_write_differently_is_refused(document: Any) -> None:
    with pytest.raises(SpecError):
        canonical_json(document)


def test_the_order_of_keys_does_not_matter_and_the_order_of_a_list_does() -> None:
    assert document_sha256({"a": 1, "b": 2}) == document_sha256({"b": 2, "a": 1})
    assert document_sha256([1, 2]) != document_sha256([2, 1])


def _directory(root: Path) -> Path:
    model = root / "model"
    (model / "parts").mkdir(parents=True)
    (model / "config.json").write_bytes(b"{}")
    (model / "parts" / "weights.safetensors").write_bytes(b"12345")
    return model


def test_a_manifest_lists_every_file_and_its_root_is_the_hash_of_the_raw_digests(tmp_path: Path) -> None:
    manifest = model_manifest(_directory(tmp_path))
    assert [entry.path for entry in manifest.entries] == ["config.json", "parts/weights.safetensors"]
    assert [entry.size for entry in manifest.entries] == [2, 5]
    raw = hashlib.sha256(b"{}").digest() + hashlib.sha256(b"12345").digest()
    assert manifest.root_sha256 == hashlib.sha256(raw).hexdigest()
    assert manifest.manifest_sha256 == document_sha256(manifest.to_document())
    assert ModelManifest.from_document(manifest.to_document()) == manifest


def test_one_flipped_byte_or_another_file_name_changes_the_manifest(tmp_path: Path) -> None:
    model = _directory(tmp_path)
    before = model_manifest(model)
    (model / "parts" / "weights.safetensors").write_bytes(b"12344")
    flipped = model_manifest(model)
    assert flipped.root_sha256 != before.root_sha256
    (model / "parts" / "weights.safetensors").write_bytes(b"12345")
    (model / "config.json").rename(model / "cfg.json")
    renamed = model_manifest(model)
    assert renamed.root_sha256 == before.root_sha256  # the root does not cover names
    assert renamed.manifest_sha256 != before.manifest_sha256


@pytest.mark.parametrize("suffix", sorted(UNSAFE_SUFFIXES))
def test_a_file_that_can_run_code_is_refused(tmp_path: Path, suffix: str) -> None:
    model = _directory(tmp_path)
    (model / f"weights{suffix.upper()}").write_bytes(b"x")
    with pytest.raises(ModelDirectoryError, match="safetensors"):
        model_manifest(model)


def test_links_hidden_files_and_empty_directories_are_refused(tmp_path: Path) -> None:
    model = _directory(tmp_path)
    (model / "link.json").symlink_to(model / "config.json")
    with pytest.raises(ModelDirectoryError, match="symbolic link"):
        model_manifest(model)
    (model / "link.json").unlink()
    (model / ".cache").mkdir()
    with pytest.raises(ModelDirectoryError, match="hidden"):
        model_manifest(model)
    (tmp_path / "alias").symlink_to(_directory(tmp_path / "other"))
    with pytest.raises(ModelDirectoryError):
        model_manifest(tmp_path / "alias")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelDirectoryError, match="empty"):
        model_manifest(tmp_path / "empty")


@pytest.mark.parametrize(
    "rows",
    [
        [{"path": "a", "size": 1}],
        [{"path": "a", "size": "x", "sha256": "0"}],
        [{"path": "b", "size": 1, "sha256": "0"}, {"path": "a", "size": 1, "sha256": "0"}],
        [{"path": "a", "size": 1, "sha256": "0"}, {"path": "a", "size": 1, "sha256": "0"}],
    ],
)
def test_a_malformed_manifest_is_refused(rows: list[dict[str, Any]]) -> None:
    with pytest.raises(SpecError):
        ModelManifest.from_document(rows)


def test_a_file_is_checked_by_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_bytes(b"a" * 3_000_000)
    assert file_sha256(path) == sha256_hex(b"a" * 3_000_000)
    verify_file(path, file_sha256(path))
    with pytest.raises(DigestMismatchError, match="does not match"):
        verify_file(path, "0" * 64)
    with pytest.raises(DigestMismatchError, match="missing"):
        verify_file(tmp_path / "absent.jsonl", "0" * 64)
