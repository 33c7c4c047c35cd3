"""ROUGE between an answer and a reference text (oracle O-13), by the library the field compares with.

It rewards shared boilerplate and follows rewording badly (verification section 7): for tables, never for a gate.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from rouge_score import rouge_scorer


@dataclass(frozen=True, slots=True)
class Rouge:
    """ROUGE-L of one answer: `recall` of the reference's words in order and `f1`; ROUGE-1 `word_recall`. In [0, 1]."""

    recall: float
    f1: float
    word_recall: float


def rouge(answer: str, reference: str, *, stemming: bool = True) -> Rouge:
    """Longest common run of words, gaps allowed. Stemming is on in OpenUnlearning and off in MUSE: never mix them."""
    scores = _scorer(stemming).score(reference, answer)
    longest = scores["rougeL"]
    return Rouge(float(longest.recall), float(longest.fmeasure), float(scores["rouge1"].recall))


@cache
def _scorer(stemming: bool) -> Any:
    return rouge_scorer.RougeScorer(["rouge1", "rougeL"], use_stemmer=stemming)
