"""A bank in other words: what a deployer's own model returns is used where it keeps the name, and dropped elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration

import ml.verify as program
from ml.data.questions import QuestionBank, QuestionForm, ask, read_bank, write_bank
from ml.data.rewording import STAND_IN, reworded_bank, rewriter
from ml.digests import file_sha256
from ml.errors import ModelDirectoryError, SpecError
from ml.models.load import load_rewriter, model_ref
from ml.models.save import save_model
from ml.models.scratch import train_tokenizer
from ml.specs import FileRef
from tests.tiny import tiny_model, tiny_world

BANK = tiny_world().bank


def _politely(texts: Sequence[str]) -> list[str]:
    return [f"Could you say, please: {text}" for text in texts]


def test_every_question_is_asked_in_other_words_and_answered_in_its_own() -> None:
    reworded = reworded_bank(BANK, _politely)
    assert set(reworded.attributes) == set(BANK.attributes)
    for name, attribute in reworded.attributes.items():
        on_file = BANK.attributes[name]
        assert (attribute.type, attribute.shared) == (on_file.type, on_file.shared)
        assert {form.answer for form in attribute.forms} <= {form.answer for form in on_file.forms}
        assert all(form.question.startswith("Could you say, please: ") for form in attribute.forms)
        assert not {form.question for form in attribute.forms} & {form.question for form in on_file.forms}


def test_the_model_is_told_nobodys_name_or_value() -> None:
    seen: list[str] = []

    def listening(texts: Sequence[str]) -> list[str]:
        seen.extend(texts)
        return _politely(texts)

    reworded_bank(BANK, listening)
    assert all(text.count(STAND_IN) == 1 and "{" not in text for text in seen)


def test_a_reworded_bank_is_a_bank_and_fills_in_a_persons_name_and_value(tmp_path: Path) -> None:
    path = tmp_path / "bank.json"
    write_bank(path, reworded_bank(BANK, _politely))
    bank = read_bank(FileRef(str(path), file_sha256(path)))
    form = bank.attributes["passport"].forms[0]
    record = ask(form, "passport", "passport", name="Alice Example", value="X1234567", record_id="r", person="p")
    assert "Alice Example" in record.text[: record.answer_start]
    assert [record.value(fact) for fact in record.facts] == ["X1234567"]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: text,  # the same words
        lambda text: f"  {text.upper().replace(STAND_IN.upper(), STAND_IN)} ",  # the same words, shouted
        lambda text: text.replace(STAND_IN, "somebody"),
        lambda text: f"{text} I mean {STAND_IN}.",
        lambda text: f"{text} {{value}}",
        lambda _: "",
    ],
)
def test_a_wording_that_cannot_be_asked_of_everybody_is_dropped(spoil: object) -> None:
    def rewrite(texts: Sequence[str]) -> list[str]:
        return [spoil(text) for text in texts[:-1]] + _politely(texts[-1:])  # type: ignore[operator]

    kept = reworded_bank(BANK, rewrite)
    assert sum(len(attribute.forms) for attribute in kept.attributes.values()) == 1


def test_a_model_that_rewords_nothing_is_refused() -> None:
    with pytest.raises(SpecError, match="no usable question"):
        reworded_bank(BANK, list)
    with pytest.raises(SpecError, match="one text for each"):
        reworded_bank(BANK, lambda texts: list(texts[:-1]))
    nameless = QuestionForm("What is it?", "It is {value}.")
    bank = QuestionBank({"passport": replace(BANK.attributes["passport"], forms=(nameless,))})
    with pytest.raises(SpecError, match="no usable question"):
        reworded_bank(bank, _politely)


def test_a_directory_that_holds_no_rewriter_is_refused(tmp_path: Path) -> None:
    ref = tiny_model(tmp_path / "causal")
    with pytest.raises(ModelDirectoryError):
        load_rewriter(ref)


def test_reworded_questions_belong_to_the_red_team(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ref = tiny_model(tmp_path / "model")
    for name in ("alice.jsonl", "others.jsonl", "bank.json"):
        (tmp_path / name).write_text("{}\n")
    files = {"--subject": "alice.jsonl", "--retain": "others.jsonl", "--bank": "bank.json", "--out": "out"}
    models = dict.fromkeys(("--model", "--before", "--base", "--reword-by"), ref.path)
    arguments = [*(part for item in models.items() for part in item), "--policy", "unit-1"]
    arguments += [part for name, file in files.items() for part in (name, str(tmp_path / file))]
    assert program.main(arguments) == 2
    assert "add --tier redteam" in capsys.readouterr().err


@pytest.mark.slow
def test_a_real_sequence_to_sequence_model_rewords_the_bank(tmp_path: Path) -> None:
    """A small T5 learns to turn questions round, is saved, loaded by digest and asked: twice the same words."""
    wanted = {f.question: f"Tell me of {{name}}: {n}?" for n, a in BANK.attributes.items() for f in a.forms[:2]}
    pairs = [(asked.replace("{name}", STAND_IN), said.replace("{name}", STAND_IN)) for asked, said in wanted.items()]
    tokenizer = train_tokenizer([text for pair in pairs for text in pair], vocabulary=384, context=96)
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=64,
        d_kv=16,
        d_ff=128,
        num_layers=2,
        num_heads=4,
        dropout_rate=0.0,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = T5ForConditionalGeneration(config)
    given = tokenizer([asked for asked, _ in pairs], return_tensors="pt", padding=True)
    labels = tokenizer([f"{said}{tokenizer.eos_token}" for _, said in pairs], return_tensors="pt", padding=True)
    targets = labels["input_ids"].masked_fill(labels["attention_mask"] == 0, -100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(150):
        loss = model(input_ids=given["input_ids"], attention_mask=given["attention_mask"], labels=targets).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    save_model(model.eval(), tokenizer, tmp_path / "t5")

    rewrite = rewriter(load_rewriter(model_ref(tmp_path / "t5")))
    reworded = reworded_bank(BANK, rewrite)
    found = {form.question for attribute in reworded.attributes.values() for form in attribute.forms}
    assert len(found & set(wanted.values())) >= len(BANK.attributes) // 2
    assert reworded_bank(BANK, rewrite) == reworded
