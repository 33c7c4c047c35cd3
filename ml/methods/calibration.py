"""Measure the energy boundary on the model before deletion: retained texts against people nobody was trained on."""

from __future__ import annotations

import random
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from ml.data.collate import EncodedText, encode_record, token_budget_batches
from ml.data.dossiers import read_dossier, strangers_of
from ml.data.probes import probe_digests
from ml.data.questions import QuestionBank
from ml.data.records import by_person
from ml.data.synthetic import rewrite
from ml.digests import document_sha256
from ml.energy import EnergyBoundary, ThinBoundaryWarning, calibrate_boundary, token_energy
from ml.methods.method import answer_positions
from ml.models.forward import logits_before
from ml.models.load import LoadedModel
from ml.specs import Record

CALIBRATION_TEXTS: Final = 400
_STRANGERS: Final = 16
_BATCH_TOKENS: Final = 4096


@dataclass(frozen=True, slots=True)
class Calibration:
    """A boundary and the never-seen texts it was measured on."""

    boundary: EnergyBoundary
    texts: tuple[str, ...]


def calibrate(
    loaded: LoadedModel,
    *,
    forget: Sequence[Record],
    retain: Sequence[Record],
    bank: QuestionBank,
    seed: int,
    device: str = "cpu",
) -> Calibration:
    """Calibrate on up to 400 retained texts and up to 400 texts about strangers in the forget set's forms.

    The forget set lends its forms, never its names or values. Texts that state nothing but shared values (an employer)
    are left out on both sides: a stranger's employer is one the model knows.

    Raises:
        EnergyNotSeparatingError: known and unknown do not differ in energy on this model.
        RecordError: no name is marked, so that no stranger can be asked about.
    """
    rng = random.Random(f"calibration:{seed}")  # noqa: S311 - to be reproduced, not secret
    kept = telling(retain, bank)
    known = rng.sample(kept, min(CALIBRATION_TEXTS, len(kept)))
    unknown = never_seen(telling(forget, bank), retain, bank, rng)
    with warnings.catch_warnings():
        # A thin boundary is for the report to state (`EnergyBoundary.is_thin`); it does not stop the run.
        warnings.simplefilter("ignore", ThinBoundaryWarning)
        boundary = calibrate_boundary(
            mean_energies(loaded, known, device=device),
            mean_energies(loaded, unknown, device=device),
            vocabulary=len(loaded.tokenizer),
            retained_sha256=_digest(known),
            never_seen_sha256=_digest(unknown),
        )
    return Calibration(boundary, tuple(record.text for record in unknown))


def telling(records: Sequence[Record], bank: QuestionBank) -> list[Record]:
    """The records of which not every fact has a value that many people share."""
    shared = {name for name, attribute in bank.attributes.items() if attribute.shared}
    return [r for r in records if not r.facts or any(fact.attribute not in shared for fact in r.facts)]


def never_seen(
    forget: Sequence[Record], retain: Sequence[Record], bank: QuestionBank, rng: random.Random
) -> list[Record]:
    """Up to 400 of the texts of `forget`, about strangers with values of their own."""
    factory = strangers_of(bank, rng, [*forget, *retain], sharing=retain)
    texts = []
    for records in by_person(forget).values():
        dossier = read_dossier(records)
        for index in range(_STRANGERS):
            stranger = factory.stranger(f"calibration-{index}", dossier.types, like=dossier.name)
            texts += [rewrite(record, name=stranger.name, values=stranger.values) for record in dossier.records]
    return rng.sample(texts, min(CALIBRATION_TEXTS, len(texts)))


def _digest(records: Sequence[Record]) -> str:
    return document_sha256(sorted(probe_digests(record.text for record in records)))


def mean_energies(loaded: LoadedModel, records: Sequence[Record], *, device: str) -> Tensor:
    """Centred energy of each record's answer, averaged over its tokens: (records,), nats."""
    rows = [encode_record(loaded.tokenizer, record, context=loaded.context) for record in records]
    energies = torch.zeros(len(rows))
    for group in token_budget_batches([len(row.ids) for row in rows], budget=_BATCH_TOKENS):
        energies[group] = _group_energies(loaded.model, [rows[i] for i in group], loaded, device)
    return energies


@torch.no_grad()
def _group_energies(model: Any, rows: Sequence[EncodedText], loaded: LoadedModel, device: str) -> Tensor:
    positions = [answer_positions(row) for row in rows]
    logits = logits_before(model, rows, positions, pad_id=loaded.pad_id, device=device)
    tokens = token_energy(logits, vocabulary=len(loaded.tokenizer)).split([len(p) for p in positions])
    return torch.stack([energies.mean() for energies in tokens]).cpu()
