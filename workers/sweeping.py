"""Ledger rows to the specs of a sweep, and back: what is tested on a version, from the database into a scratch folder.

Must never leave a probe outside the scratch folder: it is written there, measured, and wiped.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal

from django.conf import settings
from django.utils import timezone

from deletion_service.certificates.sweep_document import vault_entry
from deletion_service.errors import EvidenceMissingError, GuardError
from deletion_service.targets import ledger
from deletion_service.targets.batching import verification_seed
from deletion_service.targets.ledger import Scores
from deletion_service.targets.models import ErasureTarget, LedgerEntry, ModelVersion, Sentinel, UnlearningRun
from deletion_service.targets.sources import open_source
from ml import specs
from ml.digests import canonical_json, file_sha256
from ml.documents import read
from ml.models.served import copies
from ml.specs import DeletionLedger, FileRef, RecordedScores, SweepSpec, VerdictPolicy, seed_commitment
from workers.bridge import BANK, SPIKE_IN, learned_records, model_ref, others_records, write_lines
from workers.workspace import run_directory, sweep_directory


@dataclass(frozen=True, slots=True)
class Sweeping:
    """What all measurements of one sweep share: whatever is not about one version."""

    run_id: str
    policy: VerdictPolicy
    retain: FileRef
    bank: FileRef
    seed: int
    parts: Path

    def spec(self, version: ModelVersion, entries: FileRef) -> SweepSpec:
        """Return what `ml.sweep` is to measure on a version."""
        if version.base is None:
            raise EvidenceMissingError(f"version {version.number} of {version.model.name} has no base; register it")
        return SweepSpec(
            run_id=self.run_id,
            policy=self.policy,
            candidate=model_ref(version),
            base=model_ref(version.base),
            ledger=entries,
            retain=self.retain,
            question_bank=self.bank,
            seed=self.seed,
            seed_commitment_sha256=seed_commitment(self.run_id, self.seed),
            as_of=timezone.localdate().isoformat(),
            parts_dir=str(self.parts),
            artefacts=_artefacts(self.policy),
            device=settings.DEVICE,
            dtype=settings.DTYPE,
        )


def sweeping_of_run(
    target: ErasureTarget, run: UnlearningRun, refs: dict[str, FileRef], policy: VerdictPolicy
) -> Sweeping:
    """A candidate is swept beside the sets it was verified on; its seed follows from the one committed to before."""
    seed = _derived(f"sweep:{verification_seed(run, target.request)}")
    return Sweeping(run.pk, policy, refs["retain"], refs[BANK], seed, run_directory(run) / "sweep-parts")


def sweeping_of_version(version: ModelVersion, job_id: str, folder: Path, policy: VerdictPolicy) -> Sweeping:
    """A version from outside is swept beside what is on file now. Its seed follows from the job's random id, which was
    drawn after the weights were registered."""
    sources = [open_source(source) for source in version.model.sources]
    if not sources:
        raise GuardError(f"model {version.model.name} has no training source; register one")
    bank = folder / f"{BANK}.json"
    bank.write_bytes(sources[0].question_bank().read_bytes())
    retain = write_lines(folder / "retain.jsonl", others_records(sources, learned_records(version)))
    parts = sweep_directory(job_id)
    return Sweeping(job_id, policy, retain, FileRef(str(bank), file_sha256(bank)), _derived(f"sweep:{job_id}"), parts)


def _derived(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6])


def _artefacts(policy: VerdictPolicy) -> tuple[str, ...]:
    """The forms in which a version is served, as far as the policy attacks them and a sweep can."""
    attacked = chain.from_iterable(rule.artefacts for rule in policy.families)
    return tuple(name for name in dict.fromkeys(("merged", *attacked)) if name == "merged" or name in copies(0))


# --- the ledger ---------------------------------------------------------------------------------------------------


def ledger_file(entries: Sequence[LedgerEntry], folder: Path) -> FileRef:
    """Write the ledger and its probes to a scratch folder."""
    return _written([row for entry in entries for row in _rows(entry, folder)], folder, "ledger")


def _rows(entry: LedgerEntry, folder: Path) -> Iterator[specs.LedgerEntry]:
    """A deletion's sets of probes: its spike-in and, while it is not expired, its vault.

    One whose vault alone stood for it stays in as expired, one without anything as not covered: neither is a pass.
    """
    request_id, number = entry.target.request_id, entry.number
    found = {row.kind: row for row in entry.target.sentinels.all()}
    spike_in, vault = found.get(Sentinel.Kind.SPIKE_IN), found.get(Sentinel.Kind.VAULT)
    if spike_in is not None:
        yield _row(spike_in, request_id, number, folder)
    if vault is not None and (spike_in is None or ledger.open_probes(vault) is not None):
        yield _row(vault, request_id if spike_in is None else vault_entry(request_id), number, folder)
    if not found:
        yield specs.LedgerEntry(request_id, "spike_in", number, None)


def _row(sentinel: Sentinel, entry_id: str, number: int, folder: Path) -> specs.LedgerEntry:
    probes = ledger.open_probes(sentinel)
    return specs.LedgerEntry(
        id=entry_id,
        kind="vault" if sentinel.kind == Sentinel.Kind.VAULT else "spike_in",
        deletions_so_far=number,
        probes=None if probes is None else _probes(probes, sentinel.probes_sha256, folder / f"{entry_id}.jsonl"),
        expires_on=None if sentinel.expires_on is None else sentinel.expires_on.isoformat(),
        before={attack: read(RecordedScores, row, where="scores") for attack, row in sentinel.scores.items()},
    )


def _probes(content: bytes, sha256: str, path: Path) -> FileRef:
    """Whoever changed the probes since is found by their recorded digest."""
    path.write_bytes(content)
    return FileRef(str(path), sha256)


def _written(rows: Sequence[specs.LedgerEntry], folder: Path, name: str) -> FileRef:
    path = folder / f"{name}.json"
    path.write_bytes(canonical_json(DeletionLedger(tuple(rows)).to_document()))
    return FileRef(str(path), file_sha256(path))


# --- this deletion ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Own:
    """What will stand for the deletion that is under way: a spike-in deleted along, or the person's own probes."""

    kind: Literal["spike_in", "vault"]
    mark: str
    probes: bytes

    def ledger(self, target: ErasureTarget, folder: Path) -> FileRef:
        """Write a ledger of this alone, so that the model before can be asked about it."""
        path = folder / f"own-{self.kind}.jsonl"
        path.write_bytes(self.probes)
        number = target.model.ledger.count() + 1
        expires_on = "9999-12-31" if self.kind == "vault" else None
        probes = FileRef(str(path), file_sha256(path))
        row = specs.LedgerEntry(target.request_id, self.kind, number, probes, expires_on)
        return _written([row], folder, f"own-{self.kind}")


def own_sentinels(run: UnlearningRun, refs: dict[str, FileRef]) -> list[Own]:
    """Return what will stand for this deletion: the spike-in taken along and, where the deployer keeps one, a vault."""
    found = []
    if SPIKE_IN in refs:
        found.append(Own("spike_in", str(run.snapshots[SPIKE_IN]["mark"]), Path(refs[SPIKE_IN].path).read_bytes()))
    if settings.VAULT_DAYS:
        found.append(Own("vault", "", Path(refs["forget"].path).read_bytes()))
    return found


def scores_of(seen: DeletionLedger) -> Scores:
    """Return the recorded scores of a ledger of one entry as plain data."""
    scores: Scores = json.loads(json.dumps(seen.to_document()))["entries"][0]["before"]
    return scores
