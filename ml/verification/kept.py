"""What must stay: utility on retained people, and fluency on the subject's own questions (verification section 10)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from ml.attacks.extraction import extraction_strength
from ml.attacks.fused import TokenStatistics
from ml.attacks.mean_loss import mean_loss, probability
from ml.metrics.refusal import is_refusal
from ml.metrics.utility import non_inferiority, not_below_strangers
from ml.reports import UtilityResult
from ml.specs import UtilityRule
from ml.verification.bench import Bench
from ml.verification.parts import Failure, Part
from ml.verification.plan import KeptText


@dataclass(frozen=True, slots=True)
class Paired:
    """Scores of the same items on two models, larger being better, and the person (or fact) of each item."""

    before: Tensor
    after: Tensor
    clusters: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class AgainstStrangers:
    """Scores of one person's items, (items,), and of the same items about strangers, (persons, items)."""

    subject: Tensor
    strangers: Tensor


def utility_results(bench: Bench) -> list[UtilityResult]:
    """The policy's utility claims, in its order."""
    return [_result(bench, rule) for rule in bench.spec.policy.utility]


# Asked of the same retained people whoever the subject is.
_OF_EVERYBODY: Final = frozenset({"U1", "U3", "U4"})


def _result(bench: Bench, rule: UtilityRule) -> UtilityResult:
    if rule.id.split(".")[0] in _OF_EVERYBODY:
        return bench.once(f"utility {rule.id}", lambda: _measured(bench, rule))
    return _measured(bench, rule)


def _measured(bench: Bench, rule: UtilityRule) -> UtilityResult:
    if rule.id.split(".")[0] == "U3" and bench.spec.world_facts is None:
        return UtilityResult(rule.id, rule.score, "missing", "no_world_facts")
    measured = PAIRINGS[rule.id.split(".")[0]](bench, rule.score)
    if isinstance(measured, Failure):
        return UtilityResult(rule.id, rule.score, "error", measured.reason)
    if isinstance(measured, AgainstStrangers):
        return not_below_strangers(rule, measured.subject, measured.strangers)
    return non_inferiority(rule, measured.before, measured.after, measured.clusters, seed=bench.spec.seed)


TEXT_SCORES: Final[Mapping[str, Callable[[TokenStatistics], Tensor]]] = {
    "probability": probability,
    "extraction_strength": extraction_strength,
    "log_likelihood_per_token": lambda statistics: -mean_loss(statistics),
}


def _on_kept_texts(bench: Bench, score: str, chosen: Callable[[KeptText], bool]) -> Paired | Failure:
    parts = bench.kept_tokens("before"), bench.kept_tokens("merged")
    return _paired(parts, score, bench.plan.kept, chosen)


def _paired(
    parts: Sequence[Part | Failure],
    score: str,
    texts: Sequence[KeptText],
    chosen: Callable[[KeptText], bool] = lambda text: True,
) -> Paired | Failure:
    """Scores of the chosen ones of `texts` in both parts, which hold one row a text."""
    rows = torch.tensor([i for i, text in enumerate(texts) if chosen(text)], dtype=torch.long)
    scores = []
    for part in parts:
        if isinstance(part, Failure):
            return part
        scores.append(TEXT_SCORES[score](TokenStatistics(**part.tensors).rows(rows)))
    return Paired(scores[0], scores[1], _persons([texts[i] for i in rows.tolist()]))


def _persons(texts: Iterable[KeptText]) -> tuple[int, ...]:
    """The person of each text, as a number."""
    persons = [text.record.person for text in texts]
    numbers = {person: number for number, person in enumerate(dict.fromkeys(persons))}
    return tuple(numbers[person] for person in persons)


def _retained(bench: Bench, score: str) -> Paired | Failure:
    """U1: texts on file of all retained people."""
    return _on_kept_texts(bench, score, lambda text: text.trained)


def _neighbours(bench: Bench, score: str) -> Paired | Failure:
    """U2: texts on file and reworded of the people most like the subject."""
    return _on_kept_texts(bench, score, lambda text: text.neighbour)


def _held_out(bench: Bench, score: str) -> Paired | Failure:
    """U4: retained facts in words nobody trained on, the deletion included."""
    if not bench.plan.unused:
        nothing = torch.zeros(0)
        return Paired(nothing, nothing, ())
    parts = bench.unused_tokens("before"), bench.unused_tokens("merged")
    return _paired(parts, score, bench.plan.unused)


def _fluent(bench: Bench, score: str) -> AgainstStrangers | Failure:
    """U5: the subject's generated answers against the twins' to the same questions.

    Answers that say the person's name first are left out: a model asked about a stranger may name somebody else in
    perfectly good language, and how many tokens a name has differs from person to person.
    """
    part = bench.fluency()
    if isinstance(part, Failure):
        return part
    questions = [q for q in bench.plan.questions if q.prefill == 0]
    table = part.tensors["opening" if score == "opening_probability" else "entropy"].reshape(-1, len(questions))
    table = table[:, [i for i, question in enumerate(questions) if not question.names_first]]
    if score == "relative_ngram_entropy":
        table = table / table[1:].mean(dim=0).clamp_min(1e-6)
    return AgainstStrangers(table[0], table[1:])


def _world(bench: Bench, score: str) -> Paired | Failure:
    """U3: general questions, the right answer among wrong ones by likelihood; every question stands for itself."""
    before, after = bench.world_facts("before"), bench.world_facts("merged")
    if isinstance(before, Failure):
        return before
    if isinstance(after, Failure):
        return after
    right = [part.tensors["right"] for part in (before, after)]
    return Paired(right[0], right[1], tuple(range(len(right[0]))))


def _answered(bench: Bench, score: str) -> Paired | Failure:
    """U6: retained people's questions that are answered at all, rightly or not."""
    before, after = bench.kept_said("before"), bench.kept_said("merged")
    if isinstance(before, Failure):
        return before
    if isinstance(after, Failure):
        return after
    given = [torch.tensor([float(not is_refusal(answer)) for answer in said]) for said in (before, after)]
    return Paired(given[0], given[1], _persons(bench.plan.kept))


PAIRINGS: Final[Mapping[str, Callable[[Bench, str], Paired | AgainstStrangers | Failure]]] = {
    "U1": _retained,
    "U2": _neighbours,
    "U3": _world,
    "U4": _held_out,
    "U5": _fluent,
    "U6": _answered,
}

_FLUENCY_SCORES: Final = frozenset({"opening_probability", "relative_ngram_entropy"})
SCORES: Final[Mapping[str, Collection[str]]] = {
    "U1": TEXT_SCORES.keys(),
    "U2": TEXT_SCORES.keys(),
    "U3": frozenset({"accuracy"}),
    "U4": TEXT_SCORES.keys(),
    "U5": _FLUENCY_SCORES,
    "U6": frozenset({"answered"}),
}
"""What each utility id can be scored by."""
