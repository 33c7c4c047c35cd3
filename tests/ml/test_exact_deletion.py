"""Exact deletion: what learned from a record goes, what did not stays to the byte, and no tensor is touched.

The adapters here are files of any bytes: a deletion must not care what is in them.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import ml.exact.deletion as deletion
from ml.errors import EmptySetError, SpecError, UnknownRecordError
from ml.exact.deletion import AdapterName, DeletionResult, delete_records
from ml.exact.plan import Slice
from ml.exact.store import (
    ServedCopy,
    adapter_path,
    checkpoint_path,
    deletion_path,
    locked,
    read_manifest,
    write_manifest,
)
from ml.files import write_atomically
from tests.ml.exact_stores import BASE, SEPARATE, SLICES, STACKED, filled


def on_file(store: Path) -> set[str]:
    return {path.name for path in (store / "adapters").iterdir()}


def names(adapters: tuple[AdapterName, ...]) -> list[str]:
    return [adapter.slice for adapter in adapters]


def test_the_oracle_delete_slice_2_then_slice_0(tmp_path: Path) -> None:
    before = filled(tmp_path, STACKED)
    first = delete_records(tmp_path, ["4"])
    assert first.guarantee == "exact_sharded"
    assert first.hit == ("c",)
    assert names(first.serves) == ["a", "b"]
    assert {(one.order, one.position) for one in first.dropped} == {(0, 2), (1, 0), (1, 1), (1, 2), (2, 1), (2, 2)}
    assert on_file(tmp_path) == {"0000-0000.safetensors", "0000-0001.safetensors", "0002-0000.safetensors"}
    assert first.may_add == ((), ("a", "b"), ("a",))  # c has no record left
    assert (first.manifest_before_sha256, first.manifest_after_sha256) == (
        before.sha256,
        read_manifest(tmp_path).sha256,
    )

    second = delete_records(tmp_path, ["1"])
    assert names(second.serves) == ["b"]
    assert [one.order for one in second.serves] == [2]
    assert on_file(tmp_path) == {"0002-0000.safetensors"}
    assert second.may_add == (("a", "b"), ("a", "b"), ("a",))  # a without the deleted record
    assert second.number == 2


def test_what_stays_is_not_touched(tmp_path: Path) -> None:
    filled(tmp_path, STACKED)
    kept = adapter_path(tmp_path, 0, 0)
    earlier = (kept.read_bytes(), kept.stat().st_mtime_ns)
    delete_records(tmp_path, ["4"])
    assert (kept.read_bytes(), kept.stat().st_mtime_ns) == earlier


def test_deleting_everything_leaves_the_base(tmp_path: Path) -> None:
    filled(tmp_path, STACKED)
    result = delete_records(tmp_path, ["1", "2", "3", "4"])
    assert result.serves == ()
    assert result.may_add == ((), (), ())
    assert on_file(tmp_path) == set()
    assert read_manifest(tmp_path).serving() == ()
    assert result.base_manifest_sha256 == BASE


def test_a_separate_adapter_is_removed_and_touches_nobody_else(tmp_path: Path) -> None:
    filled(tmp_path, SEPARATE)
    result = delete_records(tmp_path, ["3"])
    assert names(result.dropped) == ["b"]
    assert names(result.serves) == ["a", "c"]
    assert on_file(tmp_path) == {"0000-0000.safetensors", "0002-0000.safetensors"}
    left = read_manifest(tmp_path)
    assert left.serving("b") == ()
    assert [one.slice for one in left.serving("a")] == ["a"]
    with pytest.raises(SpecError, match="name a slice"):
        left.serving()
    with pytest.raises(SpecError, match="name a slice"):
        left.serving("mallory")


def test_an_unknown_record_is_an_error_and_nothing_is_changed(tmp_path: Path) -> None:
    before = filled(tmp_path, STACKED)
    with pytest.raises(UnknownRecordError, match="1 of 2"):
        delete_records(tmp_path, ["1", "nobody"])
    assert read_manifest(tmp_path) == before
    assert len(on_file(tmp_path)) == 9
    assert not deletion_path(tmp_path, 1).exists()
    delete_records(tmp_path, ["1"])
    with pytest.raises(UnknownRecordError):
        delete_records(tmp_path, ["1"])


def test_a_deletion_of_nothing_or_from_nowhere_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="train it first"):
        delete_records(tmp_path / "none", ["1"])
    assert not (tmp_path / "none").exists()
    filled(tmp_path / "store", STACKED)
    with pytest.raises(EmptySetError, match="no record"):
        delete_records(tmp_path / "store", [])


def test_the_manifest_names_neither_a_deleted_record_nor_what_learned_from_it(tmp_path: Path) -> None:
    manifest = filled(tmp_path, replace(STACKED, slices=(Slice("a", ("alpha-1", "beta-2")), *SLICES[1:])))
    delete_records(tmp_path, ["alpha-1"])
    text = (tmp_path / "manifest.json").read_text()
    assert "alpha-1" not in text
    assert "beta-2" in text
    left = {entry.sha256 for entry in read_manifest(tmp_path).adapters}
    assert not any(entry.sha256 in text for entry in manifest.adapters if entry.sha256 not in left)


def test_the_result_is_on_file_and_reads_back_strictly(tmp_path: Path) -> None:
    filled(tmp_path, STACKED)
    result = delete_records(tmp_path, ["1"])
    document = json.loads(deletion_path(tmp_path, 1).read_text())
    assert DeletionResult.from_document(document) == result
    with pytest.raises(SpecError, match="unknown field"):
        DeletionResult.from_document({**document, "name": "Alice"})
    with pytest.raises(SpecError, match="guarantee"):
        DeletionResult.from_document({**document, "guarantee": "perfect"})


def test_folded_copies_that_hold_a_dropped_adapter_are_listed_for_destruction(tmp_path: Path) -> None:
    manifest = filled(tmp_path, STACKED)
    served = tuple(entry.sha256 for entry in manifest.adapters[:3])  # a, b, c of the first order
    copies = (ServedCopy("1" * 64, served), ServedCopy("2" * 64, served[:2]))
    write_manifest(tmp_path, replace(manifest, copies=copies))
    assert delete_records(tmp_path, ["4"]).copies_to_destroy == ("1" * 64,)
    assert read_manifest(tmp_path).copies == copies[1:]
    assert delete_records(tmp_path, ["3"]).copies_to_destroy == ("2" * 64,)


def test_the_checkpoint_of_a_training_that_is_not_finished_goes_too(tmp_path: Path) -> None:
    filled(tmp_path, STACKED)
    path = checkpoint_path(tmp_path, 1, 2)
    path.parent.mkdir()
    path.write_bytes(b"optimiser state that saw record 4")
    delete_records(tmp_path, ["4"])
    assert not path.exists()


@pytest.mark.parametrize("step", ["remove_checkpoints", "write_manifest", "remove_unnamed"])
def test_a_deletion_that_was_killed_is_done_again_or_finished_by_the_next_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    filled(tmp_path, STACKED)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(deletion, step, killed)
    with pytest.raises(KeyboardInterrupt):
        delete_records(tmp_path, ["4"])
    monkeypatch.undo()
    if step == "remove_unnamed":  # decided already: the record is unknown now, and the files go at once
        assert len(on_file(tmp_path)) == 9
        with pytest.raises(UnknownRecordError):
            delete_records(tmp_path, ["4"])
    else:
        assert delete_records(tmp_path, ["4"]).number == 1
    assert len(on_file(tmp_path)) == 3
    assert DeletionResult.from_document(json.loads(deletion_path(tmp_path, 1).read_text())).hit == ("c",)


def test_nothing_is_deleted_while_another_command_is_at_work(tmp_path: Path) -> None:
    filled(tmp_path, STACKED)
    with locked(tmp_path), pytest.raises(SpecError, match="at work"):
        delete_records(tmp_path, ["1"])
    delete_records(tmp_path, ["1"])


def test_a_manifest_whose_adapters_are_not_the_beginning_of_an_order_is_refused(tmp_path: Path) -> None:
    manifest = filled(tmp_path, STACKED)
    for entries in (
        manifest.adapters[1:],  # nothing below the second one
        (replace(manifest.adapters[0], slice="b"), *manifest.adapters[1:]),
        (replace(manifest.adapters[0], order=9), *manifest.adapters[1:]),
        (*manifest.adapters, manifest.adapters[0]),
    ):
        write_manifest(tmp_path, replace(manifest, adapters=entries))
        with pytest.raises(SpecError, match="exact manifest"):
            read_manifest(tmp_path)
    write_atomically(tmp_path / "manifest.json", b"{")
    with pytest.raises(SpecError, match="not JSON"):
        read_manifest(tmp_path)


def test_stacked_slices_serve_together(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="name no slice"):
        filled(tmp_path, STACKED).serving("a")


def test_a_deletion_needs_no_library_that_computes(tmp_path: Path) -> None:
    filled(tmp_path, STACKED)
    code = (
        "import sys, pathlib\n"
        "for name in ('torch', 'transformers', 'peft', 'safetensors', 'numpy', 'scipy'): sys.modules[name] = None\n"
        "from ml.exact.deletion import delete_records\n"
        "print(len(delete_records(pathlib.Path(sys.argv[1]), ['4']).dropped))"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.returncode) == ("6", 0), done.stderr[-500:]
