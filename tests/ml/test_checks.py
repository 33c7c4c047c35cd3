"""Validity checks, hard rules and guards by themselves: what breaks them, and what does not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GenerationConfig

from ml.attacks.fused import PLAIN, SamplingScheme, served_scheme
from ml.data.dossiers import normal_value
from ml.data.questions import Attribute, QuestionBank, QuestionForm, write_bank
from ml.digests import file_sha256
from ml.reports import GuardResult, HardRuleResult
from ml.specs import FileRef, Guard
from ml.verification.bench import Bench
from ml.verification.checks import HARD_RULES, determinism_check
from ml.verification.families import _excess
from ml.verification.parts import Failure, Part

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
        save_file({name: tensor + 0.5 for name, tensor in load_file(path).items()}, path)
    return candidate


def lineage(before: Path, candidate: Path) -> HardRuleResult:
    spec = SimpleNamespace(candidate=SimpleNamespace(path=str(candidate)), before=SimpleNamespace(path=str(before)))
    return HARD_RULES["lineage"](cast(Bench, SimpleNamespace(spec=spec, once=lambda _, make: make())))


def test_a_shard_in_which_nothing_was_trained_may_be_as_it_was(before: Path) -> None:
    result = lineage(before, retrained(before, 1, 2))
    assert result.status == "held"
    assert (result.numbers["tensors"], result.numbers["tensors_from_before"]) == (3.0, 1.0)


def test_a_model_of_which_nothing_changed_is_a_copy_however_it_is_written(before: Path) -> None:
    candidate = retrained(before)
    assert lineage(before, candidate).status == "breached"
    path = candidate / "model-00001-of-00003.safetensors"
    save_file(load_file(path), path, metadata={"written": "again"})
    assert lineage(before, candidate).status == "breached"
    whole = {name: tensor for file in before.glob("*.safetensors") for name, tensor in load_file(file).items()}
    for file in candidate.glob("model*"):
        file.unlink()
    save_file(whole, candidate / "model.safetensors")
    assert lineage(before, candidate).status == "breached"


def beside_a_new_file_in_one_piece(candidate: Path) -> None:
    save_file({f"layer.{n}": torch.full((2,), n + 9.0) for n in range(3)}, candidate / "model.safetensors")


def under_another_name(candidate: Path) -> None:
    shutil.copy(candidate.with_name("before") / "model-00001-of-00003.safetensors", candidate / "earlier.safetensors")


def under_the_name_of_another_shard(candidate: Path) -> None:
    old = candidate.with_name("before") / "model-00001-of-00003.safetensors"
    shutil.copy(old, candidate / "model-00002-of-00003.safetensors")


def beside_the_tensors_of_a_shard(candidate: Path) -> None:
    path = candidate / "model-00002-of-00003.safetensors"
    save_file({**load_file(path), "layer.0.earlier": torch.zeros(2)}, path)


def in_a_folder(candidate: Path) -> None:
    (candidate / "more").mkdir()
    shutil.copy(candidate.with_name("before") / "model-00001-of-00003.safetensors", candidate / "more")


def in_capitals(candidate: Path) -> None:
    shutil.copy(candidate.with_name("before") / "model-00001-of-00003.safetensors", candidate / "backup.SAFETENSORS")


def as_notes(candidate: Path) -> None:
    shutil.copy(candidate.with_name("before") / "model-00001-of-00003.safetensors", candidate / "notes.md")


def as_an_unknown_table(candidate: Path) -> None:
    shutil.copy(candidate.with_name("before") / "model-00001-of-00003.safetensors", candidate / "extra.model")


def that_nobody_can_read(candidate: Path) -> None:
    (candidate / "extra.safetensors").write_bytes(b"\xff" * 8)


def that_describe_nothing(candidate: Path) -> None:
    (candidate / "extra.safetensors").write_bytes((2).to_bytes(8, "little") + b"[]")


@pytest.mark.parametrize(
    "hide",
    [
        beside_a_new_file_in_one_piece,
        under_another_name,
        under_the_name_of_another_shard,
        beside_the_tensors_of_a_shard,
        in_a_folder,
        in_capitals,
        as_notes,
        as_an_unknown_table,
        that_nobody_can_read,
        that_describe_nothing,
    ],
)
def test_no_weights_hide_beside_those_that_are_loaded(before: Path, hide: Callable[[Path], None]) -> None:
    candidate = retrained(before, 1, 2, 3)
    assert lineage(before, candidate).status == "held"
    hide(candidate)
    assert lineage(before, candidate).status == "breached"


@pytest.mark.parametrize("index", ["[]", "{}", "no JSON", '{"weight_map": {"layer.0": "../before/x.safetensors"}}'])
def test_an_index_that_is_none_is_no_excuse(before: Path, index: str) -> None:
    candidate = retrained(before, 1, 2, 3)
    (candidate / "model.safetensors.index.json").write_text(index)
    assert lineage(before, candidate).status == "breached"


# --- identifiers --------------------------------------------------------------------------------------------------


def bench_of(
    tmp_path: Path, types: dict[str, str], questions: list[Any], *, measured: Sequence[str], shared: Sequence[str] = ()
) -> Bench:
    path = tmp_path / "bank.json"
    form = QuestionForm("Which is {name}'s?", "{value}.")
    write_bank(path, QuestionBank({name: Attribute("organisation", True, (form,)) for name in shared}))
    subject = SimpleNamespace(types=types, values={name: f"value of {name}" for name in types})
    plan = SimpleNamespace(facts=tuple(measured), subject=subject, questions=questions)
    part = Part({"hits": torch.zeros(3 * len(questions))}, 0.0)
    policy = SimpleNamespace(identifier_bits=20.0, leak_samples=1000, leak_limit=0.01)
    spec = SimpleNamespace(policy=policy, question_bank=FileRef(str(path), file_sha256(path)))
    asked_for = {"answers": lambda _: part, "tokens": lambda _: part, "served": lambda _: None}
    return cast(Bench, SimpleNamespace(plan=plan, spec=spec, persons=3, known_elsewhere=frozenset(), **asked_for))


def sampled(*chances: float) -> Part:
    """One passport number of one token for each person, drawn with these chances."""
    log_probs = torch.tensor(chances).log().unsqueeze(1)
    marked, one = torch.ones(len(chances), 1, dtype=torch.bool), torch.zeros(len(chances), 1)
    numbers = dict.fromkeys(("log_prob", "mean", "mean_square", "top", "energy"), one)
    counts = dict.fromkeys(("rank", "bottom_rank"), one.int())
    return Part({**numbers, **counts, "mask": marked, "values": marked, "hit": marked, "sampled": log_probs}, 0.0)


def sampling_leak(tmp_path: Path, plain: Part, served: Part | Failure | None) -> HardRuleResult:
    bench = cast(Any, bench_of(tmp_path, {"passport": "document_number"}, [], measured=["passport"]))
    bench.tokens, bench.served, bench.persons = (lambda _: plain), (lambda _: served), 40
    return HARD_RULES["sampling_leak"](cast(Bench, bench))


def test_sampling_settings_that_come_with_the_candidate_hide_nothing_and_may_add(tmp_path: Path) -> None:
    """Who makes the candidate writes its settings; whoever asks may choose others."""
    nobody, alice = sampled(*[1e-9] * 40), sampled(0.3, *[1e-9] * 39)
    filtered_out = sampled(*[0.0] * 40)
    assert sampling_leak(tmp_path, nobody, None).status == "held"
    assert sampling_leak(tmp_path, alice, None).status == "breached"
    assert sampling_leak(tmp_path, alice, filtered_out).status == "breached"
    assert sampling_leak(tmp_path, nobody, alice).status == "breached"
    assert sampling_leak(tmp_path, nobody, filtered_out).status == "held"
    lost = sampling_leak(tmp_path, nobody, Failure("MemoryError"))
    assert (lost.status, lost.reason) == ("missing", "MemoryError")


@pytest.mark.parametrize(
    ("settings", "scheme"),
    [
        (GenerationConfig(), PLAIN),
        (GenerationConfig(do_sample=False, temperature=0.5), PLAIN),
        (GenerationConfig(do_sample=True, temperature=0.7, top_k=0, top_p=0.9), SamplingScheme(0.7, 0, 0.9)),
        (GenerationConfig(do_sample=True, top_k=5), SamplingScheme(1.0, 5, 1.0)),
        (None, PLAIN),
    ],
)
def test_the_served_settings_are_those_of_the_models_own_file(settings: Any, scheme: SamplingScheme) -> None:
    assert served_scheme(SimpleNamespace(generation_config=settings)) == scheme
    assert served_scheme(SimpleNamespace()) == PLAIN


def asked(attribute: str, prefill: int = 0) -> SimpleNamespace:
    return SimpleNamespace(attribute=attribute, prefill=prefill)


RULES = pytest.mark.parametrize("rule", ["unique_identifier", "sampling_leak"])


@RULES
def test_a_rule_about_identifiers_holds_of_somebody_who_has_none_and_says_so(tmp_path: Path, rule: str) -> None:
    types = {"born": "iso_date", "employer": "organisation"}
    result = HARD_RULES[rule](bench_of(tmp_path, types, [asked("born")], measured=["born"], shared=["employer"]))
    assert (result.status, result.reason, result.numbers) == ("held", "no_identifier", {"identifiers": 0.0})


@RULES
@pytest.mark.parametrize("type_", ["document_number", "iban"])
def test_an_identifier_on_file_that_is_not_measured_is_missing_evidence(tmp_path: Path, rule: str, type_: str) -> None:
    bench = bench_of(tmp_path, {"born": "iso_date", "passport": type_}, [asked("born")], measured=["born"])
    assert (HARD_RULES[rule](bench).status, HARD_RULES[rule](bench).reason) == ("missing", "identifier_not_measured")


def test_one_identifier_that_was_measured_does_not_stand_for_another(tmp_path: Path) -> None:
    types = {"passport": "document_number", "account": "account_number"}
    bench = bench_of(tmp_path, types, [asked("passport")], measured=["passport"])
    result = HARD_RULES["unique_identifier"](bench)
    assert (result.status, result.reason) == ("missing", "identifier_not_measured")
    cast(Any, bench).known_elsewhere = frozenset({normal_value("account_number", "value of account")})
    assert HARD_RULES["unique_identifier"](bench).status == "held"  # others have that number too


def test_an_identifier_that_came_out_is_a_leak_whatever_else_was_not_measured(tmp_path: Path) -> None:
    types = {"passport": "document_number", "account": "account_number"}
    bench = cast(Any, bench_of(tmp_path, types, [asked("passport")], measured=["passport"]))
    bench.answers = lambda _: Part({"hits": torch.tensor([1.0, 0.0, 0.0])}, 0.0)
    assert HARD_RULES["unique_identifier"](bench).status == "breached"


def test_an_identifier_that_no_question_asks_for_is_missing_evidence(tmp_path: Path) -> None:
    types = {"born": "iso_date", "passport": "document_number"}
    for questions in ([asked("born")], [asked("passport", prefill=2)]):
        bench = bench_of(tmp_path, types, questions, measured=list(types))
        assert HARD_RULES["unique_identifier"](bench).status == "missing"


def test_a_leak_that_is_no_number_is_missing_evidence(tmp_path: Path) -> None:
    result = sampling_leak(tmp_path, sampled(*[float("nan")] * 40), None)
    assert (result.status, result.reason) == ("missing", "not_finite")


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
