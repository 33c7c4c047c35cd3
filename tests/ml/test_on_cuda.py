"""The same numbers on a GPU: one pass of scores, and a short deletion from end to end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import methods
from ml.attacks import ATTACKS
from ml.attacks.fused import fused_pass
from ml.attacks.mean_loss import mean_energy, mean_loss
from ml.data.collate import encode_records
from ml.decision import judge
from ml.loop import ignore_progress, never_stop
from ml.models.load import load_model
from ml.specs import ModelRef
from ml.unlearn import run_unlearning
from ml.verify import run_verification
from tests.ml.specs import unlearning_spec, verification_spec
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
    report = run_unlearning(unlearning_spec(tiny, tmp_path, settings=SHORT, seed=1, device="cuda", dtype=dtype))
    assert report.steps == 4
    assert report.environment["device"] == "cuda"
    load_model(ModelRef(str(tmp_path / "candidate"), report.candidate_manifest_sha256), device="cuda")


@pytest.mark.parametrize("candidate", ["gold", "before"])
def test_a_verification_on_a_gpu_says_what_the_processor_says(tiny: TinyWorld, tmp_path: Path, candidate: str) -> None:
    spec = {
        device: verification_spec(
            tiny, getattr(tiny, candidate), tmp_path, device=device, parts_dir=str(tmp_path / device)
        )
        for device in ("cpu", "cuda")
    }
    reports = {
        device: run_verification(one, on_progress=ignore_progress, should_stop=never_stop)
        for device, one in spec.items()
    }
    verdicts = {device: judge(report, spec[device].policy) for device, report in reports.items()}
    assert reports["cuda"].environment["device"] == "cuda"
    assert verdicts["cuda"].result is verdicts["cpu"].result
    # T1 trains: its numbers drift apart step by step; what is only scored does not.
    for ours, theirs in zip(reports["cuda"].attacks, reports["cpu"].attacks, strict=True):
        if ATTACKS[ours.attack].reads != "relearned":
            assert ours.subject_after == pytest.approx(theirs.subject_after, abs=2e-2, rel=1e-3), ours.attack


def test_methods_are_compared_on_a_gpu(tmp_path: Path) -> None:
    arguments = ["--work", str(tmp_path / "work"), "--out", str(tmp_path), "--size", "quick", "--device", "cuda"]
    assert methods.main(arguments) == 0
    rows = json.loads((tmp_path / "methods-quick-cuda.json").read_text())["rows"]
    assert {row["model"] for row in rows} >= {"before", "gold", "grad_diff"}
    # Made for the processor, the directory holds nothing that belongs to a comparison there.
    assert methods.main([*arguments[:-1], "cpu"]) == 2
