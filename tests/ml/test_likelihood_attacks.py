"""Likelihood attacks: the arithmetic of every oracle, and the fused pass against a plain forward pass."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ml.attacks import ATTACKS
from ml.attacks.bottom_rank import bottom_rank
from ml.attacks.entropy import entropy
from ml.attacks.extraction import (
    exact_memorisation,
    extraction_strength,
    greedy_match_length,
    greedy_match_share,
)
from ml.attacks.fused import (
    SamplingScheme,
    TokenStatistics,
    attention_mask,
    compressed_bytes,
    fused_pass,
    sampled_log_prob,
)
from ml.attacks.mean_loss import mean_energy, mean_loss, probability, value_log_probability
from ml.attacks.min_k import min_k, min_k_plus_plus
from ml.attacks.reference import reference_excess
from ml.attacks.sampling_leak import leak_at, leak_from_samples, log_sampling_probability, samples_for
from ml.attacks.zlib_ratio import zlib_ratio
from ml.data.collate import EncodedText
from ml.errors import EmptySequenceError, NonFiniteError, SpecError
from ml.models.load import LoadedModel, load_model
from tests.ml.fixture_f import ROWS, TARGETS, one_text
from tests.tiny import tiny_model


def _score(tensor: Tensor) -> float:
    assert tensor.shape == (1,)
    return float(tensor[0])


def test_mean_loss_counts_every_label_and_probability_is_its_exponential() -> None:
    # O-2
    assert _score(mean_loss(one_text())) == pytest.approx(0.81727528, abs=1e-6)
    assert _score(probability(one_text())) == pytest.approx(0.44163334, abs=1e-6)
    assert _score(mean_loss(one_text(ROWS[:4], TARGETS[:4]))) == pytest.approx(0.67502051, abs=1e-6)


def test_exact_memorisation_and_greedy_match_leave_the_end_token_out() -> None:
    # O-3
    assert _score(exact_memorisation(one_text())) == pytest.approx(0.75)
    assert int(greedy_match_length(one_text())[0]) == 1
    assert _score(greedy_match_share(one_text())) == pytest.approx(0.25)


def _hits(pattern: Sequence[bool]) -> TokenStatistics:
    """A text whose labels are hit or missed as given; the end token follows."""
    rows = [(0.7, 0.1, 0.1, 0.1) if hit else (0.1, 0.7, 0.1, 0.1) for hit in (*pattern, True)]
    return one_text(rows, [0] * (len(pattern) + 1))


def test_extraction_strength_is_the_longest_end_reproduced() -> None:
    # O-4
    assert _score(extraction_strength(one_text())) == pytest.approx(0.5)
    wrong, last = _hits([False] * 4), _hits([False, False, False, True])
    assert _score(extraction_strength(wrong, mode="parity")) == pytest.approx(0.25)
    assert _score(extraction_strength(wrong)) == 0.0
    assert _score(extraction_strength(last)) == pytest.approx(0.25)
    assert _score(extraction_strength(last, mode="parity")) == pytest.approx(0.25)
    assert _score(extraction_strength(_hits([True] * 4))) == 1.0


@pytest.mark.parametrize("share", [0.2, 0.4])
def test_min_k_reads_the_least_likely_tokens(share: float) -> None:
    # O-5: four tokens, so both shares take one: p = 0.2
    statistics = one_text()
    assert _score(min_k(statistics, share=share)) == pytest.approx(1.60943791, abs=1e-6)
    assert _score(min_k_plus_plus(statistics, share=share)) == pytest.approx(0.69098796, abs=1e-5)


def test_min_k_plus_plus_standardises_over_the_vocabulary() -> None:
    # O-5
    statistics = one_text()
    variance = statistics.mean_square - statistics.mean.square()
    assert statistics.mean[0, :4].tolist() == pytest.approx([-0.94044799, -1.22060726, -0.70834658, -1.08889998])
    assert variance[0, :4].tolist() == pytest.approx([0.79517892, 0.31665038, 0.96571056, 0.54930024], abs=1e-5)


class _OneText:
    """A tokenizer that decodes everything to one sentence."""

    def batch_decode(self, rows: Sequence[Any], *, skip_special_tokens: bool) -> list[str]:
        return ["Mara Quill lives at 12 Elm Road."] * len(rows)


def test_zlib_and_reference_scale_and_shift_the_loss() -> None:
    # O-6
    size = compressed_bytes(_OneText(), [EncodedText((1, 2), 1, ())])
    assert size.tolist() == [40.0]
    statistics = replace(one_text(), compressed_bytes=size, reference_loss=torch.tensor([1.25]))
    assert _score(zlib_ratio(statistics)) == pytest.approx(0.02043188, abs=1e-7)
    assert _score(reference_excess(statistics)) == pytest.approx(-0.43272472, abs=1e-6)


def test_zlib_and_reference_are_refused_without_what_they_need() -> None:
    with pytest.raises(SpecError):
        zlib_ratio(one_text())
    with pytest.raises(SpecError):
        reference_excess(one_text())


@pytest.mark.parametrize(
    ("scheme", "chance", "leak"),
    [
        (SamplingScheme(), 0.0672, 0.50124717),
        (SamplingScheme(temperature=0.5), 0.09284653, 0.62259501),
        (SamplingScheme(top_k=3), 0.09703270, 0.63965),
    ],
)
def test_the_sampling_leak_is_exact_under_each_scheme(scheme: SamplingScheme, chance: float, leak: float) -> None:
    # O-7; ties beside the third likeliest token do not matter: no target is among them.
    logged = log_sampling_probability(one_text(scheme=scheme))
    assert math.exp(_score(logged)) == pytest.approx(chance, abs=1e-6)
    assert _score(leak_at(logged, samples=10)) == pytest.approx(leak, abs=1e-5)


def test_samples_needed_and_leak_from_samples() -> None:
    # O-7
    assert samples_for(math.log(0.0672)) == pytest.approx(43.06, abs=0.01)
    assert leak_from_samples(samples=10, hits=2, draws=3) == pytest.approx(0.53333333)
    with pytest.raises(SpecError):
        leak_from_samples(samples=10, hits=11, draws=3)


def test_a_filtered_token_can_never_be_drawn_and_a_nucleus_keeps_the_token_that_crosses_it() -> None:
    log_probs = torch.tensor([ROWS[2], ROWS[2]]).log()  # .05 .80 .10 .05
    nucleus = SamplingScheme(top_p=0.85)
    drawn = sampled_log_prob(log_probs, torch.tensor([1, 0]), nucleus)
    assert float(drawn[0].exp()) == pytest.approx(0.8 / 0.9, abs=1e-6)
    assert float(drawn[1]) == -math.inf
    with pytest.raises(SpecError):
        sampled_log_prob(log_probs, torch.tensor([1, 0]), SamplingScheme(temperature=0.0))


def test_a_tiny_leak_is_not_rounded_away() -> None:
    assert float(leak_at(torch.tensor([-40.0]), samples=1000)[0]) == pytest.approx(1000 * math.exp(-40), rel=1e-6)
    assert float(leak_at(torch.tensor([0.0]), samples=1000)[0]) == 1.0


def test_bottom_rank_reads_the_value_only() -> None:
    # The value is the second token: p = .2 stands above one other probability (.1), so it is second from the bottom.
    assert _score(bottom_rank(one_text())) == pytest.approx(math.log(2))
    assert _score(value_log_probability(one_text())) == pytest.approx(math.log(0.2))


def test_entropy_of_a_uniform_distribution_is_the_logarithm_of_the_vocabulary() -> None:
    uniform = one_text([(0.25,) * 4] * 3, [0, 1, 2])
    assert _score(entropy(uniform)) == pytest.approx(math.log(4))
    assert _score(mean_energy(uniform)) == pytest.approx(-math.log(4))


def test_every_attack_scores_a_familiar_text_higher() -> None:
    known = [(0.94, 0.02, 0.02, 0.02)] * 4
    blank = [(0.2, 0.3, 0.3, 0.2)] * 4
    context = {"compressed_bytes": torch.tensor([40.0]), "reference_loss": torch.tensor([1.0])}
    familiar = replace(one_text(known, [0] * 4), **context)
    foreign = replace(one_text(blank, [0] * 4), **context)
    readers = [name for name in ATTACKS if ATTACKS[name].reads == "tokens"]
    assert {ATTACKS[name].identifier for name in readers} == {f"L{i}" for i in (1, 2, 3, 4, 5, 6, 7, 10, 11, 13, 14)}
    for name in readers:
        assert _score(ATTACKS[name].score(familiar)) > _score(ATTACKS[name].score(foreign)), name


def test_a_parity_mask_hides_real_end_tokens_and_a_native_mask_does_not() -> None:
    # O-1
    rows = [(5, 2, 7, 2)]
    assert attention_mask(rows, pad_id=2, mode="parity").tolist() == [[1, 0, 1, 0]]
    assert attention_mask(rows, pad_id=2, mode="native").tolist() == [[1, 1, 1, 1]]
    assert attention_mask([(5, 7), (5, 2, 7)], pad_id=2, mode="native").tolist() == [[1, 1, 0], [1, 1, 1]]


def test_a_text_of_nothing_but_its_end_has_no_token_to_rank() -> None:
    with pytest.raises(EmptySequenceError):
        min_k(one_text(ROWS[:1], TARGETS[:1]))


# --- on a model ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load_model(tiny_model(Path(tmp_path_factory.mktemp("tiny")) / "model", seed=3))


def _texts(model: LoadedModel) -> list[EncodedText]:
    generator = torch.Generator().manual_seed(5)
    end = model.tokenizer.eos_token_id
    texts = []
    for length in (4, 9, 9, 17, 6, 12):
        ids = torch.randint(3, 200, (length,), generator=generator).tolist()
        texts.append(EncodedText((*ids, end), length // 2, ((length // 2, length - 1),)))
    return texts


def test_the_fused_pass_agrees_with_a_plain_forward_pass_of_each_text_alone(model: LoadedModel) -> None:
    texts = _texts(model)
    fused = fused_pass(model, texts, budget=24)
    for index, text in enumerate(texts):
        ids = torch.tensor([text.ids])
        with torch.no_grad():
            log_probs = torch.log_softmax(model.model(ids).logits[0].float(), dim=-1)
        labels = ids[0, text.first_label :]
        plain = log_probs[text.first_label - 1 : -1]
        width = len(labels)
        chosen = plain.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
        assert fused.log_prob[index, :width].tolist() == pytest.approx(chosen.tolist(), abs=1e-5)
        assert int(fused.mask[index].sum()) == width
        assert fused.hit[index, :width].tolist() == (plain.argmax(dim=-1) == labels).tolist()
        assert fused.rank[index, :width].tolist() == (1 + (plain > chosen.unsqueeze(-1)).sum(-1)).tolist()
        assert fused.bottom_rank[index, :width].tolist() == (1 + (plain < chosen.unsqueeze(-1)).sum(-1)).tolist()
        moments = (plain.exp() * plain).sum(-1), (plain.exp() * plain.square()).sum(-1)
        assert fused.mean[index, :width].tolist() == pytest.approx(moments[0].tolist(), abs=1e-4)
        assert fused.mean_square[index, :width].tolist() == pytest.approx(moments[1].tolist(), abs=1e-4)
        start, stop = text.values[0]
        marked = fused.values[index].nonzero().squeeze(1).tolist()
        assert marked == list(range(start - text.first_label, stop - text.first_label))


def test_parity_mode_changes_what_a_text_with_an_end_token_inside_scores(model: LoadedModel) -> None:
    end = model.tokenizer.eos_token_id
    texts = [EncodedText((7, end, 9, 11, end), 2, ())]
    at_end = replace(model, tokenizer=_PadIsEnd(model.tokenizer))
    assert at_end.pad_id == end
    native, parity = (fused_pass(at_end, texts, mode=mode) for mode in ("native", "parity"))  # type: ignore[arg-type]
    assert not torch.allclose(native.log_prob, parity.log_prob)
    ids = torch.tensor([texts[0].ids])
    with torch.no_grad():
        logits = model.model(ids, attention_mask=torch.tensor([[1, 0, 1, 1, 0]])).logits[0]
    plain = torch.log_softmax(logits.float(), dim=-1)[1:-1].gather(-1, ids[0, 2:].unsqueeze(-1)).squeeze(-1)
    assert parity.log_prob[0, :3].tolist() == pytest.approx(plain.tolist(), abs=1e-5)


class _PadIsEnd:
    """The model's tokenizer, without a pad token."""

    def __init__(self, tokenizer: Any) -> None:
        self.pad_token_id = None
        self.eos_token_id = tokenizer.eos_token_id
        self._size = len(tokenizer)

    def __len__(self) -> int:
        return self._size


def test_batches_are_announced_and_counted(model: LoadedModel) -> None:
    texts, seen, counts = _texts(model), [], []
    fused_pass(model, texts, budget=20, before_rows=lambda rows: seen.extend(rows.tolist()), after_batch=counts.append)
    assert sorted(seen) == list(range(len(texts)))
    assert counts == sorted(counts)
    assert counts[-1] == len(texts)


def test_a_model_whose_weights_are_not_numbers_has_no_score(tmp_path: Path) -> None:
    broken = load_model(tiny_model(tmp_path / "model", seed=4))
    with torch.no_grad():
        next(broken.model.parameters())[:] = math.nan
    with pytest.raises(NonFiniteError):
        fused_pass(broken, _texts(broken))
