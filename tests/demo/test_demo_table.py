"""README's tables hold what the demonstration left, and nothing else."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.demo_table import main, tables

HITS = {
    "value_hit": 1.0,
    "value_hit_paraphrased": 0.5,
    "extraction_strength": 0.25,
    "mean_loss": 2.0,
    "mean_energy": -9.0,
}
ATTACKS = [
    {"family": family, "attack": attack, "artefact": artefact} | number
    for (family, attack, artefact), number in zip(
        [
            ("F1", "same_context_difference", "merged"),
            ("F2", "exposure", "merged"),
            ("F3", "extraction_strength", "merged"),
            ("F5", "exposure", "int4"),
            ("F6", "relearned_difference", "merged"),
        ],
        [{"strength": 20.0 + n, "residual_ratio": n / 100, "residual_upper": n / 10} for n in range(5)],
        strict=True,
    )
]
AREAS = {
    f"energy_auroc_{name}_vs_deleted{when}": 0.5 for name in ("retained", "never_seen") for when in ("", "_before")
}
SUMMARY: dict[str, Any] = {
    "seed": 7,
    "outcome": "erased",
    "verdict": "PASS",
    "stages": {"unlearn": 60.0, "verify": 120.0},
    "seconds": {"total": 600.0},
    "forget": {"before": HITS, "after": {**HITS, "value_hit": 0.125}},
    "controls": {"after": HITS},
    "retain": {"before": HITS, "after": HITS},
    "bob": {
        "before": {**HITS, "entity_log_probability": -0.5},
        "after": {**HITS, "entity_log_probability": -0.75},
    },
    "attacks": ATTACKS,
    "gold": {"verdict": "PASS", "forget": {"after": HITS}, "attacks": ATTACKS, **AREAS},
    **AREAS,
}


def test_each_run_is_a_column_of_its_own_numbers() -> None:
    other = copy.deepcopy(SUMMARY) | {"seed": 11, "verdict": "FAIL"}
    text = tables([SUMMARY, other])
    assert "|  | seed 7 | seed 11 |" in text
    assert "| outcome, verdict | erased, **PASS** | erased, **FAIL** |" in text
    assert "10.0 / 3.0 (60 s + 120 s)" in text
    assert "1.000 → **0.125**, 1.000, 1.000" in text
    # -0.75 - -0.5
    assert "-0.2500 | -0.2500" in text
    assert "| F6 relearning half of the facts | 24.0, 0.040, 0.40 (0.40) | 24.0, 0.040, 0.40 (0.40) | .30 |" in text


@pytest.mark.parametrize("content", ["no JSON", "{}", json.dumps({**SUMMARY, "attacks": []})])
def test_what_is_no_whole_summary_is_refused(tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "summary.json"
    path.write_text(content)
    assert main([str(path)]) == 2
    assert "make one with make demo" in capsys.readouterr().err
