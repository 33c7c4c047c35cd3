"""Every input of one verification by digest: what somebody needs to repeat it. Standard library only.

Must never hold a path, a name, a text or a value: inputs are found again by their digests, wherever they lie.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ml.digests import file_sha256, model_manifest
from ml.documents import Json, plain_object, read
from ml.errors import InputsMissingError, ManifestMismatchError, ModelDirectoryError, SpecError
from ml.reports import VerificationReport
from ml.specs import FileRef, ModelRef, VerdictPolicy, VerificationSpec, seed_commitment

SCHEMA_VERSION: Final = 1
MODELS: Final = ("candidate", "before", "base")
REQUIRED_FILES: Final = ("forget", "retain", "question_bank")
OPTIONAL_FILES: Final = ("neighbours", "bystanders", "training_probes", "twin_pool", "world_facts")
_ENVIRONMENT: Final = ("device", "dtype", "threads")
_CONFIGURATIONS: Final = frozenset({"config.json", "adapter_config.json"})
_LONGEST_SEED: Final = 20
_SHOWN_DIGITS: Final = 16


@dataclass(frozen=True, slots=True)
class RunManifest:
    """Every input of one verification, by digest.

    `models` and `files` map roles to digests: manifest digests of model directories, SHA-256 of files. `seeds` and
    `environment` are those of the report; the environment names libraries, device, number format, threads and the
    digest of the code.
    """

    run_id: str
    attempt: int
    policy: VerdictPolicy
    models: Mapping[str, str]
    files: Mapping[str, str]
    seeds: Mapping[str, str]
    environment: Mapping[str, str]
    schema_version: int = SCHEMA_VERSION

    @property
    def seed(self) -> int:
        """The seed that decided twins, swaps and questions."""
        return int(self.seeds["verification"])

    @property
    def threads(self) -> int:
        """Threads of the process that measured; sums in another order differ in their last digits."""
        return int(self.environment["threads"])

    def to_document(self) -> dict[str, Json]:
        """Return the manifest as canonical-JSON-ready data."""
        return plain_object(self)

    @classmethod
    def from_document(cls, document: object) -> RunManifest:
        """Read a manifest; raises `SpecError` naming the field that is missing, unknown or malformed."""
        manifest = read(cls, document, where="run manifest")
        VerdictPolicy.from_document(manifest.policy.to_document())
        _check(manifest)
        return manifest

    def refuse_other(self, report: VerificationReport) -> None:
        """Raise `ManifestMismatchError` unless `report` is about the run that this manifest describes."""
        pairs: list[tuple[str, object, object]] = [
            ("run", self.run_id, report.run_id),
            ("attempt", self.attempt, report.attempt),
            ("policy", self.policy.sha256, report.policy_sha256),
            ("models", dict(self.models), dict(report.models)),
            ("seeds", dict(self.seeds), dict(report.seeds)),
            ("environment", dict(self.environment), dict(report.environment)),
        ]
        if differing := [name for name, ours, theirs in pairs if ours != theirs]:
            raise ManifestMismatchError(
                f"the manifest is about another run than the report: {', '.join(differing)} differ; "
                "give the manifest that was written with this report"
            )

    def spec(
        self, inputs: FoundInputs, *, parts_dir: Path, seed: int | None = None, device: str | None = None
    ) -> VerificationSpec:
        """Return what to measure: the same again, or with another `seed` or on another `device`.

        Another seed draws twins for this subject alone: a pool holds those of its own seed.
        """
        chosen = self.seed if seed is None else seed
        candidate, before, base = (ModelRef(str(inputs.models[role]), self.models[role]) for role in MODELS)
        return VerificationSpec(
            run_id=self.run_id,
            attempt=self.attempt,
            policy=self.policy,
            candidate=candidate,
            before=before,
            base=base,
            forget=self._file(inputs, "forget"),
            retain=self._file(inputs, "retain"),
            neighbours=self._optional(inputs, "neighbours"),
            question_bank=self._file(inputs, "question_bank"),
            seed=chosen,
            seed_commitment_sha256=seed_commitment(self.run_id, chosen),
            parts_dir=str(parts_dir),
            training_probes=self._optional(inputs, "training_probes"),
            bystanders=self._optional(inputs, "bystanders"),
            twin_pool=self._optional(inputs, "twin_pool") if chosen == self.seed else None,
            world_facts=self._optional(inputs, "world_facts"),
            adapters=tuple(ModelRef(str(inputs.models[role]), self.models[role]) for role in _adapters(self.models)),
            device=device or self.environment["device"],
            dtype=self.environment["dtype"],
        )

    def _file(self, inputs: FoundInputs, role: str) -> FileRef:
        return FileRef(str(inputs.files[role]), self.files[role])

    def _optional(self, inputs: FoundInputs, role: str) -> FileRef | None:
        return self._file(inputs, role) if role in self.files else None


def manifest_of(report: VerificationReport, *, policy: VerdictPolicy, files: Mapping[str, str]) -> RunManifest:
    """Return the manifest of the run that `report` came from.

    Args:
        files: role to SHA-256 of every file that the run read.
    Raises:
        SpecError: the report measured nothing, or a file that every run reads has no digest.
        ManifestMismatchError: the report is by another policy.
    """
    manifest = RunManifest(
        report.run_id, report.attempt, policy, report.models, files, report.seeds, report.environment
    )
    _check(manifest)
    manifest.refuse_other(report)
    return manifest


def _adapters(models: Mapping[str, str]) -> list[str]:
    """The roles of adapters among those of `models`, in order."""
    numbered = (f"adapter_{number}" for number in range(1, 1 + len(models)))
    return [role for role in numbered if role in models]


def _check(manifest: RunManifest) -> None:
    if manifest.schema_version != SCHEMA_VERSION:
        raise SpecError(f"run manifest: schema_version must be {SCHEMA_VERSION}")
    if set(manifest.models) != {*MODELS, *_adapters(manifest.models)}:
        raise SpecError(f"run manifest: models are {', '.join(MODELS)}, and perhaps adapter_1 and on")
    if not set(REQUIRED_FILES) <= set(manifest.files) <= {*REQUIRED_FILES, *OPTIONAL_FILES}:
        raise SpecError(f"run manifest: files are {', '.join(REQUIRED_FILES)}, and perhaps {', '.join(OPTIONAL_FILES)}")
    for role, digest in {**manifest.models, **manifest.files}.items():
        if not _is_sha256(digest):
            raise SpecError(f"run manifest: {role} has no SHA-256 in lower case")
    if not _is_whole(manifest.seeds.get("verification", "")):
        raise SpecError("run manifest: no verification seed; a run that measured nothing cannot be repeated")
    if missing := [name for name in _ENVIRONMENT if not manifest.environment.get(name)]:
        raise SpecError(f"run manifest: the environment does not name {', '.join(missing)}")
    if not _is_whole(manifest.environment["threads"]) or manifest.threads < 1:
        raise SpecError("run manifest: threads are a whole number from 1")


def _is_sha256(text: str) -> bool:
    return len(text) == 64 and set(text) <= set("0123456789abcdef")


def _is_whole(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= _LONGEST_SEED


# --- finding the inputs -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FoundInputs:
    """Where the inputs of a manifest lie, by role."""

    models: Mapping[str, Path]
    files: Mapping[str, Path]


def find_inputs(manifest: RunManifest, directory: Path) -> FoundInputs:
    """Look through `directory` for every input that `manifest` names, by digest; names and places do not matter.

    A directory with the configuration of a model or of an adapter is taken for one, and not searched further; links are
    not followed.

    Raises:
        InputsMissingError: an input is not there, or only something else under its name; the message names each role.
    """
    models: dict[str, Path] = {}
    files: dict[str, Path] = {}
    names: set[str] = set()
    for path in _entries(directory):
        names.add(path.stem)
        if path.is_dir():
            models.setdefault(_model_digest(path), path)
        else:
            files.setdefault(_file_digest(path), path)
    lacking = [*_lacking(manifest.models, models, names), *_lacking(manifest.files, files, names)]
    if lacking:
        raise InputsMissingError(f"the inputs lack {'; '.join(lacking)}")
    return FoundInputs(
        {role: models[digest] for role, digest in manifest.models.items()},
        {role: files[digest] for role, digest in manifest.files.items()},
    )


def _entries(directory: Path) -> Iterator[Path]:
    """Model directories as one entry each, and every other regular file."""
    for folder, below, names in os.walk(directory):
        if not _CONFIGURATIONS.isdisjoint(names):
            below.clear()
            yield Path(folder)
            continue
        below.sort()
        yield from (path for path in map(Path(folder).joinpath, sorted(names)) if _is_plain(path))


def _is_plain(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _model_digest(path: Path) -> str:
    try:
        return model_manifest(path).manifest_sha256
    except (ModelDirectoryError, OSError):
        return ""  # unsafe or unreadable: not the model that was measured


def _file_digest(path: Path) -> str:
    try:
        return file_sha256(path)
    except OSError:
        return ""


def _lacking(wanted: Mapping[str, str], found: Iterable[str], names: set[str]) -> Iterator[str]:
    there = set(found)
    for role, digest in wanted.items():
        if digest not in there:
            kind = "sha256" if role in {*REQUIRED_FILES, *OPTIONAL_FILES} else "manifest"
            other = ", and what bears its name has another digest" if role in names else ""
            yield f"{role} ({kind} {digest[:_SHOWN_DIGITS]}...{other})"
