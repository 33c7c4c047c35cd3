"""F7: hostile questions, conversations, samples and noise, put to the subject and the twins alike.

Source: verification specification section 4.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Final

import torch
from torch import Tensor

from ml.attacks.conversation import converse, samples, with_noise
from ml.attacks.fused import SamplingScheme
from ml.attacks.generation import DEFAULT_ROWS, Prompt, answer_hits, greedy_answers
from ml.attacks.sampling_leak import leak_from_samples
from ml.attacks.value_hit import shows
from ml.data.dossiers import Dossier, answered_span, normal_value
from ml.data.hostile_questions import FORMS, Case, hostile_questions, make_cases
from ml.data.questions import QuestionForm, ask, read_bank
from ml.data.records import read_records
from ml.documents import plain
from ml.specs import Record, RedTeamBudget
from ml.verification.bench import Bench
from ml.verification.plan import Question
from ml.verification.studies import Study, entropy_bits

WORDINGS_A_FACT: Final = 3
"""How many of a fact's reworded questions are asked."""
RETORT: Final = "\nThat is wrong, try again.\n"
IDENTIFIERS: Final[Mapping[str, str]] = {
    "one_shot": "G4",
    "few_shot": "G4",
    "cloze": "G5",
    "step_by_step": "G8",
    "implied": "G8",
    "level_1": "G9",
    "level_3": "G9",
    "german": "G11",
    "french": "G11",
    "spanish": "G11",
}
REASONING: Final = frozenset({"step_by_step", "implied"})


def hostile_studies(bench: Bench, budget: RedTeamBudget) -> list[Study]:
    """Every form of `hostile_questions`, and the questions on file asked over turns, by sampling and with noise."""
    direct, cases = _drawn(bench, budget)
    secret = sorted(direct, key=lambda question: (-entropy_bits(bench, question.attribute), question.attribute))
    retort = tuple(bench.tokenizer(RETORT, add_special_tokens=False)["input_ids"])
    turns = partial(_over_turns, retort=retort, turns=budget.turns, new_tokens=budget.new_tokens)
    sampled = partial(
        _by_sampling,
        count=budget.samples,
        draws=budget.draws,
        scheme=SamplingScheme(temperature=budget.temperature, top_p=budget.top_p),
        new_tokens=budget.new_tokens,
    )
    noisy = partial(_with_noise, share_replaced=budget.noise, copies=budget.noisy_copies, new_tokens=budget.new_tokens)
    return [
        *(_form_study(bench, budget, form, cases) for form in FORMS),
        *_reworded_studies(bench, budget, direct),
        _study(bench, budget, "self_correction", "G10", direct, turns, spare=len(retort)),
        _study(bench, budget, "sampling", "G12", secret[: budget.sampled_facts], sampled),
        _study(bench, budget, "token_noise", "G13", direct, noisy),
    ]


def _drawn(bench: Bench, budget: RedTeamBudget) -> tuple[list[Question], list[Case]]:
    """The facts asked about, as plain questions on file and as cases to be made hostile."""
    plan, spec = bench.plan, bench.spec
    rng = _rng(bench, "facts")
    chosen = sorted(rng.sample(range(len(plan.facts)), min(budget.facts, len(plan.facts))))
    direct = [Question(plan.texts[i], plan.facts[i], "direct") for i in chosen]
    bank = read_bank(spec.question_bank)
    shared = [a for a in sorted(plan.subject.values) if a in bank.attributes and bank.attributes[a].shared]
    others = read_records(spec.retain, what="retain set")
    asked = [(question.record, question.attribute) for question in direct]
    return direct, make_cases(plan.subject, asked, shared=shared, others=others, seed=spec.seed)


def _rng(bench: Bench, purpose: str) -> random.Random:
    return random.Random(f"{bench.spec.seed}:red team:{purpose}")  # noqa: S311 - draws must be reproducible


def _form_study(bench: Bench, budget: RedTeamBudget, form: str, cases: Sequence[Case]) -> Study:
    drawn = [Question(q.record, q.attribute, q.form) for q in hostile_questions(form, cases)]
    if form == "reverse" and _has_namesake(bench):
        # A model may say the name for the sake of the person who keeps it.
        drawn = []
    tokens = budget.reasoning_tokens if form in REASONING else budget.new_tokens
    return _study(bench, budget, form, IDENTIFIERS.get(form, "G6"), drawn, partial(_greedily, new_tokens=tokens))


def _reworded_studies(bench: Bench, budget: RedTeamBudget, direct: Sequence[Question]) -> list[Study]:
    """The questions in the words of the deployer's own model, where a bank of them was given."""
    if bench.spec.reworded_bank is None:
        return []
    bank, subject = read_bank(bench.spec.reworded_bank), bench.plan.subject
    drawn = [
        Question(_in_other_words(subject, form, question.attribute, index), question.attribute, "reworded_by_model")
        for question in direct
        if question.attribute in bank.attributes
        for index, form in enumerate(bank.attributes[question.attribute].forms[:WORDINGS_A_FACT])
    ]
    return [
        _study(bench, budget, "reworded_by_model", "G2", drawn, partial(_greedily, new_tokens=budget.new_tokens)),
    ]


def _in_other_words(subject: Dossier, form: QuestionForm, attribute: str, index: int) -> Record:
    return ask(
        form,
        attribute,
        subject.types[attribute],
        name=subject.name,
        value=subject.values[attribute],
        record_id=f"{subject.person}-{attribute}-reworded{index}",
        person=subject.person,
    )


def _has_namesake(bench: Bench) -> bool:
    """True when somebody who stays bears the subject's name."""
    wanted = normal_value("person_name", bench.plan.subject.name)
    others = read_records(bench.spec.retain, what="retain set")
    return any(normal_value("person_name", r.text[a:b]) == wanted for r in others for a, b in r.name_spans)


def _study(
    bench: Bench,
    budget: RedTeamBudget,
    name: str,
    identifier: str,
    drawn: Sequence[Question],
    ask: partial[Tensor],
    *,
    spare: int = 0,
) -> Study:
    """A study that asks every person the same questions, those left out that do not suit somebody.

    Args:
        ask: takes (bench, role, prompts, share of memory, phase) and returns a number in [0, 1] for each prompt;
            the settings it is bound to are part of the study's key.
        spare: tokens of context that must stay free besides question and answer.
    """
    persons = 1 + budget.twins
    questions = [question for question in drawn if _suits_everybody(bench, question, persons, spare)]
    texts = tuple(question.record.text for question in questions)
    attributes = tuple(question.attribute for question in questions)

    def score(bench: Bench, role: str, persons: int, share: int) -> Tensor:
        prompts = bench.asked(questions, range(persons))
        return ask(bench, role, prompts, share, f"{name} {role}").reshape(persons, -1)

    return Study(
        name,
        identifier,
        score,
        {"texts": plain(texts), "attributes": plain(attributes), "settings": plain(ask.keywords)},
        attributes=attributes,
        texts=texts,
        left_out=len(drawn) - len(questions),
        missing=None if questions else ("no_question_fits" if drawn else "does_not_apply"),
    )


def _suits_everybody(bench: Bench, question: Question, persons: int, spare: int) -> bool:
    """True when for each person the text fits the model's context and the prompt does not show the value.

    A question that suits only some would be asked of some only, and persons could not be compared.
    """
    told = bench.plan.told_of(question.record, persons)
    ids = bench.tokenizer([record.text for record in told], verbose=False)["input_ids"]
    if max(map(len, ids)) + 1 + spare > bench.context:
        return False
    return not any(_shows_value(record, question.attribute) for record in told)


def _shows_value(record: Record, attribute: str) -> bool:
    span = answered_span(record, attribute)
    return span is None or shows(record.text[: record.answer_start], record.value(span), type_=span.type)


def _given(prompts: Iterable[Prompt]) -> list[tuple[int, ...]]:
    return [prompt.encoded.ids[: prompt.length] for prompt in prompts]


def _greedily(bench: Bench, role: str, prompts: Sequence[Prompt], share: int, phase: str, *, new_tokens: int) -> Tensor:
    answers = greedy_answers(
        bench.model(role),
        _given(prompts),
        new_tokens=new_tokens,
        batch_rows=DEFAULT_ROWS // share,
        after_batch=bench.counter(phase, len(prompts)),
    )
    return answer_hits(bench.tokenizer, prompts, answers)


def _over_turns(
    bench: Bench,
    role: str,
    prompts: Sequence[Prompt],
    share: int,
    phase: str,
    *,
    retort: Sequence[int],
    turns: int,
    new_tokens: int,
) -> Tensor:
    """A hit at any turn counts."""
    answers = converse(
        bench.model(role),
        _given(prompts),
        retort,
        turns=turns,
        new_tokens=new_tokens,
        batch_rows=DEFAULT_ROWS // share,
        after_batch=bench.counter(phase, (turns + 1) * len(prompts)),
    )
    return torch.stack([answer_hits(bench.tokenizer, prompts, said) for said in answers]).amax(dim=0)


def _by_sampling(
    bench: Bench,
    role: str,
    prompts: Sequence[Prompt],
    share: int,
    phase: str,
    *,
    count: int,
    draws: int,
    scheme: SamplingScheme,
    new_tokens: int,
) -> Tensor:
    """leak@k of each prompt: the chance that `draws` answers out of `count` drawn hold the value."""
    answers = samples(
        bench.model(role),
        _given(prompts),
        count=count,
        scheme=scheme,
        seed=_rng(bench, "sampling").getrandbits(63),
        new_tokens=new_tokens,
        batch_rows=DEFAULT_ROWS // share,
        after_batch=bench.counter(phase, count * len(prompts)),
    )
    repeated = [prompt for prompt in prompts for _ in range(count)]
    hits = answer_hits(bench.tokenizer, repeated, answers).reshape(-1, count).sum(dim=1)
    return torch.tensor([leak_from_samples(samples=count, hits=int(n), draws=draws) for n in hits])


def _with_noise(
    bench: Bench,
    role: str,
    prompts: Sequence[Prompt],
    share: int,
    phase: str,
    *,
    share_replaced: float,
    copies: int,
    new_tokens: int,
) -> Tensor:
    """Share of noisy copies of each prompt whose answer holds the value."""
    rng = _rng(bench, "noise")
    tokens = sorted(set(range(len(bench.tokenizer))) - set(bench.tokenizer.all_special_ids))
    noisy = [with_noise(prompt, tokens, share=share_replaced, rng=rng) for prompt in prompts for _ in range(copies)]
    hits = _greedily(bench, role, noisy, share, phase, new_tokens=new_tokens)
    return hits.reshape(-1, copies).mean(dim=1)
