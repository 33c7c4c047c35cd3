"""`python -m ml.exact`: begin, go on, delete, serve, and every request that cannot be met."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from ml.data.records import write_records
from ml.exact.__main__ import main
from ml.exact.plan import Slice, person_slice
from ml.exact.store import read_manifest
from ml.models.load import load_model, model_ref
from ml.specs import Record
from tests.ml.exact_stores import SEPARATE, SLICES, STACKED, filled
from tests.tiny import tiny_model, tiny_world


def command(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def test_a_deletion_says_what_it_took_along_and_that_copies_remain(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    filled(tmp_path / "store", STACKED)
    assert command("delete", "--store", tmp_path / "store", "--record", "4") == 0
    said = capsys.readouterr().out
    assert "guarantee: exact_sharded" in said
    assert "adapters deleted: 6, left: 3" in said
    assert "serves: order 0 position 0, order 0 position 1\n" in said
    assert "must be destroyed" in said


def test_ids_may_come_from_a_file_and_deleting_all_leaves_the_base(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    filled(tmp_path / "store", SEPARATE)
    (tmp_path / "ids").write_text("1\n2\n3\n")
    assert command("delete", "--store", tmp_path / "store", "--records", tmp_path / "ids", "--record", "4") == 0
    assert "serves: the base alone" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["--record", "nobody"], "record_unknown"), ([], "empty_set"), (["--records", "missing"], "inputs_missing")],
)
def test_a_deletion_that_cannot_be_met_is_a_message_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: str
) -> None:
    filled(tmp_path / "store", STACKED)
    assert command("delete", "--store", tmp_path / "store", *arguments) == 2
    assert capsys.readouterr().err.startswith(f"{code}: ")
    assert len(read_manifest(tmp_path / "store").adapters) == 9


def test_an_id_ends_at_the_end_of_its_line_and_nowhere_else(tmp_path: Path) -> None:
    filled(tmp_path / "store", replace(STACKED, slices=(Slice("a", ("1\u20282",)), *SLICES[1:])))
    (tmp_path / "ids").write_text("1\u20282\r\n\n", encoding="utf-8", newline="")
    assert command("delete", "--store", tmp_path / "store", "--records", tmp_path / "ids") == 0


def test_a_deletion_asked_for_again_names_the_result_of_then(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    filled(tmp_path, STACKED)
    for record in ("4", "3", "4"):
        assert command("delete", "--store", tmp_path, "--record", record) == 0
    said = capsys.readouterr().out
    assert [line for line in said.splitlines() if line.startswith("result: ")] == [
        f"result: deletions/000{number}.json" for number in (1, 2, 1)
    ]


def test_a_deletion_prints_no_name_that_a_pseudonym_gives_away(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = person_slice("alice")
    filled(tmp_path, replace(SEPARATE, slices=(Slice(name, ("1", "2")), *SLICES[1:])))
    for record in ("3", "1"):  # hers serves after the first, and is hit by the second
        assert command("delete", "--store", tmp_path, "--record", record) == 0
    assert name not in "".join(capsys.readouterr())


def test_deleting_from_the_command_line_loads_nothing_that_computes(tmp_path: Path) -> None:
    filled(tmp_path, STACKED)
    code = (
        "import sys; from ml.exact.__main__ import main\n"
        "assert main(['delete', '--store', sys.argv[1], '--record', '4']) == 0\n"
        "assert not {'torch', 'numpy', 'safetensors'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-500:]


def quick(store: Path, base: Path, records: Path) -> list[object]:
    return ["train", "--store", store, "--base", base, "--records", records]


QUICK = ["--rank", 2, "--epochs", 1, "--batch-rows", 64]


@pytest.fixture
def people() -> dict[str, list[Record]]:
    world = tiny_world(0)
    return {person.person: list(world.records[person.person][:4]) for person in world.customers}


@pytest.mark.slow
def test_train_delete_serve_and_train_again(
    tmp_path: Path, people: dict[str, list[Record]], capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_model(tmp_path / "base")
    store, base, records = tmp_path / "store", tmp_path / "base", tmp_path / "records.jsonl"
    everybody = [record for rows in people.values() for record in rows]
    write_records(records, everybody)
    # two slices of one layer each, because the model has two
    assert command(*quick(store, base, records), "--slices", 2, *QUICK) == 0
    assert "adapters: 4 of 4" in capsys.readouterr().out
    begun = read_manifest(store)
    assert begun.plan.orders == ((0, 1), (1, 0))
    gone = begun.plan.slices[0].records[0]
    assert command("serve", "--store", store, "--base", base, "--out", tmp_path / "served") == 0
    assert "destroy every copy" in capsys.readouterr().out
    served = model_ref(tmp_path / "served")
    load_model(served)
    assert command("delete", "--store", store, "--record", gone) == 0
    assert f"destroy every copy with manifest sha256 {served.manifest_sha256}" in capsys.readouterr().out

    assert command(*quick(store, base, records)) == 2  # the file still holds the deleted record
    assert capsys.readouterr().err.startswith("record_invalid: ")
    write_records(records, [record for record in everybody if record.record_id != gone])
    assert command(*quick(store, base, records), "--seed", 1) == 2
    assert "leave out --seed" in capsys.readouterr().err
    assert command(*quick(store, base, records)) == 0
    assert len(read_manifest(store).adapters) == 4


@pytest.mark.slow
def test_one_adapter_per_person(tmp_path: Path, people: dict[str, list[Record]]) -> None:
    tiny_model(tmp_path / "base")
    store, base, records = tmp_path / "store", tmp_path / "base", tmp_path / "records.jsonl"
    (alice, bob, *_), rows = list(people), list(people.values())
    write_records(records, rows[0])
    assert command(*quick(store, base, records), "--separate", *QUICK) == 0
    write_records(records, [*rows[0], *rows[1]])
    assert command(*quick(store, base, records)) == 0
    assert [entry.slice for entry in read_manifest(store).adapters] == [person_slice(alice), person_slice(bob)]
    assert command("serve", "--store", store, "--base", base, "--out", tmp_path / "bob", "--person", bob) == 0
    assert command("serve", "--store", store, "--base", base, "--out", tmp_path / "nobody") == 2
    assert command("delete", "--store", store, "--record", *(record.record_id for record in rows[0])) == 0
    write_records(records, rows[1])
    assert command(*quick(store, base, records)) == 0
    assert [entry.slice for entry in read_manifest(store).adapters] == [person_slice(bob)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "needs --slices"),
        (["--slices", 3], "do not fit a model of 2"),
        (["--slices", 2, "--orders", 3], "different first slices"),
        (["--slices", 2, "--probabilities", 0.5], "1 deletion probabilities"),
        (["--separate", "--slices", 2], "leave out"),
        (["--slices", 2, "--rank", 0], "at least 1"),
        (["--slices", 2, "--threads", -1], "--threads is at least 1"),
        (["--slices", 2, "--threads", 0], "--threads is at least 1"),
    ],
)
def test_a_training_that_cannot_be_met_is_a_message_and_begins_no_store(
    tmp_path: Path,
    people: dict[str, list[Record]],
    capsys: pytest.CaptureFixture[str],
    options: list[object],
    said: str,
) -> None:
    tiny_model(tmp_path / "base")
    records = tmp_path / "records.jsonl"
    write_records(records, [record for rows in people.values() for record in rows])
    assert command(*quick(tmp_path / "store", tmp_path / "base", records), *options) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "store" / "manifest.json").exists()


@pytest.mark.slow
def test_a_store_that_is_a_file_is_a_message(
    tmp_path: Path, people: dict[str, list[Record]], capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_model(tmp_path / "base")
    store, records = tmp_path / "store", tmp_path / "records.jsonl"
    store.write_text("kept")
    write_records(records, next(iter(people.values())))
    assert command(*quick(store, tmp_path / "base", records), "--separate", *QUICK) == 2
    assert "is not a directory" in capsys.readouterr().err
    assert command("delete", "--store", store, "--record", "1") == 2
    assert store.read_text() == "kept"
