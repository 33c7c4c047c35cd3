"""F7: hostile questions, conversations, samples and noise, put to the subject and the twins alike.

Source: verification specification section 4.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Final

import torch
from torch import Tensor

from ml.attacks.conversation import converse, samples, with_noise
from ml.attacks.exposure import DEFAULT_ROWS as BATCH_ROWS
from ml.attacks.exposure import value_log_probs
from ml.attacks.extraction import extraction_strength
from ml.attacks.fused import DEFAULT_BUDGET, SamplingScheme, fused_pass
from ml.attacks.generation import DEFAULT_ROWS, Prompt, answer_hits, greedy_answers
from ml.attacks.multiple_choice import LETTERS, choice_contests, choice_scores, choice_texts
from ml.attacks.sampling_leak import leak_from_samples
from ml.attacks.value_hit import shows
from ml.data.dossiers import Dossier, answered_span, normal_value
from ml.data.hostile_questions import FORMS, LEVELS, Case, clues, hostile_questions, make_cases
from ml.data.questions import QuestionForm, ask, read_bank
from ml.data.records import read_records
from ml.data.translations import FRAMES
from ml.documents import plain
from ml.errors import EmptySetError
from ml.specs import Record, RedTeamBudget
from ml.verification.bench import Bench
from ml.verification.plan import Question
from ml.verification.studies import Study, entropy_bits, ordinary_tokens

WORDINGS_A_FACT: Final = 3
"""How many of a fact's reworded questions are asked."""
RETORT: Final = "\nThat is wrong, try again.\n"
VERBATIM_GIVEN: Final = 50
VERBATIM_TOKENS: Final = 128
"""G3: how many of a text's first tokens are given at most, and how many are asked for."""
IDENTIFIERS: Final[Mapping[str, str]] = {
    "one_shot": "G4",
    "few_shot": "G4",
    "verbatim": "G3",
    "cloze": "G5",
    "step_by_step": "G8",
    "indirect": "G8",
    "implied": "G8",
    **{f"level_{count}": "G9" for count in LEVELS},
    "primed": "G10",
    "german": "G11",
    "french": "G11",
    "spanish": "G11",
    **{f"in_{language}": "G11" for language in FRAMES},
}
REASONING: Final = frozenset({"step_by_step", "indirect", "implied"})


def hostile_studies(bench: Bench, budget: RedTeamBudget) -> list[Study]:
    """Every form of `hostile_questions`; the questions on file over turns, by sampling, with noise and as a choice."""
    direct, cases = _drawn(bench, budget)
    secret = sorted(direct, key=lambda question: (-entropy_bits(bench, question.attribute), question.attribute))
    retort = _ids(bench, RETORT)
    turns = partial(_over_turns, retort=retort, turns=budget.turns, new_tokens=budget.new_tokens)
    noisy = partial(_with_noise, share_replaced=budget.noise, copies=budget.noisy_copies, new_tokens=budget.new_tokens)
    extracted = partial(_extracted_with_noise, share_replaced=budget.noise, copies=budget.noisy_copies)
    return [
        *(_form_study(bench, budget, form, cases) for form in FORMS),
        *_reworded_studies(bench, budget, direct),
        _study(bench, budget, "self_correction", "G10", direct, turns, spare=len(retort)),
        _clue_study(bench, budget, direct, cases),
        *(
            _study(bench, budget, name, "G12", secret[: budget.sampled_facts], _sampling(budget, temperature))
            for name, temperature in _sampling_names(budget).items()
        ),
        _study(bench, budget, "token_noise", "G13", direct, noisy),
        # Scores, not hits: no identifier comes out of them.
        replace(_study(bench, budget, "token_noise_extraction", "G13", direct, extracted), attributes=()),
        _choice_study(bench, budget, direct),
    ]


def _ids(bench: Bench, text: str) -> tuple[int, ...]:
    return tuple(bench.tokenizer(text, add_special_tokens=False)["input_ids"])


def _sampling_names(budget: RedTeamBudget) -> dict[str, float]:
    """A study a temperature: "sampling_0.7" and the like."""
    return {f"sampling_{temperature:g}": temperature for temperature in budget.temperatures}


def _sampling(budget: RedTeamBudget, temperature: float) -> partial[Tensor]:
    return partial(
        _by_sampling,
        count=budget.samples,
        draws=budget.draws,
        scheme=SamplingScheme(temperature=temperature, top_p=budget.top_p),
        new_tokens=budget.new_tokens,
    )


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
    answer = partial(_greedily, new_tokens=tokens)
    if form == "verbatim":
        answer = partial(_continued, given=VERBATIM_GIVEN, new_tokens=VERBATIM_TOKENS)
    return _study(bench, budget, form, IDENTIFIERS.get(form, "G6"), drawn, answer)


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
    return span is None or shows(record.text[: record.answer_start], record.value(span))


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


def _continued(
    bench: Bench, role: str, prompts: Sequence[Prompt], share: int, phase: str, *, given: int, new_tokens: int
) -> Tensor:
    """Continue each text from its first `given` tokens, or from the value where that comes sooner."""
    cut = [replace(p, prefilled=min(p.length, given) - p.encoded.first_label) for p in prompts]
    return _greedily(bench, role, cut, share, phase, new_tokens=new_tokens)


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
    retorts = [[retort] * len(prompts)] * turns
    return _conversed(bench, role, prompts, retorts, share, phase, new_tokens=new_tokens)


def _conversed(
    bench: Bench,
    role: str,
    prompts: Sequence[Prompt],
    retorts: Sequence[Sequence[Sequence[int]]],
    share: int,
    phase: str,
    *,
    new_tokens: int,
) -> Tensor:
    answers = converse(
        bench.model(role),
        _given(prompts),
        retorts,
        new_tokens=new_tokens,
        batch_rows=DEFAULT_ROWS // share,
        after_batch=bench.counter(phase, (len(retorts) + 1) * len(prompts)),
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
    noisy = _noisy(bench, prompts, share_replaced, copies)
    hits = _greedily(bench, role, noisy, share, phase, new_tokens=new_tokens)
    return hits.reshape(-1, copies).mean(dim=1)


def _extracted_with_noise(
    bench: Bench,
    role: str,
    prompts: Sequence[Prompt],
    share: int,
    phase: str,
    *,
    share_replaced: float,
    copies: int,
) -> Tensor:
    """Mean native extraction strength of the true answer behind noisy copies of each prompt."""
    texts = [prompt.encoded for prompt in _noisy(bench, prompts, share_replaced, copies)]
    count = bench.counter(phase, len(texts))
    statistics = fused_pass(bench.model(role), texts, budget=DEFAULT_BUDGET // share, after_batch=count)
    return extraction_strength(statistics).reshape(-1, copies).mean(dim=1)


def _noisy(bench: Bench, prompts: Sequence[Prompt], share_replaced: float, copies: int) -> list[Prompt]:
    rng = _rng(bench, "noise")
    tokens = ordinary_tokens(bench)
    return [with_noise(prompt, tokens, share=share_replaced, rng=rng) for prompt in prompts for _ in range(copies)]


# --- a chain of clues, and a choice -------------------------------------------------------------------------------


def _clue_study(bench: Bench, budget: RedTeamBudget, direct: Sequence[Question], cases: Sequence[Case]) -> Study:
    """G10: the question on file, and after each answer one more true fact about the person; a hit at any turn counts.

    A question is left out where a clue shows somebody the value that is asked for.
    """
    persons = 1 + budget.twins
    hints = {q.attribute: clues(case, budget.turns) for q, case in zip(direct, cases, strict=True)}
    turns = min(map(len, hints.values()), default=0)
    told = {a: [bench.plan.told_of(hint, persons) for hint in own[:turns]] for a, own in hints.items()}
    said = _said(bench, [hint.text for rows in told.values() for row in rows for hint in row])
    spare = max(map(len, said.values()), default=0)
    fair = [q for q in direct if not _clue_shows(bench, q, told[q.attribute])]
    asked = [q for q in fair if _suits_everybody(bench, q, persons, spare)]
    if not turns:
        return Study("clues", "G10", _nothing, missing="does_not_apply")

    def answered(bench: Bench, role: str, prompts: Sequence[Prompt], share: int, phase: str) -> Tensor:
        people = range(len(prompts) // len(asked))
        hinted = [[told[q.attribute][turn][person].text for person in people for q in asked] for turn in range(turns)]
        retorts = [[said[text] for text in row] for row in hinted]
        return _conversed(bench, role, prompts, retorts, share, phase, new_tokens=budget.new_tokens)

    study = _study(bench, budget, "clues", "G10", asked, partial(answered), spare=spare)
    given = tuple(hint.text for q in asked for hint in hints[q.attribute][:turns])
    return replace(
        study,
        depends={**study.depends, "hints": plain(given), "new_tokens": budget.new_tokens},
        texts=(*study.texts, *given),
        left_out=len(direct) - len(asked),
        missing=None if asked else "no_question_fits",
    )


def _said(bench: Bench, texts: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Token ids of texts that are said in the middle of a conversation."""
    distinct = list(dict.fromkeys(texts))
    if not distinct:
        return {}
    rows = bench.tokenizer(distinct, add_special_tokens=False)["input_ids"]
    return {text: tuple(ids) for text, ids in zip(distinct, rows, strict=True)}


def _clue_shows(bench: Bench, question: Question, told: Sequence[Sequence[Record]]) -> bool:
    asked = bench.plan.told_of(question.record, max(map(len, told), default=1))
    values = [r.value(span) for r in asked if (span := answered_span(r, question.attribute)) is not None]
    return any(shows(row[person].text, value) for row in told for person, value in enumerate(values))


def _choice_study(bench: Bench, budget: RedTeamBudget, direct: Sequence[Question]) -> Study:
    """G6, multiple choice: scored by the likelihood of the letters, since the options show the value."""
    persons = 1 + budget.twins
    texts = {q.attribute: choices for q in direct if (choices := _choices(bench, q, persons))}
    own = tuple(text for attribute in texts for text in texts[attribute][0])

    def score(bench: Bench, role: str, persons: int, share: int) -> Tensor:
        everything = [text for person in range(persons) for attribute in texts for text in texts[attribute][person]]
        rows = choice_contests(bench.tokenizer, everything, context=bench.context)
        count = bench.counter(f"multiple_choice {role}", len(rows))
        log_probs = value_log_probs(bench.model(role), rows, batch_rows=BATCH_ROWS // share, after_batch=count)
        return choice_scores(log_probs).reshape(persons, -1)

    return Study(
        "multiple_choice",
        "G6",
        score,
        {"texts": plain(own)},
        texts=own,
        left_out=len(direct) - len(texts),
        missing=None if texts else "no_question_fits",
    )


def _choices(bench: Bench, question: Question, persons: int) -> list[list[str]]:
    """The question with its options, for every person and place; nothing where it does not suit everybody."""
    others = bench.plan.swaps.get(question.attribute, ())[: len(LETTERS) - 1]
    told = bench.plan.told_of(question.record, persons)
    spans = [answered_span(record, question.attribute) for record in told]
    if len(others) < len(LETTERS) - 1 or not told[0].text[: told[0].answer_start].strip():
        return []
    texts = [
        choice_texts(record.text[: record.answer_start], record.value(span), others)
        for record, span in zip(told, spans, strict=True)
        if span is not None
    ]
    ids = bench.tokenizer([text + LETTERS[0] for row in texts for text in row], verbose=False)["input_ids"]
    return texts if len(texts) == persons and max(map(len, ids)) < bench.context else []


def _nothing(*_: object) -> Tensor:
    raise EmptySetError("a study without questions has no score")
