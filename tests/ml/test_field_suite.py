"""Benchmark numbers: from questions to aggregates, in both modes."""

from __future__ import annotations

import copy

import pytest
import torch

from ml.attacks.fused import fused_pass
from ml.attacks.mean_loss import mean_loss
from ml.data.collate import EncodedText
from ml.data.question_answers import PromptTemplate, encode_answer
from ml.errors import ContextLengthError, EmptySequenceError, EmptySetError
from ml.field_suite import MEMBERSHIP, answer_losses, forget_numbers, likelihood_block, reference_losses, truth_ratios
from ml.models.load import LoadedModel, load_model
from ml.models.scratch import END_TOKEN
from tests.tiny import tiny_model

TEMPLATE = PromptTemplate("Question: ", "\n", "Answer:\n")
FORGET = (("Where does Alice live?", "In a mill by the lake."), ("Who feeds her cat?", "Bob feeds it."))
HOLDOUT = (("Where does Rhea live?", "Over a bakery in town."), ("Who walks her dog?", "Mallory walks it."))


@pytest.fixture(name="loaded", scope="module")
def _loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load_model(tiny_model(tmp_path_factory.mktemp("model") / "model"))


def _encoded(loaded: LoadedModel, pairs: tuple[tuple[str, str], ...]) -> list[EncodedText]:
    return [encode_answer(loaded.tokenizer, TEMPLATE, q, a, context=loaded.context) for q, a in pairs]


def test_labels_are_the_answer_and_its_end(loaded: LoadedModel) -> None:
    text = _encoded(loaded, FORGET)[0]
    assert loaded.tokenizer.decode(text.ids[text.first_label : -1]) == FORGET[0][1]
    assert text.ids[-1] == loaded.tokenizer.eos_token_id


def test_a_chat_template_is_rendered_with_its_system_prompt_and_variables(loaded: LoadedModel) -> None:
    tokenizer = loaded.tokenizer
    tokenizer.chat_template = (
        "{{ day }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    template = PromptTemplate(chat=True, system_prompt="Be kind.", variables={"day": "Today"})
    text = encode_answer(tokenizer, template, *FORGET[1], context=loaded.context)
    assert tokenizer.decode(text.ids[: text.first_label]) == (
        f"Today[system]Be kind.{END_TOKEN}[user]{FORGET[1][0]}{END_TOKEN}[assistant]"
    )
    assert tokenizer.decode(text.ids[text.first_label :]) == FORGET[1][1] + END_TOKEN


def test_nothing_is_cut_and_no_answer_is_empty(loaded: LoadedModel) -> None:
    with pytest.raises(ContextLengthError, match="the model takes"):
        encode_answer(loaded.tokenizer, TEMPLATE, "Why?", "Because. " * 200, context=loaded.context)
    with pytest.raises(EmptySequenceError, match="template"):
        encode_answer(loaded.tokenizer, TEMPLATE, "Why?", "", context=loaded.context)


def test_one_pass_gives_every_score_and_an_area_for_each_attack(loaded: LoadedModel) -> None:
    forget, holdout = _encoded(loaded, FORGET), _encoded(loaded, HOLDOUT)
    known = reference_losses(loaded, [*forget, *holdout])
    block = likelihood_block(loaded, [*forget, *holdout], known=known)
    assert set(block.membership) == {*MEMBERSHIP, "reference"}
    assert torch.allclose(block.membership["reference"], torch.zeros(4), atol=1e-6)
    assert torch.allclose(block.probability, torch.exp(-block.membership["loss"]))
    numbers = forget_numbers(loaded, forget, holdout, known=known)
    assert numbers["auc_reference"] == 0.5
    assert numbers["privleak"] == pytest.approx((0.5 - numbers["auc_min_k"]) / 0.5 * 100)


def test_an_end_token_inside_the_prompt_is_masked_in_parity_mode_only(loaded: LoadedModel) -> None:
    marked = PromptTemplate("Question: ", f"{END_TOKEN}\n", "Answer:\n")
    text = encode_answer(loaded.tokenizer, marked, *FORGET[0], context=loaded.context)
    padded_by_end = LoadedModel(loaded.model, _without_pad(loaded), loaded.context, loaded.manifest_sha256)
    native, parity = (mean_loss(fused_pass(padded_by_end, [text], mode=mode)) for mode in ("native", "parity"))
    assert not torch.allclose(native, parity, atol=1e-5)
    plain = _encoded(loaded, FORGET)[:1]
    native, parity = (mean_loss(fused_pass(padded_by_end, plain, mode=mode)) for mode in ("native", "parity"))
    assert torch.allclose(native, parity, atol=1e-5)


def _without_pad(loaded: LoadedModel) -> object:
    tokenizer = copy.deepcopy(loaded.tokenizer)
    tokenizer.pad_token = None
    return tokenizer


def test_truth_ratios_compare_each_question_with_its_own_wrong_answers(loaded: LoadedModel) -> None:
    right = _encoded(loaded, FORGET)
    wrong = [_encoded(loaded, ((q, "Nobody knows."), (q, "It is not said."))) for q, _ in FORGET]
    losses, others = answer_losses(loaded, right, wrong)
    assert others.shape == (2, 2)
    alone, _ = answer_losses(loaded, right[1:], wrong[1:])
    assert float(alone[0]) == pytest.approx(float(losses[1]), abs=1e-5)
    assert torch.allclose(
        truth_ratios(loaded, right, wrong), torch.exp(losses.double() - others.double().mean(dim=1)), atol=1e-6
    )


def test_sets_that_are_empty_or_uneven_are_refused(loaded: LoadedModel) -> None:
    right = _encoded(loaded, FORGET)
    with pytest.raises(EmptySetError):
        likelihood_block(loaded, [])
    with pytest.raises(EmptySetError):
        forget_numbers(loaded, right, [])
    with pytest.raises(EmptySetError, match="equally many"):
        answer_losses(loaded, right, [right, right[:1]])
    with pytest.raises(EmptySetError):
        answer_losses(loaded, right, [[], []])
