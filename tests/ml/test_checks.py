"""Validity checks, hard rules and guards by themselves: what breaks them, and what does not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file, save_file

from ml.reports import GuardResult, HardRuleResult
from ml.specs import Guard
from ml.verification.bench import Bench
from ml.verification.checks import HARD_RULES, determinism_check
from ml.verification.families import _excess
from ml.verification.parts import Part

# --- lineage ------------------------------------------------------------------------------------------------------


@pytest.fixture
def before(tmp_path: Path) -> Path:
    """A model in three files: what matters here are its files, not what it computes."""
    folder = tmp_path / "before"
    folder.mkdir()
    names = [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
    for number, name in enumerate(names):
        save_file({f"layer.{number}": torch.full((2,), float(number))}, folder / name)
    weight_map = {f"layer.{number}": name for number, name in enumerate(names)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").write_text("{}")
    return folder


def retrained(before: Path, *shards: int) -> Path:
    candidate = before.with_name("candidate")
    shutil.copytree(before, candidate)
    for shard in shards:
        path = candidate / f"model-0000{shard}-of-00003.safetensors"
        save_file({name: tensor + 1 for name, tensor in load_file(path).items()}, path)
    return candidate


def lineage(before: Path, candidate: Path) -> HardRuleResult:
    spec = SimpleNamespace(candidate=SimpleNamespace(path=str(candidate)), before=SimpleNamespace(path=str(before)))
    return HARD_RULES["lineage"](cast(Bench, SimpleNamespace(spec=spec, once=lambda _, make: make())))


def test_a_shard_in_which_nothing_was_trained_may_be_as_it_was(before: Path) -> None:
    result = lineage(before, retrained(before, 1, 2))
    assert result.status == "held"
    assert (result.numbers["unchanged_shards"], result.numbers["weight_files_from_before"]) == (1.0, 0.0)


def test_a_model_of_which_no_file_changed_is_a_copy(before: Path) -> None:
    assert lineage(before, retrained(before)).status == "breached"


def test_old_weights_beside_the_new_ones_are_not_a_shard(before: Path) -> None:
    candidate = retrained(before, 1, 2, 3)
    assert lineage(before, candidate).status == "held"
    shutil.copy(before / "model-00001-of-00003.safetensors", candidate / "earlier.safetensors")
    assert lineage(before, candidate).status == "breached"


def test_old_weights_under_the_name_of_another_shard_are_not_unchanged(before: Path) -> None:
    candidate = retrained(before, 1, 2, 3)
    shutil.copy(before / "model-00001-of-00003.safetensors", candidate / "model-00002-of-00003.safetensors")
    assert lineage(before, candidate).status == "breached"


def test_a_model_in_one_file_has_no_shard_that_may_stay(before: Path) -> None:
    candidate = retrained(before, 1, 2)
    (candidate / "model.safetensors.index.json").unlink()
    assert lineage(before, candidate).status == "breached"


# --- identifiers --------------------------------------------------------------------------------------------------


def bench_of(types: dict[str, str], questions: list[Any]) -> Bench:
    plan = SimpleNamespace(facts=tuple(types), subject=SimpleNamespace(types=types), questions=questions)
    part = Part({"hits": torch.zeros(3 * len(questions))}, 0.0)
    policy = SimpleNamespace(identifier_bits=20.0, leak_samples=1000, leak_limit=0.01)
    made = SimpleNamespace(
        plan=plan, answers=lambda _: part, tokens=lambda _: part, spec=SimpleNamespace(policy=policy)
    )
    return cast(Bench, made)


def asked(attribute: str, prefill: int = 0) -> SimpleNamespace:
    return SimpleNamespace(attribute=attribute, prefill=prefill)


@pytest.mark.parametrize("rule", ["unique_identifier", "sampling_leak"])
def test_a_rule_about_identifiers_holds_of_somebody_who_has_none_and_says_so(rule: str) -> None:
    result = HARD_RULES[rule](bench_of({"born": "iso_date"}, [asked("born")]))
    assert (result.status, result.reason, result.numbers) == ("held", "no_identifier", {"identifiers": 0.0})


def test_an_identifier_that_no_question_asks_for_is_missing_evidence() -> None:
    for questions in ([asked("born")], [asked("passport", prefill=2)]):
        bench = bench_of({"born": "iso_date", "passport": "document_number"}, questions)
        assert HARD_RULES["unique_identifier"](bench).status == "missing"


# --- determinism --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "difference", "status"),
    [("float32", 9e-5, "ok"), ("float32", 2e-4, "broken"), ("bfloat16", 1.9e-2, "ok"), ("bfloat16", 2.1e-2, "broken")],
)
def test_sums_of_half_precision_may_differ_more(dtype: str, difference: float, status: str) -> None:
    spec = SimpleNamespace(dtype=dtype, policy=SimpleNamespace(determinism_tolerance=1e-4))
    part = Part({"difference": torch.tensor(difference)}, 0.0)
    assert determinism_check(cast(Bench, SimpleNamespace(spec=spec, determinism=lambda: part))).status == status


# --- guards -------------------------------------------------------------------------------------------------------


def test_the_artefact_that_a_guard_shows_is_the_one_that_breaches_it() -> None:
    guard = Guard("pooled_auc", minimum=0.4, maximum=0.6)
    wide = GuardResult("f1", "pooled_auc", 0.75, 0.55, 0.95)
    narrow = GuardResult("f1", "pooled_auc", 0.65, 0.62, 0.68)
    assert max((wide, narrow), key=lambda result: _excess(guard, result)) is narrow
    assert _excess(guard, wide) < 0 < _excess(guard, narrow)
