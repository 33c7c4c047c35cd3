"""What each loss does to a model that remembers: forgotten answers become unlikely, the retained stay ahead of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch

from ml.data.collate import collate, encode_records
from ml.data.records import read_records
from ml.documents import Json
from ml.finetune import cross_entropy
from ml.methods import METHODS, Need
from ml.methods.calibration import mean_energies
from ml.models.load import LoadedModel, load_model, model_ref
from ml.specs import Record
from ml.unlearn import run_unlearning
from tests.ml.specs import unlearning_spec
from tests.tiny import TinyWorld

pytestmark = pytest.mark.slow

TRAINING: dict[str, Json] = {"steps": 60, "learning_rate": "0.003", "rank": 8, "retain_rows": 16, "warmup_steps": 5}
SETTINGS: Mapping[str, dict[str, Json]] = {
    "idk_dpo": {"training": {**TRAINING, "steps": 150}},
    "layered_grad_diff": {"training": {**TRAINING, "blocks": [0, 1], "part": "feed_forward"}},
    "rmu": {
        "block": 1,
        "alpha": 1,
        "training": {
            **TRAINING,
            "steps": 120,
            "learning_rate": "0.01",
            "blocks": [0, 1],
            "part": "feed_forward_output",
        },
    },
}
# Judged by tests of their own; one step of `iau` hardly moves a model that knows its texts by heart.
OTHERS = {"energy_boundary", "energy_only", "iau", "none"}
FLATTENING = {"ceu", "pdu", "undial"}


def after(tiny: TinyWorld, method: str, directory: Path, **training: Json) -> LoadedModel:
    settings = {"training": {**TRAINING, **training}, **SETTINGS.get(method, {})}
    spec = unlearning_spec(tiny, directory, method=method, settings=settings)
    run_unlearning(spec)
    return load_model(model_ref(Path(spec.output_dir)))


@torch.no_grad()
def loss_of(loaded: LoadedModel, records: Sequence[Record]) -> float:
    """Mean -log p of answer tokens, in nats."""
    rows = encode_records(loaded.tokenizer, records, context=loaded.context)
    return float(cross_entropy(loaded.model, collate(rows, pad_id=loaded.pad_id)))


def energy_of(loaded: LoadedModel, records: Sequence[Record]) -> float:
    return float(mean_energies(loaded, records, device="cpu").mean())


@pytest.mark.parametrize("method", [name for name in METHODS if name not in OTHERS])
def test_the_forgotten_become_unlikely_and_stay_behind_the_retained(
    tiny: TinyWorld, tmp_path: Path, method: str
) -> None:
    forget, retain = read_records(tiny.forget, what="forget set"), read_records(tiny.retain, what="retain set")
    before, candidate = load_model(tiny.before), after(tiny, method, tmp_path)
    assert loss_of(before, forget) < 0.05
    assert loss_of(candidate, forget) > 0.2
    if Need.RETAIN in METHODS[method].needs:
        assert loss_of(candidate, retain) < 0.5 * loss_of(candidate, forget)
    if method in FLATTENING:
        assert energy_of(candidate, forget) > energy_of(before, forget) + 2.0


def test_ascent_carried_on_makes_the_model_confidently_wrong_and_lowers_its_energy(
    tiny: TinyWorld, tmp_path: Path
) -> None:
    forget = read_records(tiny.forget, what="forget set")
    before, candidate = load_model(tiny.before), after(tiny, "ga", tmp_path, steps=150)
    assert loss_of(candidate, forget) > 10.0
    assert energy_of(candidate, forget) < energy_of(before, forget)
