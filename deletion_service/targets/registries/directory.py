"""A registry in a directory: `versions/N/{model,erasure,meta.json}`, `aliases.json`, `alias_history.jsonl`.

Writers take one lock file. Every file appears by rename, so that a reader never sees half of one. What a killed writer
left half written has a name of its own, and goes when the next one takes the lock.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from django.conf import settings as django_settings
from django.utils import timezone

from deletion_service.errors import AliasConflictError, InvalidInputError, RegistryError
from deletion_service.targets.registries import AliasPointer, Probe, RegisteredVersion
from deletion_service.targets.registries.copies import is_kept_below
from ml.digests import model_manifest
from ml.errors import MlError

NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_ATTACHMENT: Final = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")
_INCOMING: Final = ".incoming"
_PARTIAL: Final = ".part"


class DirectoryRegistry:
    """The versions and aliases of one trained model, in one directory."""

    def __init__(self, directory: Path, *, root: Path | None = None) -> None:
        self._directory = directory
        self._root = root or directory

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> DirectoryRegistry:
        """Open `name` below the registry root of this deployment; a name is never a path."""
        name = settings.get("name")
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise InvalidInputError("a registry name has letters, digits, _ and -", pointer="/registry/name")
        root = Path(django_settings.REGISTRY_ROOT)
        return cls(root / name, root=root)

    def list_versions(self) -> Sequence[RegisteredVersion]:
        """Return all versions that were ever published, oldest first."""
        return [_registered(meta) for meta in self._metas()]

    def resolve(self, alias: str) -> AliasPointer | None:
        """Return where `alias` points, or `None`."""
        pointer = self._aliases().get(alias)
        return None if pointer is None else AliasPointer(pointer["number"], pointer["epoch"])

    def lineage(self, number: int) -> Sequence[int]:
        """Return the versions that descend from `number`."""
        found: list[int] = []
        for meta in self._metas():
            if meta["parent"] == number or meta["parent"] in found:
                found.append(meta["number"])
        return found

    def publish(self, directory: Path, *, parent: int | None, tags: Mapping[str, str]) -> RegisteredVersion:
        """Copy a model directory in as a new version; the same bytes give the same version again."""
        try:
            manifest = model_manifest(directory)
        except MlError as exc:
            raise RegistryError(str(exc)) from exc
        with self._lock():
            for meta in self._metas():
                if meta["manifest_sha256"] == manifest.manifest_sha256 and not meta["retired"]:
                    return _registered(meta)
            number = max((meta["number"] for meta in self._metas()), default=0) + 1
            incoming = self._directory / _INCOMING
            shutil.copytree(directory, incoming / "model")
            if model_manifest(incoming / "model") != manifest:
                raise RegistryError(f"the copy of version {number} differs from its source; nothing was published")
            meta = {
                "number": number,
                "parent": parent,
                "root_sha256": manifest.root_sha256,
                "manifest_sha256": manifest.manifest_sha256,
                "manifest": manifest.to_document(),
                "tags": dict(tags),
                "retired": False,
            }
            _write_json(incoming / "meta.json", meta)
            self._versions.mkdir(parents=True, exist_ok=True)
            incoming.rename(self._version(number))
            return _registered(meta)

    def path(self, number: int) -> Path:
        """Return the directory with the version's model files."""
        path = self._version(number) / "model"
        if not path.is_dir():
            raise RegistryError(
                f"version {number} of {self._directory.name} has no weights here; it was retired or lost"
            )
        return path

    def tag(self, number: int, tags: Mapping[str, str]) -> None:
        """Add tags to a version."""
        with self._lock():
            meta = self._meta(number)
            meta["tags"].update(tags)
            _write_json(self._version(number) / "meta.json", meta)

    def attach(self, number: int, name: str, content: bytes) -> None:
        """Store a file under the version's `erasure/`."""
        if not _ATTACHMENT.fullmatch(name):
            raise InvalidInputError("an attachment name has letters, digits, dot, _ and -")
        with self._lock():
            folder = self._version(number) / "erasure"
            folder.mkdir(parents=True, exist_ok=True)
            _write(folder / name, content)

    def move_alias(self, alias: str, *, expected: int | None, to: int, epoch: int) -> AliasPointer:
        """Compare and set under the lock; a later epoch in place makes this writer a latecomer.

        Raises:
            AliasConflictError: the alias points elsewhere, or a later promotion moved it.
        """
        with self._lock():
            self._meta(to)
            aliases = self._aliases()
            current = aliases.get(alias)
            wanted = {"number": to, "epoch": epoch}
            if current != wanted:
                _refuse_conflict(alias, current, expected=expected, epoch=epoch)
                self._note_move(alias, current, wanted)
                aliases[alias] = wanted
                _write_json(self._directory / "aliases.json", aliases)
        pointer = self.resolve(alias)
        if pointer != AliasPointer(to, epoch):
            raise AliasConflictError(f"alias {alias} does not read back as version {to}")
        return AliasPointer(to, epoch)

    def retire(self, number: int) -> None:
        """Delete the weights of a version, keeping what proves that they existed. No alias may point to it."""
        with self._lock():
            if any(pointer["number"] == number for pointer in self._aliases().values()):
                raise RegistryError(f"version {number} is still served under an alias; move the alias first")
            meta = self._meta(number)
            meta["retired"] = True
            _write_json(self._version(number) / "meta.json", meta)
            shutil.rmtree(self._version(number) / "model", ignore_errors=True)

    def probe_gone(self, number: int) -> Probe:
        """Try to read each file of a version, and look for its weights in every file of every registry here.

        Weights that no version lists are nobody's and might be the same in another form: they count as readable.
        """
        try:
            meta = self._meta(number)
            files = [self._version(number) / "model" / row["path"] for row in meta["manifest"]]
            if any(_readable(path) for path in files) or is_kept_below(self._root, meta["manifest"]):
                return "still_readable"
        except (OSError, RegistryError):
            return "unknown"
        return "gone"

    def tidy(self) -> int:
        """Remove half-written files and copies, unless somebody is writing."""
        if not self._directory.is_dir():
            return 0
        with (self._directory / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return 0
            return self._remove_partial()

    def watch(self, retired: Sequence[str]) -> Sequence[str]:
        """Return where a retired digest is readable or served again."""
        alarms = []
        for meta in self._metas():
            if meta["manifest_sha256"] in retired and (self._version(meta["number"]) / "model").exists():
                alarms.append(f"version {meta['number']} of {self._directory.name} is readable again")
        for alias, pointer in self._aliases().items():
            if self._meta(pointer["number"])["manifest_sha256"] in retired:
                alarms.append(f"alias {alias} of {self._directory.name} points to a retired version")
        return alarms

    @property
    def _versions(self) -> Path:
        return self._directory / "versions"

    def _version(self, number: int) -> Path:
        return self._versions / f"{number:06d}"

    def _metas(self) -> list[dict[str, Any]]:
        return [_read_json(path) for path in sorted(self._versions.glob("*/meta.json"))]

    def _meta(self, number: int) -> dict[str, Any]:
        path = self._version(number) / "meta.json"
        if not path.is_file():
            raise RegistryError(f"{self._directory.name} has no version {number}")
        meta: dict[str, Any] = _read_json(path)
        return meta

    def _aliases(self) -> dict[str, dict[str, int]]:
        path = self._directory / "aliases.json"
        return _read_json(path) if path.is_file() else {}

    def _note_move(self, alias: str, old: Mapping[str, int] | None, new: Mapping[str, int]) -> None:
        """Note a move before it is made, once: a writer that was killed in between finds its note."""
        path = self._directory / "alias_history.jsonl"
        noted = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        rows = [row for row in map(json.loads, noted) if row["alias"] == alias]
        if rows and rows[-1]["to"] == new:
            return
        row = {"alias": alias, "from": old, "to": new, "at": timezone.now().isoformat()}
        _write(path, "".join(f"{line}\n" for line in [*noted, json.dumps(row, sort_keys=True)]).encode())

    @contextmanager
    def _lock(self) -> Iterator[None]:
        self._directory.mkdir(parents=True, exist_ok=True)
        with (self._directory / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._remove_partial()
            yield

    def _remove_partial(self) -> int:
        """Remove what no writer can be at work on: the caller holds the lock."""
        incoming = self._directory / _INCOMING
        folders = [self._directory, *self._versions.glob("*"), *self._versions.glob("*/erasure")]
        partial = [path for folder in folders for path in folder.glob(f".*{_PARTIAL}")]
        found = len(partial) + incoming.is_dir()
        shutil.rmtree(incoming, ignore_errors=True)
        for path in partial:
            path.unlink()
        return found


def _refuse_conflict(alias: str, current: Mapping[str, int] | None, *, expected: int | None, epoch: int) -> None:
    number = None if current is None else current["number"]
    if current is not None and current["epoch"] >= epoch:
        raise AliasConflictError(f"alias {alias} was moved by a later promotion (epoch {current['epoch']})")
    if number != expected:
        raise AliasConflictError(f"alias {alias} points to version {number}, not to {expected}; somebody moved it")


def _registered(meta: Mapping[str, Any]) -> RegisteredVersion:
    return RegisteredVersion(
        meta["number"], meta["parent"], meta["root_sha256"], meta["manifest_sha256"], dict(meta["tags"])
    )


def _readable(path: Path) -> bool:
    try:
        with path.open("rb") as stream:
            stream.read(1)
    except FileNotFoundError:
        return False
    return True


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as exc:
        raise RegistryError(f"registry file {path.name} is not JSON; restore it") from exc


def _write_json(path: Path, document: object) -> None:
    _write(path, json.dumps(document, indent=1, sort_keys=True).encode())


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}{_PARTIAL}")
    with temporary.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)
