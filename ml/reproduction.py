"""Whether two reports of one verification say the same, number by number. Standard library only.

Must never pass over something that only one of them holds: what is missing differs. Costs are not compared, and what
surrounds a run (libraries, device, code) is listed, not judged.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Final, TypeGuard

from ml.decision import GateVerdict, Verdict
from ml.reports import VerificationReport

IDENTITY: Final = ("run_id", "attempt", "policy_sha256", "models", "artefacts", "seeds", "schema_version")
GROUPS: Final = (
    "attacks",
    "joint",
    "guards",
    "hard_rules",
    "utility",
    "validity",
    "groups",
    "energies",
    "separation",
    "probe_sets",
    "notes",
    "relearning",
    "rocs",
)
UNCOMPARED: Final = ("environment", "cpu_seconds")
# What tells the rows of a report apart.
_LABELS: Final = ("family", "attack", "artefact", "metric", "rule", "id", "name", "group", "moment")


@dataclass(frozen=True, slots=True)
class Difference:
    """One place where two reports differ by more than the tolerance, or in kind; `None` stands for absent."""

    place: str
    recorded: str | None
    repeated: str | None


@dataclass(frozen=True, slots=True)
class GroupComparison:
    """One part of a report: how many numbers both hold, the largest difference among them and where, and the faults."""

    group: str
    numbers: int
    largest: float
    place: str
    differing: tuple[Difference, ...]


def compare_reports(
    recorded: VerificationReport, repeated: VerificationReport, *, tolerance: float
) -> tuple[GroupComparison, ...]:
    """Compare two reports part by part.

    Args:
        tolerance: largest difference of two numbers that count as the same, as a share of the larger or of 1.
    """
    parts = [("identity", _part(recorded, IDENTITY), _part(repeated, IDENTITY))]
    parts += [(name, _part(recorded, (name,)), _part(repeated, (name,))) for name in GROUPS]
    return tuple(_compare(name, ours, theirs, tolerance) for name, ours, theirs in parts)


def environment_differences(recorded: Mapping[str, str], repeated: Mapping[str, str]) -> tuple[Difference, ...]:
    """Libraries, device or code that are not those of the recorded run: they may move last digits."""
    names = sorted({*recorded, *repeated})
    return tuple(
        Difference(name, recorded.get(name), repeated.get(name))
        for name in names
        if recorded.get(name) != repeated.get(name)
    )


def gate_differences(recorded: Verdict, repeated: Verdict) -> tuple[Difference, ...]:
    """The gates whose results differ, each by its name."""
    ours, theirs = _by_gate(recorded.gates), _by_gate(repeated.gates)
    names = dict.fromkeys([*ours, *theirs])
    return tuple(
        Difference(name, ours.get(name), theirs.get(name)) for name in names if ours.get(name) != theirs.get(name)
    )


def _by_gate(gates: tuple[GateVerdict, ...]) -> dict[str, str]:
    return {gate.gate: gate.result.value for gate in gates}


def _part(report: VerificationReport, names: tuple[str, ...]) -> dict[str, object]:
    leaves: dict[str, object] = {}
    for name in names:
        leaves.update(_leaves(getattr(report, name), name))
    return leaves


def _leaves(node: object, place: str) -> Iterator[tuple[str, object]]:
    """Every value below `node` under the path that leads to it."""
    if is_dataclass(node) and not isinstance(node, type):
        for f in fields(node):
            yield from _leaves(getattr(node, f.name), f"{place}.{f.name}")
    elif isinstance(node, Mapping):
        for key, child in node.items():
            yield from _leaves(child, f"{place}.{key}")
    elif isinstance(node, tuple):
        # How many rows there are is a value too: an empty list has no other.
        yield f"{place}.length", len(node)
        seen: Counter[str] = Counter()
        for index, child in enumerate(node):
            label = _label(child) or str(index)
            seen[label] += 1
            yield from _leaves(child, f"{place}[{label}]" if seen[label] == 1 else f"{place}[{label} #{seen[label]}]")
    else:
        yield place, node


def _label(row: object) -> str:
    return " ".join(str(getattr(row, name)) for name in _LABELS if isinstance(getattr(row, name, None), str))


def _compare(
    group: str, recorded: Mapping[str, object], repeated: Mapping[str, object], tolerance: float
) -> GroupComparison:
    numbers, largest, largest_at = 0, 0.0, ""
    differing: list[Difference] = []
    for place in dict.fromkeys([*recorded, *repeated]):
        ours, theirs = recorded.get(place), repeated.get(place)
        if _is_number(ours) and _is_number(theirs):
            numbers += 1
            distance = abs(ours - theirs)
            if distance > largest:
                largest, largest_at = distance, place
            same = distance <= tolerance * max(1.0, abs(ours), abs(theirs))
        else:
            same = ours == theirs
        if not same:
            differing.append(Difference(place, _text(ours), _text(theirs)))
    return GroupComparison(group, numbers, largest, largest_at, tuple(differing))


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _text(value: object) -> str | None:
    return None if value is None else str(value)
