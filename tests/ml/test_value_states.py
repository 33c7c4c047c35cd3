"""States at value positions, the logit lens (W1), the depth of a deletion (W4) and alignment of states (W3)."""

from __future__ import annotations

import random
from contextlib import AbstractContextManager

import pytest
import torch
from torch import Tensor

from ml.attacks.fused import fused_pass
from ml.attacks.logit_lens import best_layer, fixed_decoder, lens_erasure, lens_scores, telling_layers
from ml.attacks.unlearning_depth import depth_by_layer, patched_drops, unlearning_depth
from ml.attacks.value_states import mean_value_states, value_states
from ml.data.collate import EncodedText, encode_records
from ml.data.synthetic import StrangerFactory, twin_records
from ml.errors import EmptySequenceError, EmptySetError, SpecError
from ml.metrics.cka import linear_cka
from ml.models.backbone import hidden_states
from ml.models.layers import blocks, changed, listening
from ml.models.load import LoadedModel, load_model
from tests.tiny import TinyWorld

TWINS = 9


@pytest.fixture(scope="module")
def before(tiny: TinyWorld) -> LoadedModel:
    return load_model(tiny.before)


@pytest.fixture(scope="module")
def gold(tiny: TinyWorld) -> LoadedModel:
    return load_model(tiny.gold)


@pytest.fixture(scope="module")
def base(tiny: TinyWorld) -> LoadedModel:
    return load_model(tiny.base)


def _dossiers(tiny: TinyWorld, loaded: LoadedModel) -> list[EncodedText]:
    """Alice's texts, then those of her twins, person by person."""
    world = tiny.world
    corpus = world.corpus([*world.base, *world.customers])
    factory = StrangerFactory(random.Random(2), corpus, shared_values=world.shared_values)
    types = {a: world.bank.attributes[a].type for a in world.alice.values}
    records = world.records[world.alice.person]
    told = [*records, *(r for i in range(TWINS) for r in twin_records(records, factory.stranger(f"t{i}", types)))]
    return encode_records(loaded.tokenizer, told, context=loaded.context)


def _own(tiny: TinyWorld, loaded: LoadedModel) -> list[EncodedText]:
    return encode_records(loaded.tokenizer, tiny.world.records[tiny.world.alice.person], context=loaded.context)


def _by_person(scores: Tensor) -> list[float]:
    return scores.reshape(1 + TWINS, -1).mean(dim=1).tolist()


# --- hooks --------------------------------------------------------------------------------------------------------


def _fail_inside(block: AbstractContextManager[object]) -> None:
    with block:
        raise RuntimeError("inside")


def test_a_hook_is_gone_after_an_exception(before: LoadedModel) -> None:
    ids = torch.tensor([[5, 6, 7]])
    plain, hooks = before.model(ids).logits, [len(block._forward_hooks) for block in blocks(before.model)]
    with changed(before.model, 0, lambda states, _: states + 1):
        assert not torch.equal(before.model(ids).logits, plain)
    for block in (changed(before.model, 0, lambda states, _: states + 1), listening(before.model)):
        with pytest.raises(RuntimeError, match="inside"):
            _fail_inside(block)
        assert torch.equal(before.model(ids).logits, plain)
        assert [len(layer._forward_hooks) for layer in blocks(before.model)] == hooks


def test_a_model_without_blocks_is_refused(before: LoadedModel) -> None:
    class Bare(torch.nn.Module):
        config = before.model.config
        base_model = torch.nn.Linear(2, 2)

    with pytest.raises(SpecError):
        blocks(Bare())


# --- states -------------------------------------------------------------------------------------------------------


def test_states_are_those_of_a_forward_pass_of_each_text_alone(tiny: TinyWorld, before: LoadedModel) -> None:
    texts = _own(tiny, before)[:5]
    for found in value_states(before, texts, budget=60):
        for entry in range(len(found.targets)):
            text = texts[int(found.texts[entry])]
            hidden = before.model(torch.tensor([text.ids]), output_hidden_states=True).hidden_states
            inside = [i for start, end in text.values for i in range(start, end)]
            place = inside[int((found.texts[:entry] == found.texts[entry]).sum())]
            assert int(found.targets[entry]) == text.ids[place]
            # entry 0 of `hidden_states` is the embedding; the last one went through the final norm
            assert torch.allclose(found.states[0, entry], hidden[1][0, place - 1], atol=1e-4)


def test_a_text_whose_answer_holds_no_value_has_no_state(before: LoadedModel) -> None:
    with pytest.raises(EmptySequenceError):
        list(value_states(before, [EncodedText((5, 6, 7, 8), 2, ((0, 1),))]))


# --- W1 -----------------------------------------------------------------------------------------------------------


def test_the_lens_on_the_last_layer_is_the_model_itself(tiny: TinyWorld, before: LoadedModel) -> None:
    texts = _own(tiny, before)
    statistics = fused_pass(before, texts)
    expected = (statistics.log_prob * statistics.values).sum(dim=1) / statistics.values.sum(dim=1)
    scores = lens_scores(before, fixed_decoder(before), texts, budget=200)
    assert torch.allclose(scores[-1], expected, atol=1e-4)
    assert not torch.allclose(scores[0], expected, atol=0.5)


def test_erasure_weighs_layers_by_what_there_was_to_lose() -> None:
    before, reference = torch.tensor([-5.0, -2.0, -1.0]), torch.tensor([-5.04, -4.0, -7.0])
    after = torch.tensor([-9.0, -3.0, -8.0])
    # gaps .04 (left out), 2 and 6; shares 1/2 and 7/6, clipped to 1: (2 * .5 + 6 * 1) / 8
    assert lens_erasure(before, after, reference) == pytest.approx(7 / 8)
    assert lens_erasure(before, before, reference) == 0.0
    with pytest.raises(EmptySetError):
        lens_erasure(before, after, before)


def test_only_layers_that_read_what_was_learned_are_asked_and_none_is_an_error() -> None:
    gained = torch.tensor([[0.04, 0.06], [0.2, 0.0], [-1.0, -1.0]])
    # means .05 (not above it), .1 and -1
    assert telling_layers(gained).tolist() == [False, True, False]
    with pytest.raises(EmptySetError):
        telling_layers(gained[:1])


def test_a_trace_in_one_layer_is_not_averaged_away_by_another_that_overshoots() -> None:
    quiet = [[0.0, 2.0], [1.0, 3.0], [2.0, 4.0], [3.0, 5.0]]
    trace = torch.tensor([[[8.0, 10.0], *quiet], [[-90.0, -70.0], *[[10 * x for x in row] for row in quiet]]])
    best = best_layer(trace)
    # person means 9 1 2 3 4 and -80 10 20 30 40: medians 3 and 20, median distances 1 and 10
    assert best[0].tolist() == [5.0, 7.0]
    assert best.mean(dim=1).tolist() == pytest.approx([6.0, -1.0, 0.0, 1.0, 2.0])
    order = torch.tensor([3, 0, 4, 1, 2])
    assert torch.equal(best_layer(trace[:, order]), best[order])


def test_the_lens_reads_a_memorised_person_and_nobody_on_gold(
    tiny: TinyWorld, before: LoadedModel, gold: LoadedModel, base: LoadedModel
) -> None:
    texts, decoder = _dossiers(tiny, before), fixed_decoder(before)
    unlearned = lens_scores(base, decoder, texts)
    known = _by_person((lens_scores(before, decoder, texts) - unlearned)[-1])
    assert known[0] > 5 + max(known[1:])
    unknown = _by_person((lens_scores(gold, decoder, texts) - unlearned)[-1])
    assert unknown[0] < 2 + max(unknown[1:])
    own = len(texts) // (1 + TWINS)
    mean = {
        name: lens_scores(m, decoder, texts[:own]).mean(dim=1) for name, m in (("-", before), ("g", gold), ("b", base))
    }
    assert lens_erasure(mean["-"], mean["-"], mean["b"]) == 0.0
    assert lens_erasure(mean["-"], mean["g"], mean["b"]) > 0.6


# --- W3 -----------------------------------------------------------------------------------------------------------


def test_alignment_is_that_of_the_oracle_and_blind_to_rotation() -> None:
    # O-15
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    assert float(linear_cka(x, x * torch.tensor([2.0, 1.0]))) == pytest.approx(0.85749293, abs=1e-6)
    generator = torch.Generator().manual_seed(1)
    states = torch.randn(2, 50, 8, generator=generator)
    turned = states @ torch.linalg.qr(torch.randn(8, 8, generator=generator)).Q * 3 + 5
    assert linear_cka(states, turned).tolist() == pytest.approx([1.0, 1.0], abs=1e-5)
    with pytest.raises(SpecError):
        linear_cka(states[0], torch.ones(50, 3))


def test_states_of_a_model_align_better_with_itself_than_with_another(
    tiny: TinyWorld, before: LoadedModel, base: LoadedModel
) -> None:
    own, other = (mean_value_states(m, _own(tiny, before)) for m in (before, base))
    assert linear_cka(own, own).tolist() == pytest.approx([1.0, 1.0], abs=1e-5)
    assert bool((linear_cka(own, other) < 0.99).all())


# --- W4 -----------------------------------------------------------------------------------------------------------


def test_depth_is_that_of_the_oracle() -> None:
    # O-16
    reference, candidate = torch.tensor([0.04, 0.4, 0.6]), torch.tensor([0.5, 0.1, 0.9])
    assert unlearning_depth(reference, candidate) == pytest.approx(0.7)
    assert depth_by_layer(reference, candidate) == {1: pytest.approx(0.25), 2: 1.0}
    with pytest.raises(EmptySetError):
        unlearning_depth(torch.tensor([0.04]), torch.tensor([1.0]))
    with pytest.raises(SpecError):
        unlearning_depth(torch.tensor([0.4, 0.5]), torch.tensor([1.0]))


def test_own_states_change_nothing_and_foreign_ones_end_at_the_lens(
    tiny: TinyWorld, before: LoadedModel, gold: LoadedModel
) -> None:
    texts = _own(tiny, before)
    assert patched_drops(before, before, texts).abs().max() < 1e-5
    drops = patched_drops(before, gold, texts)
    decoder = fixed_decoder(before)
    # behind the last block only the decoder is left
    lens = (lens_scores(before, decoder, texts) - lens_scores(gold, decoder, texts)).mean(dim=1)
    assert float(drops[-1]) == pytest.approx(float(lens[-1]), abs=1e-3)
    assert unlearning_depth(drops, drops) == 1.0
    assert unlearning_depth(drops, torch.zeros_like(drops)) == 0.0


def test_a_changed_block_is_what_the_next_one_reads(before: LoadedModel) -> None:
    ids = torch.tensor([[9, 10, 11, 12]])
    seen: list[Tensor] = []

    def zero(states: Tensor, positions: Tensor) -> Tensor:
        seen.append(positions)
        return torch.zeros_like(states)

    with torch.no_grad(), changed(before.model, len(blocks(before.model)) - 1, zero):
        hidden, _ = hidden_states(before.model, ids)
    assert bool((hidden == 0).all())
    assert seen[0].flatten().tolist() == [0, 1, 2, 3]
