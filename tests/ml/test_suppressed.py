"""Candidates that pretend: each does hide the person from somebody, so that not passing them means something."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from benchmarks.suppressed import (
    OutputFilteredBench,
    adapter_hidden,
    over_forgotten,
    refusing,
    scrambled_name,
    shifted_logits,
)
from ml.attacks.fused import fused_pass
from ml.attacks.generation import answer_hits, greedy_answers, make_prompts
from ml.attacks.mean_loss import mean_loss, value_log_probability
from ml.data.collate import encode_records
from ml.data.dossiers import answered_span
from ml.data.synthetic import StrangerFactory, rewrite
from ml.models.load import load_model
from ml.specs import ModelRef, Record
from ml.verification.bench import Bench
from ml.verification.parts import Failure, Part
from tests.tiny import TinyWorld


def _own(tiny: TinyWorld) -> list[Record]:
    return list(tiny.world.records[tiny.world.alice.person])


def _kept(tiny: TinyWorld) -> list[Record]:
    others = [p for p in (*tiny.world.base, *tiny.world.customers) if p.person != tiny.world.alice.person]
    return tiny.world.corpus(others)


def _known(ref: ModelRef, records: list[Record]) -> float:
    """Mean log-probability of the values' tokens, in nats."""
    loaded = load_model(ref)
    texts = encode_records(loaded.tokenizer, records, context=loaded.context)
    return float(value_log_probability(fused_pass(loaded, texts)).mean())


def _loss(ref: ModelRef, records: list[Record]) -> float:
    loaded = load_model(ref)
    texts = encode_records(loaded.tokenizer, records, context=loaded.context)
    return float(mean_loss(fused_pass(loaded, texts)).mean())


def _answered(ref: ModelRef, records: list[Record]) -> float:
    """Share of questions answered with the value."""
    loaded = load_model(ref)
    asked = [record for record in records if answered_span(record, record.facts[0].attribute)]
    prompts = make_prompts(
        loaded.tokenizer, asked, [r.facts[0].attribute for r in asked], prefill=0.0, context=loaded.context
    )
    answers = greedy_answers(loaded, [prompt.encoded.ids[: prompt.length] for prompt in prompts])
    return float(answer_hits(loaded.tokenizer, prompts, answers).mean())


def test_shifted_logits_change_no_probability(tiny: TinyWorld, tmp_path: Path) -> None:
    shifted = shifted_logits(tiny.before, tmp_path / "m")
    assert _loss(shifted, _own(tiny)) == pytest.approx(_loss(tiny.before, _own(tiny)), abs=1e-3)
    assert shifted.manifest_sha256 != tiny.before.manifest_sha256


def test_a_scrambled_name_hides_the_answers_of_its_owner(tiny: TinyWorld, tmp_path: Path) -> None:
    scrambled = scrambled_name(tiny.before, tmp_path / "m", tiny.world.alice.name)
    assert _answered(tiny.before, _own(tiny)) == 1.0
    assert _answered(scrambled, _own(tiny)) < 0.5


@pytest.mark.slow
def test_a_model_that_refuses_one_person_goes_on_answering_about_the_others(tiny: TinyWorld, tmp_path: Path) -> None:
    model = refusing(tiny.before, tmp_path / "m", _own(tiny), _kept(tiny))
    assert _answered(model, _own(tiny)) == 0.0
    assert _answered(model, _kept(tiny)) > 0.8


@pytest.mark.slow
def test_an_adapter_hides_the_answers_and_leaves_no_trace_when_it_is_peeled_off(
    tiny: TinyWorld, tmp_path: Path
) -> None:
    world = tiny.world
    everybody = world.corpus([*world.base, *world.customers])
    factory = StrangerFactory(random.Random(3), everybody, shared_values=world.shared_values)
    values = {name: factory.value(name, world.bank.attributes[name].type) for name in sorted(world.alice.values)}
    untrue = [rewrite(record, values=values) for record in _own(tiny)]
    hidden = adapter_hidden(tiny.before, tmp_path / "hidden", untrue, _kept(tiny))
    peeled = adapter_hidden(tiny.before, tmp_path / "peeled", untrue, _kept(tiny), scale=0.0)
    assert _answered(hidden, _own(tiny)) < 0.2
    assert _answered(hidden, _kept(tiny)) > 0.8
    assert _loss(peeled, _own(tiny)) == pytest.approx(_loss(tiny.before, _own(tiny)), abs=1e-5)


@pytest.mark.slow
def test_ascent_drives_a_person_below_people_whom_nobody_learned(tiny: TinyWorld, tmp_path: Path) -> None:
    model = over_forgotten(tiny.before, tmp_path / "m", _own(tiny), _kept(tiny))
    assert _known(model, _own(tiny)) < _known(tiny.gold, _own(tiny)) - 1


def test_a_block_list_hides_the_answers_of_the_person_and_of_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    hits, lengths = torch.ones(6), torch.tensor([1, 1, 1, 1, 1, 1])
    monkeypatch.setattr(Bench, "answers", lambda self, role: Part({"hits": hits, "answer_lengths": lengths}, 1.0))
    bench = object.__new__(OutputFilteredBench)
    bench.plan = type("Plan", (), {"questions": ("first", "second")})()
    filtered = bench.answers("merged")
    assert isinstance(filtered, Part)
    assert filtered.tensors["hits"].tolist() == [0, 0, 1, 1, 1, 1]
    assert hits.tolist() == [1] * 6
    assert filtered.tensors["answer_lengths"] is lengths
    monkeypatch.setattr(Bench, "answers", lambda self, role: Failure("MemoryError"))
    assert bench.answers("merged") == Failure("MemoryError")
