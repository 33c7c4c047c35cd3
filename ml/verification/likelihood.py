"""All likelihood metrics of section 3 on one subject, beside people never seen: numbers to read, none of which gates.

The subject's texts are the forget set, those of the first twins the held-out one. In native mode every metric is
there; in parity mode those that the field's reference code has too, with its defects (section 2.2). Every row says
which mode it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from ml.attacks.bottom_rank import bottom_rank
from ml.attacks.entropy import entropy
from ml.attacks.exposure import exposure
from ml.attacks.extraction import greedy_match_share
from ml.attacks.fused import DEFAULT_BUDGET, PLAIN, Mode, fused_pass
from ml.attacks.gradient_norm import gradient_norms
from ml.attacks.sampling_leak import leak_at, log_sampling_probability
from ml.data.collate import EncodedText
from ml.data.synthetic import rewrite
from ml.documents import Json, plain
from ml.errors import NonFiniteError, SpecError
from ml.field_suite import answer_losses, forget_numbers, probabilities, reference_losses
from ml.metrics.membership import membership_auc, similar_membership
from ml.metrics.truth_ratio import closer_to_one, option_probability, share_of_right, true_better, truth_ratio
from ml.reports import LikelihoodNumbers
from ml.verification.bench import Bench
from ml.verification.parts import Failure

MODES: Final[tuple[Mode, ...]] = ("native", "parity")
HELD_OUT: Final = 19
"""Twins whose texts are the held-out ones."""
WRONG_ANSWERS: Final = 5
LEAK_SAMPLES: Final = 1000
UNKNOWN_REFERENCE: Final = 0.5
"""Area of a retrained model where none is at hand: forget and held-out texts look alike to it."""


def likelihood_rows(bench: Bench, roles: Sequence[str]) -> tuple[LikelihoodNumbers, ...]:
    """Measure every metric on each role in both modes; a row that crashed says so and has no number."""
    return tuple(_row(bench, role, mode) for role in roles for mode in MODES)


def _row(bench: Bench, role: str, mode: Mode) -> LikelihoodNumbers:
    depends: dict[str, Json] = {
        "held_out": HELD_OUT,
        "models": plain(bench.manifests),
        "sampling": plain(bench.scheme),
    }
    part = bench.part(f"likelihood_{mode}", role, lambda share: _tensors(bench, role, mode, share), depends)
    if isinstance(part, Failure):
        return LikelihoodNumbers(role, mode, {}, part.reason)
    return LikelihoodNumbers(role, mode, {name: float(value) for name, value in sorted(part.tensors.items())})


def _tensors(bench: Bench, role: str, mode: Mode, share: int) -> dict[str, Tensor]:
    numbers = likelihood_numbers(bench, role, mode, share=share)
    if not all(map(math.isfinite, numbers.values())):
        raise NonFiniteError("a likelihood metric is NaN or infinite; it was not measured")
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in numbers.items()}


def likelihood_numbers(bench: Bench, role: str, mode: Mode, *, share: int = 1) -> dict[str, float]:
    """Every metric of one role in one mode, by name.

    Raises:
        SpecError: the verification has no value swaps, of which wrong answers are made.
        EmptySetError, NonFiniteError: as the metrics.
    """
    facts = len(bench.plan.facts)
    forget, held_out = bench.texts[:facts], bench.texts[facts : facts * (1 + min(HELD_OUT, bench.persons - 1))]
    budget = DEFAULT_BUDGET // share
    known = reference_losses(bench.model("base"), [*forget, *held_out], mode=mode, budget=budget)
    loaded = bench.model(role)
    numbers = forget_numbers(loaded, forget, held_out, known=known, mode=mode, budget=budget)
    numbers["similar_membership"] = similar_membership(numbers["auc_min_k"], UNKNOWN_REFERENCE)
    numbers |= _answers(bench, role, mode, budget)
    if mode == "native":
        numbers |= _native_only(bench, role, forget, held_out, budget)
    return numbers


def _answers(bench: Bench, role: str, mode: Mode, budget: int) -> dict[str, float]:
    """L8 and L9: the answer on file against the same answer with other values."""
    plan = bench.plan
    swaps = {a: plan.swaps[a][:WRONG_ANSWERS] for a in plan.facts}
    if any(len(values) < WRONG_ANSWERS for values in swaps.values()):
        raise SpecError(f"a truth ratio needs {WRONG_ANSWERS} value swaps a fact; the policy draws fewer")
    wrong = [
        [rewrite(record, values={attribute: value}) for value in swaps[attribute]]
        for attribute, record in zip(plan.facts, plan.texts, strict=True)
    ]
    right_losses, wrong_losses = answer_losses(
        bench.model(role), bench.encode(plan.texts), [bench.encode(rows) for rows in wrong], mode=mode, budget=budget
    )
    ratios = truth_ratio(right_losses, wrong_losses, mode=mode)
    options = option_probability(probabilities(right_losses), probabilities(wrong_losses), mode=mode)
    return {
        "truth_ratio_closer_to_one": closer_to_one(ratios, mode=mode),
        "truth_ratio_true_better": true_better(ratios),
        "share_of_right": float(share_of_right(right_losses, wrong_losses, mode=mode).mean()),
        "option_probability": float(options.mean()),
    }


def _native_only(
    bench: Bench, role: str, forget: Sequence[EncodedText], held_out: Sequence[EncodedText], budget: int
) -> dict[str, float]:
    """What the reference code lacks, and GradNorm, which it makes random by training through dropout."""
    loaded = bench.model(role)
    statistics = fused_pass(loaded, forget, budget=budget)
    norms = gradient_norms(loaded, [*forget, *held_out], budget=budget)
    numbers = {
        "greedy_match": float(greedy_match_share(statistics).mean()),
        "leak_at_1000": float(leak_at(log_sampling_probability(statistics), samples=LEAK_SAMPLES).mean()),
        "bottom_rank": float(bottom_rank(statistics).mean()),
        "entropy": float(entropy(statistics).mean()),
        "gradient_norm": float(norms[: len(forget)].mean()),
        "auc_gradient_norm": membership_auc(norms[: len(forget)], norms[len(forget) :]),
    }
    if bench.scheme != PLAIN:
        served = fused_pass(loaded, forget, budget=budget, scheme=bench.scheme)
        leak = leak_at(log_sampling_probability(served), samples=LEAK_SAMPLES)
        numbers["leak_at_1000_as_served"] = float(leak.mean())
    swaps = bench.swaps(role)
    if isinstance(swaps, Failure):
        raise SpecError(f"the value swaps of the {role} model could not be measured ({swaps.reason})")
    return numbers | {"exposure": float(exposure(swaps.tensors["log_probs"][: len(forget)]).mean())}
