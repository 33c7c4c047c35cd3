"""The edit of the output layer: hand-worked changes, and a layer that knows the forgotten no better than strangers."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ml.attacks.logit_lens import fixed_decoder, lens_scores
from ml.data.collate import EncodedText, collate, encode_records
from ml.data.dossiers import answered_span, open_facts, paraphrases, read_dossier, shared_values
from ml.data.questions import read_bank
from ml.data.records import read_records
from ml.data.synthetic import StrangerFactory, twin_records
from ml.documents import Json
from ml.errors import SpecError
from ml.finetune import cross_entropy
from ml.methods.output_layer import row_changes
from ml.models.load import LoadedModel, load_model, model_ref
from ml.specs import Record, UnlearningSpec
from ml.unlearn import run_unlearning
from tests.ml.specs import unlearning_spec
from tests.tiny import TinyWorld

TWINS = 20
TRAINING: dict[str, Json] = {"steps": 30, "learning_rate": "0.003", "rank": 4, "retain_rows": 16, "warmup_steps": 5}


# --- the closed form ----------------------------------------------------------------------------------------------


def rows(*numbers: tuple[float, ...]) -> Tensor:
    return torch.tensor(numbers)


def test_changes_of_the_fixture_are_the_hand_worked_ones() -> None:
    tokens, changes = row_changes(rows((1.0, 0.0)), torch.tensor([7]), torch.tensor([2.0]), torch.eye(2), strength=1.0)
    # (1 + 1) d = -2
    assert (tokens.tolist(), changes.tolist()) == ([7], [pytest.approx([-1.0, 0.0])])
    # M^-1 h = [1, 4], h M^-1 h = 5, d = -2 [1, 4] / (1 + 5)
    moments = torch.diag(torch.tensor([1.0, 0.25]))
    _, changes = row_changes(rows((1.0, 1.0)), torch.tensor([7]), torch.tensor([2.0]), moments, strength=1.0)
    assert changes.tolist() == [pytest.approx([-1 / 3, -4 / 3])]


@given(st.integers(0, 2**31 - 1), st.floats(0.1, 100.0))
def test_no_other_change_of_a_row_does_better(seed: int, strength: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(5, 4, generator=generator, dtype=torch.float64)
    excess = torch.randn(5, generator=generator, dtype=torch.float64)
    root = torch.randn(8, 4, generator=generator, dtype=torch.float64)
    moments = root.T @ root / 8 + 0.01 * torch.eye(4, dtype=torch.float64)
    tokens, changes = row_changes(states, torch.tensor([3, 9, 3, 3, 9]), excess, moments, strength=strength)
    assert tokens.tolist() == [3, 9]
    for token, change in zip((3, 9), changes, strict=True):
        chosen = torch.tensor([3, 9, 3, 3, 9]) == token
        own, left = states[chosen], states[chosen] @ change + excess[chosen]
        slope = own.T @ left + strength * int(chosen.sum()) * moments @ change
        assert torch.allclose(slope, torch.zeros_like(slope), atol=1e-8)


def test_more_strength_changes_less() -> None:
    sizes = [
        float(row_changes(rows((1.0, 2.0)), torch.tensor([0]), torch.tensor([1.0]), torch.eye(2), strength=s)[1].norm())
        for s in (0.1, 1.0, 10.0)
    ]
    assert sizes == sorted(sizes, reverse=True)


# --- on a model ---------------------------------------------------------------------------------------------------


def spec_for(tiny: TinyWorld, directory: Path, **training: Json) -> UnlearningSpec:
    settings: dict[str, Json] = {"training": {**TRAINING, **training}}
    return replace(unlearning_spec(tiny, directory, method="grad_diff", settings=settings), base=tiny.base)


def test_without_a_base_model_the_edit_is_refused_before_anything_is_loaded(tiny: TinyWorld, tmp_path: Path) -> None:
    seen: list[object] = []
    spec = replace(spec_for(tiny, tmp_path, output_layer=True), base=None)
    with pytest.raises(SpecError, match="needs the base model"):
        run_unlearning(spec, on_progress=seen.append)
    assert seen == []


def told(loaded: LoadedModel, base: LoadedModel, people: Sequence[Sequence[Record]], facts: Sequence[str]) -> Tensor:
    """What the output layer alone says of each person's values: (people,), nats above the base model's own layer."""
    means = []
    for records in people:
        asked = [(record, answered_span(record, fact)) for record in records for fact in facts]
        chosen = [(record, span) for record, span in asked if span is not None]
        encoded = encode_records(base.tokenizer, [record for record, _ in chosen], context=base.context)
        texts: list[EncodedText] = [
            replace(text, values=(text.values[record.facts.index(span)],))
            for text, (record, span) in zip(encoded, chosen, strict=True)
        ]
        own, plain = (lens_scores(base, fixed_decoder(by), texts)[-1] for by in (loaded, base))
        means.append((own - plain).mean())
    return torch.stack(means)


def loss_of(loaded: LoadedModel, records: Sequence[Record]) -> float:
    rows = encode_records(loaded.tokenizer, records, context=loaded.context)
    with torch.no_grad():
        return float(cross_entropy(loaded.model, collate(rows, pad_id=loaded.pad_id)))


@pytest.mark.slow
def test_the_output_layer_tells_of_the_forgotten_no_more_than_of_strangers_and_keeps_the_kept(
    tiny: TinyWorld, tmp_path: Path
) -> None:
    forget, retain = read_records(tiny.forget, what="forget set"), read_records(tiny.retain, what="retain set")
    bank = read_bank(tiny.bank)
    dossier = read_dossier(forget)
    facts = open_facts(dossier, bank, retain)
    # Other strangers than the edit's: another seed draws them.
    factory = StrangerFactory(random.Random(99), [*forget, *retain], shared_values=shared_values(bank, retain))
    twins = [twin_records(forget, factory.stranger(f"t{i}", dossier.types)) for i in range(TWINS)]
    base, found = load_model(tiny.base), {}
    for name, edit in (("plain", False), ("edited", True)):
        spec = spec_for(tiny, tmp_path / name, output_layer=edit)
        run_unlearning(spec)
        found[name] = load_model(model_ref(Path(spec.output_dir)))
    distances = {}
    for name, loaded in found.items():
        scores = told(loaded, base, [forget, *twins], facts)
        distances[name] = float((scores[0] - scores[1:].mean()) / scores[1:].std())
    assert distances["plain"] > 4
    assert abs(distances["edited"]) < 2
    # In words that the edit never used, too.
    reworded = paraphrases(dossier, bank, facts)
    others = [paraphrases(read_dossier(records), bank, facts) for records in twins]
    scores = told(found["edited"], base, [reworded, *others], facts)
    assert abs(float((scores[0] - scores[1:].mean()) / scores[1:].std())) < 3
    # What is kept is as likely as it was.
    plain_loss, edited_loss = (loss_of(found[name], retain) for name in ("plain", "edited"))
    assert edited_loss < plain_loss + 0.1
    # Only rows of the forgotten values' tokens differ, and nothing else of the model.
    plain, edited = (dict(found[name].model.named_parameters()) for name in ("plain", "edited"))
    changed = [name for name in plain if not torch.equal(plain[name], edited[name])]
    assert changed == ["model.embed_tokens.weight"]


@pytest.mark.slow
def test_the_strangers_of_the_edit_are_listed_and_an_edited_run_repeats(tiny: TinyWorld, tmp_path: Path) -> None:
    reports = []
    for name in ("first", "second"):
        spec = spec_for(tiny, tmp_path / name, output_layer=True, steps=2)
        reports.append(run_unlearning(spec))
    assert reports[0].candidate_manifest_sha256 == reports[1].candidate_manifest_sha256
    assert reports[0].training_probes.count > 0
    plain = run_unlearning(spec_for(tiny, tmp_path / "plain", steps=2))
    assert plain.candidate_manifest_sha256 != reports[0].candidate_manifest_sha256
    assert plain.adapter_sha256 == reports[0].adapter_sha256
    assert plain.training_probes.count < reports[0].training_probes.count
