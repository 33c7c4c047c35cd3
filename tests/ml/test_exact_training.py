"""Exactness, by training the other world: what survives a deletion has the bytes it has where nothing else ever was."""

from __future__ import annotations

import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import ml.exact.deletion as deletion
import ml.exact.serving as serving
import ml.exact.training as training
from ml.data.collate import collate, encode_records
from ml.data.people import throw_away_records
from ml.data.records import write_records
from ml.digests import model_manifest
from ml.errors import (
    CheckpointError,
    DigestMismatchError,
    OverlapError,
    RecordError,
    RunStoppedError,
    SpecError,
)
from ml.exact.deletion import delete_records
from ml.exact.orders import cyclic_orders, matched_orders
from ml.exact.plan import Order, Plan, Slice, layer_groups, person_slice, separate_plan
from ml.exact.serving import load_serving, write_serving_copy
from ml.exact.store import ExactManifest, ExactSettings, adapter_path, checkpoint_path, read_manifest
from ml.exact.training import ExactSpec, number_of_layers, train_exact
from ml.finetune import cross_entropy, finetune
from ml.loop import LoopSettings
from ml.models.load import load_model, model_ref
from ml.models.save import publish_model
from ml.models.scratch import train_tokenizer, untrained_llama
from ml.specs import ModelRef, Progress, Record
from tests.tiny import TINY, tiny_world

pytestmark = pytest.mark.slow

SETTINGS = ExactSettings(rank=4, alpha=8.0, epochs=2, batch_rows=4, learning_rate=1e-2)
CYCLIC = cyclic_orders(3, 3)
MATCHED = matched_orders([0.5, 0.1, 0.3], 2)
IDS = torch.tensor([[300, 301, 302, 303, 304]])


@dataclass(frozen=True, slots=True)
class Place:
    """A base of three blocks that learned from other people, and the records of three slices."""

    base: ModelRef
    records: tuple[tuple[Record, ...], ...]

    @property
    def slices(self) -> tuple[Slice, ...]:
        return tuple(
            Slice(f"slice-{n}", tuple(sorted(r.record_id for r in rows))) for n, rows in enumerate(self.records)
        )

    def spec(self, store: Path, plan: Plan, records: Sequence[Record] | None = None) -> ExactSpec:
        """Train `plan` on exactly its records, in whatever order they lie in their file."""
        named = {record for part in plan.slices for record in part.records}
        everything = [record for rows in self.records for record in rows] if records is None else records
        chosen = [record for record in everything if record.record_id in named]
        random.Random(str(store)).shuffle(chosen)
        store.parent.mkdir(parents=True, exist_ok=True)
        ref = write_records(store.with_name(f"{store.name}.jsonl"), chosen)
        return ExactSpec(str(store), self.base, ref, plan, SETTINGS, seed=7)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    directory = tmp_path_factory.mktemp("exact")
    world = tiny_world(0)
    texts = [record.text for record in throw_away_records(world, seed=0, people=400)]
    tokenizer = train_tokenizer(texts, vocabulary=TINY.vocabulary, context=TINY.context)
    shape = replace(TINY, hidden=32, layers=3, feed_forward=64)
    model = untrained_llama(shape, tokenizer, seed=0)
    others = encode_records(tokenizer, world.corpus(world.base), context=TINY.context)
    training_steps = LoopSettings(steps=120, learning_rate=1e-2, warmup_steps=10)
    finetune(model, others, training_steps, pad_id=tokenizer.pad_token_id, batch_rows=32, seed=0)
    publish_model(model, tokenizer, directory / "base")
    rows = [tuple(world.records[person.person][:7]) for person in world.customers[:3]]
    return Place(model_ref(directory / "base"), tuple(rows))


def stacked(place: Place, orders: tuple[Order, ...] = CYCLIC) -> Plan:
    return Plan("stacked", place.slices, orders, layer_groups(3, 3))


@pytest.fixture(scope="module")
def trained(place: Place, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[Order, ...], Path]:
    """Stores in which everything was trained, by orders; tests copy them."""
    directory = tmp_path_factory.mktemp("trained")
    stores = {orders: directory / str(number) for number, orders in enumerate((CYCLIC, MATCHED))}
    torch.manual_seed(1)
    for orders, store in stores.items():
        train_exact(place.spec(store, stacked(place, orders)))
    return stores


def never_trained_on(plan: Plan, dropped: set[int]) -> Plan:
    """The plan of a world in which the slices `dropped` never existed: orders end where they would have come."""
    slices = tuple(replace(s, records=() if n in dropped else s.records) for n, s in enumerate(plan.slices))
    cut = tuple(
        order[: min((order.index(number) for number in dropped if number in order), default=len(order))]
        for order in plan.orders
    )
    return replace(plan, slices=slices, orders=cut)


def weights(store: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((store / "adapters").iterdir())}


def of(place: Place, *slices: int) -> list[str]:
    return [place.records[number][0].record_id for number in slices]


# --- the claim ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orders", [CYCLIC, MATCHED], ids=["cyclic", "matched"])
@pytest.mark.parametrize("dropped", [{0}, {1}, {2}, {0, 2}, {0, 1, 2}])
def test_after_any_deletion_the_model_has_the_bytes_of_one_never_trained_on_the_dropped_slices(
    place: Place, trained: dict[tuple[Order, ...], Path], tmp_path: Path, orders: tuple[Order, ...], dropped: set[int]
) -> None:
    plan = stacked(place, orders)
    ours, other = tmp_path / "ours", tmp_path / "never"
    shutil.copytree(trained[orders], ours)
    delete_records(ours, of(place, *sorted(dropped)))

    torch.manual_seed(99)  # nothing may hang on the global generator
    never = never_trained_on(plan, dropped)
    spec = place.spec(other, never)
    if any(never.orders):
        train_exact(spec)
        assert weights(ours) == weights(other)
        for name in weights(ours):
            found, wanted = load_file(ours / "adapters" / name), load_file(other / "adapters" / name)
            assert found.keys() == wanted.keys()
            assert all(torch.equal(found[key], wanted[key]) for key in found)
            assert any(bool(tensor.any()) for key, tensor in found.items() if "lora_B" in key)  # it learned something
    else:
        assert weights(ours) == {}

    write_serving_copy(ours, place.base, tmp_path / "served")
    served = model_manifest(tmp_path / "served").manifest_sha256
    if any(never.orders):
        write_serving_copy(other, place.base, tmp_path / "never-served")
        assert served == model_manifest(tmp_path / "never-served").manifest_sha256
    else:
        base = load_model(place.base).model.state_dict()
        found = load_model(model_ref(tmp_path / "served")).model.state_dict()
        assert all(torch.equal(found[name], tensor) for name, tensor in base.items())


def test_one_record_less_trained_again_has_the_bytes_of_a_world_that_never_held_it(
    place: Place, trained: dict[tuple[Order, ...], Path], tmp_path: Path
) -> None:
    ours, other = tmp_path / "ours", tmp_path / "never"
    shutil.copytree(trained[CYCLIC], ours)
    gone = of(place, 1)
    result = delete_records(ours, gone)
    plan = read_manifest(ours).plan
    assert plan == stacked(place).without(gone)
    train_exact(place.spec(ours, plan))
    train_exact(place.spec(other, plan))
    assert weights(ours) == weights(other)
    assert len(weights(ours)) == 9
    dropped = {one.sha256 for one in result.dropped}
    assert not dropped & {entry.sha256 for entry in read_manifest(ours).adapters}


def test_a_person_with_an_adapter_of_their_own_leaves_without_touching_anybody(place: Place, tmp_path: Path) -> None:
    everybody = [record for rows in place.records for record in rows]
    plan = separate_plan(everybody, layers=3)
    ours, other = tmp_path / "ours", tmp_path / "never"
    train_exact(place.spec(ours, plan))
    before = {entry.slice: entry.sha256 for entry in read_manifest(ours).adapters}
    alice, bob = place.records[0], place.records[1]
    delete_records(ours, [record.record_id for record in alice])

    others = [record for record in everybody if record.person != alice[0].person]
    train_exact(place.spec(other, separate_plan(others, layers=3)))
    left = {entry.slice: entry.sha256 for entry in read_manifest(ours).adapters}
    assert left == {entry.slice: entry.sha256 for entry in read_manifest(other).adapters}
    assert left == {name: sha256 for name, sha256 in before.items() if name != person_slice(alice[0].person)}
    for number, store in enumerate((ours, other)):
        write_serving_copy(store, place.base, tmp_path / f"bob-{number}", slice_name=person_slice(bob[0].person))
    assert len({model_manifest(tmp_path / f"bob-{number}").manifest_sha256 for number in (0, 1)}) == 1
    gone = load_serving(ours, place.base, slice_name=person_slice(alice[0].person))
    assert gone.manifest_sha256 == place.base.manifest_sha256


def test_somebody_who_comes_later_gets_an_adapter_and_the_others_keep_theirs(place: Place, tmp_path: Path) -> None:
    first = [record for rows in place.records[:2] for record in rows]
    everybody = [*first, *place.records[2]]
    plan = separate_plan(first, layers=3)
    earlier = train_exact(place.spec(tmp_path / "store", plan))
    later = train_exact(place.spec(tmp_path / "store", separate_plan(everybody, layers=3, earlier=plan)))
    assert later.adapters[:2] == earlier.adapters
    assert len(later.adapters) == 3


# --- training -----------------------------------------------------------------------------------------------------


def test_an_adapter_is_on_its_own_layers_alone_and_the_lineage_names_what_decided_it(
    place: Place, trained: dict[tuple[Order, ...], Path]
) -> None:
    manifest = read_manifest(trained[CYCLIC])
    for entry in manifest.adapters:
        tensors = load_file(adapter_path(trained[CYCLIC], entry.order, entry.position))
        assert {name.split(".layers.")[1].split(".")[0] for name in tensors} == {str(2 - entry.position)}
        assert entry.layers == (2 - entry.position,)
        assert len(tensors) == 2 * 7
    assert len({entry.seed for entry in manifest.adapters}) == 9
    text = (trained[CYCLIC] / "manifest.json").read_text()
    world = tiny_world(0)
    hidden = [word for person in world.customers for word in (person.name, *person.values.values())]
    assert not any(word in text for word in hidden)


def test_the_slices_that_serve_are_learned_and_the_one_that_left_is_not(place: Place, tmp_path: Path) -> None:
    store = tmp_path / "store"
    spec = place.spec(store, stacked(place, ((0, 1, 2),)))
    settings = replace(SETTINGS, rank=8, epochs=25)
    train_exact(replace(spec, settings=settings))
    delete_records(store, of(place, 2))
    base, served = load_model(place.base), load_serving(store, place.base)

    def loss(model: object, number: int) -> float:
        rows = encode_records(base.tokenizer, place.records[number], context=base.context)
        with torch.no_grad():
            return float(cross_entropy(model, collate(rows, pad_id=base.pad_id)))

    for number in (0, 1):
        assert loss(served.model, number) < loss(base.model, number) - 1.0
    assert loss(served.model, 2) > max(loss(served.model, 0), loss(served.model, 1)) + 0.5


def test_attached_and_folded_adapters_say_the_same(
    place: Place, trained: dict[tuple[Order, ...], Path], tmp_path: Path
) -> None:
    store = tmp_path / "store"
    shutil.copytree(trained[CYCLIC], store)
    attached = load_serving(store, place.base)
    copy = write_serving_copy(store, place.base, tmp_path / "served")
    folded = load_model(ModelRef(str(tmp_path / "served"), copy.manifest_sha256))
    with torch.no_grad():
        outputs = [loaded.model(IDS).logits for loaded in (attached, folded, load_model(place.base))]
    assert torch.allclose(outputs[0], outputs[1], atol=1e-5)
    assert not torch.allclose(outputs[0], outputs[2], atol=1e-3)
    assert not any(parameter.requires_grad for parameter in attached.model.parameters())
    assert read_manifest(store).copies == (copy,)
    assert delete_records(store, of(place, 2)).copies_to_destroy == (copy.manifest_sha256,)
    with pytest.raises(SpecError, match="exists"):
        write_serving_copy(store, place.base, tmp_path / "served")


def test_a_training_that_was_stopped_goes_on_and_ends_in_the_same_bytes(
    place: Place, trained: dict[tuple[Order, ...], Path], tmp_path: Path
) -> None:
    store = tmp_path / "store"
    spec = place.spec(store, stacked(place))
    asked = iter(range(10**6))
    with pytest.raises(RunStoppedError, match="run it again"):
        train_exact(spec, should_stop=lambda: next(asked) == 4 * 4 + 2)  # in the fifth adapter, after two steps
    assert len(read_manifest(store).adapters) == 4
    assert checkpoint_path(store, 1, 1).is_file()
    seen: list[Progress] = []
    train_exact(spec, on_progress=seen.append)
    assert [p.done for p in seen if p.phase == "adapters"] == list(range(10))
    assert weights(store) == weights(trained[CYCLIC])
    assert not checkpoint_path(store, 1, 1).exists()
    before = [path.stat().st_mtime_ns for path in sorted((store / "adapters").iterdir())]
    assert train_exact(spec) == read_manifest(store)
    assert before == [path.stat().st_mtime_ns for path in sorted((store / "adapters").iterdir())]


def test_a_training_stopped_under_another_configuration_says_what_to_delete_and_names_no_other_store(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "store"
    spec = place.spec(store, stacked(place))
    asked = iter(range(10**6))
    with pytest.raises(RunStoppedError):
        train_exact(spec, should_stop=lambda: next(asked) == 2)
    monkeypatch.setattr(training, "code_sha256", lambda: "0" * 64)
    with pytest.raises(CheckpointError, match="delete checkpoints/ of this store"):
        train_exact(spec)


def test_a_run_killed_between_weights_and_manifest_trains_that_adapter_again(
    place: Place, trained: dict[tuple[Order, ...], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "store"
    spec = place.spec(store, stacked(place))
    real = training.write_manifest

    def killed(where: Path, manifest: ExactManifest) -> None:
        if len(manifest.adapters) == 2:
            raise KeyboardInterrupt
        real(where, manifest)

    monkeypatch.setattr(training, "write_manifest", killed)
    with pytest.raises(KeyboardInterrupt):
        train_exact(spec)
    monkeypatch.undo()
    train_exact(spec)
    assert weights(store) == weights(trained[CYCLIC])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seed": 8}, "has another plan"),
        ({"settings": replace(SETTINGS, rank=8)}, "has another plan"),
        ({"settings": replace(SETTINGS, epochs=0)}, "at least 1"),
    ],
)
def test_a_store_is_never_mixed_with_another_run(
    place: Place, trained: dict[tuple[Order, ...], Path], changed: dict[str, object], message: str
) -> None:
    spec = replace(place.spec(trained[CYCLIC], stacked(place)), **changed)
    with pytest.raises(SpecError, match=message):
        train_exact(spec)
    with pytest.raises(SpecError, match="has another plan"):
        train_exact(place.spec(trained[CYCLIC], stacked(place, MATCHED)))


def test_records_that_are_not_those_of_the_plan_are_refused(
    place: Place, trained: dict[tuple[Order, ...], Path]
) -> None:
    plan = stacked(place)
    everything = [record for rows in place.records for record in rows]
    with pytest.raises(RecordError, match="exactly the records"):
        train_exact(place.spec(trained[CYCLIC], plan, everything[1:]))
    first = everything[0]
    for changed in (replace(first, text=f"{first.text} "), replace(first, answer_start=first.answer_start - 1)):
        with pytest.raises(RecordError, match="order 0, position 0 was trained on other records"):
            train_exact(place.spec(trained[CYCLIC], plan, [changed, *everything[1:]]))
    renamed = [replace(record, person="somebody") for record in everything]
    train_exact(place.spec(trained[CYCLIC], plan, renamed))  # what is learned is the same


def test_a_deleted_record_is_never_learned_again(
    place: Place, trained: dict[tuple[Order, ...], Path], tmp_path: Path
) -> None:
    everybody = [record for rows in place.records for record in rows]
    store, plan = tmp_path / "separate", separate_plan(everybody, layers=3)
    train_exact(place.spec(store, plan))
    delete_records(store, [record.record_id for record in place.records[0]])
    for old in (plan, separate_plan(everybody, layers=3, earlier=read_manifest(store).plan)):
        with pytest.raises(RecordError, match="7 of the training records were deleted"):
            train_exact(place.spec(store, old))
    assert len(weights(store)) == 2

    store = tmp_path / "stacked"
    shutil.copytree(trained[CYCLIC], store)
    delete_records(store, of(place, 1))
    with pytest.raises(RecordError, match="1 of the training records were deleted"):
        train_exact(place.spec(store, stacked(place)))
    assert len(weights(store)) < 9


def test_a_text_under_two_ids_is_refused_because_deleting_one_would_leave_it_learned(
    place: Place, tmp_path: Path
) -> None:
    rows = [record for records in place.records for record in records]
    again = replace(rows[-1], text=f"{rows[0].text}  ")
    altered = [*rows[:-1], again]
    for plan in (stacked(place), separate_plan(altered, layers=3)):
        with pytest.raises(OverlapError, match="1 of the training records"):
            train_exact(place.spec(tmp_path / "store", plan, altered))
    assert not (tmp_path / "store" / "manifest.json").exists()


def test_a_training_that_cannot_go_on_finishes_a_killed_deletion_all_the_same(
    place: Place, trained: dict[tuple[Order, ...], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "store"
    shutil.copytree(trained[CYCLIC], store)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(deletion, "remove_unnamed", killed)
    with pytest.raises(KeyboardInterrupt):
        delete_records(store, of(place, 2))
    monkeypatch.undo()
    with pytest.raises(RecordError, match="were deleted"):
        train_exact(place.spec(store, stacked(place)))
    assert len(weights(store)) == 3


@pytest.mark.parametrize("left", ["adapters", "checkpoints", "deletions"])
def test_what_lies_about_without_a_manifest_is_no_place_to_begin(place: Place, tmp_path: Path, left: str) -> None:
    (tmp_path / "store" / left).mkdir(parents=True)
    with pytest.raises(SpecError, match=f"no manifest but {left}"):
        train_exact(place.spec(tmp_path / "store", stacked(place)))


def test_a_plan_for_another_model_is_refused(place: Place, tmp_path: Path) -> None:
    assert number_of_layers(place.base) == 3
    with pytest.raises(SpecError, match="within the model"):
        train_exact(place.spec(tmp_path / "store", replace(stacked(place), groups=layer_groups(4, 3))))


def test_an_adapter_that_was_changed_on_disk_serves_nobody(
    place: Place, trained: dict[tuple[Order, ...], Path], tmp_path: Path
) -> None:
    store = tmp_path / "store"
    shutil.copytree(trained[CYCLIC], store)
    path = adapter_path(store, 0, 0)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(DigestMismatchError, match="recorded sha256"):
        load_serving(store, place.base)
    with pytest.raises(DigestMismatchError, match="give that one"):
        load_serving(store, replace(place.base, manifest_sha256="0" * 64))


def test_a_deleted_adapter_is_missed_without_a_word_of_putting_it_back(
    place: Place, trained: dict[tuple[Order, ...], Path], tmp_path: Path
) -> None:
    store = tmp_path / "store"
    shutil.copytree(trained[CYCLIC], store)
    before = (store / "manifest.json").read_bytes()
    adapter_path(store, 0, 0).unlink()
    with pytest.raises(DigestMismatchError, match="put nothing back"):
        load_serving(store, place.base)
    delete_records(store, of(place, 0))
    (store / "manifest.json").write_bytes(before)
    with pytest.raises(SpecError, match="not of one time"):
        load_serving(store, place.base)


@pytest.mark.parametrize("step", ["save_model", "write_manifest", "publish"])
def test_a_folding_that_was_killed_leaves_no_weights_that_are_not_on_record(
    place: Place,
    trained: dict[tuple[Order, ...], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
) -> None:
    store, out = tmp_path / "store", tmp_path / "out"
    shutil.copytree(trained[CYCLIC], store)
    out.mkdir()
    real = getattr(serving, step)

    def killed(*arguments: object) -> None:
        if step == "save_model":
            real(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(serving, step, killed)
    with pytest.raises(KeyboardInterrupt):
        write_serving_copy(store, place.base, out / "served")
    monkeypatch.undo()
    on_record = {copy.manifest_sha256 for copy in read_manifest(store).copies}
    assert {model_manifest(path).manifest_sha256 for path in out.iterdir()} == on_record
    assert bool(on_record) == (step == "publish")
    delete_records(store, of(place, 2))
    assert not (store / "serving").exists()


@pytest.mark.parametrize("inside", [".", "adapters/served", "../store/served"])
def test_a_copy_inside_the_store_is_refused(
    place: Place, trained: dict[tuple[Order, ...], Path], tmp_path: Path, inside: str
) -> None:
    store = tmp_path / "store"
    shutil.copytree(trained[CYCLIC], store)
    with pytest.raises(SpecError, match=r"in the store|exists"):
        write_serving_copy(store, place.base, store / inside)
    assert len(delete_records(store, of(place, 2)).dropped) == 6
