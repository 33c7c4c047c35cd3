"""Change nothing. This method exists to be caught: a pipeline that passes its candidate proves nothing."""

from __future__ import annotations

from dataclasses import dataclass, field

from ml.methods.method import METHODS, Need, Plan, Training, UnlearningTask
from ml.reports import Guarantee


@dataclass(frozen=True, slots=True)
class NoneSettings:
    """Only the adapter's size is used; its first output is zero, so the candidate equals the model before."""

    training: Training = field(default_factory=lambda: Training(steps=1, learning_rate=1e-3))


@METHODS.register("none")
class NoDeletion:
    """Return the model as it was, under another name."""

    version = "1"
    guarantee: Guarantee = "unchanged"
    needs: frozenset[Need] = frozenset()
    settings = NoneSettings

    def plan(self, task: UnlearningTask, settings: NoneSettings) -> Plan:
        """Train nothing."""
        return Plan(step=None, loop=None)
