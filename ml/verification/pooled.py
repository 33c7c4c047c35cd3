"""Measure several subjects of one twin pool together, and show each of them alone with the twins.

All persons pass through the same batches: nothing but the text tells a subject's row from a twin's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TypeVar

import torch
from torch import Tensor

from ml.data.synthetic import Stranger
from ml.specs import ProgressCallback, StopCheck, VerificationSpec
from ml.verification.bench import Bench
from ml.verification.parts import Failure, Part
from ml.verification.plan import Plan
from ml.verification.twin_pool import TwinPool, plan_for, pool_plans, read_pool

T = TypeVar("T")


def bench_for(specs: Sequence[VerificationSpec], *, on_progress: ProgressCallback, should_stop: StopCheck) -> Bench:
    """What measures one subject, or all subjects of the pool that their specifications name."""
    if len(specs) == 1 or specs[0].twin_pool is None:
        return Bench(specs[0], plan_for(specs[0]), on_progress=on_progress, should_stop=should_stop)
    return pooled_benches(specs, read_pool(specs[0].twin_pool), on_progress=on_progress, should_stop=should_stop)[0]


def pooled_benches(
    specs: Sequence[VerificationSpec], pool: TwinPool, *, on_progress: ProgressCallback, should_stop: StopCheck
) -> tuple[Bench, list[Bench]]:
    """What measures all subjects with the twins, and what each subject's report reads of it, in the order given.

    Parts do not depend on the order in which the subjects are given.
    """
    plans = pool_plans(specs, pool)
    order = sorted(range(len(specs)), key=lambda i: specs[i].forget.sha256)
    first, *others = (plans[i] for i in order)
    everybody = replace(first, twins=(*map(_as_stranger, others), *first.twins))
    whole = Bench(specs[order[0]], everybody, on_progress=on_progress, should_stop=should_stop, subjects=len(specs))
    benches = [
        SubjectBench(whole, spec, plan, order.index(i)) for i, (spec, plan) in enumerate(zip(specs, plans, strict=True))
    ]
    return whole, benches


def _as_stranger(plan: Plan) -> Stranger:
    return Stranger(plan.subject.person, plan.subject.name, plan.subject.values)


class SubjectBench(Bench):
    """One subject's view of what was measured of everybody: the subject's own rows, then the twins'.

    It measures nothing itself and needs no model.
    """

    def __init__(self, whole: Bench, spec: VerificationSpec, plan: Plan, number: int) -> None:
        self.spec, self.plan, self.subjects = spec, plan, 1
        self._whole, self._number = whole, number
        self._views: dict[tuple[str, str], Part | Failure] = {}

    def tokens(self, role: str) -> Part | Failure:
        """The fused pass over this subject's texts and the twins'."""
        return self._view("tokens", role, self._whole.tokens, self._whole.persons)

    def served(self, role: str) -> Part | Failure | None:
        """The fused pass by the served sampling settings, where they are not plain."""
        if self._whole.served(role) is None:
            return None
        return self._view("served", role, lambda of: self._whole.served(of) or Failure("served"), self._whole.persons)

    def swaps(self, role: str) -> Part | Failure:
        """Log-probabilities of this subject's values, the twins' and their swaps."""
        return self._view("swaps", role, self._whole.swaps, self._whole.persons)

    def answers(self, role: str) -> Part | Failure:
        """Hits among the answers to this subject's questions and to the twins'."""
        return self._view("answers", role, self._whole_hits, self._whole.persons_for("answers"))

    def relearned(self, role: str) -> Part | Failure:
        """Log-probabilities after relearning, of this subject and the twins."""
        return self._view("relearned", role, self._whole.relearned, self._whole.persons_for("relearned"))

    def further(self, reads: str, role: str) -> Part | Failure:
        """The twins that no family asked for at first: the same for every subject."""
        return self._whole.further(reads, role)

    def kept_tokens(self, role: str) -> Part | Failure:
        """The fused pass over retained people's texts, the same for every subject."""
        return self._whole.kept_tokens(role)

    def unused_tokens(self, role: str) -> Part | Failure:
        """The fused pass over retained people in unused words, the same for every subject."""
        return self._whole.unused_tokens(role)

    def kept_answers(self, role: str) -> Part | Failure:
        """Hits of retained people's questions, the same for every subject."""
        return self._whole.kept_answers(role)

    def kept_said(self, role: str) -> list[str] | Failure:
        """Answers to retained people's questions, the same for every subject."""
        return self._whole.kept_said(role)

    def world_facts(self, role: str) -> Part | Failure:
        """General questions, the same for every subject."""
        return self._whole.world_facts(role)

    def fluency(self) -> Part | Failure:
        """How the base model finds the answers about this subject and about some twins."""
        return self._view("fluency", "base", lambda role: self._whole.fluency(), self._whole.fluent_persons)

    def determinism(self) -> Part | Failure:
        """The largest difference over texts of all subjects and twins."""
        return self._whole.determinism()

    def once(self, name: str, compute: Callable[[], T]) -> T:
        """What does not depend on the subject is computed by the first who needs it."""
        return self._whole.once(name, compute)

    @property
    def cpu_seconds(self) -> dict[str, float]:
        """Processor seconds of the parts, which all subjects of the pool caused together."""
        return {f"pool_{name}": seconds for name, seconds in self._whole.cpu_seconds.items()}

    @cached_property
    def compressed(self) -> Tensor:
        """Compressed size of each text's labels."""
        return self._mine(self._whole.compressed, self._whole.persons)

    def _whole_hits(self, role: str) -> Part | Failure:
        part = self._whole.answers(role)
        return part if isinstance(part, Failure) else Part({"hits": part.tensors["hits"]}, part.cpu_seconds)

    def _view(self, name: str, role: str, measure: Callable[[str], Part | Failure], persons: int) -> Part | Failure:
        if (name, role) not in self._views:
            part = measure(role)
            if isinstance(part, Part):
                mine = {key: self._mine(tensor, persons) for key, tensor in part.tensors.items()}
                part = Part(mine, part.cpu_seconds)
            self._views[name, role] = part
        return self._views[name, role]

    def _mine(self, tensor: Tensor, persons: int) -> Tensor:
        """Rows of this subject and of the twins: (persons * items, ...) to (1 + twins, items) flattened alike."""
        rows = tensor.reshape(persons, -1, *tensor.shape[1:])
        chosen = torch.cat([rows[self._number : self._number + 1], rows[self._whole.subjects :]])
        return chosen.flatten(0, 1)
