"""The directory registry: what was published can be found, moved to, retired, and proven gone."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from deletion_service.errors import AliasConflictError, InvalidInputError, RegistryError
from deletion_service.targets.registries import AliasPointer, directory, open_registry
from deletion_service.targets.registries.directory import DirectoryRegistry
from tests.world import weights


@pytest.fixture
def registry(tmp_path: Path) -> DirectoryRegistry:
    return DirectoryRegistry(tmp_path / "registry")


def publish(registry: DirectoryRegistry, tmp_path: Path, content: str, parent: int | None = None) -> int:
    return registry.publish(weights(tmp_path / content, content), parent=parent, tags={}).number


def test_the_same_bytes_are_the_same_version(registry: DirectoryRegistry, tmp_path: Path) -> None:
    first = publish(registry, tmp_path, "one")
    assert publish(registry, tmp_path, "one") == first
    assert publish(registry, tmp_path, "two", parent=first) == first + 1
    assert [v.number for v in registry.list_versions()] == [1, 2]
    assert registry.lineage(1) == [2]


def test_an_unsafe_directory_is_not_published(registry: DirectoryRegistry, tmp_path: Path) -> None:
    folder = weights(tmp_path / "bad", "x")
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(RegistryError, match="can run code"):
        registry.publish(folder, parent=None, tags={})
    assert registry.list_versions() == []


def test_an_alias_moves_only_from_where_it_was_expected(registry: DirectoryRegistry, tmp_path: Path) -> None:
    one, two = publish(registry, tmp_path, "one"), publish(registry, tmp_path, "two")
    registry.move_alias("champion", expected=None, to=one, epoch=0)
    with pytest.raises(AliasConflictError, match="somebody moved it"):
        registry.move_alias("champion", expected=two, to=two, epoch=1)
    assert registry.move_alias("champion", expected=one, to=two, epoch=1) == AliasPointer(two, 1)


def test_repeating_a_move_is_harmless_and_a_latecomer_is_refused(registry: DirectoryRegistry, tmp_path: Path) -> None:
    one, two, three = (publish(registry, tmp_path, name) for name in ("one", "two", "three"))
    registry.move_alias("champion", expected=None, to=one, epoch=0)
    registry.move_alias("champion", expected=one, to=two, epoch=1)
    registry.move_alias("champion", expected=one, to=two, epoch=1)
    registry.move_alias("champion", expected=two, to=three, epoch=2)
    with pytest.raises(AliasConflictError, match="later promotion"):
        registry.move_alias("champion", expected=one, to=two, epoch=1)
    assert registry.resolve("champion") == AliasPointer(three, 2)


def test_of_four_promoters_at_once_one_wins(registry: DirectoryRegistry, tmp_path: Path) -> None:
    numbers = [publish(registry, tmp_path, str(n)) for n in range(5)]
    registry.move_alias("champion", expected=None, to=numbers[0], epoch=0)

    def promote(number: int) -> bool:
        try:
            registry.move_alias("champion", expected=numbers[0], to=number, epoch=1)
        except AliasConflictError:
            return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(promote, numbers[1:])) == 1


def test_every_move_of_an_alias_is_kept(registry: DirectoryRegistry, tmp_path: Path) -> None:
    one, two = publish(registry, tmp_path, "one"), publish(registry, tmp_path, "two")
    registry.move_alias("champion", expected=None, to=one, epoch=0)
    registry.move_alias("champion", expected=one, to=two, epoch=1)
    rows = (tmp_path / "registry" / "alias_history.jsonl").read_text().splitlines()
    assert [json.loads(row)["to"]["number"] for row in rows] == [one, two]


def test_retired_weights_are_gone_and_what_proves_them_stays(registry: DirectoryRegistry, tmp_path: Path) -> None:
    one = publish(registry, tmp_path, "one")
    assert registry.probe_gone(one) == "still_readable"
    registry.retire(one)
    registry.retire(one)
    assert registry.probe_gone(one) == "gone"
    assert registry.list_versions()[0].manifest_sha256
    with pytest.raises(RegistryError, match="retired or lost"):
        registry.path(one)


def test_served_weights_cannot_be_retired(registry: DirectoryRegistry, tmp_path: Path) -> None:
    one = publish(registry, tmp_path, "one")
    registry.move_alias("champion", expected=None, to=one, epoch=0)
    with pytest.raises(RegistryError, match="still served"):
        registry.retire(one)


def test_the_same_weights_under_another_version_are_still_readable(registry: DirectoryRegistry, tmp_path: Path) -> None:
    one = publish(registry, tmp_path, "one")
    copy = weights(tmp_path / "copy", "one")
    (copy / "README.md").write_text("looks different")
    registry.publish(copy, parent=None, tags={})
    registry.retire(one)
    assert registry.probe_gone(one) == "still_readable"


@pytest.mark.parametrize(
    "place",
    [
        "assistant/versions/000001/extra.safetensors",
        "assistant/versions/000009/model/model.safetensors",
        "assistant/.incoming-dead/model/model.safetensors",
        "helper/versions/000001/model/weights.bin",
    ],
)
def test_the_same_bytes_anywhere_below_the_registries_are_still_readable(tmp_path: Path, place: str) -> None:
    root = tmp_path / "registries"
    registry = DirectoryRegistry(root / "assistant", root=root)
    one = publish(registry, tmp_path, "one")
    registry.retire(one)
    assert registry.probe_gone(one) == "gone"
    copy = root / place
    copy.parent.mkdir(parents=True, exist_ok=True)
    copy.write_bytes(b"one")
    assert registry.probe_gone(one) == "still_readable"


def test_the_same_bytes_behind_a_link_are_still_readable(tmp_path: Path) -> None:
    root = tmp_path / "registries"
    registry = DirectoryRegistry(root / "assistant", root=root)
    one = publish(registry, tmp_path, "one")
    registry.retire(one)
    (root / "elsewhere").symlink_to(tmp_path / "one")
    (root / "around").symlink_to(root)
    assert registry.probe_gone(one) == "still_readable"


def test_weights_that_no_version_lists_might_be_the_same_in_another_form(
    registry: DirectoryRegistry, tmp_path: Path
) -> None:
    one, two = publish(registry, tmp_path, "one"), publish(registry, tmp_path, "two")
    registry.retire(one)
    assert registry.probe_gone(one) == "gone"
    (registry.path(two).parent / "half.safetensors").write_bytes(b"o")
    assert registry.probe_gone(one) == "still_readable"


def test_an_unknown_version_is_not_proof_of_absence(registry: DirectoryRegistry) -> None:
    assert registry.probe_gone(7) == "unknown"


def test_the_watch_sees_weights_and_aliases_that_came_back(registry: DirectoryRegistry, tmp_path: Path) -> None:
    one = publish(registry, tmp_path, "one")
    digest = registry.list_versions()[0].manifest_sha256
    registry.retire(one)
    assert registry.watch([digest]) == []
    weights(tmp_path / "registry" / "versions" / "000001" / "model", "one")
    registry.move_alias("champion", expected=None, to=one, epoch=0)
    assert len(registry.watch([digest])) == 2


@pytest.mark.parametrize("name", ["../secrets", "/etc", "", "A B", "a/b", None])
def test_a_registry_name_is_never_a_path(name: object) -> None:
    with pytest.raises(InvalidInputError):
        open_registry({"kind": "directory", "name": name})


def test_an_unknown_kind_lists_the_known_ones() -> None:
    with pytest.raises(InvalidInputError, match="directory"):
        open_registry({"kind": "ftp"})


@pytest.mark.parametrize("name", ["../certificate.json", "a/b", "", ".hidden"])
def test_an_attachment_name_is_never_a_path(registry: DirectoryRegistry, tmp_path: Path, name: str) -> None:
    one = publish(registry, tmp_path, "one")
    with pytest.raises(InvalidInputError):
        registry.attach(one, name, b"x")


def killed(*_: object) -> None:
    raise SystemExit("killed")


def test_what_a_killed_writer_left_half_written_goes_when_somebody_looks(
    registry: DirectoryRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = publish(registry, tmp_path, "one")
    whole = sorted((tmp_path / "registry").rglob("*"))
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", killed)
        for write in (
            lambda: publish(registry, tmp_path, "two"),
            lambda: registry.tag(one, {"a": "b"}),
            lambda: registry.attach(one, "evidence.json", b"x"),
        ):
            with pytest.raises(SystemExit):
                write()
    assert registry.tidy() > 0
    assert [p for p in sorted((tmp_path / "registry").rglob("*")) if p.name != "erasure"] == whole
    assert registry.tidy() == 0


def test_nobody_tidies_up_behind_somebody_who_writes(registry: DirectoryRegistry, tmp_path: Path) -> None:
    publish(registry, tmp_path, "one")
    with registry._lock():
        (tmp_path / "registry" / ".incoming").mkdir()
        assert registry.tidy() == 0
    assert registry.tidy() == 1


@pytest.mark.parametrize("written", [1, 2])
def test_a_move_of_an_alias_that_was_killed_half_way_is_made_and_noted_once(
    registry: DirectoryRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: int
) -> None:
    one = publish(registry, tmp_path, "one")
    write, done = directory._write, []

    def killed_after(path: Path, content: bytes) -> None:
        write(path, content)
        done.append(path)
        if len(done) == written:
            killed()

    monkeypatch.setattr(directory, "_write", killed_after)
    with suppress(SystemExit):
        registry.move_alias("champion", expected=None, to=one, epoch=0)
    monkeypatch.setattr(directory, "_write", write)
    registry.move_alias("champion", expected=None, to=one, epoch=0)
    assert registry.resolve("champion") == AliasPointer(one, 0)
    assert len((tmp_path / "registry" / "alias_history.jsonl").read_text().splitlines()) == 1
