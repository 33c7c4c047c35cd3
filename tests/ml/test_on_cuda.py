"""The same numbers on a GPU: one pass of scores, and a short deletion from end to end."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ml.attacks.fused import fused_pass
from ml.attacks.mean_loss import mean_energy, mean_loss
from ml.data.collate import encode_records
from ml.models.load import load_model
from ml.specs import ModelRef, UnlearningSpec
from ml.unlearn import run_unlearning
from tests.tiny import TinyWorld

pytestmark = pytest.mark.gpu

SHORT = {"draws": 1, "training": {"steps": 4, "learning_rate": "0.001", "rank": 4, "retain_rows": 8}}


@pytest.fixture(autouse=True)
def _needs_cuda() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device: run `make gpu` on a machine that has one")


def test_scores_on_a_gpu_are_those_of_the_processor(tiny: TinyWorld) -> None:
    records = tiny.world.records[tiny.world.alice.person]
    scores = {}
    for device in ("cpu", "cuda"):
        loaded = load_model(tiny.before, device=device)
        texts = encode_records(loaded.tokenizer, records, context=loaded.context)
        statistics = fused_pass(loaded, texts)
        scores[device] = torch.stack([mean_loss(statistics), mean_energy(statistics)]).cpu()
    torch.testing.assert_close(scores["cuda"], scores["cpu"], atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_deletion_on_a_gpu_ends_in_a_candidate(tiny: TinyWorld, tmp_path: Path, dtype: str) -> None:
    report = run_unlearning(
        UnlearningSpec(
            run_id="run-cuda",
            model=tiny.before,
            forget=tiny.forget,
            retain=tiny.retain,
            neighbours=tiny.neighbours,
            question_bank=tiny.bank,
            method="energy_boundary",
            settings=SHORT,
            seed=1,
            output_dir=str(tmp_path / "candidate"),
            checkpoint_dir=str(tmp_path / "work"),
            device="cuda",
            dtype=dtype,
        )
    )
    assert report.steps == 4
    assert report.environment["device"] == "cuda"
    load_model(ModelRef(str(tmp_path / "candidate"), report.candidate_manifest_sha256), device="cuda")
