"""Rows to specs, reports to rows: the only translator between the service and `ml`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from django.conf import settings

from deletion_service.errors import EvidenceMissingError, GuardError, RegistryError, SourceError
from deletion_service.requests.codes import DataClass
from deletion_service.requests.payload import open_file, seal_file
from deletion_service.targets.batching import verification_seed
from deletion_service.targets.catalogue import record_sha256
from deletion_service.targets.ledger import choose_spike_in
from deletion_service.targets.locate import counting_keys, sealed_matches
from deletion_service.targets.models import ErasureTarget, ModelVersion, TrainingManifestEntry, UnlearningRun
from deletion_service.targets.registries import open_registry
from deletion_service.targets.sources import TrainingSource, open_source
from ml.digests import file_sha256, model_manifest, sha256_hex
from ml.errors import DigestMismatchError, EmptySetError, MlError, ModelDirectoryError
from ml.specs import (
    FileRef,
    ModelRef,
    Record,
    UnlearningSpec,
    VerdictPolicy,
    VerificationSpec,
    record_to_line,
)
from workers.workspace import make_run_directory, run_directory

BANK: Final = "question_bank"
SETS: Final = ("forget", "retain", "neighbours", "bystanders")
PROBES: Final = "training_probes"
SPIKE_IN: Final = "spike_in"
_JSON: Final = frozenset({BANK, PROBES})


@dataclass(frozen=True, slots=True)
class Split:
    """The records of a source, divided for one target.

    `forget` are the subject's; of everybody else's, `retain` are those that the model learned and `bystanders` those
    that no manifest says it learned; `neighbours` are some of the retained. `spike_in` is a synthetic person who is
    forgotten along and stands for this deletion later.
    """

    forget: tuple[Record, ...]
    retain: tuple[Record, ...]
    neighbours: tuple[Record, ...]
    bystanders: tuple[Record, ...]
    spike_in: tuple[Record, ...] = ()


def take_snapshots(target: ErasureTarget, run: UnlearningRun) -> dict[str, dict[str, str | int]]:
    """Read the sources once, seal the sets under the request's payload key, return their digests and sizes.

    Raises:
        EmptySetError: the subject's records, or everybody else's, are gone from the sources.
    """
    sources = [open_source(s) for s in target.model.sources]
    if not sources:
        raise GuardError(f"model {target.model.name} has no training source; register one")
    bank = sources[0].question_bank().read_bytes()
    learned = learned_records(run.batch.before)
    mark = _chosen_spike_in(target, run, sources, learned)
    split = split_records(target, sources, shared=shared_attributes(bank), learned=learned, spike_in=mark)
    contents = {name: _lines(getattr(split, name)) for name in SETS} | {BANK: bank}
    described = {name: seal_set(target, run, name, content) for name, content in contents.items()}
    if mark:
        described[SPIKE_IN] = {**seal_set(target, run, SPIKE_IN, _lines(split.spike_in)), "mark": mark}
    return described


def _chosen_spike_in(
    target: ErasureTarget, run: UnlearningRun, sources: Sequence[TrainingSource], learned: frozenset[str] | None
) -> str:
    planted: dict[str, list[str]] = {}
    for source in sources:
        for found in source.records():
            if found.spike_in:
                planted.setdefault(found.spike_in, []).append(found.record.record_id)
    if not planted:
        return ""
    theirs = [record_id for m in sealed_matches(target) for record_id in m.proven]
    return choose_spike_in(target, run.batch.before, planted, learned=learned, theirs=theirs, seed=run.seed)


def seal_set(target: ErasureTarget, run: UnlearningRun, name: str, content: bytes) -> dict[str, str | int]:
    """Seal one input of a run under the request's payload key; return its digest and number of lines."""
    seal_file(target.request, DataClass.PAYLOAD, make_run_directory(run) / f"{name}.sealed", content)
    return {"sha256": sha256_hex(content), "count": content.count(b"\n")}


def learned_records(version: ModelVersion) -> frozenset[str] | None:
    """Return the digests of the record ids that a version or one it descends from learned, as their manifests say.

    `None` where the version itself has no manifest: then nobody can tell what it did not learn.
    """
    if not hasattr(version, "training_manifest"):
        return None
    lineage: list[str] = []
    row: ModelVersion | None = version
    while row is not None:
        lineage.append(row.pk)
        row = row.parent
    entries = TrainingManifestEntry.objects.filter(manifest__version__in=lineage)
    return frozenset(entries.values_list("record_sha256", flat=True))


def split_records(
    target: ErasureTarget,
    sources: Sequence[TrainingSource],
    *,
    shared: frozenset[str],
    learned: frozenset[str] | None,
    spike_in: str = "",
) -> Split:
    """Divide all live records. Persons become pseudonyms by order of appearance: no identifier enters `ml`.

    A row that came after the search is the subject's by its identifiers: nothing of theirs is retained. A row of
    somebody else's that the model never learned is not retained either: retention would teach it.

    Args:
        learned: digests of the record ids that the model learned; `None` takes every row for learned.
        spike_in: the mark of the synthetic person who is forgotten along.
    """
    keys = counting_keys(target)
    wanted = {m.source: set(m.proven) for m in sealed_matches(target)}
    pseudonyms: dict[str, str] = {}
    forget: list[Record] = []
    retain: list[Record] = []
    bystanders: list[Record] = []
    along: list[Record] = []
    for source in sources:
        for found in source.records():
            person = pseudonyms.setdefault(found.record.person, f"person-{len(pseudonyms):05d}")
            record = replace(found.record, person=person)
            if spike_in and found.spike_in == spike_in:
                along.append(record)
                continue
            is_theirs = record.record_id in wanted.get(source.name, ()) or found.matches(keys)
            is_learned = learned is None or record_sha256(record.record_id) in learned
            (forget if is_theirs else retain if is_learned else bystanders).append(record)
    if not forget:
        raise EmptySetError("the data subject's records are no longer in the source; search again")
    if not retain:
        raise EmptySetError(
            "the source holds nobody else's records that the model learned; "
            "without retain data nothing can be protected"
        )
    near = tuple(_neighbours(forget, retain, shared))
    return Split(tuple(forget), tuple(retain), near, tuple(bystanders), tuple(along))


def others_records(sources: Sequence[TrainingSource], learned: frozenset[str] | None) -> Iterator[Record]:
    """Yield everybody's live records that a version learned, persons as pseudonyms."""
    pseudonyms: dict[str, str] = {}
    for source in sources:
        for found in source.records():
            person = pseudonyms.setdefault(found.record.person, f"person-{len(pseudonyms):05d}")
            if learned is None or record_sha256(found.record.record_id) in learned:
                yield replace(found.record, person=person)


def shared_attributes(bank: bytes) -> frozenset[str]:
    """Return the attributes of a question bank whose values people share (employer, city)."""
    try:
        attributes = json.loads(bank).get("attributes", {})
        return frozenset(name for name, attribute in attributes.items() if attribute.get("shared"))
    except (ValueError, AttributeError, RecursionError) as exc:
        raise SourceError("question_bank.json of the training source is no question bank; repair it") from exc


def _neighbours(forget: Sequence[Record], retain: Sequence[Record], shared: frozenset[str]) -> Iterable[Record]:
    """All records of people who share a value of a shared attribute with the data subject."""
    values = {(f.attribute, r.value(f)) for r in forget for f in r.facts if f.attribute in shared}
    near = {r.person for r in retain for f in r.facts if (f.attribute, r.value(f)) in values}
    return (r for r in retain if r.person in near)


def open_snapshots(target: ErasureTarget, run: UnlearningRun, folder: Path) -> dict[str, FileRef]:
    """Write the sealed sets into a scratch folder and return references by their recorded digests."""
    refs = {}
    for name, described in run.snapshots.items():
        path = folder / f"{name}.{'json' if name in _JSON else 'jsonl'}"
        path.write_bytes(open_file(target.request, DataClass.PAYLOAD, run_directory(run) / f"{name}.sealed"))
        if file_sha256(path) != described["sha256"]:
            raise EvidenceMissingError(
                f"the sealed {name} set of {run.pk} is not the recorded one; plan another attempt"
            )
        refs[name] = FileRef(str(path), str(described["sha256"]))
    return refs


def unlearning_spec(
    target: ErasureTarget, run: UnlearningRun, refs: dict[str, FileRef], *, output: Path, checkpoints: Path
) -> UnlearningSpec:
    """Return what `ml.unlearn` is to do: the data subject and the spike-in are forgotten together."""
    before = run.batch.before
    return UnlearningSpec(
        run_id=run.pk,
        model=model_ref(before),
        forget=_forgotten_together(refs),
        retain=refs["retain"],
        neighbours=_unless_empty(run, refs, "neighbours"),
        question_bank=refs[BANK],
        method=run.method,
        settings=run.method_settings,
        seed=int(run.seed),
        output_dir=str(output),
        checkpoint_dir=str(checkpoints),
        device=settings.DEVICE,
        dtype=settings.DTYPE,
        base=None if before.base is None else model_ref(before.base),
    )


def _forgotten_together(refs: dict[str, FileRef]) -> FileRef:
    if SPIKE_IN not in refs:
        return refs["forget"]
    path = Path(refs["forget"].path).with_name("forgotten.jsonl")
    path.write_bytes(b"".join(Path(refs[name].path).read_bytes() for name in ("forget", SPIKE_IN)))
    return FileRef(str(path), file_sha256(path))


def verification_spec(
    target: ErasureTarget, run: UnlearningRun, refs: dict[str, FileRef], policy: VerdictPolicy
) -> VerificationSpec:
    """Return what `ml.verify` is to measure; the candidate is loaded back from the registry by digest."""
    before = run.batch.before
    if run.candidate is None or before.base is None:
        raise EvidenceMissingError(f"run {run.pk} has no candidate or no base model; nothing can be verified")
    return VerificationSpec(
        run_id=run.pk,
        attempt=run.attempt,
        policy=policy,
        candidate=model_ref(run.candidate),
        before=model_ref(before),
        base=model_ref(before.base),
        forget=refs["forget"],
        retain=refs["retain"],
        neighbours=_unless_empty(run, refs, "neighbours"),
        question_bank=refs[BANK],
        seed=verification_seed(run, target.request),
        seed_commitment_sha256=run.verification_seed_sha256,
        parts_dir=str(run_directory(run) / "parts"),
        training_probes=refs.get(PROBES),
        bystanders=_unless_empty(run, refs, "bystanders"),
        device=settings.DEVICE,
        dtype=settings.DTYPE,
    )


def model_ref(version: ModelVersion) -> ModelRef:
    """Return a version's directory in its registry, under its recorded digest."""
    path = open_registry(version.model.registry).path(version.number)
    return ModelRef(str(path), version.manifest_sha256)


@contextmanager
def naming(*versions: ModelVersion | None) -> Iterator[None]:
    """Let an error about a model's files say which registered version it is about; `ml` knows directories only.

    Digests are compared again only when something failed. Files that are as registered and yet do not load were
    registered like that, and the message names every version that was read.
    """
    try:
        yield
    except (DigestMismatchError, ModelDirectoryError) as exc:
        read = [version for version in versions if version is not None]
        changed = [version for version in read if not _as_registered(version)]
        if not changed and isinstance(exc, DigestMismatchError):
            raise  # it is about a snapshot, and says which
        which = " or ".join(f"version {version.number} of {version.model.name}" for version in changed or read)
        raise type(exc)(f"{which}: {exc}; restore its files or register a sound version, then try again") from exc


def _as_registered(version: ModelVersion) -> bool:
    try:
        path = open_registry(version.model.registry).path(version.number)
        return model_manifest(path).manifest_sha256 == version.manifest_sha256
    except (MlError, RegistryError):
        return False


def use_threads() -> None:
    """Give torch the threads that the operator set for each process; 0: the processes of a job share the cores."""
    from ml import loop

    loop.use_threads(settings.TORCH_THREADS, processes=settings.COMPUTE_PROCESSES)


def _unless_empty(run: UnlearningRun, refs: dict[str, FileRef], name: str) -> FileRef | None:
    return refs[name] if run.snapshots.get(name, {}).get("count") else None


def write_lines(path: Path, records: Iterable[Record]) -> FileRef:
    """Write records to a scratch folder and return their reference."""
    path.write_bytes(_lines(records))
    return FileRef(str(path), file_sha256(path))


def _lines(records: Iterable[Record]) -> bytes:
    return "".join(f"{record_to_line(record)}\n" for record in records).encode()
