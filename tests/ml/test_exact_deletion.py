"""Exact deletion: what learned from a record goes, what did not stays to the byte, and no tensor is touched.

The adapters here are files of any bytes: a deletion must not care what is in them.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import ml.exact.deletion as deletion
from ml.errors import DeletionIncompleteError, EmptySetError, SpecError, UnknownRecordError
from ml.exact.deletion import delete_records
from ml.exact.plan import Slice
from ml.exact.results import AdapterName, DeletionResult, id_digests
from ml.exact.store import (
    ServedCopy,
    adapter_path,
    checkpoint_path,
    deletion_path,
    locked,
    read_manifest,
    read_results,
    refuse_rollback,
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
    with pytest.raises(UnknownRecordError, match="2 of 2"):
        delete_records(tmp_path, ["1", "nobody"])


def test_a_deletion_asked_for_again_answers_with_the_result_of_then(tmp_path: Path) -> None:
    manifest = filled(tmp_path, STACKED)
    copy = ServedCopy("1" * 64, (manifest.adapters[0].sha256,))
    write_manifest(tmp_path, replace(manifest, copies=(copy,)))
    result = delete_records(tmp_path, ["1", "4"])
    assert result.copies_to_destroy == (copy.manifest_sha256,)
    delete_records(tmp_path, ["3"])
    left = read_manifest(tmp_path)
    assert delete_records(tmp_path, ["4", "1"]) == delete_records(tmp_path, ["4"]) == result
    assert read_manifest(tmp_path) == left


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


def kill_at(monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(deletion, step, killed)


STEPS = ["remove_checkpoints", "write_manifest", "remove_unnamed", "publish_pending"]


@pytest.mark.parametrize("step", STEPS)
def test_a_deletion_that_was_killed_has_no_result_before_it_is_done_again_or_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    filled(tmp_path, STACKED)
    kill_at(monkeypatch, step)
    with pytest.raises(KeyboardInterrupt):
        delete_records(tmp_path, ["4"])
    monkeypatch.undo()
    assert not deletion_path(tmp_path, 1).exists()
    assert len(on_file(tmp_path)) == (3 if step == "publish_pending" else 9)
    result = delete_records(tmp_path, ["4"])
    assert (result.number, result.hit, len(result.dropped)) == (1, ("c",), 6)
    assert len(on_file(tmp_path)) == 3
    assert [path.name for path in (tmp_path / "deletions").iterdir()] == ["0001.json"]
    assert DeletionResult.from_document(json.loads(deletion_path(tmp_path, 1).read_text())) == result


@pytest.mark.parametrize("step", STEPS)
def test_deleting_something_else_after_a_killed_deletion_never_writes_over_its_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    filled(tmp_path, STACKED)
    kill_at(monkeypatch, step)
    with pytest.raises(KeyboardInterrupt):
        delete_records(tmp_path, ["4"])
    monkeypatch.undo()
    delete_records(tmp_path, ["3"])
    was_decided = step in ("remove_unnamed", "publish_pending")
    assert [set(result.record_sha256) for result in read_results(tmp_path)] == [
        id_digests(ids) for ids in ([["4"]] if was_decided else []) + [["3"]]
    ]
    assert not (tmp_path / "deletions" / "pending.json").exists()


# --- what could keep a deleted file alive -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["adapters", "checkpoints", "deletions", "serving", "lock"])
def test_a_store_that_holds_a_link_is_refused_and_nothing_behind_it_is_touched(tmp_path: Path, name: str) -> None:
    store, elsewhere = tmp_path / "store", tmp_path / "elsewhere"
    filled(store, STACKED)
    if (store / name).exists():
        (store / name).rename(elsewhere)
    elif name == "lock":
        elsewhere.write_text("kept")
    else:
        elsewhere.mkdir()
    (store / name).symlink_to(elsewhere)
    with pytest.raises(SpecError, match=f"{name} in store store is a link"):
        delete_records(store, ["4"])
    assert len(read_manifest(store).adapters) == 9
    if name == "lock":
        assert elsewhere.read_text() == "kept"


@pytest.mark.parametrize("kind", ["symbolic", "hard", "directory"])
def test_weights_that_would_outlive_the_removal_of_their_name_are_refused(tmp_path: Path, kind: str) -> None:
    store, elsewhere = tmp_path / "store", tmp_path / "elsewhere"
    filled(store, STACKED)
    path = adapter_path(store, 1, 0)
    path.rename(elsewhere)
    if kind == "symbolic":
        path.symlink_to(elsewhere)
    elif kind == "hard":
        path.hardlink_to(elsewhere)
    else:
        path.mkdir()
    with pytest.raises(SpecError, match="would not destroy it"):
        delete_records(store, ["4"])
    assert not deletion_path(store, 1).exists()
    assert len(read_manifest(store).adapters) == 9


def test_a_store_without_the_directory_of_the_adapters_that_it_names_is_refused(tmp_path: Path) -> None:
    filled(tmp_path, STACKED)
    (tmp_path / "adapters").rename(tmp_path / "moved")
    with pytest.raises(SpecError, match="no adapters directory"):
        delete_records(tmp_path, ["4"])
    assert not deletion_path(tmp_path, 1).exists()


def test_a_file_that_is_still_there_after_its_removal_is_an_error_and_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(tmp_path, STACKED)

    def denied(*_: object, **__: object) -> None:
        raise PermissionError

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", lambda *_, **__: None)
        with pytest.raises(DeletionIncompleteError, match="6 files of weights"):
            delete_records(tmp_path, ["4"])
    assert not deletion_path(tmp_path, 1).exists()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", denied)
        with pytest.raises(DeletionIncompleteError, match="not complete"):
            delete_records(tmp_path, ["4"])
    assert not deletion_path(tmp_path, 1).exists()
    assert delete_records(tmp_path, ["4"]).number == 1
    assert len(on_file(tmp_path)) == 3


def test_a_manifest_put_back_from_before_a_deletion_is_refused(tmp_path: Path) -> None:
    store = tmp_path / "store"
    filled(store, STACKED)
    shutil.copytree(store, tmp_path / "backup")
    delete_records(store, ["4"])
    shutil.copytree(tmp_path / "backup", store, dirs_exist_ok=True)
    with pytest.raises(SpecError, match="not of one time"):
        delete_records(store, ["4"])
    with pytest.raises(SpecError, match="not of one time"):
        refuse_rollback(store, read_manifest(store))
    assert len(on_file(store)) == 9  # nothing is guessed at


def test_results_that_were_removed_are_missed(tmp_path: Path) -> None:
    filled(tmp_path, STACKED)
    delete_records(tmp_path, ["4"])
    deletion_path(tmp_path, 1).unlink()
    with pytest.raises(SpecError, match="not of one time"):
        delete_records(tmp_path, ["3"])


def test_a_folded_copy_in_the_making_that_was_left_is_cleared(tmp_path: Path) -> None:
    filled(tmp_path, STACKED)
    (tmp_path / "serving").mkdir()
    (tmp_path / "serving" / "model.safetensors").write_bytes(b"weights of c")
    delete_records(tmp_path, ["4"])
    assert not (tmp_path / "serving").exists()


# --- what is on file ----------------------------------------------------------------------------------------------


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


def test_a_manifest_whose_plan_does_not_hold_together_is_refused(tmp_path: Path) -> None:
    manifest = filled(tmp_path, STACKED)
    for plan in (
        replace(STACKED, slices=(*SLICES[:2], Slice("c", ("1", "4")))),  # a deletion of 1 would hit one of two slices
        replace(STACKED, orders=((0, 1, 7), *STACKED.orders[1:])),
    ):
        write_manifest(tmp_path, replace(manifest, plan=plan))
        with pytest.raises(SpecError, match="plan: "):
            read_manifest(tmp_path)
        with pytest.raises(SpecError, match="plan: "):
            delete_records(tmp_path, ["1"])
    last = manifest.adapters[6:]  # those of the last order, which -1 names too
    write_manifest(
        tmp_path, replace(manifest, adapters=(*manifest.adapters[:6], *(replace(one, order=-1) for one in last)))
    )
    with pytest.raises(SpecError, match="exact manifest"):
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
