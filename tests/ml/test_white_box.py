"""Every white-box attack singles out a memorised person among twins, and nobody on a model that never met them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import ml.verification.white_box as white_box
from ml.attacks.soft_prompt import SoftPromptBudget
from ml.models.load import load_model
from ml.policies import load_policy
from ml.rank_tests import detection_p
from ml.specs import ModelRef
from ml.verification.bench import Bench
from ml.verification.plan import make_plan
from ml.verification.white_box import OLD_VERSION_ATTACKS, WHITE_BOX_ATTACKS, output_layer
from tests.ml.specs import verification_spec
from tests.tiny import TinyWorld

pytestmark = pytest.mark.slow
PERSONS = 8
QUICK = SoftPromptBudget(vectors=4, steps=30, texts_per_step=4)


def _bench(tiny: TinyWorld, candidate: ModelRef, parts: Path) -> Bench:
    policy = load_policy("unit-1")
    rules = tuple(replace(rule, twins=PERSONS - 1) for rule in policy.families)
    spec = verification_spec(tiny, candidate, parts, policy=replace(policy, families=rules))
    return Bench(spec, make_plan(spec), on_progress=lambda _: None, should_stop=lambda: False)


@pytest.fixture(scope="module")
def bench(tiny: TinyWorld, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """The candidate is the gold model: it never met Alice."""
    return _bench(tiny, tiny.gold, tmp_path_factory.mktemp("parts"))


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(white_box, "SOFT_PROMPT", QUICK)
    # the tiny world has a handful of people
    monkeypatch.setattr(white_box, "ALTERNATIVES", 3)


EVERY = {**WHITE_BOX_ATTACKS, **OLD_VERSION_ATTACKS}
_scores: dict[tuple[str, str], Tensor] = {}


def _person_scores(bench: Bench, name: str, role: str) -> Tensor:
    """One number per person, the subject first; measured once for all tests of this file."""
    if (name, role) not in _scores:
        items = EVERY[name](bench, role, PERSONS, 1)
        assert items.shape == (PERSONS, len(bench.plan.facts))
        _scores[name, role] = items.mean(dim=1)
    return _scores[name, role]


def _strength(scores: Tensor) -> float:
    """How far the subject stands above the mean twin, in standard deviations of the twins."""
    return float((scores[0] - scores[1:].mean()) / scores[1:].std())


@pytest.mark.parametrize("name", sorted(EVERY))
def test_a_memorised_person_stands_above_every_twin(bench: Bench, name: str) -> None:
    scores = _person_scores(bench, name, "before")
    assert detection_p(scores.tolist()) == 1 / PERSONS
    assert _strength(scores) > 5


@pytest.mark.parametrize("name", sorted(WHITE_BOX_ATTACKS))
def test_somebody_the_model_never_met_does_not(bench: Bench, name: str) -> None:
    # with seven twins a person like them exceeds 3 standard deviations in 1 of 65 draws
    assert _strength(_person_scores(bench, name, "merged")) < 3


@pytest.mark.parametrize("name", sorted(OLD_VERSION_ATTACKS))
def test_an_old_version_gives_away_what_even_a_gold_model_lacks(bench: Bench, name: str) -> None:
    """Undoing the weaker half of the change brings less back than going half way, and enough to stand out."""
    scores = _person_scores(bench, name, "merged")
    assert detection_p(scores.tolist()) == 1 / PERSONS
    assert _strength(scores) > (1 if name == "lower_rank" else 5)


def test_a_soft_prompt_elicits_even_what_was_never_learned(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = WHITE_BOX_ATTACKS["soft_prompt"](bench, "merged", 4, 1).mean(dim=1)
    monkeypatch.setattr(white_box, "SOFT_PROMPT", replace(QUICK, steps=1))
    untrained = WHITE_BOX_ATTACKS["soft_prompt"](bench, "merged", 4, 1).mean(dim=1)
    assert bool((trained > 0.5 + untrained).all())


def test_an_output_layer_that_was_left_alone_gives_the_person_away(
    bench: Bench, tiny: TinyWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    grafted, before = load_model(tiny.gold), load_model(tiny.before)
    grafted.model.get_output_embeddings().weight.data.copy_(before.model.get_output_embeddings().weight)
    plain = bench.model
    monkeypatch.setattr(bench, "model", lambda role: grafted if role == "merged" else plain(role))
    assert _strength(output_layer(bench, "merged", PERSONS, 1).mean(dim=1)) > 5


def test_smaller_batches_change_no_score(bench: Bench) -> None:
    for name in ("logit_lens", "pruning", "direct_relearning"):
        whole, parts = (WHITE_BOX_ATTACKS[name](bench, "merged", 8, share) for share in (1, 32))
        assert torch.allclose(whole, parts, atol=5e-2), name


def test_fewer_persons_are_the_first_of_many(bench: Bench) -> None:
    for name in ("output_layer", "linear_probe", "pruning"):
        few = WHITE_BOX_ATTACKS[name](bench, "merged", 3, 1).mean(dim=1)
        assert torch.allclose(_person_scores(bench, name, "merged")[:3], few, atol=1e-3), name


def test_an_attack_leaves_one_model_in_memory(bench: Bench) -> None:
    white_box.logit_lens(bench, "merged", 2, 1)
    assert set(bench.models._loaded) == {"merged"}
    white_box.scaled_deletion(bench, "merged", 2, 1)
    assert set(bench.models._loaded) == {"merged"}
